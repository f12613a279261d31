"""Router weights under the names of a weight tracker's files: layers, components, statistics.

A layer is ``layer_0``; a router has components (``load_balancer``, ``expression_projector``, or
``router`` where it has no parts), and a component has tensors (``weight_ih``).
"""

import math
from collections.abc import Iterable, Sequence

from moetrace.weight_stats import WeightStats

__all__ = ["CHANGES", "STATISTICS", "layer_keys", "layers_of", "parts_of", "statistics_of"]

STATISTICS = ("mean", "std", "min", "max", "norm")
"""What is told of a tensor, beside its shape."""
CHANGES = ("diff_norm", "diff_mean", "diff_max", "diff_std")
"""What is told of its change since the record before."""

_WHOLE = "router"
_FIRST_LAYER = "_l0"


def layer_keys(names: Sequence[str]) -> list[str]:
    """``layer_`` and the number of the block where every router has one of its own.

    Where one has none, or two have the same, the position stands for it.

    Args:
        names: Dotted name of each router.

    >>> layer_keys(["model.layers.1.mlp", "model.layers.5.mlp"]), layer_keys(["router", "gate"])
    (['layer_1', 'layer_5'], ['layer_0', 'layer_1'])
    >>> layer_keys(["encoder.3.mlp", "decoder.3.mlp"])
    ['layer_0', 'layer_1']
    """
    numbers = [next((part for part in name.split(".") if part.isdigit()), "") for name in names]
    if "" in numbers or len(set(numbers)) < len(numbers):
        numbers = [str(position) for position in range(len(names))]
    return [f"layer_{number}" for number in numbers]


def parts_of(path: str) -> tuple[str, str]:
    """Component and name of a tensor, from its dotted name within the router.

    The first layer of a GRU goes without its number; further layers and directions keep theirs.

    >>> parts_of("load_balancer.weight_ih_l0"), parts_of("load_balancer.weight_hh_l1")
    (('load_balancer', 'weight_ih'), ('load_balancer', 'weight_hh_l1'))
    >>> parts_of("weight")
    ('router', 'weight')
    """
    component, dot, name = path.partition(".")
    if not dot:
        component, name = _WHOLE, path
    return component, name.removesuffix(_FIRST_LAYER)


def layers_of(records: Iterable[WeightStats]) -> dict[str, dict[str, dict[str, object]]]:
    """Records as flat numbers by layer and component, changes beside them.

    A tensor of which only a part is known, such as one rank's shard, has a shape and no numbers.
    """
    records = list(records)
    layers: dict[str, dict[str, dict[str, object]]] = {}
    for stats in records:
        component, name = parts_of(stats.name)
        layer = layers.setdefault(stats.layer, {})
        layer.setdefault(component, {}).update(statistics_of(name, stats))
    for stats in records:
        if stats.diff_norm is not None and _is_whole(stats):
            component, name = parts_of(stats.name)
            changes = layers[stats.layer].setdefault(f"{component}_changes", {})
            changes |= {f"{name}_{item}": getattr(stats, item) for item in CHANGES}
    return layers


def statistics_of(name: str, stats: WeightStats) -> dict[str, float | list[int] | None]:
    """The statistics of one tensor as flat numbers, and its shape.

    Args:
        name: What the tensor is called in the keys.
        stats: Its record.
    """
    whole = _is_whole(stats)
    found: dict[str, float | list[int] | None] = {
        f"{name}_{item}": getattr(stats, item) if whole else None for item in STATISTICS
    }
    return {**found, f"{name}_shape": list(stats.shape)}


def _is_whole(stats: WeightStats) -> bool:
    return not stats.sharded or stats.numel == math.prod(stats.shape)
