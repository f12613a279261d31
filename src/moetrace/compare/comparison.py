# pyright: strict
"""Several runs over the same steps: figures side by side, and what changed beyond its noise.

Letters: R runs, S spans, L layers, E experts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetrace.compare.noise import load_noise, times_noise, wobble
from moetrace.compare.spans import Span, spans_of
from moetrace.metrics import load_change
from moetrace.routing_stats import RoutingStats
from moetrace.run import Run

__all__ = ["FIGURES", "Change", "Comparison", "Subject", "compare_runs"]

FIGURES = {
    "load_cv": "load_cv_excess",
    "max_vio": "max_vio_excess",
    "load_gini": "load_gini_excess",
    "dead_experts": "dead_experts_excess",
    "routing_entropy": None,
    "confidence": None,
    "load_balancing_loss": None,
    "z_loss": None,
}
"""What is held side by side, and where it has a noise floor, what of it is compared: its excess."""

RESOLUTION = 1e-6
"""Share of a figure below which a difference is rounding: sums of reals are in fixed point."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the runs.

    Attributes:
        label: ``"A"`` for the first, which the others are compared with; ``"B"`` and so on.
        path: Its folder.
        run_id: Its name.
        model: Class name of the model.
        windows: Windows that it has.
        unmatched: Windows in spans of which another run does not have the same steps.
    """

    label: str
    path: str
    run_id: str
    model: str
    windows: int
    unmatched: int


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of one layer in one of the runs and in the first.

    Attributes:
        layer: The layer.
        figure: A key of `FIGURES`; ``"load"``: the share of the load on other experts; or
            ``"tokens"``, alone, where one of the two runs routes none in this layer.
        before: The figure in the first run; None for ``load``.
        after: The same in the other; None for ``load``.
        difference: Other minus first; of figures with a noise floor the difference of what exceeds
            it, so that runs with different batches can be compared.
        noise: What the difference would be by chance; None where that is not known.
        times: Size of the difference over the noise; infinite where there is none at all.
    """

    layer: str
    figure: str
    before: float | None
    after: float | None
    difference: float
    noise: float | None
    times: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Runs over the spans that all of them have.

    Attributes:
        phase: The phase.
        subjects: The runs.
        layers: Layers that all of them have, with the same number of experts.
        left_out: Layers that are not compared, and why.
        spans: First and last step of each span, shape ``(S, 2)``.
        at: Position of the span that is shown.
        figures: Keys of `FIGURES`, shape ``(R, S, L)`` each; NaN where undefined.
        compared: The same of what is subtracted: excesses where there is a floor.
        load_change: Share of the load on other experts than in the first run, ``(R, S, L)``.
        load_noise: What of it chance would show, ``(R, S, L)``.
        shown: The counts of the span that is shown, by layer, per run.
    """

    phase: str
    subjects: tuple[Subject, ...]
    layers: tuple[str, ...]
    left_out: Mapping[str, str]
    spans: NDArray[np.int64]
    at: int
    figures: Mapping[str, NDArray[np.float64]]
    compared: Mapping[str, NDArray[np.float64]]
    load_change: NDArray[np.float64]
    load_noise: NDArray[np.float64]
    shown: tuple[Mapping[str, RoutingStats], ...]

    def changes(self, other: int) -> list[Change]:
        """What differs between a run and the first in the span that is shown.

        Args:
            other: Position of the run in ``subjects``, from 1.

        Returns:
            A `Change` per layer and figure that both have; layers that route nothing in one of them
            first, then those furthest beyond their noise, those whose noise is not known last.
        """
        found: list[Change] = []
        for column, layer in enumerate(self.layers):
            found += self._changes_of(other, column, layer)
        return sorted(
            found,
            key=lambda item: (
                item.figure != "tokens",
                1.0 if item.times is None else -item.times,
            ),
        )

    def _changes_of(self, other: int, column: int, layer: str) -> list[Change]:
        found: list[Change] = []
        tokens = [self.shown[run][layer].tokens for run in (0, other)]
        if (tokens[0] > 0) != (tokens[1] > 0):
            was, now = map(float, tokens)
            return [Change(layer, "tokens", was, now, now - was, 0.0, math.inf)]
        moved, noise = (
            _known(table[other, self.at, column]) for table in (self.load_change, self.load_noise)
        )
        if moved is not None:
            times = times_noise(moved, noise)
            found.append(Change(layer, "load", None, None, moved, noise, times))
        for name, values in self.figures.items():
            before, after = (_known(values[run, self.at, column]) for run in (0, other))
            series = self.compared[name][other, :, column] - self.compared[name][0, :, column]
            difference = _known(series[self.at])
            if before is None or after is None or difference is None:
                continue
            smallest = RESOLUTION * max(abs(before), abs(after))
            difference = difference if abs(difference) > smallest else 0.0
            noise = wobble(series.tolist())
            noise = 0.0 if noise is not None and noise <= smallest else noise
            times = times_noise(difference, noise)
            found.append(Change(layer, name, before, after, difference, noise, times))
        return found


def compare_runs(
    runs: Sequence[Run], *, phase: str = "train", step: int | None = None
) -> Comparison:
    """Runs over the steps that all of them have, in the smallest spans that no window crosses.

    Args:
        runs: Two or more; the others are compared with the first.
        phase: The phase.
        step: A step of the span to show; None for the last.

    Raises:
        ValueError: There are not two runs, they have no steps or no layer in common, or none of
            the common spans holds the step.
    """
    if len(runs) < 2:
        raise ValueError(f"found {len(runs)} run; a comparison takes two or more")
    windows, unmatched = [0] * len(runs), [0] * len(runs)
    kept: list[_Row] = []
    shown: Span | None = None
    wanted = step
    for span in spans_of([run.windows(phase=phase) for run in runs]):
        windows = [sum(pair) for pair in zip(windows, span.windows, strict=True)]
        if not span.same:
            unmatched = [sum(pair) for pair in zip(unmatched, span.windows, strict=True)]
            continue
        kept.append(_row(span))
        if wanted is None or span.first_step <= wanted <= span.last_step:
            shown = span
    if not kept:
        told = ", ".join(f"{run.run_id} has {_steps_told(run, phase)}" for run in runs)
        raise ValueError(f"found no steps of phase {phase!r} that all runs have: {told}")
    spans = np.array([(row.first_step, row.last_step) for row in kept], np.int64)
    if shown is None:
        raise ValueError(
            f"found no common window with step {step}; there are steps {spans[0, 0]} to "
            f"{spans[-1, 1]}"
        )
    layers, left_out = _layers(runs, kept)
    at = int(np.flatnonzero(spans[:, 0] == shown.first_step)[0])
    shape = (len(runs), len(kept), len(layers))
    return Comparison(
        phase=phase,
        subjects=tuple(
            _subject(position, run, windows[position], unmatched[position])
            for position, run in enumerate(runs)
        ),
        layers=layers,
        left_out=left_out,
        spans=spans,
        at=at,
        figures={name: _table(kept, layers, shape, name) for name in FIGURES},
        compared={
            name: _table(kept, layers, shape, excess or name) for name, excess in FIGURES.items()
        },
        load_change=_table(kept, layers, shape, _MOVED),
        load_noise=_table(kept, layers, shape, _NOISE),
        shown=shown.layers,
    )


_MOVED, _NOISE = "load_change", "load_noise"
_WANTED = (*FIGURES, *filter(None, FIGURES.values()), _MOVED, _NOISE)


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One span in figures: per run and layer, the numbers of `_WANTED`."""

    first_step: int
    last_step: int
    experts: tuple[Mapping[str, int], ...]
    numbers: tuple[Mapping[str, Mapping[str, float | None]], ...]


def _row(span: Span) -> _Row:
    first = span.layers[0]
    numbers: list[Mapping[str, Mapping[str, float | None]]] = []
    for own in span.layers:
        by_layer: dict[str, Mapping[str, float | None]] = {}
        for layer, stats in own.items():
            values = stats.metrics()
            found: dict[str, float | None] = {name: values.get(name) for name in _WANTED}
            if layer in first and first[layer].num_experts == stats.num_experts:
                found[_MOVED] = load_change(first[layer].tokens_per_expert, stats.tokens_per_expert)
                found[_NOISE] = load_noise(first[layer], stats)
            by_layer[layer] = found
        numbers.append(by_layer)
    experts = tuple({name: stats.num_experts for name, stats in own.items()} for own in span.layers)
    return _Row(span.first_step, span.last_step, experts, tuple(numbers))


def _layers(runs: Sequence[Run], kept: Sequence[_Row]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Layers that all runs have in the same shape, and why the others are left out."""
    sizes: list[dict[str, set[int]]] = [{} for _ in runs]
    for row in kept:
        for known, own in zip(sizes, row.experts, strict=True):
            for layer, experts in own.items():
                known.setdefault(layer, set()).add(experts)
    order = dict.fromkeys(layer for run in runs for layer in run.layers)
    left_out: dict[str, str] = {}
    for layer in order:
        lacking = [_label(at) for at, known in enumerate(sizes) if layer not in known]
        shapes = set[int]().union(*(known.get(layer, set()) for known in sizes))
        if lacking:
            left_out[layer] = f"not in {' and '.join(lacking)}"
        elif len(shapes) > 1:
            left_out[layer] = f"has {' or '.join(map(str, sorted(shapes)))} experts"
    layers = tuple(layer for layer in order if layer not in left_out)
    if not layers:
        names = "; ".join(f"{_label(at)}: {', '.join(own)}" for at, own in enumerate(sizes))
        raise ValueError(f"found no layer that all runs have in the same shape ({names})")
    return layers, left_out


def _table(
    kept: Sequence[_Row], layers: Sequence[str], shape: tuple[int, int, int], name: str
) -> NDArray[np.float64]:
    table = np.full(shape, np.nan)
    for at, row in enumerate(kept):
        for run, own in enumerate(row.numbers):
            for column, layer in enumerate(layers):
                value = own.get(layer, {}).get(name)
                if value is not None:
                    table[run, at, column] = value
    return table


def _subject(position: int, run: Run, windows: int, unmatched: int) -> Subject:
    model = str(run.manifest.get("model", ""))
    return Subject(_label(position), str(run.path), run.run_id, model, windows, unmatched)


def _label(position: int) -> str:
    """A letter for each run, two beyond the 26th.

    >>> _label(0), _label(27)
    ('A', 'AB')
    """
    letters = ""
    position += 1
    while position:
        position, rest = divmod(position - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def _steps_told(run: Run, phase: str) -> str:
    steps = run.steps(phase=phase)
    return f"steps {steps[0, 0]} to {steps[-1, 1]}" if len(steps) else "none"


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
