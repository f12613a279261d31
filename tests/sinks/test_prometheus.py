import urllib.request
from pathlib import Path

import pytest

from moetrace.sinks import PrometheusSink
from tests.alerts.made import alert
from tests.report.made import stats, window
from tests.sinks.contract import WINDOWS, SinkContract

prometheus = pytest.importorskip("prometheus_client")

FIRST = window(1, 10, stats("layers[0]", [3, 1]), stats("layers 0", [2, 2]))


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels, as prometheus-client's own parser reads it."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class TestPrometheusSink(SinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> PrometheusSink:
        """One that writes a text file, with a series per layer."""
        return PrometheusSink(tmp_path / "moe.prom", per_layer=True)

    def test_every_scalar_is_read_back_from_the_file(self, tmp_path: Path) -> None:
        """The file holds the values of `Snapshot.metrics`, the phase as a label."""
        path = tmp_path / "moe.prom"
        sink = PrometheusSink(path)
        sink.write(FIRST)
        sink.close()
        expected = {
            (f"moetrace_{key.removeprefix('moe/')}", (("phase", "train"),)): value
            for key, value in FIRST.metrics().items()
        }
        assert read(path.read_text()) == {**expected, ("moetrace_step", (("phase", "train"),)): 10}

    def test_every_scalar_is_read_back_from_the_page(self) -> None:
        """A scrape of the page sees the same; the page is gone after the close."""
        sink = PrometheusSink(port=0)
        sink.write(FIRST)
        page = f"http://127.0.0.1:{sink.port}/metrics"
        with urllib.request.urlopen(page, timeout=10) as answer:
            found = read(answer.read().decode())
        assert found["moetrace_avg_expert_cv", (("phase", "train"),)] == 0.25
        sink.close()
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(page, timeout=10)

    def test_layers_are_labels(self, tmp_path: Path) -> None:
        """J14: a metric name is fixed, whatever a layer is called; two layers stay two series."""
        path = tmp_path / "moe.prom"
        sink = PrometheusSink(path, per_layer=True)
        sink.write(FIRST)
        sink.close()
        found = read(path.read_text())
        ratios = {
            labels: value
            for (name, labels), value in found.items()
            if name == "moetrace_router_max_usage_ratio"
        }
        assert ratios == {
            (("layer", "layers-5b-0-5d-"), ("phase", "train")): 1.5,
            (("layer", "layers-20-0"), ("phase", "train")): 1.0,
        }

    def test_hostile_names_leave_a_page_that_can_be_read(self, tmp_path: Path) -> None:
        """J14: quotes, newlines, backslashes and half a surrogate pair break no line."""
        path = tmp_path / "moe.prom"
        sink = PrometheusSink(path, per_layer=True)
        for snapshot in WINDOWS:
            sink.write(snapshot)
        sink.write(window(1, 1, stats('a"\n\\ud800\ud800{}', [3, 1]), phase='p"\n'))
        sink.close()
        assert len(read(path.read_text())) > 20

    def test_shows_no_figure_that_the_last_window_does_not_have(self, tmp_path: Path) -> None:
        """A metric that is withheld now is absent, not as it was an hour ago."""
        path = tmp_path / "moe.prom"
        sink = PrometheusSink(path)
        sink.write(window(1, 10, stats("mlp", [3, 1])))
        sink.write(window(11, 20, stats("mlp", [3, 1], scoring="none")))
        sink.close()
        names = {name for name, _ in read(path.read_text())}
        assert "moetrace_avg_expert_cv" in names
        assert "moetrace_avg_routing_entropy" not in names

    def test_keeps_the_last_window_of_each_phase(self, tmp_path: Path) -> None:
        """An evaluation does not take the place of the training."""
        path = tmp_path / "moe.prom"
        sink = PrometheusSink(path)
        sink.write(window(1, 10, stats("mlp", [3, 1])))
        sink.write(window(10, 10, stats("mlp", [2, 2]), phase="eval"))
        sink.close()
        found = read(path.read_text())
        assert found["moetrace_avg_expert_cv", (("phase", "train"),)] == 0.5
        assert found["moetrace_avg_expert_cv", (("phase", "eval"),)] == 0.0

    def test_alerts_are_read_back(self, tmp_path: Path) -> None:
        """The number of layers an alert holds in, by kind; 0 once it is over."""
        path = tmp_path / "moe.prom"
        sink = PrometheusSink(path)
        labels = (("kind", "severe_imbalance"), ("phase", "train"))
        sink.alert(alert())
        assert read(path.read_text())["moetrace_alerts", labels] == 2.0
        sink.alert(alert(state="ended", active=0))
        sink.close()
        assert read(path.read_text())["moetrace_alerts", labels] == 0.0

    def test_stands_in_a_registry_of_somebody_else(self) -> None:
        """A page that is served anyway shows it, until the sink is closed."""
        registry = prometheus.CollectorRegistry()
        sink = PrometheusSink(registry=registry)
        sink.write(FIRST)
        assert b"moetrace_avg_expert_cv" in prometheus.generate_latest(registry)
        sink.close()
        assert prometheus.generate_latest(registry) == b""

    def test_stays_within_the_budget_whatever_the_model(self, tmp_path: Path) -> None:
        """J16: without detail per layer a model of 200 layers has at most 64 series."""
        path = tmp_path / "moe.prom"
        sink = PrometheusSink(path)
        sink.write(window(1, 10, *(stats(f"layers.{i}", [2] * 64) for i in range(200))))
        sink.close()
        assert len(read(path.read_text())) <= 64
