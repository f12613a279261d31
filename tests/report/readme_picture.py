"""Takes the picture in README.md: the report of the demo, from its verdict to its first curves.

``python -m tests.report.readme_picture docs/img/report.png``, as ``make docs`` does. The demo runs
in a folder that is removed again; where there is no browser the picture stays as it is.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.report.browser import CHROMIUM, Page, chromium

WIDTH = 1400
LAST = "#curves > :nth-child(2)"
"""The last thing in the picture; at this width it stands beside the first curve."""


def photograph(page: Page, report: Path) -> bytes:
    """The beginning of a report as PNG, cut in the gap below `LAST`."""
    page.look(width=WIDTH)
    page.open(report)
    page.wait("document.body.dataset.drawn === 'all'")
    page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    bottom = page.run(f"document.querySelector('{LAST}').getBoundingClientRect().bottom")
    return page.picture(height=round(bottom))


def main() -> None:
    """Run the demo and take the picture of its report."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("picture", type=Path)
    picture: Path = parser.parse_args().picture
    if CHROMIUM is None:
        sys.stdout.write(f"found no chromium on PATH; {picture} stays as it is\n")
        return
    sys.stdout.write(f"running the demo for {picture}, a minute or two\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "demo"
        command = [sys.executable, "-m", "moetrace", "demo", "--json", "--run", run]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        with chromium() as page:
            picture.write_bytes(photograph(page, run / "report.html"))


if __name__ == "__main__":
    main()
