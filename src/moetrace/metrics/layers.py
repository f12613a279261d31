"""How one metric is spread over the layers, and which layer is the worst."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["LayerSpread", "spread"]


@dataclass(frozen=True, slots=True)
class LayerSpread:
    """One metric over the layers of a model, in the metric's own unit.

    Attributes:
        p50: Median over the layers.
        p75: 75th percentile.
        p90: 90th percentile.
        p95: 95th percentile.
        worst: The worst layer's value.
        worst_layer: Its name.
        layers: Layers that have the metric; the others are left out of every figure.
    """

    p50: float
    p75: float
    p90: float
    p95: float
    worst: float
    worst_layer: str
    layers: int


def spread(
    by_layer: Mapping[str, float | None], *, worst: Literal["highest", "lowest"] = "highest"
) -> LayerSpread | None:
    """Percentiles of a metric over the layers, and the worst layer by name.

    Percentiles are interpolated linearly between neighbouring layers and always ascend, whichever
    end is the worst. Of layers that tie, the first is named.

    Args:
        by_layer: The metric by layer; None and NaN mean that a layer has none.
        worst: Which end is bad: ``"lowest"`` for entropies, ``"highest"`` for imbalance.

    Returns:
        The spread, or None where no layer has the metric.

    Source: the percentiles asked for in Megatron-LM issue 2398.

    >>> spread({"a": 0.1, "b": 0.5, "c": None, "d": 0.3}).worst_layer
    'b'
    """
    values = {
        layer: value
        for layer, value in by_layer.items()
        if value is not None and not math.isnan(value)
    }
    if not values:
        return None
    p50, p75, p90, p95 = np.percentile(list(values.values()), [50, 75, 90, 95]).tolist()
    pick = max if worst == "highest" else min
    name = pick(values, key=values.__getitem__)
    return LayerSpread(p50, p75, p90, p95, values[name], name, len(values))
