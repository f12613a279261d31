"""The model, under the name that programs import it by."""

from layerwise.causal_lm import LayerwiseQuantizeForCausalLM

__all__ = ["LayerwiseQuantizeForCausalLM"]
