import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from moetrace.report import render, write_report
from tests.report.made import MadeRun, drifting, manifest, recorded, stats, window
from tests.report.test_alarms import event


class Skeleton(HTMLParser):
    """The elements of a page with the names of their attributes, and its inline code."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.code: dict[str, list[str]] = {"script": [], "style": []}
        self._inside: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element; addresses apart."""
        named = dict(attrs)
        self.elements.append((tag, tuple(named)))
        self.addresses += [named[key] or "" for key in ("src", "href", "action") if key in named]
        if tag == "style" or (tag == "script" and "type" not in named):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        self._inside = None

    def handle_data(self, data: str) -> None:
        """Keep the text of code."""
        if self._inside:
            self.code[self._inside].append(data)


def hashed(text: str) -> str:
    """The source expression that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def small(**fields: Any) -> MadeRun:
    """A run of two windows of one layer."""
    history = [window(1, 10, stats("mlp", [6, 2])), window(11, 20, stats("mlp", [5, 3]))]
    return MadeRun({"train": history}, **fields)


class TestPolicy:
    def test_allows_the_inlined_code_by_its_hash_and_nothing_else(self) -> None:
        """J2: the policy is recomputed here from the page's own text."""
        page = render(small())
        code = Skeleton(page).code
        (found,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
        assert len(code["script"]) == 2
        assert found == (
            f"default-src 'none'; script-src {' '.join(map(hashed, code['script']))}; "
            f"style-src {hashed(code['style'][0])}; img-src data: blob:; "
            "base-uri 'none'; form-action 'none'"
        )

    def test_the_page_names_no_address(self) -> None:
        """J2: no element points anywhere but the empty icon."""
        assert Skeleton(render(small())).addresses == ["data:,"]

    def test_code_has_no_inline_style_or_handler(self) -> None:
        """The policy would refuse them; attributes that it refuses would look broken."""
        attributes = {name for _, names in Skeleton(render(small())).elements for name in names}
        assert not {name for name in attributes if name == "style" or name.startswith("on")}


class TestHostileText:
    @pytest.mark.parametrize(
        "text",
        [
            "</script><img src=x onerror=alert(1)>", "<!--", "\"onload=alert(1) x='", "</style>",
            "</title><script>alert(1)</script>", "{{7*7}}", "{{script}}", "{{data}}", "&lt;b&gt;",
            "\u2028\u2029", "\u202egpj.exe", "]]>", "\\g<0>", "\x00", "\ud800", "' -- \" `",
        ],
    )  # fmt: skip
    def test_adds_no_element_and_no_attribute_wherever_it_stands(self, text: str) -> None:
        """J1: every field of a run may hold it; the page has the skeleton of a harmless one."""
        pages = []
        for word in ("plain", text):
            history = [
                window(1, 1, stats(word, [3, 1]), stats(f"{word}.b", [2, 2], scoring=word),
                       phase=word, run_id=word)
            ]  # fmt: skip
            listed = manifest([word], experts=2, top_k=1)
            site = {**listed["sites"][0], "aliases": [word], "reader": word, "router": word}
            pages.append(
                render(
                    MadeRun(
                        {word: history},
                        run_id=word,
                        path=Path(word.replace("/", "").replace("\x00", "") or "x"),
                        manifest={
                            "model": word,
                            "every": word,
                            "versions": {word: word},
                            "sites": [site],
                        },
                        faults=(word,),
                        said=[event("started", 1, 1, layer=word, message=word)],
                    )
                )
            )
        harmless, hostile = map(Skeleton, pages)
        assert hostile.elements == harmless.elements
        assert hostile.code == harmless.code
        assert "\u202e" not in pages[1]

    def test_a_name_of_a_megabyte_costs_a_line(self) -> None:
        """J7: the page grows by the shown part and its hash."""
        history = [window(1, 1, stats("x" * 1_000_000, [3, 1]))]
        page = render(MadeRun({"train": history}))
        assert (
            len(page) - len(render(MadeRun({"train": [window(1, 1, stats("x", [3, 1]))]}))) < 5000
        )
        assert "1,000,000 characters" in page

    @pytest.mark.parametrize("sites", [None, 3, "text", {"a": 1}, [None, 7, "x", []]])
    def test_a_manifest_of_another_shape_is_shown_as_far_as_it_goes(self, sites: object) -> None:
        """Reading trusts no type: what is no record of a router is left out."""
        broken = {"model": ["?"], "every": None, "versions": [1], "sites": sites}
        assert "0 routers traced" in render(small(manifest=broken))


class TestVerdictOnThePage:
    def test_puts_the_urgent_first(self) -> None:
        """A dead expert in an even layer goes before the even layer."""
        history = [window(1, 1, stats("mlp", [400, 400, 400, 400, 0]))]
        page = render(MadeRun({"train": history}))
        (headline,) = re.findall(r'class="headline">([^<]*)<', page)
        assert headline == "1 of 5 experts is dead: mlp expert 4 since the first window (step 1)."
        assert '<section class="verdict bad"' in page

    def test_names_the_phase_when_there_is_no_training(self) -> None:
        """A run with evaluation only is judged by it, and the page says so."""
        history = [window(3, 3, stats("mlp", [5, 3]), phase="eval")]
        assert "No train window: the verdict is about phase eval." in render(
            MadeRun({"eval": history})
        )

    def test_tells_the_faults_of_the_folder(self) -> None:
        """What could not be read is said on top and in the facts."""
        page = render(small(faults=("torn tail: 17 bytes", "bad checksum at line 3")))
        assert "2 faults in the run folder: torn tail: 17 bytes." in page
        assert "<dt>fault</dt><dd>bad checksum at line 3</dd>" in page

    def test_tells_what_no_router_should_do(self) -> None:
        """NaN logits and ids out of range are findings with their first place."""
        odd = stats("mlp", [4, 4])
        object.__setattr__(odd, "nonfinite", 3)
        page = render(MadeRun({"train": [window(1, 5, odd), window(6, 9, odd)]}))
        assert (
            "6 router decisions came from NaN or infinite logits: first in mlp, steps 1-5." in page
        )

    def test_what_is_broken_now_goes_before_what_is_uneven(self) -> None:
        """NaN logits head the page while they last, and are told after them."""
        odd = stats("mlp", [970, 10, 10, 10])
        object.__setattr__(odd, "nonfinite", 3)
        fine = stats("mlp", [970, 10, 10, 10])
        for history, first in (
            ([window(1, 5, fine), window(6, 9, odd)], "3 router decisions came from NaN"),
            ([window(1, 5, odd), window(6, 9, fine)], "mlp has been far out of balance"),
        ):
            page = render(MadeRun({"train": history}))
            (headline,) = re.findall(r'class="headline">([^<]*)<', page)
            assert headline.startswith(first)
        assert "first in mlp, steps 1-5, none in the last." in page

    def test_a_run_without_windows_says_so(self) -> None:
        """An empty run is no error: there is nothing to judge yet."""
        assert "This run holds no window yet: there is nothing to judge." in render(MadeRun({}))


class TestFacts:
    def test_says_what_the_run_folder_says(self) -> None:
        """Model, ranks, attempts, versions and each router with its reader and scoring."""
        page = render(
            small(
                manifest=manifest(["mlp"], experts=2, top_k=1),
                ranks=(0, 1, 2, 3),
                attempts=(0, 2),
                run_id="exp7",
            )
        )
        for row in (
            "<dt>run</dt><dd>exp7</dd>",
            "<dt>model</dt><dd>Qwen3MoeForCausalLM</dd>",
            "<dt>phases</dt><dd>train: 2 windows, steps 1-20</dd>",
            "<dt>ranks</dt><dd>0 to 3 (world size 1)</dd>",
            "<dt>attempts</dt><dd>0, 2</dd>",
            "<dt>state</dt><dd>finished</dd>",
            "<dt>window</dt><dd>every 10 steps</dd>",
            "<dt>operator</dt><dd>host kernel</dd>",
            "moetrace 0.1.0, torch 2.13.0, python 3.11.7, numpy 2.3.0",
            "<td>mlp</td><td>Qwen3MoeTopKRouter</td><td>standard</td><td>softmax</td><td>2</td>",
        ):
            assert row in page

    def test_says_what_the_tracer_had_to_report_and_what_to_do(self) -> None:
        """Its state is told in words where something is to be known, and as it is beside them."""
        troubled = replace(window(1, 10, stats("mlp", [6, 2])), health={"errors": 3})
        page = render(MadeRun({"train": [troubled]}))
        assert "<dt>tracer in train</dt><dd>3 forwards could not be counted: the log" in page
        assert "<dt>its state in train</dt><dd>errors 3</dd>" in page
        assert "<dt>tracer in train</dt><dd>nothing to report</dd>" in render(small())

    def test_says_what_the_run_takes_on_disk_and_how_fast_it_went(self, tmp_path: Path) -> None:
        """Bytes of the folder per window, and seconds per step by the clock."""
        history = [
            replace(window(10 * n + 1, 10 * n + 10, stats("mlp", [6, 2])), wall_time=100.0 + 5 * n)
            for n in range(3)
        ]
        page = render(recorded(tmp_path / "run", *history))
        size = sum(item.stat().st_size for item in (tmp_path / "run").rglob("*") if item.is_file())
        assert f"{size / 3000:,.1f} kB per window" in page
        assert "<dt>pace</dt><dd>0.5 s per step by the clock" in page


class TestAlarmsOnThePage:
    def test_six_are_seen_and_the_others_one_click_away(self) -> None:
        """Nine alerts: six rows, then a summary that says how many more."""
        said = [event("started", n, n, layer=f"l.{n}") for n in range(1, 10)]
        page = render(small(said=said))
        first, _, more = page.partition("<details><summary>3 more alerts</summary>")
        assert first.count('<tr class="open">') == 6
        assert more.count('<tr class="open">') == 3
        assert "None was recorded." in render(small())


class TestSize:
    def test_300_windows_of_48_layers_by_128_experts_stay_exact_below_5_mb(self) -> None:
        """The size that most runs have needs no binning: every count is in the page."""
        history = drifting(windows=300, layers=48, experts=128, top_k=8, tokens=400_000)
        page = render(MadeRun({"train": history}))
        assert len(page.encode()) < 5_000_000
        assert '"recorded":300,' in page
        assert page.count("[2991,3000]") == 1
        assert page.count("[1,10]") == 1

    def test_of_very_many_layers_the_page_draws_the_worst_and_says_so(self) -> None:
        """J7: 1,200 layers; the verdict names the last one, which the page draws too."""
        layers = [stats(f"l.{at}", [5, 5]) for at in range(1199)]
        page = render(MadeRun({"train": [window(1, 1, *layers, stats("l.1199", [995, 5]))]}))
        assert "Of 1,200 layers the 1,000 furthest over their noise floor" in page
        assert page.count('"experts":2') == 1000
        assert '"name":"l.1199"' in page
        assert "of the 1199 other layers" in page

    def test_a_page_that_would_burst_stays_below_its_cap(self) -> None:
        """A smaller cap is met by wider windows."""
        history = drifting(windows=80, layers=12, experts=64, tokens=20_000)
        assert len(render(MadeRun({"train": history}), cap=250_000)) <= 250_000


class TestWriteReport:
    def test_writes_the_page_and_returns_where(self, tmp_path: Path) -> None:
        """The file holds what `render` says; nothing else is left beside it."""
        path = write_report(small(), tmp_path / "report.html")
        assert path == tmp_path / "report.html"
        assert path.read_text(encoding="utf-8") == render(small())
        assert list(tmp_path.iterdir()) == [path]

    def test_replaces_a_page_in_one_move(self, tmp_path: Path) -> None:
        """A reader that has the old page open keeps it whole."""
        path = tmp_path / "report.html"
        path.write_text("old")
        with path.open() as reader:
            write_report(small(), path)
            assert reader.read() == "old"
        assert path.read_text(encoding="utf-8").startswith("<!doctype html>")

    def test_leaves_nothing_behind_when_it_cannot_write(self, tmp_path: Path) -> None:
        """A folder in the way is an error of the system's own kind."""
        (tmp_path / "report.html").mkdir()
        with pytest.raises(OSError, match="directory"):
            write_report(small(), tmp_path / "report.html")
        assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
