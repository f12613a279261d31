"""The page in a real browser, opened from disk with the network off, read as a person reads it."""

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetrace.report import render, write_report
from moetrace.run import Run
from moetrace.snapshot import Snapshot
from tests.report.browser import Page
from tests.report.made import MadeRun, drifting, manifest, recorded, stats, window

HOSTILE = (
    "</script><img src=x onerror=globalThis.hacked=1>",
    "<img src=https://example.com/x.png>",
    "\"'><svg onload=globalThis.hacked=1>",
    "model.\u202egpj.\u2066mlp",
    "x" * 1_000_000,
)


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
    browser.wait("!document.getElementById('views').hidden")
    return browser


def shown_run(browser: Page, tmp_path: Path, *history: Snapshot) -> Page:
    """The report of a run of these snapshots, open."""
    made = recorded(tmp_path / "run", *history)
    return opened(browser, write_report(made, tmp_path / "report.html"))


def table(page: Page) -> list[list[str]]:
    """The cells of the table of layers, as text."""
    cells: list[list[str]] = page.run(
        "[...document.querySelectorAll('#layers tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return cells


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
        page.run("document.querySelector('details').open = true")
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
            browser.open(path)
            browser.wait("!document.getElementById('views').hidden")
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
            "[...document.querySelectorAll('figure')].map(figure => "
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
            "[...document.querySelectorAll('.u-over')].map(over => "
            "[[...over.querySelectorAll('.tags span')].map(tag => parseFloat(tag.style.top)),"
            " over.clientHeight])"
        )
        assert len(plots) == 4
        for tops, height in plots:
            assert len(tops) >= 4
            assert all(below - above >= 13.9 for above, below in pairwise(tops))
            assert tops[0] >= 0
            assert tops[-1] <= height + 1

    def test_says_where_a_figure_does_not_exist(self, browser: Page, tmp_path: Path) -> None:
        """A router without logits has no entropy: words instead of an empty plot, and a dash."""
        page = shown_run(browser, tmp_path, window(1, 1, stats("mlp", [5, 3], scoring="none")))
        empty = page.run("[...document.querySelectorAll('.empty')].map(item => item.textContent)")
        assert empty == ["No layer has this figure in this phase."] * 2
        assert table(page)[0][6] == "-"
        assert page.complaints() == []


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

    @pytest.mark.parametrize("width", [380, 768, 1600])
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
        } <= found
