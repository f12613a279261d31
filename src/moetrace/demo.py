"""`moetrace demo`: train a real MoE on real text for about a minute, and look at its routing.

The model is a small Qwen3-MoE built in code, the text the Python standard library's own sources,
read as bytes: both are on every machine that can install transformers.
"""

import argparse
import json
import random
import sysconfig
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.attachment import attach
from moetrace.metrics import spread
from moetrace.report import write_report
from moetrace.run import open_run
from moetrace.show import show_table
from moetrace.snapshot import Snapshot
from moetrace.tracer import Tracer

__all__ = ["main", "small_moe", "text_batches"]

STEPS = 300
EVERY = 10
MICRO_BATCHES = 2
ROWS, LENGTH = 8, 128
HELD_OUT = 4
EVALUATE_EVERY = 60
PAD, VOCABULARY = 256, 257


@dataclass(frozen=True, slots=True)
class Batch:
    """Bytes of text as tokens, shape ``(rows, length)``, and which of them are real."""

    ids: Tensor
    mask: Tensor

    def as_arguments(self) -> dict[str, Tensor]:
        """Arguments of a transformers causal language model; padding has no label."""
        labels = self.ids.masked_fill(self.mask == 0, -100)
        return {"input_ids": self.ids, "attention_mask": self.mask, "labels": labels}


def small_moe() -> nn.Module:
    """A Qwen3-MoE of 6 layers with 16 experts each, top-2; 2.1 million parameters, random."""
    import transformers

    transformers.logging.set_verbosity_error()
    config: Any = transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=16,
        num_experts_per_tok=2,
        output_router_logits=True,  # which makes transformers add the load-balancing loss
        router_aux_loss_coef=0.3,
        max_position_embeddings=LENGTH,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def text_batches(seed: int) -> Iterator[Batch]:
    """Endless batches of lines of standard library sources, of any length up to 128, padded."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    draw = random.Random(seed)
    while True:
        rows = [_excerpt(draw.choice(files).read_bytes(), draw) for _ in range(ROWS)]
        ids = torch.full((ROWS, LENGTH), PAD)
        for row, text in enumerate(rows):
            ids[row, : len(text)] = torch.tensor(list(text))
        yield Batch(ids, (ids != PAD).long())


def main(arguments: argparse.Namespace) -> int:
    """Run the demo; returns the exit code.

    Args:
        arguments: ``run`` (folder), ``steps`` (None for about a minute on two cores), ``json``.
    """
    steps = arguments.steps or STEPS
    torch.manual_seed(0)
    model = small_moe().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train, held_out = text_batches(0), text_batches(1)
    evaluation = [next(held_out) for _ in range(HELD_OUT)]
    started = time.monotonic()
    with (
        attach(model, arguments.run, every=EVERY) as tracer,
        _progress(steps, quiet=arguments.json) as progress,
    ):
        for _ in range(steps):
            tracer.on_step_begin()
            loss = 0.0
            for _ in range(MICRO_BATCHES):
                micro = model(**next(train).as_arguments()).loss / MICRO_BATCHES
                micro.backward()
                loss += micro.item()
            optimizer.step()
            optimizer.zero_grad()
            tracer.on_step_end()
            if tracer.step % EVALUATE_EVERY == 0:
                _evaluate(model, evaluation)
            if progress is not None:
                progress.advance(loss, tracer.latest)
        path = tracer.run
    assert path is not None
    return _finish(path, tracer, time.monotonic() - started, as_json=arguments.json)


def _evaluate(model: nn.Module, batches: list[Batch]) -> None:
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(**batch.as_arguments())
    model.train()


def _finish(path: Path, tracer: Tracer, seconds: float, *, as_json: bool) -> int:
    run = open_run(path)
    report = write_report(run, out=path / "report.html")
    if as_json:
        print(json.dumps({"run": str(path), "report": str(report), **run.summary()}))
        return 0
    print()
    show_table(run, run.snapshots()[-1])
    print(f"\n{tracer.step} steps in {seconds:.0f} s, every token of every router counted once.")
    print(f"run folder  {path}")
    print(f"report      {report}")
    print("Open the report in a browser; it needs no network.")
    return 0


def _excerpt(text: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(max(1, len(text) - LENGTH))
    return text[start : start + draw.randint(LENGTH // 4, LENGTH)] or b"\n"


def _progress(steps: int, *, quiet: bool) -> AbstractContextManager["_Progress | None"]:
    return nullcontext() if quiet else _Progress(steps)


class _Progress:
    """A bar with the loss and the worst layer; a line now and then where there is no terminal."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._console = Console(highlight=False)
        columns: list[Any] = [
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            Remaining(),
        ]
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("training", total=steps, state="")
        self._steps, self._done = steps, 0

    def __enter__(self) -> "_Progress":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def advance(self, loss: float, latest: Snapshot | None) -> None:
        """One step more."""
        self._done += 1
        state = f"loss {loss:.3f}  {_worst(latest)}"
        if self._console.is_terminal:
            self._bar.update(self._task, advance=1, state=state)
        elif self._done % (2 * EVERY) == 0 or self._done == self._steps:
            self._console.print(f"step {self._done:4d}/{self._steps}  {state}", markup=False)


def _worst(snapshot: Snapshot | None) -> str:
    """The layer with the highest MaxVio of the newest training window, in a few words."""
    if snapshot is None or snapshot.phase != "train":
        return ""
    worst = spread({stats.layer: stats.metrics()["max_vio"] for stats in snapshot})
    return "" if worst is None else f"worst MaxVio {worst.worst:.2f} in {worst.worst_layer}"
