"""The routers of one model that a tracker of weights follows."""

import weakref
from collections.abc import Sequence

from torch import Tensor, nn

from moetrace.compat.router_weights import FollowedRouter
from moetrace.compat.weight_files import Nested
from moetrace.export.weight_layers import parts_of
from moetrace.probes import WeightMeter, WeightProbe
from moetrace.probes.weights import weights_of
from moetrace.weight_stats import WeightStats

__all__ = ["WatchedRouters"]


class WatchedRouters:
    """The routers of one model, and what they were at the last record."""

    def __init__(self, model: nn.Module, routers: Sequence[FollowedRouter]) -> None:
        self.name = type(model).__name__
        self.paths = {item.key: list(item.paths) for item in routers}
        self._model = weakref.ref(model)
        self._modules = [(item.key, weakref.ref(item.module)) for item in routers]
        self._meter = WeightMeter([(item.key, item.module) for item in routers], WeightProbe())

    def is_of(self, model: nn.Module) -> bool:
        """Whether it is this model's, and its routers are still there."""
        return self._model() is model and all(module() is not None for _, module in self._modules)

    @property
    def bytes(self) -> int:
        """Bytes of the copies that are kept."""
        return self._meter.bytes

    def measured(self, step: int) -> list[WeightStats]:
        """The records of all tensors as they are now."""
        return [
            stats
            for window, bits in self._meter.window(step)
            for stats in window.stats(bits.cpu().numpy())
        ]

    def weights(self) -> tuple[Nested, list[str]]:
        """The weights themselves, and the names of those that no rank holds as a whole."""
        found: dict[str, dict[str, dict[str, Tensor]]] = {}
        spread: list[str] = []
        for key, module in self._modules:
            alive = module()
            for path, tensor in () if alive is None else weights_of(alive):
                component, name = parts_of(path)
                if any(item.is_shard() for item in getattr(tensor, "placements", ())):
                    spread.append(f"{key}.{component}.{name}")
                    continue
                local = getattr(tensor, "to_local", None)
                whole = tensor if local is None else local()
                found.setdefault(key, {}).setdefault(component, {})[name] = whole
        return found, spread
