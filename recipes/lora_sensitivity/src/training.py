"""One training: a base model, an adapter, transformers' Trainer, and moetrace's gradient probe."""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import get_last_checkpoint

import moetrace
from configs.config import TARGET_MODULES, DatasetType, ExperimentConfig, TargetModuleGroup
from moetrace_adapters.transformers import MoETraceCallback
from src.base_model import load_model, load_tokenizer
from src.data_source import Samples
from src.encoding import encoded, together
from src.errors import ExperimentError, is_out_of_memory, out_of_memory_advice

__all__ = ["Trained", "precision_of", "train"]


@dataclass(frozen=True, slots=True)
class Trained:
    """A training that is over.

    Attributes:
        model: The model with its adapter, the best one where there was a validation.
        tokenizer: Of the model.
        losses: Step and loss, by ``"train"`` and ``"eval"``.
        steps: Optimizer steps.
        best_step: Step of the lowest validation loss, whose adapter ``model`` has; None without a
            validation: then it is the last.
        trainable: Parameters of the adapter.
        cut: Samples that did not fit into ``--max_length``.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        notes: What a person should know.
    """

    model: Any
    tokenizer: Any
    losses: dict[str, list[tuple[int, float]]]
    steps: int
    best_step: int | None
    trainable: int
    cut: int
    precision: str
    notes: tuple[str, ...]


class _Bar(ProgressCallback):
    """A progress bar that shows the loss, in place of a line per step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.4f}")


class _AdapterTrainer(Trainer):
    """A Trainer whose checkpoints hold the adapter, and nothing that only unpickling can read."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The base's embeddings are none of the adapter, and looking for them asks the hub.
        folder = output_dir or str(self.args.output_dir)
        self.accelerator.unwrap_model(self.model).save_pretrained(
            folder, state_dict=state_dict, save_embedding_layers=False
        )

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        own = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        file = Path(output_dir) / f"rng_state{own}.pth"
        with safe_globals():
            state = torch.load(file, weights_only=True)
        kind, keys, *rest = state["numpy"]
        state["numpy"] = (kind, [int(key) for key in keys], *rest)  # no array, no name to allow
        torch.save(state, file)


def train(
    config: ExperimentConfig, samples: Samples, *, resume: bool = False, quiet: bool = False
) -> Trained:
    """Train an adapter; gradients go into the run folder ``run`` beside the results.

    Args:
        config: The experiment, checked.
        samples: What it learns.
        resume: Go on from the newest checkpoint, where there is one.
        quiet: No progress bar.

    Raises:
        ExperimentError: There is no such model, it lacks the modules, or memory ran out.
    """
    training = config.training
    precision = precision_of(config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ExperimentError("found several processes; start one, without torchrun")
    with _memory_told(config):
        tokenizer = load_tokenizer(config.model.model_id)
        base = load_model(config.model.model_id, dtype=_DTYPES[precision])
        set_seed(training.seed)
        model, notes = _with_adapter(base, config)
    learnt, cut = _tokens(tokenizer, config, samples.train)
    held, more = _tokens(tokenizer, config, samples.validation)
    if not learnt:
        raise ExperimentError("found no sample to learn; give more with --num_samples")
    folder = config.results_dir / "checkpoints"
    trace = MoETraceCallback(
        config.results_dir / "run",
        every=config.analysis.log_frequency,
        probes=[moetrace.GradientProbe()],
        layers=(),
        alerts=None,
    )
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    trainer = _AdapterTrainer(
        model=model,
        args=_arguments(config, folder, precision, validated=bool(held), quiet=quiet),
        train_dataset=learnt,
        eval_dataset=held or None,
        data_collator=lambda batch: together(batch, pad=pad),
        callbacks=[trace],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not quiet:
        trainer.add_callback(_Bar)
    trace.before_clipping(trainer)
    newest = get_last_checkpoint(str(folder)) if resume and folder.is_dir() else None
    with _memory_told(config):
        trainer.train(resume_from_checkpoint=newest)
    best = trainer.state.best_model_checkpoint
    return Trained(
        model,
        tokenizer,
        _losses(trainer.state.log_history),
        trainer.state.global_step,
        None if best is None else int(Path(best).name.rpartition("-")[2]),
        sum(item.numel() for item in model.parameters() if item.requires_grad),
        cut + more,
        precision,
        notes,
    )


def precision_of(config: ExperimentConfig) -> str:
    """The precision that ``auto`` is on this machine, or the one that was asked for.

    Raises:
        ExperimentError: It needs a GPU, or there is no such.
    """
    asked = config.training.precision
    if asked == "auto":
        return "fp16" if torch.cuda.is_available() else "fp32"
    if asked not in _DTYPES:
        raise ExperimentError(f"found --precision {asked!r}; it is auto, {', '.join(_DTYPES)}")
    if asked == "fp16" and not torch.cuda.is_available():
        raise ExperimentError("found --precision fp16 and no GPU; bf16 and fp32 run without one")
    return asked


_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _with_adapter(base: nn.Module, config: ExperimentConfig) -> tuple[nn.Module, tuple[str, ...]]:
    group = TargetModuleGroup(config.lora.target_module_group)
    wanted = TARGET_MODULES[group]
    there = {name.rpartition(".")[2] for name, _ in base.named_modules()}
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ExperimentError(
            f"{config.model.model_id!r} has no module {', '.join(missing)}, which --target "
            f"{group.value} adapts; take a model of the Llama family, or another --target"
        )
    notes = []
    if group is TargetModuleGroup.ALL and getattr(base.config, "tie_word_embeddings", False):
        notes.append(
            "embed_tokens and lm_head share their weight; each got an adapter of its own, so "
            "merging both into one weight is not possible"
        )
    lora = PeftLoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.lora_alpha,
        lora_dropout=config.lora.lora_dropout,
        target_modules=list(wanted),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora), tuple(notes)


def _tokens(
    tokenizer: Any, config: ExperimentConfig, examples: list[Any]
) -> tuple[list[dict[str, Any]], int]:
    dataset = DatasetType(config.data.dataset_type)
    found = [encoded(tokenizer, dataset, item, config.data.max_length) for item in examples]
    rows = [{"input_ids": item.input_ids, "labels": item.labels} for item in found]
    return rows, sum(item.cut for item in found)


def _arguments(
    config: ExperimentConfig, folder: Path, precision: str, *, validated: bool, quiet: bool
) -> TrainingArguments:
    training = config.training
    # The best checkpoint is one that was validated: a checkpoint every so many validations.
    between = min(training.eval_steps, training.max_steps)
    saved = max(1, training.save_steps // between) * between
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=training.max_steps,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type=training.lr_scheduler_type,
        seed=training.seed,
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=config.analysis.log_frequency,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validated else "no",
        eval_steps=between,
        save_strategy="steps" if validated else "no",
        save_steps=saved,
        save_total_limit=2,
        load_best_model_at_end=validated,
        metric_for_best_model="eval_loss" if validated else None,
        greater_is_better=False if validated else None,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=quiet,
    )


def _losses(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    losses: dict[str, list[tuple[int, float]]] = {"train": [], "eval": []}
    for row in history:
        for name, key in (("train", "loss"), ("eval", "eval_loss")):
            if key in row and math.isfinite(row[key]):
                losses[name].append((int(row["step"]), float(row[key])))
    return losses


@contextlib.contextmanager
def _memory_told(config: ExperimentConfig) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = out_of_memory_advice(
            batch_size=config.training.batch_size,
            grad_accum=config.training.gradient_accumulation_steps,
            max_length=config.data.max_length,
        )
        raise ExperimentError(advice) from error
