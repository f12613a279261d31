"""Know exactly what every router of a PyTorch model did, without disturbing the training.

`attach` is the way in. Names are resolved on first use, so that ``import moetrace`` imports neither
torch nor any optional library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moetrace.alerts import Alert, AlertRules
    from moetrace.attachment import attach
    from moetrace.diagnosis import Diagnosis, Finding
    from moetrace.errors import (
        AlreadyAttached,
        MoETraceError,
        NoRouterFound,
        RunFolderError,
        RunNotReadable,
        SinkFailed,
    )
    from moetrace.index_stats import IndexStats
    from moetrace.probes import GradientProbe, IndexProbe, WeightProbe
    from moetrace.readers import Reader, Site, discover
    from moetrace.routing import Routing
    from moetrace.routing_stats import RoutingStats
    from moetrace.run import Run, open_run
    from moetrace.sinks.base import Sink
    from moetrace.snapshot import Snapshot
    from moetrace.topology import Topology
    from moetrace.tracer import Tracer

_HOMES = {
    "Alert": "moetrace.alerts",
    "AlertRules": "moetrace.alerts",
    "AlreadyAttached": "moetrace.errors",
    "Diagnosis": "moetrace.diagnosis",
    "Finding": "moetrace.diagnosis",
    "GradientProbe": "moetrace.probes",
    "IndexProbe": "moetrace.probes",
    "IndexStats": "moetrace.index_stats",
    "MoETraceError": "moetrace.errors",
    "NoRouterFound": "moetrace.errors",
    "Reader": "moetrace.readers",
    "Routing": "moetrace.routing",
    "RoutingStats": "moetrace.routing_stats",
    "Run": "moetrace.run",
    "RunFolderError": "moetrace.errors",
    "RunNotReadable": "moetrace.errors",
    "Sink": "moetrace.sinks.base",
    "SinkFailed": "moetrace.errors",
    "Site": "moetrace.readers",
    "Snapshot": "moetrace.snapshot",
    "Topology": "moetrace.topology",
    "Tracer": "moetrace.tracer",
    "WeightProbe": "moetrace.probes",
    "attach": "moetrace.attachment",
    "discover": "moetrace.readers",
    "open_run": "moetrace.run",
}

__version__ = "0.1.0"
__all__ = [
    "Alert",
    "AlertRules",
    "AlreadyAttached",
    "Diagnosis",
    "Finding",
    "GradientProbe",
    "IndexProbe",
    "IndexStats",
    "MoETraceError",
    "NoRouterFound",
    "Reader",
    "Routing",
    "RoutingStats",
    "Run",
    "RunFolderError",
    "RunNotReadable",
    "Sink",
    "SinkFailed",
    "Site",
    "Snapshot",
    "Topology",
    "Tracer",
    "WeightProbe",
    "attach",
    "discover",
    "open_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moetrace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
