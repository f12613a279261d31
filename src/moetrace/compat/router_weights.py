"""The weights of the routers of a model under the names that a weight tracker knows.

A layer is ``layer_0``; a router has components (``load_balancer``, ``expression_projector``, or
``router`` where it has no parts), and a component has tensors (``weight_ih``).
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from moetrace.errors import NoRouterFound
from moetrace.export.weight_layers import layer_keys, parts_of, statistics_of
from moetrace.probes.weights import stats_of, weights_of
from moetrace.readers import Found, find_routers
from moetrace.readers.wrapping import class_of, cores, user_name

__all__ = [
    "FollowedRouter",
    "Targets",
    "compute_weight_statistics",
    "extract_router_weights",
    "followed_routers",
]

Targets = str | Iterable[str] | Mapping[str, nn.Module]
"""Glob or globs over the dotted names of modules, or modules by the key they shall have."""

_COMPONENTS = ("load_balancer", "expression_projector")
_CALLED_SO = re.compile(r"rout|gat(e|ing)|balanc|project", re.IGNORECASE)
_MOST_CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class FollowedRouter:
    """A router whose weights are asked for.

    Attributes:
        key: Its name in records, ``layer_0``.
        module: The module, as the model runs it.
        paths: Every dotted name under which it hangs in the model; a shared one has several.
    """

    key: str
    module: nn.Module
    paths: tuple[str, ...] = ()


def followed_routers(model: nn.Module, targets: Targets | None = None) -> list[FollowedRouter]:
    """The routers of a model, each once however many layers share it.

    Without targets these are the modules that hold a ``load_balancer`` or an
    ``expression_projector``, and the routers that `moetrace.attach` would trace. The key is
    ``layer_`` and the number of the block where every router has one of its own, else the position.

    Args:
        model: Any module.
        targets: Which modules to take instead.

    Raises:
        NoRouterFound: There is none, or none that the targets name. Lists candidates.
        TypeError: A target is no module.
    """
    if isinstance(targets, Mapping):
        for key, module in targets.items():
            if not isinstance(module, nn.Module):
                raise TypeError(f"found {type(module).__name__} as target {key!r}; give a module")
        return [FollowedRouter(key, module) for key, module in targets.items()]
    known: list[Found] = []
    if targets is None:
        known = find_routers(model, ())
        chosen = _with_components(model)
        chosen += _read(known, chosen)
    else:
        chosen = _matching(model, [targets] if isinstance(targets, str) else list(targets))
    if not chosen:
        raise NoRouterFound(_nothing(model, targets, known))
    wanted = set(map(id, chosen))
    found = [(core.hooked, core.paths) for core in cores(model) if id(core.hooked) in wanted]
    keys = layer_keys([user_name(paths[0]) for _, paths in found])
    return [
        FollowedRouter(key, module, paths) for key, (module, paths) in zip(keys, found, strict=True)
    ]


def extract_router_weights(
    model: nn.Module, targets: Targets | None = None
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Copies of the weights of every router, by layer, component and name.

    Args:
        model: Any module with routers.
        targets: As in `followed_routers`.

    Returns:
        ``{"layer_0": {"load_balancer": {"weight_ih": ...}, ...}, ...}``, detached, on the devices
        of the weights. A tensor that is spread over ranks stays so.

    Raises:
        NoRouterFound: There is no router, or none that the targets name.
    """
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for router in followed_routers(model, targets):
        layer = found.setdefault(router.key, {})
        for path, tensor in weights_of(router.module):
            component, name = parts_of(path)
            layer.setdefault(component, {})[name] = tensor.detach().clone()
    return found


def compute_weight_statistics(
    weights: Mapping[str, Tensor],
) -> dict[str, float | list[int] | None]:
    """Statistics of the tensors of one component, in float64.

    Args:
        weights: Tensors by name, as `extract_router_weights` gives them.

    Returns:
        ``{name}_mean``, ``_std`` (over n - 1; 0 of a single number), ``_min``, ``_max``, ``_norm``
        and ``_shape`` of each; None where it holds a NaN or an infinite number.

    >>> import torch
    >>> compute_weight_statistics({"weight": torch.tensor([3.0, 4.0])})["weight_norm"]
    5.0
    """
    flat: dict[str, float | list[int] | None] = {}
    for stats in stats_of("", weights):
        flat |= statistics_of(stats.name, stats)
    return flat


def _with_components(model: nn.Module) -> list[nn.Module]:
    return [
        core.hooked
        for core in cores(model)
        if any(name in core.module._modules for name in _COMPONENTS)
    ]


def _read(known: Iterable[Found], chosen: Iterable[nn.Module]) -> list[nn.Module]:
    """The routers that are read, without those that are a part of a chosen one or hold one."""
    taken = {id(part) for module in chosen for part in module.modules()}
    found: list[nn.Module] = []
    for item in known:
        if item.reader is None:
            continue
        if taken.isdisjoint(map(id, item.router.modules())):
            found.append(item.router)
    return found


def _matching(model: nn.Module, globs: Sequence[str]) -> list[nn.Module]:
    return [
        core.hooked
        for core in cores(model)
        if any(fnmatch.fnmatchcase(user_name(path), glob) for path in core.paths for glob in globs)
        and next(weights_of(core.hooked), None) is not None
    ]


def _nothing(model: nn.Module, targets: Targets | None, known: Iterable[Found]) -> str:
    lines = [f"found no router in {class_of(model).__name__}"]
    if targets is not None:
        lines = [f"found no module of {class_of(model).__name__} that matches {targets!r}"]
    near = {item.site.path: f"({item.site.router}): {item.site.reason}" for item in known}
    for core in cores(model):
        path = core.paths[0]
        if _CALLED_SO.search(path.rpartition(".")[2]) and path not in near:
            near[path] = f"({class_of(core.module).__name__})"
    if near:
        lines.append("these came near:")
        shown = list(near.items())[:_MOST_CANDIDATES]
        lines += [f"  {user_name(path)} {reason}" for path, reason in shown]
    lines.append(
        "to name the modules, pass targets='*.router', a glob over their dotted names, or "
        "targets={'layer_0': module}"
    )
    return "\n".join(lines)
