"""Builds every architecture, traces it, compares what moetrace counted with the truth."""

import gc
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from moetrace import NoRouterFound, attach, discover
from moetrace.sinks import MemorySink
from tests.coverage.architectures import model_classes, tiny_model
from tests.coverage.configurations import VARIANTS
from tests.coverage.inputs import inputs_of
from tests.coverage.look_alikes import LOOK_ALIKES, SPARE_PARTS
from tests.coverage.scan import Suspect
from tests.coverage.truth import TrueSite, Truth

__all__ = ["Row", "certify", "examine", "with_identity"]

_MOST_NOTES = 4

TOLERANCE = 1e-5
"""Nats by which a mean entropy may differ: moetrace forms it in float32, the truth in float64."""


@dataclass(slots=True)
class Row:
    """What the certificate says of one kind of block in one architecture.

    Attributes:
        architecture: Folder under ``transformers/models``.
        variant: What was set beyond the default; empty for the default.
        model: The class that was built; empty where none could be.
        block, router: Class names.
        reader: Class name of moetrace's reader, empty where there was none.
        sites: Blocks of this kind in the model.
        counts, entropy: ``"exact"``; ``"-"`` where there is nothing to compare; ``"no router"``
            where the caller chooses and attach rightly found none; else what is wrong.
        scoring: What turns the router's logits into scores, as the weights show it.
        notes: Reasons, one sentence each.
        said: What moetrace told its user meanwhile.
        router_output, experts_call, truth: What was seen, for whoever writes the reader.
    """

    architecture: str
    variant: str = ""
    model: str = ""
    block: str = ""
    router: str = ""
    reader: str = ""
    sites: int = 0
    counts: str = "not built"
    entropy: str = "-"
    scoring: str = ""
    notes: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    router_output: str = ""
    experts_call: str = ""
    truth: str = ""

    @property
    def exact(self) -> bool:
        """Whether everything that can be compared is equal."""
        return self.counts == "exact" and self.entropy in ("exact", "-")

    @property
    def refused(self) -> bool:
        """Whether there is no router, and attach rightly found none."""
        return self.counts == "no router"

    def fail(self, verdict: str, reason: str) -> None:
        """Take the verdict, unless there was one before, and note the reason."""
        if self.counts == "exact":
            self.counts = verdict
        self.note(reason)

    def note(self, reason: str) -> None:
        """Keep the reason, if it is new and not the fifth."""
        if reason and reason not in self.notes and len(self.notes) < _MOST_NOTES:
            self.notes.append(reason)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        return {**asdict(self), "exact": self.exact}


def certify(
    suspects: Iterable[Suspect], *, progress: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """The rows of every architecture among the suspects; look-alikes have none.

    Never raises for one of them: what goes wrong is a row that says so.
    """
    rows = []
    for suspect in suspects:
        if not suspect.parts or suspect.folder in LOOK_ALIKES:
            continue
        begun = time.perf_counter()
        found = examine(suspect)
        rows += found
        verdict = ", ".join(f"{row.block or '?'}: {row.counts}" for row in found)
        progress(f"{suspect.folder:26} {time.perf_counter() - begun:5.1f} s  {verdict}")
        gc.collect()
    return rows


def examine(suspect: Suspect) -> list[Row]:
    """The rows of one architecture, one for each kind of block and router in its models."""
    rows: list[Row] = []
    missing = {part for part in suspect.parts if part not in SPARE_PARTS}
    try:
        classes = model_classes(suspect)
    except Exception as error:
        return [Row(suspect.folder, notes=[_in_words(error)])]
    for changes in ({}, *VARIANTS.get(suspect.folder, ())):
        variant = ", ".join(f"{name}={value}" for name, value in changes.items())
        for model_class in classes:
            try:
                model = tiny_model(model_class, **changes)
            except Exception as error:
                rows.append(Row(suspect.folder, variant, notes=[_in_words(error)]))
                continue
            missing -= {type(module).__name__ for module in model.modules()}
            try:
                found = _compare(suspect, model)
            except Exception as error:
                found = [Row(suspect.folder, counts="raised", notes=[_in_words(error)])]
            rows += [replace(row, variant=variant, model=model_class.__name__) for row in found]
    if missing:
        built = " or ".join(item.__name__ for item in classes)
        names = ", ".join(sorted(missing))
        rows.append(Row(suspect.folder, notes=[f"found no {names} in {built}"]))
    return rows


def _compare(suspect: Suspect, model: nn.Module) -> list[Row]:
    truth, sink = Truth(model, suspect.parts), MemorySink()
    with _Listening() as said:
        try:
            tracer = attach(model, every=1, sinks=[sink])
        except NoRouterFound:
            tracer = None
        masks = _run(model, truth, tracer)
        if tracer is not None:
            tracer.close()
    near = [site for site in discover(model) if not site.taken]
    taken = {} if tracer is None else {site.name: site for site in tracer.sites}
    windows = {snapshot.phase: snapshot for snapshot in sink.snapshots}
    rows: dict[tuple[str, str], Row] = {}
    if not truth.sites:
        note = f"found no experts to take the truth from; moetrace finds {len(taken)} sites"
        return [Row(suspect.folder, counts="no truth", notes=[note])]
    for site in truth.sites:
        row = rows.setdefault((site.block, site.router), _row_of(suspect, site))
        row.sites += 1
        if not site.calls["train"] or not site.calls["eval"]:
            row.fail("never ran", "the forward of this model did not reach it")
        elif not site.routed and tracer is None:
            row.fail("no router" if _tells(site, near) else "not told", _why(site, near))
        elif site.name not in taken:
            row.fail("no router found" if tracer is None else "site not found", _why(site, near))
        else:
            row.reader = taken[site.name].reader
            for label in ("train", "eval"):
                _judge(row, site, label, windows.get(label), masks[label])
    true = {site.name for site in truth.sites}
    for site in taken.values():
        if site.name not in true:
            row = rows.setdefault((site.router, "extra"), _extra_row(suspect, site))
            row.sites += 1
            counted = [w[site.name].calls for w in windows.values() if site.name in w.layers]
            row.fail("false site" if any(counted) else "extra site, silent", f"named {site.name}")
    for row in rows.values():
        if not row.exact:
            row.said += [line for line in said.lines if "no router" not in line]
    return list(rows.values())


def _run(model: nn.Module, truth: Truth, tracer: Any) -> dict[str, dict[str, torch.Tensor]]:
    """One step in train mode and one forward in eval mode; which tokens were real, by label."""
    masks = {}
    for seed, label in enumerate(("train", "eval")):
        inputs, masks[label] = inputs_of(model, seed)
        model.train(label == "train")
        torch.manual_seed(seed)
        with truth.says(label), torch.set_grad_enabled(label == "train"):
            if tracer is not None and label == "train":
                tracer.on_step_begin()
            model(**inputs)
            if tracer is not None and label == "train":
                tracer.on_step_end()
    return masks


def _judge(row: Row, site: TrueSite, label: str, window: Any, masks: dict[str, Any]) -> None:
    stats = None if window is None else window[site.name]
    if stats is None or stats.calls == 0:
        row.fail("silent", "")
        return
    counted, true = stats.tokens_per_expert.tolist(), site.counts(label, masks)
    if stats.identity_experts:
        skipped = site.skipped(label, masks)
        counted = [*counted, stats.identity]
        true = with_identity(true, experts=stats.num_experts, skipped=skipped)
    width = max(len(counted), len(true))
    counted, true = ([*item, *[0] * (width - len(item))] for item in (counted, true))
    tokens, dropped = site.tokens(label, masks), site.dropped(label, masks)
    if counted != true or stats.out_of_range:
        row.fail("wrong", f"{label}: counted {counted}, true {true}")
    if stats.tokens != tokens:
        row.fail("wrong", f"{label}: counted {stats.tokens} tokens, true {tokens}")
    if stats.dropped != dropped:
        row.fail("drops missed", f"{label}: counted {stats.dropped} dropped, true {dropped}")
    _judge_entropy(row, site, label, stats, masks)


def with_identity(true: list[int], *, experts: int, skipped: int) -> list[int]:
    """The counts with the choices of identity experts, and of none, in one column behind them."""
    real = true[:experts]
    return [*real, *[0] * (experts - len(real)), sum(true[experts:]) + skipped]


def _judge_entropy(row: Row, site: TrueSite, label: str, stats: Any, masks: dict[str, Any]) -> None:
    entropy, mean = site.entropy(label, masks), stats.mean("entropy_sum")
    call = site.calls[label][0]
    row.scoring = call.scoring
    if entropy is None:
        if call.logits_TE is not None:
            row.entropy = "not checked"
            row.note("no scoring that the truth knows explains the weights by these logits")
    elif mean is None:
        row.entropy = "none"
        row.note(f"{label}: entropy withheld, true {entropy:.4f}")
    elif abs(mean - entropy) > TOLERANCE:
        row.entropy = "wrong"
        row.note(f"{label}: entropy {mean:.4f}, true {entropy:.4f} by {call.scoring}")
    elif row.entropy == "-":
        row.entropy = "exact"


def _row_of(suspect: Suspect, site: TrueSite) -> Row:
    return Row(
        suspect.folder,
        block=site.block,
        router=site.router,
        counts="exact",
        router_output=site.router_output,
        experts_call=site.experts_call,
        truth=site.rule,
    )


def _extra_row(suspect: Suspect, site: Any) -> Row:
    return Row(suspect.folder, block=site.router, reader=site.reader, counts="exact")


def _why(site: TrueSite, near: list[Any]) -> str:
    reasons = [item.reason for item in near if item.path.startswith(f"{site.name}.")]
    return reasons[0] if reasons else "discover names no candidate in this block"


def _tells(site: TrueSite, near: list[Any]) -> bool:
    """Whether discover lists the experts of this block, with a reason."""
    return any(item.path.startswith(f"{site.name}.") and item.reason for item in near)


class _Listening(logging.Handler):
    """What moetrace logs meanwhile; it is kept from the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.log = logging.getLogger("moetrace")

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> "_Listening":
        self.log.addHandler(self)
        self.propagated, self.log.propagate = self.log.propagate, False
        return self

    def __exit__(self, *error: object) -> None:
        self.log.propagate = self.propagated
        self.log.removeHandler(self)


def _in_words(error: Exception) -> str:
    first = " ".join(str(error).split())
    return f"{type(error).__name__}: {first[:200]}"
