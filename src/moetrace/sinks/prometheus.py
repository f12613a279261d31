"""Snapshots for Prometheus: a text file for its node exporter, or a page that it scrapes.

Metric names are fixed; the phase, the layer and the kind of an alert are labels. A figure that the
last window does not have is not shown, rather than the one before it.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from moetrace.alerts import Alert
from moetrace.metrics import layer_detail
from moetrace.sinks.names import tracker_name
from moetrace.snapshot import Snapshot

__all__ = ["PrometheusSink"]

_FILE = "moetrace.prom"

Labels = tuple[tuple[str, str], ...]


class PrometheusSink:
    """Shows the last window of each phase.

    Args:
        path: A text file, replaced as a whole at every window; ``moetrace.prom`` where neither it
            nor a port nor a registry is given.
        port: Serve the page on this port; 0 lets the system choose, see `port`.
        address: On which address; this machine alone by default.
        registry: A ``CollectorRegistry`` to stand in, such as that of a page that is served anyway.
        per_layer: Also five series for each layer, ``moetrace_router_*{layer=...}``.

    Attributes:
        port: The port that is served, or None.

    Raises:
        ImportError: prometheus-client is not installed.
        OSError: The port is taken.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        port: int | None = None,
        address: str = "127.0.0.1",
        registry: Any = None,
        per_layer: bool = False,
    ) -> None:
        self._client = _prometheus()
        self._per_layer = per_layer
        self._series: dict[str, dict[str, dict[Labels, float]]] = {}
        self._alerts: dict[Labels, float] = {}
        self._registry = self._client.CollectorRegistry() if registry is None else registry
        self._registry.register(self)
        if path is None and port is None and registry is None:
            path = _FILE
        self._path = None if path is None else os.fspath(path)
        self._server: Any = None
        self.port: int | None = None
        if port is not None:
            self._server, self._thread = self._client.start_http_server(
                port, addr=address, registry=self._registry
            )
            self.port = int(self._server.server_port)

    def write(self, snapshot: Snapshot, /) -> None:
        """Show this window in place of the last one of its phase."""
        phase = ("phase", tracker_name(snapshot.phase))
        series: dict[str, dict[Labels, float]] = {
            f"moetrace_{key.removeprefix('moe/').replace('/', '_')}": {(phase,): value}
            for key, value in snapshot.metrics().items()
        }
        series["moetrace_step"] = {(phase,): float(snapshot.last_step)}
        if self._per_layer:
            for stats in snapshot:
                labels = (("layer", tracker_name(stats.layer)), phase)
                for key, value in layer_detail({stats.layer: stats.metrics()}).items():
                    name = f"moetrace_router_{key.rpartition('/')[2]}"
                    series.setdefault(name, {})[labels] = value
        # A scrape may read at any moment: it sees the old windows or the new ones, whole.
        self._series = {**self._series, snapshot.phase: series}
        self._save()

    def alert(self, alert: Alert, /) -> None:
        """Show in how many layers its kind holds: ``moetrace_alerts{kind=...}``."""
        labels = (("kind", alert.kind), ("phase", tracker_name(alert.phase)))
        self._alerts = {**self._alerts, labels: float(alert.active)}
        self._save()

    def close(self) -> None:
        """Serve no more; the file stays, with the last windows."""
        self._registry.unregister(self)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def collect(self) -> Iterator[Any]:
        """The series, as prometheus-client asks for them."""
        series, alerts = self._series, self._alerts
        found: dict[str, dict[Labels, float]] = {}
        for phase in series.values():
            for name, values in phase.items():
                found.setdefault(name, {}).update(values)
        for name, values in found.items():
            yield self._family(name, "last window, see docs/metrics.md", values)
        if alerts:
            yield self._family("moetrace_alerts", "layers in which this alert holds", alerts)

    def _family(self, name: str, help_text: str, values: Mapping[Labels, float]) -> Any:
        keys = [key for key, _ in next(iter(values))]
        core = importlib.import_module("prometheus_client.core")
        family = core.GaugeMetricFamily(name, help_text, labels=keys)
        for labels, value in values.items():
            family.add_metric([text for _, text in labels], value)
        return family

    def _save(self) -> None:
        if self._path is not None:
            self._client.write_to_textfile(self._path, self._registry)


def _prometheus() -> Any:
    try:
        return importlib.import_module("prometheus_client")
    except ImportError as error:
        raise ImportError(
            "PrometheusSink needs prometheus-client: pip install 'moetrace[prometheus]'"
        ) from error
