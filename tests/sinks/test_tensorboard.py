from pathlib import Path

import numpy as np
import pytest

from moetrace.sinks import TensorBoardSink
from tests.alerts.made import alert
from tests.report.made import stats, window
from tests.sinks.contract import SinkContract

pytest.importorskip("tensorboard")
pytest.importorskip("torch.utils.tensorboard")

FIRST = window(1, 10, stats("layers[0].mlp", [3, 1]), stats("layers 0.mlp", [2, 2]))
SECOND = window(11, 20, stats("layers[0].mlp", [4, 0]), stats("layers 0.mlp", [2, 2]))


def read(folder: Path):
    """What TensorBoard itself reads there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


class TestTensorBoardSink(SinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> TensorBoardSink:
        """One that writes into a folder of the test, with all that it can draw."""
        return TensorBoardSink(tmp_path / "tb", per_layer=True, heatmap_every=10)

    def test_every_scalar_is_read_back(self, tmp_path: Path) -> None:
        """S1-13, S1-07: the event file holds the keys and values of `Snapshot.metrics`, by step."""
        sink = TensorBoardSink(tmp_path)
        for snapshot in (FIRST, SECOND):
            sink.write(snapshot)
        sink.close()
        found = read(tmp_path)
        assert set(found.Tags()["scalars"]) == set(FIRST.metrics())
        for key in FIRST.metrics():
            events = [(event.step, event.value) for event in found.Scalars(key)]
            single = [(s.last_step, float(np.float32(s.metrics()[key]))) for s in (FIRST, SECOND)]
            assert events == single

    def test_pictures_are_read_back(self, tmp_path: Path) -> None:
        """S1-34: one picture of all layers, one per layer where asked, at the step it was due."""
        sink = TensorBoardSink(tmp_path, per_layer=True, heatmap_every=20)
        sink.write(FIRST)
        sink.write(SECOND)
        sink.close()
        found = read(tmp_path)
        assert set(found.Tags()["images"]) == {
            "moe/usage_heatmap",
            "moe/layers-5b-0-5d-.mlp/usage_heatmap",
            "moe/layers-20-0.mlp/usage_heatmap",
        }
        (image,) = found.Images("moe/usage_heatmap")
        assert (image.step, image.height, image.width) == (20, 64, 64)
        assert image.encoded_image_string.startswith(b"\x89PNG")

    def test_histograms_are_read_back(self, tmp_path: Path) -> None:
        """The tokens of each expert stand in a bucket of its own."""
        sink = TensorBoardSink(tmp_path, per_layer=True, heatmap_every=10)
        sink.write(FIRST)
        sink.close()
        (event,) = read(tmp_path).Histograms("moe/layers-5b-0-5d-.mlp/tokens_per_expert")
        value = event.histogram_value
        assert (list(value.bucket_limit), list(value.bucket)) == ([1.0, 2.0], [3.0, 1.0])
        assert (event.step, value.num) == (10, 4)

    def test_alerts_are_read_back(self, tmp_path: Path) -> None:
        """The line stands as text, and the number of layers as a curve."""
        sink = TensorBoardSink(tmp_path)
        sink.alert(alert())
        sink.alert(alert(state="ended", step=40, active=0))
        sink.close()
        found = read(tmp_path)
        events = [(event.step, event.value) for event in found.Scalars("alerts/severe_imbalance")]
        assert events == [(20, 2.0), (40, 0.0)]
        text = found.Tensors("alerts/text_summary")[0].tensor_proto.string_val[0].decode()
        assert text == (
            "\u26a0\ufe0f  MoE Alert at step 20: layers.0.mlp: "
            "Severe expert imbalance (ratio: 4.52)"
        )

    def test_files_stay_in_their_folder(self, tmp_path: Path) -> None:
        """J15: a layer whose name climbs out of the folder makes no file outside of it."""
        inside = tmp_path / "inside"
        sink = TensorBoardSink(inside, per_layer=True)
        sink.write(window(1, 10, stats("../../outside", [3, 1]), stats("/etc/x", [3, 1])))
        sink.close()
        assert [path.name for path in tmp_path.iterdir()] == ["inside"]
        assert all(path.is_file() for path in inside.iterdir())

    def test_leaves_a_writer_of_somebody_else_open(self, tmp_path: Path) -> None:
        """S1-17: a ``SummaryWriter`` is written into and not closed."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(tmp_path))
        sink = TensorBoardSink(writer)
        sink.write(FIRST)
        sink.close()
        writer.add_scalar("mine", 1.0, 1)
        writer.close()
        tags = read(tmp_path).Tags()["scalars"]
        assert "mine" in tags
        assert "moe/avg_expert_cv" in tags
        assert np.isclose(read(tmp_path).Scalars("moe/avg_expert_cv")[0].value, 0.25)
