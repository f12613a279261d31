"""The pictures of the LoRA recipe, as figures: what is in them, and what stands in an empty one."""

import importlib
import json

import numpy as np
import pytest
from matplotlib.colors import to_hex

from src.errors import ExperimentError
from src.utils.drawing import RAINBOW
from src.utils.gradient_log import GradientLog, load_gradient_log_from_csv
from src.utils.visualization import (
    generate_summary_report,
    plot_gradient_evolution,
    plot_gradient_norms,
    plot_layer_comparison,
    plot_layer_heatmap,
    plot_training_loss,
)

in_3d = importlib.import_module("src.utils.3d_visualization")


def write_log(base, *, steps=20, mlp=True, layers=True) -> GradientLog:
    """The log of files with 2 blocks: attention 3 in each, MLP 4 in each or none; row 1 is high."""
    up = 4.0 if mlp else 0.0
    groups, blocks = [], []
    for step in range(1, steps + 1):
        at = 2.0 if step == 2 else 1.0
        attention, other = at * 3 * 2**0.5, at * up * 2**0.5
        total = (attention**2 + other**2) ** 0.5
        groups.append(f"{step},0.0,{attention!r},{other!r},0.0,{total!r}")
        blocks.append(f"{step},{at * 3},{at * up},{at * 3},{at * up}")
    header = "step,embed_norm,attention_norm,mlp_norm,lm_head_norm,total_norm"
    base.with_name(f"{base.name}.group_norms.csv").write_text("\n".join([header, *groups]) + "\n")
    if layers:
        header = "step,layer_0_attention,layer_0_mlp,layer_1_attention,layer_1_mlp"
        text = "\n".join([header, *blocks]) + "\n"
        base.with_name(f"{base.name}.layer_norms.csv").write_text(text)
    return load_gradient_log_from_csv(base)


@pytest.fixture
def log(tmp_path):
    """Both parts, 20 steps, 2 blocks."""
    return write_log(tmp_path / "gradient_analysis")


class TestLog:
    def test_it_comes_back_from_its_files(self, log):
        """S3-54: steps, groups and layers, by the path without the ending."""
        assert log.steps.tolist() == list(range(1, 21))
        assert log.trained == ("attention", "mlp")
        assert log.blocks == (0, 1)
        assert log.layers["mlp"][:2].tolist() == [[4.0, 4.0], [8.0, 8.0]]

    def test_a_block_is_the_root_of_the_squares_of_its_parts(self, log):
        """Norms of 3 and 4 are 5 together, not 7."""
        assert log.block_norms("all")[0].tolist() == [5.0, 5.0]

    def test_layers_are_in_the_order_of_their_numbers(self, tmp_path):
        """A layer that appears late in the file, or after layer 10, stands where it belongs."""
        base = tmp_path / "g"
        write_log(base, steps=1, layers=False)
        (tmp_path / "g.layer_norms.csv").write_text(
            "step,layer_10_mlp,layer_2_attention,layer_2_mlp\n1,7.0,5.0,\n"
        )
        found = load_gradient_log_from_csv(base)
        assert found.blocks == (2, 10)
        assert found.layers["attention"].tolist() == [[5.0, 0.0]]
        assert np.isnan(found.layers["mlp"][0, 0])
        assert found.layers["mlp"][0, 1] == 7.0

    @pytest.mark.parametrize("text", ["", "step\n", "step,embed_norm\n1,x\n", "a,b\n1,2\n"])
    def test_another_file_is_refused(self, tmp_path, text):
        """A file that is no table of norms is named."""
        (tmp_path / "g.group_norms.csv").write_text(text)
        with pytest.raises(ExperimentError, match=r"g\.group_norms\.csv"):
            load_gradient_log_from_csv(tmp_path / "g")


class TestLoss:
    def test_two_lines_with_their_lowest_points(self):
        """S3-31: training blue, validation orange, the minimum of each annotated."""
        figure = plot_training_loss([(1, 3.0), (2, 1.0), (3, 2.0)], [(2, 4.0), (3, 2.5)])
        (axes,) = figure.axes
        assert [to_hex(line.get_color()) for line in axes.lines] == ["#1f77b4", "#ff7f0e"]
        assert [(note.get_text(), note.xy) for note in axes.texts] == [
            ("lowest training: 1.0000 at step 2", (2, 1.0)),
            ("lowest validation: 2.5000 at step 3", (3, 2.5)),
        ]

    def test_one_line_without_a_validation(self):
        """S3-31: what was not measured is not drawn."""
        (axes,) = plot_training_loss([(1, 3.0)], []).axes
        assert (len(axes.lines), len(axes.texts)) == (1, 1)


class TestNorms:
    def test_a_line_per_trained_group_and_the_total(self, log):
        """S3-35: groups without parameters have no line."""
        (axes,) = plot_gradient_norms(log).axes
        assert [line.get_label() for line in axes.lines] == ["attention", "MLP", "total"]

    def test_several_logs_by_name(self, log, tmp_path):
        """S3-54: a panel per group and one for the total, a line per log that trained it."""
        other = write_log(tmp_path / "other", mlp=False)
        path = tmp_path / "deep" / "comparison.png"
        figure = plot_gradient_norms({"Both": log, "Attention": other}, "A title", path)
        lines = [[line.get_label() for line in axes.lines] for axes in figure.axes]
        assert lines == [["Both", "Attention"], ["Both"], ["Both", "Attention"]]
        assert figure.get_suptitle() == "A title"
        assert path.read_bytes().startswith(b"\x89PNG")

    def test_the_report_is_of_the_log(self, log, tmp_path):
        """S3-54: mean, std, max, min and peak step of each trained group, also as a file."""
        path = tmp_path / "report.json"
        report = generate_summary_report({"Both": log}, save_path=path)
        assert list(report["Both"]) == ["attention", "mlp", "total"]
        told = report["Both"]["total"]
        assert (told["peak_step"], told["max"]) == (2, pytest.approx(10 * 2**0.5))
        assert told["mean"] == pytest.approx((19 + 2) / 20 * 5 * 2**0.5)
        assert json.loads(path.read_text()) == report


class TestLayers:
    @pytest.mark.parametrize("mlp", [True, False])
    def test_the_map_has_three_panels(self, tmp_path, mlp):
        """S3-36: always three; the one of a part that was not trained says so."""
        figure = plot_layer_heatmap(write_log(tmp_path / "g", mlp=mlp))
        panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
        titles = [axes.get_title(loc="left") for axes in panels]
        assert titles == ["attention and MLP", "attention", "MLP"]
        assert panels[0].images[0].get_array()[0, 0] == (5.0 if mlp else 3.0)
        empty = [axes.texts[0].get_text() for axes in panels if not axes.images]
        assert empty == ([] if mlp else ["no MLP parameter was trained"])

    def test_bars_stacked_and_side_by_side(self, log):
        """S3-37: two panels; squares are stacked, since they add up, and norms stand beside."""
        stacked, beside = plot_layer_comparison(log).axes
        mean_square = (19 + 4) / 20
        tops = [bar.get_y() + bar.get_height() for bar in stacked.patches]
        assert tops == pytest.approx([9 * mean_square] * 2 + [25 * mean_square] * 2)
        heights = [bar.get_height() for bar in beside.patches]
        assert heights == pytest.approx([3 * mean_square**0.5] * 2 + [4 * mean_square**0.5] * 2)

    @pytest.mark.parametrize(
        ("steps", "shown"),
        [(20, [1, 4, 7, 11, 14, 17, 20]), (3, [1, 2, 3]), (1, [1])],
    )
    def test_seven_steps_from_red_to_violet(self, tmp_path, steps, shown):
        """S3-38: at most seven lines, evenly spaced, the first and the last step among them."""
        (axes,) = plot_gradient_evolution(write_log(tmp_path / "g", steps=steps)).axes
        labels = [line.get_label() for line in axes.lines]
        assert labels == [f"step {step}" for step in shown]
        assert axes.lines[0].get_color() == RAINBOW[0]
        if len(shown) > 1:
            assert axes.lines[-1].get_color() == RAINBOW[-1]

    @pytest.mark.parametrize(
        "draw", [plot_layer_heatmap, plot_layer_comparison, plot_gradient_evolution]
    )
    def test_without_layers_there_is_nothing_to_draw(self, tmp_path, draw):
        """S3-16: a log made with --no_layer_norm has no picture of layers, and says why."""
        with pytest.raises(ExperimentError, match="--no_layer_norm"):
            draw(write_log(tmp_path / "g", layers=False))


class TestThreeDimensions:
    def run(self, *words: str) -> int:
        """The exit status of the program."""
        return in_3d.main(list(words))

    def test_bars_are_drawn_unless_another_form_is_asked_for(self, log, tmp_path, monkeypatch):
        """S3-43: the documented file, without a window and whatever backend is asked for."""
        monkeypatch.setenv("MPLBACKEND", "TkAgg")
        base, out = str(tmp_path / "gradient_analysis"), tmp_path / "plots"
        assert self.run("--input", base, "--output", str(out), "--no-interactive") == 0
        assert [path.name for path in out.iterdir()] == ["gradient_3d_bars.png"]

    def test_all_forms_by_name(self, log, tmp_path, monkeypatch):
        """S3-43: --type all writes the three documented files."""
        written = []
        monkeypatch.setattr(in_3d, "saved", lambda figure, path: written.append(path.name))
        base = str(tmp_path / "gradient_analysis")
        assert self.run("--input", base, "--output", str(tmp_path), "--type", "all") == 0
        assert written == [
            *("gradient_3d_surface.png", "gradient_3d_wireframe.png", "gradient_3d_bars.png")
        ]

    def test_one_part_of_the_blocks(self, log):
        """S3-43: --module mlp has the height of the MLP's norms."""
        assert in_3d.draw(log, "bars", module="mlp").axes[0].get_zlim() == (0, 8.0)
        assert in_3d.draw(log, "bars", module="all").axes[0].get_zlim() == (0, 10.0)

    def test_what_cannot_be_drawn_is_one_line(self, tmp_path, capsys):
        """S3-43: no such log, or a part that was not trained, ends in a message."""
        assert self.run("--input", str(tmp_path / "gone"), "--output", str(tmp_path)) == 1
        write_log(tmp_path / "g", mlp=False)
        words = ["--input", str(tmp_path / "g"), "--output", str(tmp_path), "--module", "mlp"]
        assert self.run(*words) == 1
        lines = capsys.readouterr().err.splitlines()
        assert "gone.group_norms.csv" in lines[0]
        assert lines[1] == "error: no MLP parameter was trained in this experiment"
