"""The page of a comparison: what is in it, and that nothing in it can act."""

import base64
import hashlib
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from moetrace.compare import Comparison, compare_runs, write_comparison
from moetrace.compare.page import render_comparison
from moetrace.compare.pictures import (
    BLANK,
    BOTH_DEAD,
    DIED,
    LESS,
    MORE,
    REVIVED,
    differences,
    image,
)
from tests.compare.made import LAYERS, kept, uniform
from tests.report.made import recorded, stats, window

PAYLOAD = "</style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e\x1b[2J{{7*7}}"


class Parsed(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the element."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text += data


def pixels(address: str) -> np.ndarray:
    """The picture in an address, read by the standard of PNG."""
    content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        (crc,) = struct.unpack(">I", content[at + 8 + length : at + 12 + length])
        assert crc == zlib.crc32(kind + data)
        chunks[kind], at = data, at + 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 2)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three runs; the second has a hot expert from step 41 on."""
    folder = tmp_path_factory.mktemp("page")
    histories = uniform(seed=1), uniform(seed=2, hot_from=4), uniform(seed=3)
    runs = [kept(folder / name, *own) for name, own in zip("abc", histories, strict=True)]
    return render_comparison(compare_runs(runs))


class TestPage:
    def test_requests_nothing_and_runs_nothing(self, page: str) -> None:
        """J2: no script, no address, and a policy that allows its own style and its pictures."""
        parsed = Parsed(page)
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.elements}
        sources = [attrs["src"] or "" for tag, attrs in parsed.elements if tag == "img"]
        assert sources
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        policy = next(
            a["content"] or "" for t, a in parsed.elements if t == "meta" and "content" in a
        )
        style = re.search("<style>(.*?)</style>", page, re.DOTALL)
        assert style is not None
        digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
        assert policy == (
            f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
            "form-action 'none'"
        )
        assert not any("style" in attrs or "onload" in attrs for _, attrs in parsed.elements)

    def test_names_the_fault_first(self, page: str) -> None:
        """Layer 1 differs between A and B, and nothing else in the verdict's first lines."""
        verdict = re.findall(r'<div class="verdict">(.*?)</div>', page)
        assert len(verdict) == 2
        assert "1 of 3 layers differ by 3 times the noise or more." in verdict[0]
        assert f"{LAYERS[1]}: 15.7% of the load on other experts" in verdict[0]
        assert LAYERS[0] not in verdict[0]

    def test_has_a_heatmap_of_experts_and_one_of_steps_per_pair(self, page: str) -> None:
        """Three layers by eight experts, and by twelve spans."""
        images = [a for t, a in Parsed(page).elements if t == "img" and a.get("alt", "") != ""]
        maps = [pixels(a["src"] or "") for a in images if (a["alt"] or "").startswith("heatmap")]
        assert [item.shape for item in maps] == [(3, 8, 3), (3, 12, 3)] * 2
        redness = maps[0][..., 0].astype(int) - maps[0][..., 2]
        assert np.unravel_index(redness.argmax(), redness.shape) == (1, 5)

    def test_what_cannot_be_compared_is_grey_and_in_the_legend(self, tmp_path: Path) -> None:
        """A layer that goes silent in the last span; where both route all along nothing is said."""
        histories = [uniform(seed=1, windows=3), uniform(seed=2, windows=3)]
        last = histories[1][-1]
        histories[1][-1] = replace(last, routing=(stats(LAYERS[0], [0] * 8), *last.routing[1:]))
        runs = [kept(tmp_path / name, *own) for name, own in zip("ab", histories, strict=True)]
        page = render_comparison(compare_runs(runs))
        images = [a for t, a in Parsed(page).elements if t == "img"]
        (steps,) = [a["src"] for a in images if "over its noise" in (a.get("alt") or "")]
        grey = (pixels(steps or "") == BLANK).all(axis=2)
        assert np.argwhere(grey).tolist() == [[0, 2]]
        assert page.count("nothing to compare") == 1
        even = render_comparison(compare_runs([runs[0], runs[0]]))
        assert "nothing to compare" not in even

    def test_draws_the_runs_over_the_steps(self, page: str) -> None:
        """Four figures, each with two lines a run, labelled at their ends."""
        assert page.count("<svg ") == 4
        assert page.count("<polyline ") == 4 * 3 * 2
        assert page.count('class="end run1"') == 4

    def test_a_name_is_text_and_nothing_else(self, tmp_path: Path) -> None:
        """J1, J3, J5: markup, escapes and reordering in names stay visible and inert."""

        def compared(layer: str, model: str, folders: tuple[str, str]) -> Comparison:
            runs = [
                recorded(
                    tmp_path / folder,
                    *(window(n, n, stats(layer, counts)) for n in range(1, 7)),
                    header={"model": model},
                )
                for folder, counts in zip(folders, ([4, 4], [8, 0]), strict=True)
            ]
            return compare_runs(runs)

        acting = compared(PAYLOAD, PAYLOAD, ("<i>a&", '<b onload="x">b'))
        hostile, plain = (
            Parsed(render_comparison(found))
            for found in (acting, compared("plain", "plain", ("c", "d")))
        )
        assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
        assert [set(a) for _, a in hostile.elements] == [set(a) for _, a in plain.elements]
        assert "\\u202e\\x1b[2J{{7*7}}" in hostile.text
        assert not {"\u202e", "\x1b"} & set(hostile.text)

    def test_replaces_a_page_in_one_move(self, tmp_path: Path) -> None:
        """No draft stays, also where it cannot be written."""
        run = kept(tmp_path / "a", *uniform(seed=1, windows=1))
        out = write_comparison(compare_runs([run, run]), tmp_path / "page.html")
        assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
        with pytest.raises(OSError, match="nowhere"):
            write_comparison(compare_runs([run, run]), tmp_path / "nowhere" / "page.html")
        assert sorted(item.name for item in tmp_path.iterdir()) == ["a", "page.html"]

    def test_many_experts_share_columns(self, tmp_path: Path) -> None:
        """2,048 experts are 1,024 columns, each of two."""
        run = kept(tmp_path / "a", window(1, 10, stats("a", [1] * 2048)))
        page = render_comparison(compare_runs([run, run]))
        assert "2 neighbours added up in a column" in page
        (heat,) = (
            a for t, a in Parsed(page).elements if (a.get("alt") or "").startswith("heatmap")
        )
        assert pixels(heat["src"] or "").shape == (1, 1024, 3)


class TestDifferences:
    def test_dead_experts_have_colours_of_their_own(self) -> None:
        """In the other only, in the first only, in both; then less, the same, more."""
        first = np.array([[1.0, 0.0, 0.0, 2.0, 1.0, 1.0]])
        other = np.array([[0.0, 1.0, 0.0, 1.0, 1.0, 2.0]])
        row = differences(other - first, first, other, most=1.0)[0].tolist()
        assert [tuple(cell) for cell in row[:4]] == [DIED, REVIVED, BOTH_DEAD, LESS]
        assert [tuple(cell) for cell in row[4:]] == [(247, 247, 247), MORE]

    def test_an_image_is_the_picture(self) -> None:
        """What a reader of PNG sees is what was drawn."""
        picture = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        assert np.array_equal(pixels(image(picture)), picture)
