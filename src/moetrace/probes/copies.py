"""What becomes of a hook where the model that carries it is copied or pickled."""

import contextlib
from collections.abc import Callable
from typing import Any

__all__ = ["Uncopied"]


class Uncopied:
    """A hook whose copies do nothing: an EMA model or a loaded file counts for nobody.

    Instead of it a copy holds a callable of the standard library that takes anything and returns
    None, so that a file loads where moetrace is not installed.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (contextlib.nullcontext(), "__exit__")
