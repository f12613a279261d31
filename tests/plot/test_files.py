"""Each kind of picture as a file: text that is there, nothing global, nothing that can act."""

import struct
import subprocess
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from moetrace.plot import KINDS, Choice, write_plot
from moetrace.plot.drawing import drawing
from moetrace.run import Run
from tests.plot.made import LAYERS, full, kept
from tests.report.made import recorded, stats, window

HOSTILE = "$x_{1}$</text><script>alert(1)</script>\x1b[2J\u202e&"

SAID = {
    "heatmap": ["Load per expert", "steps 81-90", "layer", "expert", "1/16", "dead: no token"],
    "experts": ["model.layers.1.mlp", "optimizer step", "load over the fair share"],
    "curves": ["CV of the load", "MaxVio", "token routing entropy, nats", "uniform router"],
    "usage": ["model.layers.0.peer", "expert, busiest first", "assignments", "1 hot"],
    "top-experts": ["the 20 busiest of each layer", "load over the fair share"],
    "coverage": ["experts used in the window, %", "uniform choice", "optimizer step"],
    "hot-experts": ["2 hot experts", "times the mean", "108", "0", "1"],
    "rank": ["rank of the expert", "load over the fair share", "uniform choice, as many as in"],
    "sub-keys": ["first half of the key: 8 sub-keys, 5 dead", "draws per expert, steps 41-50"],
    "weights": ["mean of the weights", "relative change per optimizer step", "drift"],
    "gradients": ["gradient norm", "embed", "attention", "experts", "lm_head", "total"],
    "gradient-heatmap": ["all parameters of the block", "attention", "MLP", "block"],
    "gradient-bars": ["squared norm, stacked", "norm, side by side", "other"],
    "gradient-steps": ["step 10", "step 90", "Evolution of the gradient norms"],
    "gradient-surface": ["gradient norm", "optimizer step", "block"],
    "gradient-wireframe": ["gradient norm", "optimizer step", "block"],
    "gradient-bars-3d": ["gradient norm", "optimizer step", "block"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Everything recorded, nine windows."""
    return kept(tmp_path_factory.mktemp("plot") / "run", *full())


def texts(path: Path) -> list[str]:
    """The texts of an SVG picture."""
    tree = ElementTree.parse(path)
    return ["".join(item.itertext()) for item in tree.iter("{http://www.w3.org/2000/svg}text")]


class TestEveryKind:
    def test_is_tested_here(self) -> None:
        """A kind that is added says what its picture has to say."""
        assert list(SAID) == list(KINDS)

    @pytest.mark.parametrize("kind", KINDS)
    def test_says_what_it_shows_and_in_which_unit(
        self, kind: str, run: Run, tmp_path: Path
    ) -> None:
        """Titles, axes and legends stand in the picture as text; nothing warns."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_plot(run, tmp_path / "plot.svg", kind=kind)
        found = " | ".join(texts(tmp_path / "plot.svg"))
        assert not [text for text in SAID[kind] if text not in found]

    @pytest.mark.parametrize(
        "kind", ["heatmap", "curves", "usage", "coverage", "sub-keys", "weights"]
    )
    def test_no_text_overlaps_another(
        self, kind: str, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of the boxes of the texts that are drawn no two meet, and all lie on the picture."""
        texts: dict[Text, None] = {}
        draw = Text.draw

        def noted(self: Text, renderer: RendererBase, *more: Any, **named: Any) -> None:
            texts[self] = None
            draw(self, renderer, *more, **named)

        monkeypatch.setattr(Text, "draw", noted)
        with _drawn(kind, run) as canvas:
            texts.clear()
            canvas.draw()
            boxes = [
                (item.get_text(), item.get_window_extent(canvas.get_renderer()))
                for item in texts
                if item.get_text().strip()
            ]
        assert len(boxes) > 8
        width, height = canvas.get_width_height()
        for at, (text, box) in enumerate(boxes):
            assert -1 <= box.x0 <= box.x1 <= width + 1, text
            assert -1 <= box.y0 <= box.y1 <= height + 1, text
            for other, second in boxes[at + 1 :]:
                wide = min(box.x1, second.x1) - max(box.x0, second.x0)
                tall = min(box.y1, second.y1) - max(box.y0, second.y0)
                assert min(wide, tall) <= 2, (text, other)

    def test_needs_neither_pyplot_nor_torch(self, run: Run, tmp_path: Path) -> None:
        """In a fresh interpreter, a picture in each dimension."""
        code = (
            "import sys; from moetrace.run import open_run; from moetrace.plot import write_plot\n"
            f"run = open_run({str(run.path)!r})\n"
            f"write_plot(run, {str(tmp_path / 'a.png')!r}, kind='heatmap')\n"
            f"write_plot(run, {str(tmp_path / 'b.svg')!r}, kind='gradient-surface')\n"
            "print([n for n in ('matplotlib.pyplot', 'torch', 'pandas') if n in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
        )
        assert done.stdout == "[]\n"


class TestWritePlot:
    def test_a_png_has_the_size_of_its_kind(self, run: Run, tmp_path: Path) -> None:
        """Inches times 200."""
        path = write_plot(run, tmp_path / "plot.png", kind="heatmap")
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", content[16:24]) == (1440, 840)

    def test_dead_experts_are_black_and_nothing_else_is(self, run: Run) -> None:
        """One cell of 3 x 8 in layer 2, expert 7; the hot cell is the reddest of the others."""
        with _drawn("heatmap", run) as canvas:
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)
            frame = canvas.figure.axes[0].get_window_extent()
        wide, tall = frame.width / 8, frame.height / 3
        cells = np.array(
            [
                [
                    pixels[int(frame.y1 - (row + 0.5) * tall), int(frame.x0 + (at + 0.5) * wide)]
                    for at in range(8)
                ]
                for row in range(3)
            ]
        )
        assert cells[2, 7].tolist() == [0, 0, 0]
        assert (cells.sum(axis=-1) > 150).sum() == 23
        red = cells[..., 0] - cells[..., 2]
        assert np.unravel_index(red.argmax(), red.shape) == (1, 3)

    @pytest.mark.parametrize("suffix", [".png", ".svg"])
    def test_the_same_run_gives_the_same_file(self, suffix: str, run: Run, tmp_path: Path) -> None:
        """Byte for byte: no date, no random number in it."""
        one, two = (
            write_plot(run, tmp_path / f"{name}{suffix}", kind="coverage").read_bytes()
            for name in "ab"
        )
        assert one == two

    @pytest.mark.parametrize("kind", ["heatmap", "curves", "usage", "hot-experts"])
    def test_no_name_can_act_or_break_the_picture(self, kind: str, tmp_path: Path) -> None:
        """J1, J3, J5: neither mathematics nor markup nor escapes; the picture is drawn."""
        history = (
            window(n, n, stats(HOSTILE, [9, 1, 1, 1, 1, 1, 1, 1]), stats("_b$", [2] * 8))
            for n in range(1, 4)
        )
        run = recorded(tmp_path / "run", *history, header={"model": HOSTILE})
        path = write_plot(run, tmp_path / "plot.svg", kind=kind)
        tree = ElementTree.parse(path)
        assert not [item for item in tree.iter() if item.tag.endswith("script")]
        drawn = "".join("".join(item.itertext()) for item in tree.iter() if "text" in item.tag)
        assert "$x_{1}$" in drawn
        assert not [c for c in drawn if unicodedata.category(c) in ("Cf", "Cs")]
        assert "\x1b" not in drawn

    def test_draws_what_one_window_can_show(self, tmp_path: Path) -> None:
        """A single window has no curve, and a dot for each layer; nothing warns."""
        run = kept(tmp_path / "run", *full(windows=1))
        for kind in ("curves", "coverage", "weights", "gradient-steps", "experts"):
            with warnings.catch_warnings(), _drawn(kind, run) as canvas:
                warnings.simplefilter("error")
                canvas.figure.draw_without_rendering()

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("weights", r"probes=\[moetrace.WeightProbe\(\)\]"),
            ("gradients", r"probes=\[moetrace.GradientProbe\(\)\]\) and tracer.on_gradients\(\)"),
            ("gradient-surface", r"GradientProbe"),
            ("sub-keys", r"moetrace.IndexProbe records those of PEER layers"),
        ],
    )
    def test_names_how_to_record_what_is_not_there(
        self, kind: str, said: str, tmp_path: Path
    ) -> None:
        """And leaves no file, and no draft of one."""
        run = recorded(tmp_path / "run", window(1, 10, stats("a", [1, 1])))
        with pytest.raises(ValueError, match=said):
            write_plot(run, tmp_path / "plot.png", kind=kind)
        assert [item.name for item in tmp_path.iterdir()] == ["run"]

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"kind": "heatmpa"}, "did you mean heatmap"),
            ({"kind": "zzz"}, "there are heatmap, experts, curves"),
            ({"kind": "heatmap", "out": "plot.pdf"}, "'plot.pdf'; a plot ends in .png or .svg"),
            ({"kind": "heatmap", "phase": "eval"}, "no phase 'eval'; this run has train"),
            ({"kind": "heatmap", "step": 999}, "no window with step 999; there are steps 1 to 90"),
            ({"kind": "heatmap", "layers": "x*"}, "no layer 'x\\*' with routing; there is model"),
            ({"kind": "gradient-bars", "layers": "x"}, "no layer 'x' with gradients"),
        ],
    )
    def test_says_what_it_cannot_draw(
        self, more: dict[str, str], said: str, run: Run, tmp_path: Path
    ) -> None:
        """Each wrong choice with what there is."""
        out = tmp_path / more.pop("out", "plot.svg")
        with pytest.raises(ValueError, match=said):
            write_plot(run, out, **more)  # type: ignore[arg-type]

    def test_chooses_layers_and_steps(self, run: Run, tmp_path: Path) -> None:
        """One layer of the window that holds step 15."""
        path = write_plot(run, tmp_path / "a.svg", kind="heatmap", step=15, layers=LAYERS[1])
        found = texts(path)
        assert any("steps 11-20" in text for text in found)
        assert LAYERS[1] in found

    def test_names_the_package_that_it_lacks(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without matplotlib it says what brings it."""
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r"pip install 'moetrace\[plot\]'"):
            write_plot(run, tmp_path / "a.png", kind="heatmap")


@contextmanager
def _drawn(kind: str, run: Run) -> Iterator[FigureCanvasAgg]:
    """A kind of picture on a canvas of 100 dots an inch, in our style while the block runs."""
    chosen = KINDS[kind]
    with drawing(chosen.width, chosen.height) as figure:
        chosen.draw(figure, Choice(run))
        yield FigureCanvasAgg(figure)
