"""What the pictures hold, by the numbers that were drawn."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from moetrace.plot import KINDS, Choice
from moetrace.plot.drawing import drawing
from moetrace.plot.gradients import SEVEN, block_norms
from moetrace.plot.usage import Usage, uniform_ranks, usages
from moetrace.run import Run
from tests.plot.made import LAYERS, TABLES, counts, full, kept, norms, table
from tests.report.made import MadeRun, stats, window

Drawn = Callable[..., Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Everything recorded, nine windows."""
    return kept(tmp_path_factory.mktemp("drawn") / "run", *full())


@pytest.fixture
def drawn(run: Run) -> Iterator[Drawn]:
    """Draw a kind; gives the figure."""
    with drawing(7, 5) as figure:

        def draw(kind: str, *, of: Any = run, **choice: Any) -> Any:
            KINDS[kind].draw(figure, Choice(of, **choice))
            return figure

        yield draw


def plots(figure: Any) -> list[Any]:
    """The axes of a figure, without the scales of colours."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


class TestLoad:
    def test_the_heatmap_is_the_logarithm_of_the_load(self, drawn: Drawn) -> None:
        """Layer 1 in the last window: expert 3 has 106 of 400, 2.12 times its fair share."""
        (axes,) = plots(drawn("heatmap"))
        cells = axes.images[0].get_array()
        assert counts(8, 1)[3] == 106
        assert cells[1, 3] == pytest.approx(np.log2(106 / 50))
        assert cells[0].tolist() == [0.0] * 8
        assert cells[2, 7] < axes.images[0].norm.vmin

    def test_the_experts_of_the_worst_layer_stand_over_time(self, drawn: Drawn) -> None:
        """Layer 2 has a MaxVio of 0.16, layer 1 one of 1.12 in the last window."""
        (axes,) = plots(drawn("experts"))
        assert LAYERS[1] in axes.get_title(loc="left")
        cells = axes.images[0].get_array()
        assert cells.shape == (8, 9)
        assert cells[3, 4] == pytest.approx(np.log2(counts(4, 1)[3] / 50))

    def test_curves_have_a_line_per_layer_and_a_floor(self, drawn: Drawn, run: Run) -> None:
        """Values are those of the run; two of the four metrics have a floor."""
        axes = plots(drawn("curves"))
        assert [len(item.lines) for item in axes] == [4, 4, 3, 3]
        values = run.metric("load_cv")
        found = {tuple(line.get_ydata()) for line in axes[0].lines}
        assert all(tuple(values[:, column]) in found for column in range(3))

    def test_a_withheld_metric_says_so(self, drawn: Drawn) -> None:
        """Routers without logits have no entropy."""
        history = {"train": [window(1, 9, stats("a", [3, 1], scoring="none"))]}
        made = _run(history)
        axes = plots(drawn("curves", of=made))
        assert [text.get_text() for text in axes[2].texts] == ["withheld"]


class TestUsage:
    def test_bars_are_the_busiest_first_and_the_hot_apart(self, drawn: Drawn) -> None:
        """Expert 9 of the first table has 108 draws, the mean is 3.4."""
        axes = next(a for a in plots(drawn("usage")) if TABLES[0] in a.get_title(loc="left"))
        heights = {bar.get_x(): bar.get_height() for bar in axes.patches}
        tall = [heights[place] for place in sorted(heights)]
        assert tall == sorted(tall, reverse=True)
        assert tall[0] == 108
        assert "1 hot" in axes.get_title(loc="left")

    def test_coverage_is_the_share_of_experts_used(self, drawn: Drawn) -> None:
        """56 of 64 experts of the first table, 20 of the second, 7 of 8 of layer 2."""
        (axes,) = plots(drawn("coverage"))
        lines = [line for line in axes.lines if len(line.get_ydata()) == 9]
        solid = [line for line in lines if line.get_linestyle() == "-"]
        assert sorted(line.get_ydata()[-1] for line in solid) == [
            100 * 20 / 64, 87.5, 87.5, 100.0, 100.0,
        ]  # fmt: skip

    def test_the_table_lists_the_hottest_first(self, drawn: Drawn) -> None:
        """Expert 9 of both tables: 108 draws of 140 and of 220 in all, over 64 experts."""
        (axes,) = plots(drawn("hot-experts"))
        cells = axes.tables[0].get_celld()
        rows = [[cells[row, at].get_text().get_text() for at in range(4)] for row in (0, 1, 2)]
        assert rows[0] == ["layer", "expert", "assignments", "times the mean"]
        assert table(TABLES[0], 8).sum() == 218
        assert table(TABLES[1], 8).sum() == 146
        assert rows[1:] == [["1.peer", "9", "108", "47.3"], ["0.peer", "9", "108", "31.7"]]
        assert (3, 0) not in cells

    def test_no_hot_expert_is_said(self, drawn: Drawn) -> None:
        """A table of nothing is a sentence."""
        (axes,) = plots(drawn("hot-experts", layers="*.mlp"))
        assert not axes.tables
        assert axes.texts[0].get_text().startswith("no expert is above 5 times")

    def test_top_experts_are_of_the_largest_layers(self, drawn: Drawn) -> None:
        """Tables of 64 beside routers of 8: the tables; shared experts are known in both."""
        (axes,) = plots(drawn("top-experts"))
        cells = axes.images[0].get_array()
        assert cells.shape[0] == 2
        assert float(cells.max()) == pytest.approx(108 / (146 / 64))

    def test_the_rank_curve_falls_from_the_busiest(self, drawn: Drawn) -> None:
        """In multiples of the fair share; what was never drawn has no place on a logarithm."""
        (axes,) = plots(drawn("rank", layers="*.1.peer"))
        line, uniform = axes.lines
        assert line.get_ydata()[0] == pytest.approx(108 / (146 / 64))
        assert np.isnan(line.get_ydata()[-1])
        assert np.nanmax(uniform.get_ydata()) < 4

    @pytest.mark.parametrize(("tokens", "top_k"), [(0, 1), (400, 8)])
    def test_the_uniform_curve_is_that_of_a_uniform_choice(self, tokens: int, top_k: int) -> None:
        """Against the mean sorted counts of 200 draws: within 6 % from rank 2 to 60 of 64."""
        rng = np.random.default_rng(4)
        draws = 64 * 50
        sorted_counts = []
        for _ in range(200):
            if tokens:
                chosen = rng.random((tokens, 64)).argpartition(top_k, axis=1)[:, :top_k]
                found = np.bincount(chosen.ravel(), minlength=64)
            else:
                found = rng.poisson(50, 64)
            sorted_counts.append(np.sort(found)[::-1])
        ranks = tuple(range(1, 65))
        usage = Usage("a", 64, draws, tokens, 1.0, 5.0, (), (), 0, (), (), ranks, ranks)
        expected = np.mean(sorted_counts, axis=0)
        assert np.allclose(uniform_ranks(usage)[1:60], expected[1:60], rtol=0.06)

    def test_routers_and_tables_are_read_alike(self) -> None:
        """The same counts give the same usage, whoever counted them."""
        found = {usage.layer: usage for usage in usages(full()[0])}
        assert list(found) == [*LAYERS, *TABLES]
        assert found[TABLES[0]].top_experts[0] == 9
        assert found[LAYERS[2]].coverage == 7 / 8
        assert found[LAYERS[2]].tokens == 400
        assert found[TABLES[0]].tokens == 0


class TestSubKeys:
    def test_draws_of_both_halves(self, drawn: Drawn) -> None:
        """Of the table with the most dead sub-keys, eight each; dead ones have ticks."""
        rows, columns, _ = plots(drawn("sub-keys", layers=TABLES[0]))
        assert rows.lines[1].get_xdata().tolist() == [5]
        assert len(columns.lines) == 1
        assert rows.get_ylabel() == "over fair share"

    def test_shows_the_table_with_the_most_dead_sub_keys(self, drawn: Drawn) -> None:
        """Rows 3 to 7 of the second table are dead."""
        figure = drawn("sub-keys")
        assert TABLES[1] in figure.get_suptitle()
        assert plots(figure)[0].lines[1].get_xdata().tolist() == [3, 4, 5, 6, 7]

    def test_the_map_is_of_the_last_window_that_keeps_its_counts(self, drawn: Drawn) -> None:
        """Steps 41 to 50: a cell per expert; those without a draw are below the scale."""
        axes = plots(drawn("sub-keys", layers=TABLES[0]))
        assert "steps 41-50" in axes[2].get_title(loc="left")
        cells = axes[2].images[0].get_array()
        assert cells.shape == (8, 8)
        assert cells[1, 1] == pytest.approx(np.log1p(104))
        assert (cells[5] < axes[2].images[0].norm.vmin).all()

    def test_without_counts_there_is_no_map(self, drawn: Drawn) -> None:
        """Before step 41 none were kept."""
        assert len(plots(drawn("sub-keys", step=15))) == 2


class TestWeights:
    def test_a_line_per_router_in_four_panels(self, drawn: Drawn) -> None:
        """The mean of (3, 4) and of what it becomes; no change before the first record."""
        axes = plots(drawn("weights"))
        assert [len(item.lines) for item in axes] == [3] * 4
        assert axes[0].lines[0].get_ydata().tolist() == [3.5 + at for at in range(9)]
        assert axes[1].lines[0].get_ydata()[0] == 5.0
        assert len(axes[2].lines[0].get_ydata()) == 0  # prev_sq is not recorded in these


class TestGradients:
    def test_a_line_per_group_and_the_total(self, drawn: Drawn) -> None:
        """S3-35: groups without parameters have none."""
        (axes,) = plots(drawn("gradients"))
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        assert list(lines) == ["embed", "attention", "experts", "lm_head", "total"]
        squares = sum(lines[group] ** 2 for group in ("embed", "attention", "experts", "lm_head"))
        assert np.allclose(lines["total"] ** 2, squares)

    def test_three_heatmaps_of_blocks_by_windows(self, drawn: Drawn) -> None:
        """S3-36: always three; all together is the root of the sum of squares."""
        axes = plots(drawn("gradient-heatmap"))
        every, attention, mlp = (item.images[0].get_array() for item in axes)
        assert every.shape == attention.shape == mlp.shape == (3, 9)
        assert (attention[2, 0], mlp[2, 0]) == (9.0, 12.0)
        assert every[2, 0] == 15.0
        assert norms(1, 2) == (4.5, 6.0)
        assert every[2, 1] == pytest.approx(7.5)

    def test_bars_are_stacked_and_side_by_side(self, drawn: Drawn) -> None:
        """S3-37: two axes; squares add up, so those are what is stacked."""
        stacked, beside = plots(drawn("gradient-bars"))
        attention, mlp, other = (
            [bar.get_height() for bar in group] for group in stacked.containers
        )
        means = np.mean([[norms(at, b)[0] ** 2 for b in range(3)] for at in range(9)], axis=0)
        assert np.allclose(attention, means)
        assert np.allclose(mlp, means * 16 / 9)
        assert np.allclose(other, 0.0)
        assert np.allclose([bar.get_height() for bar in beside.containers[0]], np.sqrt(means))

    def test_seven_steps_evenly_spaced_with_both_ends(self, drawn: Drawn) -> None:
        """S3-38: of nine windows 1, 2, 4, 5, 6, 8 and 9, from red to violet."""
        axes = plots(drawn("gradient-steps"))
        assert len(axes) == 3
        lines = axes[0].lines
        steps = [int(line.get_label().removeprefix("step ")) for line in lines]
        assert steps == [10, 20, 40, 50, 60, 80, 90]
        assert [line.get_color() for line in lines] == list(SEVEN)
        assert len({line.get_marker() for line in lines}) == 7

    def test_fewer_windows_keep_both_ends_of_the_colours(self, drawn: Drawn, tmp_path) -> None:
        """Three windows: red, the middle, violet."""
        short = kept(tmp_path / "run", *full(windows=3))
        lines = plots(drawn("gradient-steps", of=short))[0].lines
        assert [line.get_color() for line in lines] == [SEVEN[0], SEVEN[3], SEVEN[6]]

    @pytest.mark.parametrize("kind", ["gradient-surface", "gradient-wireframe", "gradient-bars-3d"])
    def test_three_dimensions_are_block_step_and_norm(self, kind: str, drawn: Drawn) -> None:
        """S3-43: one body on axes that say what they are."""
        (axes,) = drawn(kind).axes
        assert axes.name == "3d"
        assert len(axes.collections) == 1
        labels = axes.get_xlabel(), axes.get_ylabel(), axes.get_zlabel()
        assert labels == ("block", "optimizer step", "gradient norm")
        assert axes.get_zlim() == (0, 15.0)

    def test_a_surface_takes_two_blocks_and_two_windows(self, drawn: Drawn) -> None:
        """One block has bars."""
        with pytest.raises(ValueError, match="found 1 blocks and 9 windows"):
            drawn("gradient-surface", layers="model.layers.1")

    def test_what_was_never_finite_is_no_number(self, tmp_path) -> None:
        """A window without a finite step is a gap, not 0."""
        from dataclasses import replace

        from tests.export.made import gradient

        first, second = full(windows=2)
        bad = gradient("model.layers.0", "attention", 1.0, nonfinite=1)
        run = kept(tmp_path / "run", first, replace(second, gradients=(bad,)))
        found = block_norms(Choice(run, layers="model.layers.0"))
        assert found.norms["attention"][:, 0].tolist() == [3.0, pytest.approx(np.nan, nan_ok=True)]


def _run(history: dict[str, list[Any]]) -> Any:
    """A run in memory with the tables that curves ask for."""

    class WithMetrics(MadeRun):
        def metric(self, name: str, *, phase: str = "train") -> np.ndarray:
            """As `Run.metric`."""
            rows = [[s.metrics()[name] for s in w] for w in self.snapshots(phase=phase)]
            return np.array(rows, np.float64)

        def steps(self, *, phase: str = "train") -> np.ndarray:
            """As `Run.steps`."""
            return np.array([[w.first_step, w.last_step] for w in self.snapshots(phase=phase)])

    return WithMetrics(history)
