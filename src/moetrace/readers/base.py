"""What a reader is: the one thing to write for a router that moetrace does not know."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from moetrace.routing import Routing

__all__ = ["Reader"]


class Reader(Protocol):
    """Knows how to read a `Routing` off one kind of router.

    One reader object serves every router it matches, so it keeps nothing per layer: `read` is
    traced by the compiler, and whatever differs between layers of one class would recompile them.
    """

    def matches(self, module: nn.Module, /) -> bool:
        """Whether this module is a router that `read` can read. Called once, at attach."""
        ...

    def read(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, /
    ) -> Routing | None:
        """The routing of this forward, or None where it shows none.

        Called in every forward of the router with what it got and returned. Look at types, dtypes
        and shapes only: a look at a value is a device synchronisation. Cost: part of the hook.
        """
        ...
