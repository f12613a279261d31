import base64
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from moetrace.notebook import heat_png, layers_html
from tests.report.browser import Page
from tests.report.conftest import browser
from tests.report.made import drifting, manifest, recorded, stats, window

__all__ = ["browser"]

HOSTILE = ("<script>hacked=1</script>", "\"'><img src=x onerror=hacked=1>", "a\u202eb\x1b", "&lt;")


class Elements(HTMLParser):
    """Names of the elements with the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element."""
        self.found.append((tag, tuple(name for name, _ in attrs)))


def pixels(png: bytes) -> list[list[int]]:
    """The places in the palette, row by row, of a PNG that this library wrote."""
    at, found = 8, {}
    while at < len(png):
        size = int.from_bytes(png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + data) == int.from_bytes(png[at + 8 + size : at + 12 + size])
        found[kind], at = data, at + 12 + size
    wide = int.from_bytes(found[b"IHDR"][:4])
    rows = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(-1, wide + 1)
    assert not rows[:, 0].any()
    cells: list[list[int]] = rows[:, 1:].tolist()
    return cells


class TestSnapshotShowsItself:
    def test_names_the_worst_layers_with_their_figures(self) -> None:
        """The most uneven layer comes first; a figure that is withheld is a dash."""
        snapshot = window(1, 10, stats("even", [5, 5]), stats("odd", [9, 1], scoring="none"))
        text = snapshot._repr_html_()
        assert "steps 1-10" in text
        rows = re.findall(r"<tr><th[^>]*>(\w+)</th>(.*?)</tr>", text)[1:]
        assert [name for name, _ in rows] == ["odd", "even"]
        cells = re.findall(r">([^<]*)</td>", rows[0][1])
        assert cells == ["10", "0.800", "0.800", "0.246", "-", "0/2"]

    def test_hostile_names_add_no_element(self) -> None:
        """J1, J5: the elements are those of a harmless snapshot."""
        made = [
            window(1, 1, *(stats(name, [9, 1]) for name in names), phase=names[0], run_id=names[1])
            for names in (("a", "b", "c", "d"), HOSTILE)
        ]
        harmless, hostile = (Elements(item._repr_html_()).found for item in made)
        assert hostile == harmless
        assert not {"\u202e", "\x1b"} & set(made[1]._repr_html_())

    def test_a_large_model_stays_small(self) -> None:
        """48 layers of 512 experts: below 60 kB, and eight layers by name."""
        (snapshot,) = drifting(windows=1, layers=48, experts=512, top_k=8, tokens=100_000)
        text = snapshot._repr_html_()
        assert len(text) < 60_000
        assert text.count("<tr>") == 9
        assert "and 40 more, less uneven" in text

    def test_nothing_is_asked_of_a_network(self) -> None:
        """The one address is the picture, and it holds its own data."""
        text = window(1, 1, stats("mlp", [5, 3]))._repr_html_()
        assert re.findall(r'(?:src|href)="([^"]{0,22})', text) == ["data:image/png;base64,"]
        assert "url(" not in text


class TestPicture:
    def test_a_dead_expert_has_a_colour_of_its_own(self) -> None:
        """Nothing, dead, a sixteenth, fair and sixteen times are five places of the palette."""
        counts = np.array([0, 1, 16, 256, 7] + [16] * 11)
        (row,) = pixels(heat_png([counts * 1000]))
        assert row[0] == 1
        assert min(row[1:]) >= 2
        assert row[3] > row[2] > row[1]
        assert pixels(heat_png([np.array([0, 0])])) == [[0, 0]]

    def test_a_shorter_layer_leaves_the_rest_blank(self) -> None:
        """Layers of three and of one expert."""
        rows = pixels(heat_png([np.array([1, 1, 1]), np.array([4])]))
        assert rows[1][1:] == [0, 0]

    @pytest.mark.parametrize("experts", [513, 100_000])
    def test_many_experts_share_a_pixel_and_a_dead_one_is_seen(self, experts: int) -> None:
        """At most 512 columns; the cell of a dead expert is dead."""
        counts = np.ones(experts, np.int64)
        counts[experts // 2] = 0
        (row,) = pixels(heat_png([counts]))
        assert len(row) <= 512
        assert row.count(1) == 1

    def test_no_layer_is_said_so(self) -> None:
        """A snapshot without a router."""
        assert layers_html([]) == "<p>no layer</p>"


class TestRunShowsItself:
    def test_says_what_it_is_and_shows_its_newest_window(self, tmp_path: Path) -> None:
        """Model, ranks, state and faults, then the layers of the last window."""
        history = drifting(windows=3, layers=2, experts=4, top_k=1, tokens=100)
        header = manifest(history[0].layers, experts=4, top_k=1)
        text = recorded(tmp_path / "run", *history, header=header)._repr_html_()
        for fact in ("model Qwen3MoeForCausalLM", "state finished", "train 3 windows"):
            assert f"<span>{fact}</span>" in text
        assert "newest steps 21-30" in text
        assert "model.layers.0.mlp" in text

    def test_a_run_without_a_window_shows_what_there_is(self, tmp_path: Path) -> None:
        """No picture, no error."""
        text = recorded(tmp_path / "run")._repr_html_()
        assert "faults 0" in text
        assert "<img" not in text

    def test_shows_in_a_browser_without_a_network(self, browser: Page, tmp_path: Path) -> None:
        """The picture is decoded; nothing acts, whatever the names are."""
        made = recorded(tmp_path / "run", window(1, 1, *(stats(n, [9, 1]) for n in HOSTILE)))
        path = tmp_path / "cell.html"
        path.write_text(f"<!doctype html><meta charset=utf-8>{made._repr_html_()}")
        browser.open(path)
        assert browser.run("document.querySelector('img').decode().then(() => true)")
        assert browser.run("document.querySelector('img').naturalHeight") == 4
        assert browser.run("globalThis.hacked") is None
        assert [u for u in browser.requests() if not u.startswith("data:")] == [path.as_uri()]


def test_the_picture_is_base64_of_a_png() -> None:
    """What stands behind the data address."""
    text = layers_html([stats("mlp", [5, 3])])
    (data,) = re.findall(r"base64,([^\"]+)", text)
    assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
