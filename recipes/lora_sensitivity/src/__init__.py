"""The parts of the LoRA sensitivity experiment."""
