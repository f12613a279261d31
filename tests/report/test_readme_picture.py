"""The picture in README.md: `make docs` makes it, and nothing in it is cut in two."""

import importlib.util
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from moetrace.report import write_report
from tests.report.browser import Page
from tests.report.made import drifting, recorded
from tests.report.readme_picture import photograph

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="found no make on PATH")
class TestMakeDocs:
    def test_makes_every_picture_that_a_page_shows(self) -> None:
        """No picture in README.md or docs/ is made by hand, and none is made for nothing."""
        pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        shown = {
            str((page.parent / name).relative_to(ROOT))
            for page in pages
            for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
        }
        made = set(re.findall(r"\S+\.png", _recipe()))
        assert made == shown == {"docs/img/report.png"}

    def test_runs_programs_that_are_there(self) -> None:
        """What stands behind ``-m`` in the recipe can be imported."""
        (module,) = re.findall(r"-m (\S+)", _recipe())
        assert importlib.util.find_spec(module) is not None


class TestPhotograph:
    def test_ends_between_two_rows_of_curves(self, browser: Page, tmp_path: Path) -> None:
        """Below the first row, above the second, as wide as the window."""
        run = recorded(tmp_path / "run", *drifting(windows=6))
        try:
            picture = photograph(browser, write_report(run, out=tmp_path / "report.html"))
            ends = browser.run(
                "[...document.querySelectorAll('#curves > *')].slice(0, 3)"
                ".map(plot => plot.getBoundingClientRect()).map(box => [box.top, box.bottom])"
            )
        finally:
            browser.look(width=1200)
        width, height = struct.unpack(">II", picture[16:24])
        assert width == 1400
        assert ends[0] == ends[1]
        assert ends[1][1] - 1 <= height < ends[2][0]


def _recipe() -> str:
    """What ``make docs`` would run, without what it would install."""
    ready = ".venv/ready-to-test"
    done = subprocess.run(
        ["make", "--dry-run", f"--assume-old={ready}", "docs"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout
