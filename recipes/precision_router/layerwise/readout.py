"""The table: routers beside every fixed precision and the best fixed bits per layer."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from layerwise.allocation import greedy_allocation
from layerwise.causal_lm import LayerwiseQuantizeForCausalLM
from layerwise.evaluation import Score, score_fixed, score_router
from layerwise.frontier import Point

__all__ = ["Readout", "Row", "read_out"]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to choose bits.

    Attributes:
        kind: ``"fixed"``, ``"router"`` or ``"static"``.
        name: As it stands in the table.
        score: What it gives on the test pieces.
    """

    kind: str
    name: str
    score: Score

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        score = self.score
        return {
            "kind": self.kind,
            "name": self.name,
            "cross_entropy": score.cross_entropy,
            "perplexity": score.perplexity,
            "avg_precision": score.avg_precision,
            "avg_precision_by_weights": score.avg_precision_by_weights,
            "theoretical_mib_read_per_token": score.mebibytes,
            "layer_bits": list(score.layer_bits),
        }


@dataclass(frozen=True, slots=True)
class Readout:
    """All rows, and what follows from them.

    Attributes:
        rows: Fixed precisions ascending, routers, static bits; and static bits of the next higher
            average where those have fewer bits than the routers.
        static_bits: Bits of each layer in the first static row.
    """

    rows: tuple[Row, ...]
    static_bits: tuple[int, ...]

    def row(self, kind: str) -> Row:
        """The first row of a kind."""
        return next(row for row in self.rows if row.kind == kind)

    def beside(self, kind: str) -> float:
        """Cross-entropy of a kind at the routers' average bits, on the line between its rows.

        Rows of one kind have only so many averages: with 4 layers static bits come in quarters.
        """
        scores = sorted(
            (row.score for row in self.rows if row.kind == kind),
            key=lambda score: score.avg_precision,
        )
        bits = self.row("router").score.avg_precision
        for low, high in pairwise(scores):
            if low.avg_precision <= bits <= high.avg_precision:
                gap = high.avg_precision - low.avg_precision
                share = (bits - low.avg_precision) / gap
                return low.cross_entropy + share * (high.cross_entropy - low.cross_entropy)
        return scores[0].cross_entropy

    def table(self) -> str:
        """The rows as text."""
        lines = [f"{'':<22}{'CE':>9}{'ppl':>10}{'avg bits':>10}{'by weights':>12}{'MiB/token':>11}"]
        for row in self.rows:
            score = row.score
            lines.append(
                f"{row.name:<22}{score.cross_entropy:>9.4f}{score.perplexity:>10.3f}"
                f"{score.avg_precision:>10.2f}{score.avg_precision_by_weights:>12.2f}"
                f"{score.mebibytes:>11.3f}"
            )
        return "\n".join(lines)

    def verdict(self) -> str:
        """Whether the routers are better than what needs none, in one sentence."""
        router = self.row("router").score
        line = self.beside("fixed") - router.cross_entropy
        best = self.beside("static") - router.cross_entropy
        return (
            f"at {router.avg_precision:.2f} bits the routers are {_than(line)} one precision in "
            f"all layers and {_than(best)} static bits per layer"
        )

    def points(self) -> list[Point]:
        """For the picture."""
        names = {"router": "routers", "static": "static"}
        return [
            Point(
                row.kind,
                row.score.avg_precision,
                row.score.cross_entropy,
                names.get(row.kind, row.name),
            )
            for row in self.rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "static_bits": list(self.static_bits),
            "fixed_cross_entropy_at_router_bits": self.beside("fixed"),
            "static_cross_entropy_at_router_bits": self.beside("static"),
            "verdict": self.verdict(),
        }


def read_out(
    model: LayerwiseQuantizeForCausalLM,
    test_NS: Tensor,
    calibration_NS: Tensor,
    *,
    batch_size: int,
    swaps: int = 64,
    advance: Callable[[], object] = lambda: None,
) -> Readout:
    """Measure every row on the same pieces and the same tokens of them.

    Args:
        model: With trained routers.
        test_NS: Pieces that every row is measured on.
        calibration_NS: Other pieces, on which the static bits are searched.
        batch_size: Pieces per forward.
        swaps: See `greedy_allocation`.
        advance: Called after each measurement.
    """
    rows = []
    for bits in model.precisions:
        rows.append(
            Row("fixed", f"{bits} bit", score_fixed(model, test_NS, bits, batch_size=batch_size))
        )
        advance()
    router = score_router(model, test_NS, batch_size=batch_size)
    advance()

    found: dict[tuple[int, ...], float] = {}

    def cost(bits: tuple[int, ...]) -> float:
        if bits not in found:
            score = score_fixed(model, calibration_NS, bits, batch_size=batch_size)
            found[bits] = score.cross_entropy
            advance()
        return found[bits]

    rows.append(Row("router", "routers", router))
    layers, offered = len(model.layers), model.precisions
    static = greedy_allocation(layers, offered, router.avg_precision, cost, swaps=swaps)
    allocations = {"static bits per layer": static}
    if sum(static) / layers < router.avg_precision - 1e-9:
        step = min(high - low for low, high in pairwise(offered)) / layers
        budget = offered[0] + (int((router.avg_precision - offered[0]) / step) + 1) * step
        more = greedy_allocation(layers, offered, budget, cost, swaps=swaps)
        allocations["static, a step more"] = more
    for name, allocation in allocations.items():
        score = score_fixed(model, test_NS, allocation, batch_size=batch_size)
        rows.append(Row("static", name, score))
    return Readout(tuple(rows), static)


def _than(nats: float) -> str:
    if abs(nats) < 5e-5:
        return "as good as"
    return f"{abs(nats):.4f} nats {'better' if nats > 0 else 'worse'} than"
