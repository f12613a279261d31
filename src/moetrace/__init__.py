"""Know exactly what every router of a PyTorch model did, without disturbing the training.

`attach` is the way in. Names are resolved on first use, so that ``import moetrace`` imports neither
torch nor any optional library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moetrace.errors import (
        AlreadyAttached,
        MoETraceError,
        NoRouterFound,
        RunFolderError,
        RunNotReadable,
    )
    from moetrace.snapshot import RoutingStats, Snapshot

_HOMES = {
    "AlreadyAttached": "moetrace.errors",
    "MoETraceError": "moetrace.errors",
    "NoRouterFound": "moetrace.errors",
    "RoutingStats": "moetrace.snapshot",
    "RunFolderError": "moetrace.errors",
    "RunNotReadable": "moetrace.errors",
    "Snapshot": "moetrace.snapshot",
}

__version__ = "0.1.0"
__all__ = [
    "AlreadyAttached",
    "MoETraceError",
    "NoRouterFound",
    "RoutingStats",
    "RunFolderError",
    "RunNotReadable",
    "Snapshot",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moetrace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
