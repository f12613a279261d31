"""Where the Trainer of transformers has just saved."""

from pathlib import Path

from transformers import TrainerState, TrainingArguments

__all__ = ["checkpoint_of"]


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path | None:
    """The checkpoint that was written last; trials have theirs one folder further down."""
    inside = "*/" if state.is_hyper_param_search else ""
    found = Path(str(args.output_dir)).glob(f"{inside}checkpoint-{state.global_step}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
