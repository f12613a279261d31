"""The page in a real browser, opened from disk with the network off, read as a person reads it."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetrace.metrics import rank_load
from moetrace.report import render, write_report
from moetrace.routing_stats import RoutingStats
from moetrace.run import Run
from moetrace.snapshot import Snapshot
from tests.report.browser import Page
from tests.report.made import MadeRun, drifting, manifest, recorded, stats, window
from tests.report.test_alarms import event
from tests.report.test_probes import gradient, weight

HOSTILE = (
    "</script><img src=x onerror=globalThis.hacked=1>",
    "<img src=https://example.com/x.png>",
    "\"'><svg onload=globalThis.hacked=1>",
    "model.\u202egpj.\u2066mlp",
    "x" * 1_000_000,
)

PLACEMENTS = ("contiguous", "striped", "balanced", "replicas")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Forty windows of training and three of evaluation: five layers of twelve experts."""
    train = drifting(windows=40, layers=5, experts=12, top_k=2, tokens=3000)
    evaluation = drifting(
        windows=3, layers=5, experts=12, top_k=2, tokens=700, every=100, seed=8, phase="eval"
    )
    header = manifest(train[0].layers, experts=12, top_k=2)
    return recorded(tmp_path_factory.mktemp("runs") / "made", *train, *evaluation, header=header)


@pytest.fixture
def page(run: Run, browser: Page, tmp_path: Path) -> Page:
    """The report of that run, open."""
    return opened(browser, write_report(run, tmp_path / "report.html"))


def opened(browser: Page, path: Path) -> Page:
    """The page, once its views stand."""
    browser.open(path)
    browser.wait("document.body.dataset.drawn === 'all'")
    return browser


def shown_run(browser: Page, tmp_path: Path, *history: Snapshot) -> Page:
    """The report of a run of these snapshots, open."""
    made = recorded(tmp_path / "run", *history)
    return opened(browser, write_report(made, tmp_path / "report.html"))


def table(page: Page) -> list[list[str]]:
    """The cells of the table of layers, as text."""
    return cells(page, "#layers")


def cells(page: Page, selector: str) -> list[list[str]]:
    """The cells of the body of a table, as text."""
    found: list[list[str]] = page.run(
        f"[...document.querySelectorAll('{selector} tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return found


def places(counts: Any, placement: str, ranks: int) -> list[int]:
    """The rank of each expert: a slow form of the three placements."""
    if placement == "contiguous":
        return [expert * ranks // len(counts) for expert in range(len(counts))]
    if placement == "striped":
        return [expert % ranks for expert in range(len(counts))]
    groups: list[list[int]] = [[] for _ in range(ranks)]
    for expert in sorted(range(len(counts)), key=lambda expert: -counts[expert]):
        free = [group for group in groups if len(group) < -(-len(counts) // ranks)]
        min(free, key=lambda group: sum(counts[e] for e in group)).append(expert)
    return [next(r for r in range(ranks) if e in groups[r]) for e in range(len(counts))]


def copies_of(counts: Any, ranks: int) -> list[Fraction]:
    """The load of every copy where each rank has a spare one, heaviest first: a slow form."""
    copies = [1] * len(counts)
    for _ in range(ranks):
        taken = [Fraction(int(count), number) for count, number in zip(counts, copies, strict=True)]
        copies[taken.index(max(taken))] += 1
    pairs = zip(counts, copies, strict=True)
    return [Fraction(int(count), number) for count, number in pairs for _ in range(number)]


def loads_of(counts: Any, placement: str, ranks: int) -> list[Fraction]:
    """What each rank computes: `rank_load`, but for copies that share the tokens of an expert."""
    if placement != "replicas":
        loads = rank_load(counts, placement=places(counts, placement, ranks), ranks=ranks)
        return [Fraction(int(load)) for load in loads]
    groups: list[list[Fraction]] = [[] for _ in range(ranks)]
    copies = copies_of(counts, ranks)
    for copy in sorted(copies, reverse=True):
        free = [group for group in groups if len(group) < -(-len(copies) // ranks)]
        min(free, key=sum).append(copy)
    return [sum(group, Fraction(0)) for group in groups]


def factor_of(layers: list[list[Fraction]]) -> float:
    """The heaviest rank of every layer over an even split, all layers together."""
    even = sum(sum(loads) / len(loads) for loads in layers)
    return float(sum(map(max, layers)) / even)


def readout(page: Page) -> tuple[str, int, float]:
    """Layer with expert and steps, assignments, and times the fair share."""
    text = page.text("#readout")
    found = re.fullmatch(r"(.*): ([\d,]+) assignments, ([\d.]+) times the fair share of .*", text)
    assert found, text
    return found[1], int(found[2].replace(",", "")), float(found[3])


def assert_table_is(page: Page, snapshot: Snapshot) -> None:
    """Every cell of the table is the run's figure, as far as it is printed."""
    rows = table(page)
    assert len(rows) == len(snapshot.routing)
    for row, record in zip(rows, snapshot, strict=True):
        metrics = record.metrics()
        counts = record.tokens_per_expert
        assert row[0] == record.layer
        assert row[1] == f"{record.tokens:,}"
        for cell, name in zip(
            row[2:7],
            ("load_cv", "max_vio", "max_vio_floor", "max_vio_excess", "routing_entropy"),
            strict=True,
        ):
            assert float(cell) == pytest.approx(metrics[name], abs=5.1e-4)
        assert row[7] == str(np.count_nonzero(counts == 0))
        assert row[8] == str(int(counts.argmax()))
        assert float(row[9].removesuffix(" %")) == pytest.approx(
            100 * counts.max() / counts.sum(), abs=5.1e-3
        )


class TestOpenedFromDisk:
    def test_asks_for_nothing_but_itself(self, page: Page, tmp_path: Path) -> None:
        """J2: with every view used, the file is the only request; nothing complains."""
        page.focus("#step")
        page.press("ArrowLeft", 3)
        page.click("#heat")
        page.click(".u-over")
        page.click("#layers thead button")
        page.click("#time")
        page.click("#theme")
        page.focus("#placement")
        page.press("ArrowDown")
        page.run("document.querySelectorAll('details').forEach(item => { item.open = true; })")
        assert page.requests() == [(tmp_path / "report.html").as_uri()]
        assert page.complaints() == []

    def test_a_page_that_was_altered_does_not_act(
        self, run: Run, browser: Page, tmp_path: Path
    ) -> None:
        """The policy is in force: another script, handler, style or picture is refused and seen."""
        text = render(run)
        for at, extra in enumerate(
            (
                "<script>globalThis.hacked = 1</script>",
                "<img src=x onerror='globalThis.hacked = 1'>",
                "<img src=https://example.com/x.png>",
                "<style>body { display: none }</style>",
            )
        ):
            path = tmp_path / f"altered{at}.html"
            path.write_text(text.replace("</main>", f"{extra}</main>"), encoding="utf-8")
            opened(browser, path)
            assert browser.run("globalThis.hacked") is None
            assert browser.run("getComputedStyle(document.body).display") != "none"
            assert any(
                "Content Security Policy" in json.dumps(item) for item in browser.complaints()
            )

    def test_a_script_with_one_more_byte_does_not_run(
        self, run: Run, browser: Page, tmp_path: Path
    ) -> None:
        """Only the text that was hashed runs; the verdict still stands without it."""
        path = tmp_path / "altered.html"
        path.write_text(render(run).replace('"use strict";', '"use strict"; '), encoding="utf-8")
        browser.open(path)
        assert browser.run("document.getElementById('views').hidden") is True
        assert "layers." in browser.text(".headline")


class TestCounts:
    def test_every_count_of_every_window_is_in_the_page(self, page: Page, run: Run) -> None:
        """decode.js, run in the browser on the page's own data, gives the run's counts."""
        code = files("moetrace.report").joinpath("decode.js").read_text(encoding="utf-8")
        for at, phase in enumerate(run.phases):
            values = page.run(
                f"(async () => {{ {code}; const data = "
                "JSON.parse(document.getElementById('data').textContent);"
                f"return Array.from(await integers(data.phases[{at}].cells)); }})()"
            )
            assert values == run.counts(phase=phase).reshape(-1).tolist()


class TestSlider:
    def test_starts_at_the_last_window_and_its_worst_cell(self, page: Page, run: Run) -> None:
        """What is wrong now is what is seen first."""
        last = run.snapshots()[-1]
        excess = run.metric("max_vio_excess")[-1]
        layer = last.routing[int(excess.argmax())]
        expert = int(layer.tokens_per_expert.argmax())
        assert page.text("#window") == "steps 391-400 (window 40 of 40)"
        where, count, _ = readout(page)
        assert where == f"{layer.layer}, expert {expert}, steps 391-400"
        assert count == int(layer.tokens_per_expert[expert])
        assert_table_is(page, last)

    def test_moves_by_the_keyboard_and_everything_follows(self, page: Page, run: Run) -> None:
        """Left, page and home keys of the slider; table and readout equal the run's figures."""
        snapshots = run.snapshots()
        page.focus("#step")
        for key, times in (("ArrowLeft", 1), ("ArrowLeft", 11), ("Home", 1), ("ArrowRight", 4)):
            page.press(key, times)
            at = page.run("document.getElementById('step').valueAsNumber")
            snapshot = snapshots[at]
            span = f"steps {snapshot.first_step}-{snapshot.last_step}"
            assert page.text("#window") == f"{span} (window {at + 1} of 40)"
            assert page.run("document.getElementById('step').ariaValueText") == f"train, {span}"
            assert_table_is(page, snapshot)
            assert span in readout(page)[0]
        assert at == 4

    def test_cells_are_read_by_the_keyboard(self, page: Page, run: Run) -> None:
        """The cursor walks over the map; each cell tells its exact count and its ratio."""
        counts = run.counts()
        page.focus("#step")
        page.press("Home")
        page.press("ArrowRight", 17)
        page.focus("#heat")
        page.press("Home")
        page.press("ArrowUp", 9)
        path = [("ArrowRight", 0, 1), ("ArrowDown", 1, 1), ("End", 1, 11), ("ArrowDown", 2, 11),
                ("ArrowLeft", 2, 10), ("ArrowUp", 1, 10)]  # fmt: skip
        for key, row, expert in path:
            page.press(key)
            where, count, ratio = readout(page)
            assert where == f"{run.layers[row]}, expert {expert}, steps 171-180"
            assert count == counts[17, row, expert]
            assert ratio == pytest.approx(count / counts[17, row].mean(), abs=5.1e-4)

    def test_a_pointer_reads_the_cell_under_it(self, page: Page, run: Run) -> None:
        """The middle of the third of five rows, the first of twelve columns."""
        page.click("#heat", across=0.5 / 12, down=2.5 / 5)
        where, count, _ = readout(page)
        assert where.startswith(f"{run.layers[2]}, expert 0, ")
        assert count == run.counts()[-1, 2, 0]

    def test_a_click_into_a_curve_moves_it(self, page: Page) -> None:
        """The left end of a curve is the first window."""
        page.click(".u-over", across=0.001)
        assert page.text("#window") == "steps 1-10 (window 1 of 40)"

    def test_plays_from_the_start_and_stops_when_told(self, page: Page) -> None:
        """Play at the last window begins with the first; pressed again it stays where it is."""
        page.click("#play")
        assert page.text("#play") == "Pause"
        page.wait("document.getElementById('step').valueAsNumber > 0")
        page.click("#play")
        assert page.text("#play") == "Play"
        assert page.run("document.getElementById('step').valueAsNumber") < 39


class TestPhases:
    def test_evaluation_is_chosen_by_the_keyboard(self, page: Page, run: Run) -> None:
        """Its windows, its table, its number of steps."""
        page.focus("#phase")
        page.press("ArrowDown")
        assert page.run("document.getElementById('phase').value") == "eval"
        assert page.text("#window") == "steps 201-300 (window 3 of 3)"
        assert_table_is(page, run.snapshots(phase="eval")[-1])
        page.focus("#step")
        page.press("ArrowLeft", 2)
        assert_table_is(page, run.snapshots(phase="eval")[0])

    def test_there_is_no_choice_of_one(self, browser: Page, tmp_path: Path) -> None:
        """A run of one phase shows no menu."""
        page = shown_run(browser, tmp_path, window(1, 1, stats("mlp", [5, 3])))
        assert page.run("document.getElementById('phase-label').hidden") is True


class TestCurves:
    def test_names_the_worst_layers_beside_their_lines(self, page: Page, run: Run) -> None:
        """MaxVio: the three worst, the median and the noise floor, in the order of their ends."""
        tags = page.run(
            "[...document.querySelectorAll('#curves figure')].map(figure => "
            "[...figure.querySelectorAll('.tags span')].map(tag => tag.textContent))"
        )
        worst = np.argsort(-run.metric("max_vio_excess")[-1])[:3]
        assert tags[1][:2] == [f"layer {worst[0]}", f"layer {worst[1]}"]
        # of five layers the third is the median: their two labels stand at one height
        assert set(tags[1][2:4]) == {f"layer {worst[2]}", "median"}
        assert tags[1][4] == "noise floor"
        assert [len(names) for names in tags] == [5, 5, 4, 4]

    @pytest.mark.parametrize(
        "loads",
        [
            pytest.param([[30, 10]] * 4, id="near the top"),
            pytest.param([[40, 0], *[[20, 20]] * 3], id="at the bottom"),
        ],
    )
    def test_labels_do_not_lie_on_each_other(
        self, browser: Page, tmp_path: Path, loads: list[list[int]]
    ) -> None:
        """Lines that end at one height: their labels are a line apart and inside the plot."""
        layers = (stats(f"l.{at}", load) for at, load in enumerate(loads))
        page = shown_run(browser, tmp_path, window(1, 1, *layers))
        plots = page.run(
            "[...document.querySelectorAll('#curves .u-over')].map(over => "
            "[[...over.querySelectorAll('.tags span')].map(tag => parseFloat(tag.style.top)),"
            " over.clientHeight])"
        )
        assert len(plots) == 4
        for tops, height in plots:
            assert len(tops) >= 4
            assert all(below - above >= 13.9 for above, below in pairwise(tops))
            assert tops[0] >= 0
            assert tops[-1] <= height + 1

    def test_tells_its_named_lines_to_who_does_not_see_them(self, page: Page, run: Run) -> None:
        """An image with a name: the figure, the slider's window, each label with its value."""
        page.focus("#step")
        page.press("ArrowLeft", 3)
        found = page.run("document.querySelector('#curves .plot').getAttribute('aria-label')")
        worst = int(run.metric("max_vio_excess")[-1].argmax())
        assert found.startswith("Load CV, steps 361-370: ")
        said = dict(part.rsplit(" ", 1) for part in found.partition(": ")[2].split(", "))
        cv = run.metric("load_cv")[36]
        assert float(said[f"layer {worst}"]) == pytest.approx(cv[worst], rel=1e-3)
        assert float(said["median"]) == pytest.approx(np.median(cv), rel=1e-3)

    def test_says_where_a_figure_does_not_exist(self, browser: Page, tmp_path: Path) -> None:
        """A router without logits has no entropy: words instead of an empty plot, and a dash."""
        page = shown_run(browser, tmp_path, window(1, 1, stats("mlp", [5, 3], scoring="none")))
        empty = page.run("[...document.querySelectorAll('.empty')].map(item => item.textContent)")
        assert empty == ["No layer has this figure in this phase."] * 2
        assert table(page)[0][6] == "-"
        assert page.complaints() == []


class TestSpread:
    def test_percentiles_and_worst_layer_are_those_of_the_snapshot(
        self, page: Page, run: Run
    ) -> None:
        """Each row as `Snapshot.spread` forms it; of routing entropy the lowest is the worst."""
        last = run.snapshots()[-1]
        rows = {row[0]: row[1:] for row in cells(page, "#spread")}
        for title, metric, worst in (
            ("load CV", "load_cv", "highest"),
            ("MaxVio over its floor", "max_vio_excess", "highest"),
            ("Gini", "load_gini", "highest"),
            ("routing entropy (nats)", "routing_entropy", "lowest"),
        ):
            found = last.spread(metric, worst=worst)  # type: ignore[arg-type]
            assert found is not None
            *figures, name = rows[title]
            expected = (found.p50, found.p75, found.p90, found.p95, found.worst)
            assert [float(text) for text in figures] == pytest.approx(expected, abs=5.1e-4)
            assert name == found.worst_layer


class TestLayerInDepth:
    def test_starts_at_the_worst_layer_and_follows_the_cursor_of_the_map(
        self, page: Page, run: Run
    ) -> None:
        """The arrow keys of the map choose the layer; so does the menu."""
        worst = int(run.metric("max_vio_excess")[-1].argmax())
        assert page.run("document.getElementById('layer').selectedIndex") == worst
        page.focus("#heat")
        page.press("ArrowDown" if worst == 0 else "ArrowUp")
        other = 1 if worst == 0 else worst - 1
        assert page.run("document.getElementById('layer').value") == run.layers[other]
        assert page.text("#time-readout").startswith(f"{run.layers[other]}, steps 391-400: half")
        page.focus("#layer")
        page.press("Home")
        assert page.text("#time-readout").startswith(run.layers[0])
        assert run.layers[0] in page.text("#ranks-said")

    def test_sorted_load_gini_and_table_are_the_runs(self, page: Page, run: Run) -> None:
        """Assignments from the heaviest expert down, each with its share and what is reached."""
        at = page.run("document.getElementById('layer').selectedIndex")
        counts, record = run.counts()[-1, at], run.snapshots()[-1].routing[at]
        gini = page.text("#gini")
        metrics = record.metrics()
        assert gini == (
            f"Gini {metrics['load_gini']:.3f}, by chance {metrics['load_gini_floor']:.3f}"
        )
        page.click("#depth-details summary")
        page.wait("document.querySelectorAll('#experts tbody tr').length === 12")
        rows = cells(page, "#experts")
        order = np.argsort(-counts, kind="stable")
        assert [row[0] for row in rows] == [f"expert {expert}" for expert in order]
        assert [row[1] for row in rows] == [f"{counts[expert]:,}" for expert in order]
        assert [float(row[2]) for row in rows] == pytest.approx(
            counts[order] / counts.mean(), abs=5.1e-4
        )
        assert rows[-1][3] == "100.0 %"

    def test_half_of_the_assignments_is_said_in_experts(
        self, browser: Page, tmp_path: Path
    ) -> None:
        """Of 10, 6 and 2 and 2 of 20: the first alone has half; one of five is dead."""
        page = shown_run(browser, tmp_path, window(1, 1, stats("mlp", [6, 10, 2, 0, 2])))
        assert page.text("#time-readout") == (
            "mlp, step 1: half of the assignments go to 1 of 5 experts; the heaviest, expert 1, "
            "has 2.500 times its fair share; 1 got no token"
        )

    def test_the_picture_over_time_is_read_and_clicked(self, page: Page, run: Run) -> None:
        """Third expert from the top, eleventh window from the left; a click goes there."""
        at = page.run("document.getElementById('layer').selectedIndex")
        page.click("#time", across=10.5 / 40, down=2.5 / 12)
        assert page.text("#window") == "steps 101-110 (window 11 of 40)"
        assert readout(page)[0] == f"{run.layers[at]}, expert 2, steps 101-110"
        assert readout(page)[1] == run.counts()[10, at, 2]

    def test_its_colours_are_those_of_the_map(self, page: Page, run: Run) -> None:
        """The last column of the picture, top down, is the row of the layer in the last window."""
        at = page.run("document.getElementById('layer').selectedIndex")
        shown = page.run(
            "(() => { const t = document.getElementById('time').getContext('2d'),"
            "c = document.getElementById('heat'), h = c.getContext('2d');"
            "return Array.from({ length: 12 }, (_, e) => ["
            "t.getImageData(39, e, 1, 1).data.join(),"
            f"h.getImageData((e + 0.5) * c.width / 12, ({at} + 0.5) * c.height / 5, 1, 1)"
            ".data.join()]); })()"
        )
        assert all(over_time == in_map for over_time, in_map in shown)
        assert len({over_time for over_time, _ in shown}) > 4

    def test_of_very_many_experts_the_busiest_and_the_idlest_are_drawn(
        self, browser: Page, tmp_path: Path
    ) -> None:
        """600 experts: 256 from either end, and the page says so."""
        page = shown_run(browser, tmp_path, window(1, 1, stats("mlp", list(range(600)))))
        assert page.run("document.getElementById('time').height") == 512
        assert page.text("#time-note").startswith("of 600 experts the 256 with the most")


class TestRanks:
    @pytest.mark.parametrize("placement", PLACEMENTS)
    @pytest.mark.parametrize("ranks", [2, 8])
    def test_loads_and_factor_are_those_of_the_metrics(
        self, page: Page, run: Run, placement: str, ranks: int
    ) -> None:
        """Twelve experts on two or eight ranks, placed four ways, over all layers."""
        page.run(
            f"for (const [id, value] of [['ranks', '{ranks}'], ['placement', '{placement}']]) {{"
            "const choice = document.getElementById(id); choice.value = value;"
            "choice.dispatchEvent(new Event('change')); }"
        )
        counts = run.counts()[-1]
        at = page.run("document.getElementById('layer').selectedIndex")
        loads = [loads_of(layer, placement, ranks) for layer in counts]
        rows = cells(page, "#rank-loads")
        assert [row[2] for row in rows] == [
            f"{math.floor(load + Fraction(1, 2)):,}" for load in loads[at]
        ]
        found = re.search(r"over all layers that is ([\d.]+) times", page.text("#ranks-said"))
        assert found is not None
        assert float(found[1]) == pytest.approx(factor_of(loads), abs=5.1e-4)
        worst = max(factor_of([each]) for each in loads)
        assert f"at worst {worst:.3f} times" in page.text("#ranks-said")

    def test_a_hot_expert_is_evened_out_by_copies_only(self, browser: Page, tmp_path: Path) -> None:
        """Half of 128 assignments go to one of four experts: four ranks wait for 2 times a share.

        With a spare copy for each of four ranks the hot one has four, of 16 each, and the next one
        two, of 16: every rank has two of 16. For two ranks the hot one has three, of 21 1/3.
        """
        page = shown_run(browser, tmp_path, window(1, 1, stats("mlp", [64, 32, 16, 16])))
        page.run("document.getElementById('stragglers').closest('details').open = true")
        page.wait("document.querySelectorAll('#stragglers tbody tr').length === 2")
        rows = {row[0]: row[3:] for row in cells(page, "#stragglers")}
        assert rows == {"2 ranks": ["1.250", "1.083"], "4 ranks": ["2.000", "1.000"]}

    def test_every_number_of_ranks_is_told_for_every_placement(self, page: Page, run: Run) -> None:
        """Twelve experts on 2, 4 and 8 ranks; hindsight is never worse than either."""
        page.run("document.getElementById('stragglers').closest('details').open = true")
        page.wait("document.querySelectorAll('#stragglers tbody tr').length === 3")
        counts = run.counts()[-1]
        for row, ranks in zip(cells(page, "#stragglers"), (2, 4, 8), strict=True):
            assert row[0] == f"{ranks} ranks"
            for text, placement in zip(row[1:], PLACEMENTS, strict=True):
                factor = factor_of([loads_of(layer, placement, ranks) for layer in counts])
                assert float(text) == pytest.approx(factor, abs=5.1e-4)
            assert float(row[3]) <= min(float(row[1]), float(row[2]))


class TestAlarmsOnTheSteps:
    @pytest.mark.parametrize("routers", [(stats("mlp", [5, 3]),), ()], ids=["router", "none"])
    def test_a_bar_covers_the_steps_of_its_alert(
        self, browser: Page, tmp_path: Path, routers: tuple[RoutingStats, ...]
    ) -> None:
        """Steps 11 to 20 of 40: from a quarter to the half; one that holds reaches the end."""
        history = [window(10 * n + 1, 10 * n + 10, *routers) for n in range(4)]
        said = (
            event("started", 11, 20),
            event("ended", 11, 20),
            event("started", 31, 40, layer="other"),
        )
        path = tmp_path / "report.html"
        made = MadeRun({"train": history}, said=said)
        path.write_text(render(made), encoding="utf-8")  # type: ignore[arg-type]
        page = opened(browser, path)
        bars = page.run(
            "[...document.querySelectorAll('td.track i')].map(bar => "
            "[bar.style.left, bar.style.width])"
        )
        assert bars == [["75%", "25%"], ["25%", "25%"]]
        assert cells(page, ".alarms table")[0][:3] == ["hot experts", "step 31", "holds"]
        assert cells(page, ".alarms table")[1][:3] == ["hot experts", "step 11", "step 20"]


class TestProbes:
    def test_are_drawn_where_they_were_recorded(self, browser: Page, tmp_path: Path) -> None:
        """Weights by layer with the layers' colours, gradients by group with a name each."""
        weights = (weight("l.0.mlp"), weight("l.1.mlp"))
        gradients = (gradient("l.0", "router", 9.0), gradient("", "embed", 4.0))
        history = [
            replace(
                window(n, n, stats("l.0.mlp", [9, 1]), stats("l.1.mlp", [5, 5])),
                weights=weights,
                gradients=gradients,
            )
            for n in (1, 2)
        ]
        page = shown_run(browser, tmp_path, *history)
        tags = page.run(
            "[...document.querySelectorAll('#probe-curves figure')].map(figure => "
            "[figure.querySelector('b').textContent, "
            "...[...figure.querySelectorAll('.tags span')].map(tag => tag.textContent).sort()])"
        )
        assert tags[0] == ["Router weight norm", "layer 0", "layer 1", "median"]
        assert tags[-2] == ["Gradient norm of the routers", "layer 0"]
        assert tags[-1] == ["Gradient norm by group", "embed", "router"]
        assert page.complaints() == []

    def test_need_no_router(self, browser: Page, tmp_path: Path) -> None:
        """Of gradients and weights alone each curve has its name; the rest stays away."""
        made = replace(
            window(1, 1),
            weights=(weight("l.0.mlp"), weight("l.1.mlp")),
            gradients=(gradient("l.0", "router", 9.0), gradient("", "embed", 4.0)),
        )
        page = shown_run(browser, tmp_path, made, replace(made, first_step=2, last_step=2))
        tags = page.run(
            "[...document.querySelectorAll('#probe-curves figure')].map(figure => "
            "[...figure.querySelectorAll('.tags span')].map(tag => tag.textContent).sort())"
        )
        assert tags[0] == ["layer 0", "layer 1"]
        assert tags[-1] == ["embed", "router"]
        assert page.run("document.getElementById('views').hidden") is True
        assert page.complaints() == []

    def test_stay_away_where_nothing_was_recorded(self, page: Page) -> None:
        """No empty section."""
        assert page.run("document.getElementById('probes').hidden") is True


class TestTable:
    def test_sorts_by_a_column_and_back(self, page: Page, run: Run) -> None:
        """MaxVio, largest first; a second press turns it round; the layer's name restores it."""
        heads = "#layers thead th:nth-child"
        page.click(f"{heads}(4) button")
        down = [float(row[3]) for row in table(page)]
        assert down == sorted(down, reverse=True)
        assert page.run(f"document.querySelector('{heads}(4)').ariaSort") == "descending"
        page.click(f"{heads}(4) button")
        assert [float(row[3]) for row in table(page)] == down[::-1]
        page.click(f"{heads}(1) button")
        assert [row[0] for row in table(page)] == list(run.layers)


class TestHostileNames:
    def test_are_text_and_nothing_else(self, browser: Page, tmp_path: Path) -> None:
        """J1, J5, J7: hostile names in every field do nothing and are seen."""
        history = [
            window(
                1, 5, *(stats(name, [8 - at, at]) for at, name in enumerate(HOSTILE)), phase=phase
            )
            for phase in (HOSTILE[0], "plain")
        ]
        header = manifest(HOSTILE, experts=2, top_k=1)
        header["model"] = HOSTILE[1]
        for site in header["sites"]:
            site["reader"] = site["router"] = HOSTILE[2]
        made = MadeRun(
            {snapshot.phase: [snapshot] for snapshot in history},
            manifest=header,
            run_id=HOSTILE[3],
            faults=HOSTILE,
        )
        path = tmp_path / "report.html"
        path.write_text(render(made), encoding="utf-8")  # type: ignore[arg-type]
        page = opened(browser, path)
        hovered = set()
        for down in np.linspace(0.02, 0.98, 40):
            page.click(".u-over", down=float(down))
            hovered.add(page.text(".hover").rpartition(": ")[0])
        assert {HOSTILE[0], HOSTILE[1]} <= hovered
        page.click("#heat")
        assert page.run("globalThis.hacked") is None
        assert page.run("document.querySelectorAll('img, svg, iframe').length") == 0
        assert page.requests() == [path.as_uri()]
        assert page.complaints() == []
        names = [row[0] for row in table(page)]
        assert names[:3] == list(HOSTILE[:3])
        assert names[3] == "model.\\u202egpj.\\u2066mlp"
        assert names[4].startswith("xxx")
        assert "(1,000,000 characters, sha256 " in names[4]
        body = page.run("document.documentElement.textContent")
        assert not {"\u202e", "\u2066"} & set(body)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")


class TestOddRuns:
    @pytest.mark.parametrize(
        "history",
        [
            pytest.param([window(1, 1, stats("mlp", [5, 3]))], id="one window of one layer"),
            pytest.param(
                [window(n, n, stats("mlp", [5, 3]), phase="eval") for n in (1, 2)],
                id="evaluation only",
            ),
            pytest.param(
                [
                    window(
                        n, n, stats("a", [5, 3]), stats("b", [9, 0, 1, 2, 4, 1, 0]), stats("c", [7])
                    )
                    for n in (1, 2, 3)
                ],
                id="layers of different size",
            ),
            pytest.param(
                [window(1, 1, stats("a", [0, 0])), window(2, 2, stats("a", [0, 0]))],
                id="nothing routed",
            ),
            pytest.param(
                [window(1, 1, stats("a", [3, 1])), window(2, 2, stats("b", [1, 3]))],
                id="layers that come and go",
            ),
        ],
    )
    def test_are_shown_in_every_window(
        self, browser: Page, tmp_path: Path, history: Sequence[Snapshot]
    ) -> None:
        """Whatever is there is shown, whatever is not is a dash; nothing complains."""
        page = shown_run(browser, tmp_path, *history)
        page.focus("#step")
        for snapshot in reversed(history):
            rows = {row[0]: row for row in table(page)}
            for record in snapshot:
                assert rows[record.layer][1] == f"{record.tokens:,}"
            for absent in rows.keys() - set(snapshot.layers):
                assert set(rows[absent][1:]) == {"-"}
            page.press("ArrowLeft")
        assert page.complaints() == []

    def test_a_cell_beyond_a_smaller_layer_is_no_cell(self, browser: Page, tmp_path: Path) -> None:
        """The cursor stays on the experts that the layer has."""
        page = shown_run(
            browser, tmp_path, window(1, 1, stats("a", [6, 2]), stats("b", [1, 2, 3, 4, 5]))
        )
        page.focus("#heat")
        page.press("ArrowDown")
        page.press("End")
        assert readout(page) == ("b, expert 4, step 1", 5, 1.667)
        page.press("ArrowUp")
        assert readout(page) == ("a, expert 1, step 1", 2, 0.5)

    def test_a_run_without_windows_is_a_page(self, browser: Page, tmp_path: Path) -> None:
        """The verdict says so; the views stay away."""
        path = tmp_path / "report.html"
        path.write_text(render(MadeRun({})), encoding="utf-8")  # type: ignore[arg-type]
        browser.open(path)
        assert "holds no window yet" in browser.text(".headline")
        assert browser.run("document.getElementById('views').hidden") is True
        assert browser.complaints() == []


class TestSize:
    def test_wider_windows_are_said_and_add_up(
        self, run: Run, browser: Page, tmp_path: Path
    ) -> None:
        """Below a small cap the page says how many windows became how many; counts are sums."""
        whole = len(render(run))
        path = tmp_path / "report.html"
        write_report(run, path, cap=whole - 4000)
        page = opened(browser, path)
        found = re.match(
            r"To keep this file small, the 40 windows of the run are added up into (\d+) wider",
            page.text("#binned"),
        )
        assert found
        assert path.stat().st_size <= whole - 4000
        assert_table_is(page, run.snapshots()[-1])
        page.focus("#step")
        page.press("Home")
        first, last = map(int, re.findall(r"\d+", page.text("#window"))[:2])
        page.focus("#heat")
        page.press("Home")
        page.press("ArrowUp", 5)
        spans = run.steps()
        inside = (spans[:, 0] >= first) & (spans[:, 1] <= last)
        assert inside.sum() > 1
        assert readout(page)[1] == run.counts()[inside, 0, 0].sum()


class TestLook:
    def test_dark_has_a_palette_of_its_own(self, browser: Page, tmp_path: Path) -> None:
        """A dead expert, a fair one and a hot one are told apart in both schemes."""
        page = shown_run(browser, tmp_path, window(1, 1, stats("mlp", [0, 100, 400, 25, 20, 55])))
        seen: dict[bool, list[Any]] = {}
        for dark in (False, True):
            page.look(width=1200, dark=dark)
            page.run(
                "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
            )
            seen[dark] = page.run(
                "(() => { const c = document.getElementById('heat'); return [0, 1, 2].map(at => "
                "[...c.getContext('2d').getImageData((at + 0.5) * c.width / 6, 5, 1, 1).data]"
                ".join()); })()"
            )
        page.look(width=1200)
        assert seen[False][:2] == ["21,23,27,255", "241,239,233,255"]
        assert seen[True][:2] == ["251,251,253,255", "37,40,46,255"]
        assert len({*seen[False], *seen[True]}) == 6

    def test_the_button_turns_the_scheme_over(self, browser: Page, tmp_path: Path) -> None:
        """A page that was sent to somebody can be read in the other scheme too."""
        page = shown_run(browser, tmp_path, window(1, 1, stats("mlp", [0, 100, 400])))
        pixel = (
            "[...document.getElementById('heat').getContext('2d')"
            ".getImageData(5, 5, 1, 1).data].slice(0, 3).join()"
        )
        before = page.run(pixel)
        page.click("#theme")
        after = page.run(pixel)
        page.click("#theme")
        assert [before, after, page.run(pixel)] == ["21,23,27", "251,251,253", "21,23,27"]

    @pytest.mark.parametrize("width", [390, 768, 2560])
    def test_never_scrolls_sideways(self, page: Page, width: int) -> None:
        """From a phone to a wide screen only the map and the tables scroll, in their own boxes."""
        page.look(width=width)
        page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        overflow = page.run("document.documentElement.scrollWidth - innerWidth")
        page.look(width=1200)
        assert overflow <= 0

    def test_a_screen_reader_finds_every_control_by_name(self, page: Page) -> None:
        """Slider, menu, button, map and status have a role and a name in the accessibility tree."""
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        found = {
            (node.get("role", {}).get("value"), node.get("name", {}).get("value"))
            for node in nodes
            if not node.get("ignored")
        }
        assert {
            ("slider", "window of steps"),
            ("combobox", "phase"),
            ("button", "Play"),
            ("application", "Heatmap of load over fair share, layers by experts"),
            ("heading", "Load over fair share"),
            ("columnheader", "noise floor"),
            ("combobox", "layer"),
            ("combobox", "ranks"),
            ("combobox", "placement"),
            ("heading", "Alerts"),
            ("button", "Dark / light"),
        } <= found
