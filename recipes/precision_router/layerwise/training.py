"""The training of the routers: everything between the command line and the files."""

import argparse
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

import moetrace
from layerwise import checkpoint
from layerwise.causal_lm import LayerwiseQuantizeForCausalLM, checked_precisions
from layerwise.collapse import Prospect
from layerwise.errors import RecipeError
from layerwise.evaluation import score_fixed, score_router
from layerwise.nested_model import offered_precisions
from layerwise.objective import Objective, next_token_loss
from layerwise.pooling import Pool
from layerwise.preparation import load_model, load_pieces, log_configuration, objective_of
from layerwise.program import device_of, seed_everything
from layerwise.routing_trace import ALERTS, AlertLog, collapse_of, layer_choices
from layerwise.text_data import Pieces

__all__ = ["RUN", "Means", "train_router"]

RUN = "routing"
"""Folder inside ``--save_dir`` with what moetrace recorded; ``moetrace report`` reads it."""

_MAY_DIFFER = frozenset({"model_path", "save_dir", "device", "debug", "resume", "num_epochs"})
_PROSPECT_PIECES = 32
_log = logging.getLogger("layerwise")


@dataclass(frozen=True, slots=True)
class Means:
    """Figures of one epoch or one validation.

    Attributes:
        total_loss: What is minimised.
        ce_loss: Cross-entropy, nats per token.
        precision_loss: The part about bits, not weighted.
        avg_precision: Bits.
    """

    total_loss: float
    ce_loss: float
    precision_loss: float
    avg_precision: float

    def to_dict(self, prefix: str = "") -> dict[str, float]:
        """Plain floats by name."""
        names = ("total_loss", "ce_loss", "precision_loss", "avg_precision")
        return {prefix + name: float(getattr(self, name)) for name in names}


def train_router(options: argparse.Namespace) -> Path:
    """Train routers as the options say; returns the path of the best checkpoint.

    Args:
        options: What `layerwise.options.training_parser` gives.

    Raises:
        RecipeError: Something in the options does not fit the model, the data or the machine.
    """
    offered = offered_precisions(options.model_path)
    precisions = checked_precisions(options.precisions, offered)
    if len(precisions) == 1:
        raise RecipeError(
            f"found --precisions {precisions[0]} alone, which leaves nothing to choose; "
            f"give two or more of {offered}"
        )
    pool = Pool.parse(options.pool)
    pool.refuse_short(options.seq_len)
    objective = objective_of(options, precisions)
    log_configuration(options, precisions)
    device = device_of(options.device)
    seed_everything(options.random_state)
    model = load_model(options, precisions, objective, device)
    pieces = load_pieces(options, model)
    loop = _Loop(options, model, objective, pieces)
    _log.info("Optimizer setup: AdamW with lr=%s", options.learning_rate)
    loop.look_ahead()
    return loop.train()


class _Loop:
    """One training, from its first epoch or from a checkpoint on."""

    def __init__(
        self,
        options: argparse.Namespace,
        model: LayerwiseQuantizeForCausalLM,
        objective: Objective,
        pieces: Pieces,
    ) -> None:
        self.options, self.model, self.objective, self.pieces = options, model, objective, pieces
        self.device = next(model.parameters()).device
        self.folder = Path(options.save_dir)
        self.batches = math.ceil(len(pieces.train) / options.batch_size)
        self.optimizer = torch.optim.AdamW(model.router_parameters(), lr=options.learning_rate)
        steps = self.batches * options.num_epochs
        cosine = options.lr_schedule == "cosine"
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))) if cosine else 1.0,
        )
        self.history: list[dict[str, Any]] = []
        self.epoch, self.step, self.best = 0, 0, math.inf
        self.settled = False

    def look_ahead(self) -> None:
        """Measure every uniform choice, and say what the weights of the loss will end in."""
        some = torch.cat([self.pieces.validation, self.pieces.train])[:_PROSPECT_PIECES]
        prospect = Prospect(
            self.objective,
            {
                bits: score_fixed(
                    self.model, some, bits, batch_size=self.options.batch_size
                ).cross_entropy
                for bits in self.model.precisions
            },
        )
        for line in prospect.lines():
            _log.info("%s", line)
        if prospect.collapses:
            _log.warning("%s", prospect.warning())

    def train(self) -> Path:
        """All epochs that are left; returns the path of the best checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.options.resume:
            self._resume()
        with moetrace.attach(
            self.model,
            self.folder / RUN,
            every=math.ceil(self.batches / 4),
            sinks=[AlertLog(self.model.precisions)],
            layers=self.model.sites,
            alerts=ALERTS,
        ) as tracer:
            while self.epoch < self.options.num_epochs:
                self._epoch(tracer)
        _log.info("Training completed!")
        _log.info("Best loss: %.4f", self.best)
        _log.info("Checkpoints saved in: %s", self.folder)
        return self.folder / checkpoint.BEST

    def _epoch(self, tracer: moetrace.Tracer) -> None:
        self.epoch += 1
        before = self.step
        _log.info("Epoch %d/%d", self.epoch, self.options.num_epochs)
        trained = self._train_epoch(tracer)
        validated = self._validate()
        tracer.flush()
        entry: dict[str, Any] = {"epoch": self.epoch, **trained.to_dict()}
        entry |= trained.to_dict("train_")
        entry |= validated.to_dict("val_") if validated else {}
        _log_results(self.epoch, trained, validated)
        entry |= self._routing(before)
        self.history.append(entry)
        self._save(entry, trained if validated is None else validated)

    def _train_epoch(self, tracer: moetrace.Tracer) -> Means:
        options, objective = self.options, self.objective
        self.model.train()
        order = torch.Generator().manual_seed(options.random_state + self.epoch)
        shuffled = self.pieces.train[torch.randperm(len(self.pieces.train), generator=order)]
        sums = [0.0, 0.0, 0.0, 0.0]
        progress = tqdm(
            shuffled.split(options.batch_size), desc=f"Epoch {self.epoch}/{options.num_epochs}"
        )
        for number, rows in enumerate(progress, 1):
            self.step += 1
            tracer.on_step_begin(self.step)
            total, cross_entropy, average = self._loss(rows.to(self.device))
            figures = [
                total.item(),
                cross_entropy.item(),
                objective.precision(average.item()),
                average.item(),
            ]
            if not all(map(math.isfinite, figures)):
                raise RecipeError(
                    f"found loss {figures[0]} in batch {number} of epoch {self.epoch}; take a "
                    "smaller --learning_rate, or look at what the model gives for this text"
                )
            total.backward()
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            tracer.on_step_end()
            sums = [have + len(rows) * figure for have, figure in zip(sums, figures, strict=True)]
            text = "Loss: {:.4f}, CE: {:.4f}, Prec: {:.4f}, AvgPrec: {:.2f}".format(*figures)
            progress.set_postfix_str(text)
            _log.debug("epoch %d, batch %d/%d: %s", self.epoch, number, self.batches, text)
        return Means(*(have / len(shuffled) for have in sums))

    def _loss(self, ids_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model.train_forward(  # without a mask: pieces have no padding
            ids_BS, mode=self.options.mode, neighbours=self.options.neighbours
        )
        scored_BS = self.model.pool.scored(torch.ones_like(ids_BS))
        cross_entropy = next_token_loss(output.logits, ids_BS, scored_BS)
        average = output.avg_precision
        return self.objective.total(cross_entropy, average), cross_entropy, average

    def _validate(self) -> Means | None:
        """The loss of the choices themselves: of a mixture it would flatter, see the README."""
        if not len(self.pieces.validation):
            return None
        score = score_router(self.model, self.pieces.validation, batch_size=self.options.batch_size)
        found, average = score.cross_entropy, score.avg_precision
        total = self.objective.total(found, average)
        return Means(total, found, self.objective.precision(average), average)

    def _routing(self, before: int) -> dict[str, Any]:
        """What moetrace saw in this epoch: logged, and for the history."""
        windows = [
            window
            for window in moetrace.open_run(self.folder / RUN).snapshots()
            if window.last_step > before
        ]
        choices = layer_choices(windows, self.model.precisions)
        for choice in choices:
            _log.info("  - %s", choice.line())
        collapsed = collapse_of(choices)
        if collapsed is not None:
            lowest = all(choice.usual == self.model.precisions[0] for choice in choices)
            _log.log(logging.WARNING if lowest else logging.INFO, "%s", collapsed)
        return {
            "layer_avg_precision": [choice.average for choice in choices],
            "layer_routing_entropy": [choice.entropy for choice in choices],
        }

    def _save(self, entry: dict[str, Any], judged: Means) -> None:
        better = judged.total_loss < self.best
        self.best = min(self.best, judged.total_loss)
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": {"last_epoch": self.schedule.last_epoch},
            "random_state": _random_state(),
            "metrics": entry,
            "history": self.history,
            "best_loss": self.best,
            "config": vars(self.options),
        }
        path = self.folder / checkpoint.epoch_file(self.epoch)
        if better:
            checkpoint.save_checkpoint(state, self.folder / checkpoint.BEST)
        checkpoint.save_checkpoint(state, path)
        checkpoint.write_json(self.history, self.folder / checkpoint.HISTORY)
        _log.info("Checkpoint saved: %s", path)
        if better:
            _log.info("New best model saved: %s", self.folder / checkpoint.BEST)

    def _resume(self) -> None:
        path = checkpoint.newest_checkpoint(self.folder)
        if path is None:
            _log.info("No checkpoint in %s; starting anew", self.folder)
            return
        saved = checkpoint.load_checkpoint(path)
        now, then = vars(self.options), saved["config"]
        differ = {name for name in now if now[name] != then.get(name, now[name])} - _MAY_DIFFER
        if self.options.lr_schedule == "cosine" and now["num_epochs"] != then["num_epochs"]:
            differ.add("num_epochs")
        if differ:
            named = ", ".join(f"--{name} {then[name]}" for name in sorted(differ))
            raise RecipeError(f"found a training with {named} in {path}; resume it with these")
        self.model.load_state_dict(saved["model_state_dict"])
        self.optimizer.load_state_dict(saved["optimizer_state_dict"])
        self.schedule.last_epoch = saved["scheduler_state_dict"]["last_epoch"]
        _set_random_state(saved["random_state"])
        self.epoch, self.step, self.best = saved["epoch"], saved["step"], saved["best_loss"]
        self.history = list(saved["history"])
        _log.info("Resumed after epoch %d from %s", self.epoch, path)


def _log_results(epoch: int, trained: Means, validated: Means | None) -> None:
    _log.info("Epoch %d Results:", epoch)
    for prefix, means in (("", trained), ("Validation ", validated)):
        if means is not None:
            _log.info("  - %sTotal Loss: %.4f", prefix, means.total_loss)
            _log.info("  - %sCE Loss: %.4f", prefix, means.ce_loss)
            _log.info("  - %sPrecision Loss: %.4f", prefix, means.precision_loss)
            _log.info("  - %sAverage Precision: %.2f", prefix, means.avg_precision)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
