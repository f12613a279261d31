# pyright: strict
"""One router weight at the end of one window: what it is, how it moved, how far it has come.

Sums are kept, in float64, so that shards of a tensor on several ranks add up to the whole tensor;
means, norms and ratios are formed from them when asked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

__all__ = ["WeightStats", "weight_summary"]


@dataclass(frozen=True, slots=True)
class WeightStats:
    """One tensor at the end of a window. A field is None where there is nothing to tell.

    Letters: w the tensor now, p at the end of the window before, o when it was attached; n numbers.

    Attributes:
        layer: Name of the site.
        name: Dotted name of the parameter within its router.
        shape: Shape of the whole tensor.
        dtype: Type it is stored in (``"bfloat16"``).
        trainable: Whether it requires a gradient.
        sharded: Whether this is one rank's shard; then sums add over ranks.
        numel: Numbers held here.
        steps: Optimizer steps between p and w; 0 in the first window.
        nonfinite: NaN and infinite numbers in w; while there are any, all sums are None.
        sum: Sum of w.
        m2: Sum of squared deviations of w from its mean.
        min: Smallest number of w.
        max: Largest number of w.
        diff_sum: Sum of w - p.
        diff_m2: Sum of squared deviations of w - p from its mean.
        diff_max: Largest absolute number of w - p.
        prev_sq: Squared norm of p.
        unchanged: Numbers of w that are those of p, bit for bit.
        drift_sq: Squared norm of w - o.
        init_sq: Squared norm of o.
        rows: Rows of a matrix, one per expert for a linear router; 0 for other shapes.
        row_sum: Sum of the norms of the rows.
        row_sq: Sum of their squares.
        row_min: Smallest norm of a row.
        row_max: Largest norm of a row.
        cos_abs: Mean absolute cosine between two different rows.
        cos_max: Largest cosine between two different rows.
        orthogonality: ``norm(R R^T - I) / sqrt(E (E - 1))`` of the normalised rows R: 0 where all
            are orthogonal, 1 where all are parallel.
        sigma_max: Largest singular value, where the spectrum is asked for.
    """

    layer: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    sharded: bool
    numel: int
    steps: int
    nonfinite: int = 0
    sum: float | None = None
    m2: float | None = None
    min: float | None = None
    max: float | None = None
    diff_sum: float | None = None
    diff_m2: float | None = None
    diff_max: float | None = None
    prev_sq: float | None = None
    unchanged: int | None = None
    drift_sq: float | None = None
    init_sq: float | None = None
    rows: int = 0
    row_sum: float | None = None
    row_sq: float | None = None
    row_min: float | None = None
    row_max: float | None = None
    cos_abs: float | None = None
    cos_max: float | None = None
    orthogonality: float | None = None
    sigma_max: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells one record of a window from another."""
        return (self.layer, self.name)

    @property
    def mean(self) -> float | None:
        """Mean of w."""
        return None if self.sum is None or not self.numel else self.sum / self.numel

    @property
    def std(self) -> float | None:
        """Standard deviation of w, over n - 1; 0 for a single number."""
        return _std(self.m2, self.numel)

    @property
    def norm(self) -> float | None:
        """Euclidean norm of w.

        >>> WeightStats("mlp", "weight", (2,), "float32", True, False, 2, 0, sum=7.0, m2=0.5).norm
        5.0
        """
        return _norm(self.sum, self.m2, self.numel)

    @property
    def diff_mean(self) -> float | None:
        """Mean of w - p."""
        return None if self.diff_sum is None or not self.numel else self.diff_sum / self.numel

    @property
    def diff_std(self) -> float | None:
        """Standard deviation of w - p, over n - 1."""
        return _std(self.diff_m2, self.numel)

    @property
    def diff_norm(self) -> float | None:
        """Norm of w - p."""
        return _norm(self.diff_sum, self.diff_m2, self.numel)

    @property
    def relative_change(self) -> float | None:
        """Norm of w - p over norm of p."""
        return _ratio(self.diff_norm, None if self.prev_sq is None else math.sqrt(self.prev_sq))

    @property
    def update_ratio(self) -> float | None:
        """Relative change per optimizer step; about 1e-3 is usual, below 1e-6 nothing is learnt.

        Source: A. Karpathy, "micrograd to makemore" lecture 4 (update-to-data ratio).
        """
        change = self.relative_change
        return None if change is None or not self.steps else change / self.steps

    @property
    def drift(self) -> float | None:
        """Norm of w - o over norm of o: how far the tensor has come since it was attached."""
        if self.drift_sq is None or not self.init_sq:
            return None
        return math.sqrt(self.drift_sq / self.init_sq)

    @property
    def cosine_to_init(self) -> float | None:
        """Cosine between w and o.

        Formed from squared norms in float64, ``(|w|^2 + |o|^2 - |w - o|^2) / (2 |w| |o|)``: a dot
        product in float32 is wrong in the sixth digit, where a young training differs from 1.
        """
        norm = self.norm
        if norm is None or self.drift_sq is None or not self.init_sq or not norm:
            return None
        return (norm**2 + self.init_sq - self.drift_sq) / (2 * norm * math.sqrt(self.init_sq))

    @property
    def unchanged_fraction(self) -> float | None:
        """Share of the numbers that did not change since the window before.

        1 in float32 is a router that is not trained. In bfloat16 it may be one whose updates are
        too small to show: a relative update of 0.05 % changes no number at all.
        """
        return None if self.unchanged is None or not self.numel else self.unchanged / self.numel

    @property
    def row_norm_mean(self) -> float | None:
        """Mean norm of a row."""
        return None if self.row_sum is None or not self.rows else self.row_sum / self.rows

    @property
    def row_norm_cv(self) -> float | None:
        """Spread of the rows' norms: population standard deviation over mean."""
        mean = self.row_norm_mean
        if not mean or self.row_sq is None:
            return None
        return math.sqrt(max(0.0, self.row_sq / self.rows - mean**2)) / mean

    @property
    def stable_rank(self) -> float | None:
        """``|w|^2 / sigma_max^2``: how many directions carry the tensor; where asked for."""
        norm = self.norm
        return None if norm is None or not self.sigma_max else (norm / self.sigma_max) ** 2

    def followed_by(self, later: Self) -> Self:
        """Two windows as one: the state at the end, and the steps of both.

        What moved between the two is known for the later one only, and its change stands for its
        own steps.
        """
        return later

    def beside(self, other: Self) -> Self:
        """The same window of two ranks as one: shards add up, replicas count once."""
        if not self.sharded:
            return self
        return replace(
            self,
            numel=self.numel + other.numel,
            nonfinite=self.nonfinite + other.nonfinite,
            sum=_added(self.sum, other.sum),
            m2=_m2(self.sum, self.m2, self.numel, other.sum, other.m2, other.numel),
            min=_least(self.min, other.min),
            max=_most(self.max, other.max),
            diff_sum=_added(self.diff_sum, other.diff_sum),
            diff_m2=_m2(
                self.diff_sum, self.diff_m2, self.numel, other.diff_sum, other.diff_m2, other.numel
            ),
            diff_max=_most(self.diff_max, other.diff_max),
            prev_sq=_added(self.prev_sq, other.prev_sq),
            unchanged=None
            if self.unchanged is None or other.unchanged is None
            else self.unchanged + other.unchanged,
            drift_sq=_added(self.drift_sq, other.drift_sq),
            init_sq=_added(self.init_sq, other.init_sq),
            rows=self.rows + other.rows,
            row_sum=_added(self.row_sum, other.row_sum),
            row_sq=_added(self.row_sq, other.row_sq),
            row_min=_least(self.row_min, other.row_min),
            row_max=_most(self.row_max, other.row_max),
            cos_abs=None,
            cos_max=None,
            orthogonality=None,
            sigma_max=None,
        )


_PER_TENSOR = ("norm", "mean", "std", "update_ratio", "drift")


def weight_summary(records: Sequence[WeightStats], *, per_layer: bool = False) -> dict[str, float]:
    """The router weights of one window in a few numbers, by the key that a tracker shows them with.

    ``router_weight/max_update_ratio``, ``min_update_ratio``, ``max_drift`` and
    ``max_unchanged_fraction`` over all tensors, and ``nonfinite`` of them together; a key is absent
    where no tensor has its figure.

    Args:
        records: Records of one window.
        per_layer: Add ``router_weight/{layer}/{tensor}/{figure}``, five keys a tensor.

    >>> w = WeightStats("mlp", "weight", (2,), "float32", True, False, 2, 1, sum=7.0, m2=0.5)
    >>> weight_summary([w], per_layer=True)["router_weight/mlp/weight/norm"]
    5.0
    """
    if not records:
        return {}
    ratios = [value for item in records if (value := item.update_ratio) is not None]
    drifts = [value for item in records if (value := item.drift) is not None]
    still = [value for item in records if (value := item.unchanged_fraction) is not None]
    found = {"router_weight/nonfinite": float(sum(item.nonfinite for item in records))}
    if ratios:
        found["router_weight/max_update_ratio"] = max(ratios)
        found["router_weight/min_update_ratio"] = min(ratios)
    if drifts:
        found["router_weight/max_drift"] = max(drifts)
    if still:
        found["router_weight/max_unchanged_fraction"] = max(still)
    for record in records if per_layer else ():
        for name in _PER_TENSOR:
            figure: float | None = getattr(record, name)
            if figure is not None:
                found[f"router_weight/{record.layer}/{record.name}/{name}"] = figure
    return found


def _std(m2: float | None, numel: int) -> float | None:
    if m2 is None or not numel:
        return None
    return math.sqrt(m2 / (numel - 1)) if numel > 1 else 0.0


def _norm(total: float | None, m2: float | None, numel: int) -> float | None:
    if total is None or m2 is None or not numel:
        return None
    return math.sqrt(m2 + total * total / numel)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _added(one: float | None, two: float | None) -> float | None:
    return None if one is None or two is None else one + two


def _least(one: float | None, two: float | None) -> float | None:
    return None if one is None or two is None else min(one, two)


def _most(one: float | None, two: float | None) -> float | None:
    return None if one is None or two is None else max(one, two)


def _m2(
    sum_a: float | None,
    m2_a: float | None,
    a: int,
    sum_b: float | None,
    m2_b: float | None,
    b: int,
) -> float | None:
    """Squared deviations of two parts from their common mean.

    Source: Chan, Golub, LeVeque (1979), updating formulae for the sample variance.
    """
    if sum_a is None or m2_a is None or sum_b is None or m2_b is None:
        return None
    if not a or not b:
        return m2_a + m2_b
    return m2_a + m2_b + (sum_a / a - sum_b / b) ** 2 * a * b / (a + b)
