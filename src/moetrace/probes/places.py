"""Where the traced routers hang in their model, so that one which was replaced is noticed."""

import weakref
from collections.abc import Sequence

from torch import nn

from moetrace.readers.wrapping import hangs_at

__all__ = ["Places"]


class Places:
    """Looks at the model again and says which routers are no longer where they were.

    A hook goes with its module. Once the module was replaced (an adapter, a quantised copy,
    ``model.layers[0] = ...``) it never runs again, and its counts would be 0 for good. Wrapped is
    not replaced: compile, FSDP and checkpoints may come later. Keeps nothing alive.

    Args:
        model: The model that attach has searched.
        names: Names of the sites.
        paths: Where their routers were found, in the same order.
        modules: Those routers.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        paths: Sequence[str],
        modules: Sequence[nn.Module],
    ) -> None:
        self._model = weakref.ref(model)
        self._left = {
            name: (path, weakref.ref(module))
            for name, path, module in zip(names, paths, modules, strict=True)
        }
        self.lost: tuple[str, ...] = ()

    def newly_lost(self) -> list[str]:
        """Names of the sites that were lost since the last time.

        Cost: a few look-ups per site and window, on the host.
        """
        model = self._model()
        if model is None:
            return []
        gone = [
            name
            for name, (path, module) in self._left.items()
            if (router := module()) is None or not hangs_at(model, path, router)
        ]
        for name in gone:
            del self._left[name]
        self.lost += tuple(gone)
        return gone
