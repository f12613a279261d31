"""`moetrace watch` as a process: on a terminal, a dumb one, in a pipe."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moetrace.run import Run
from moetrace.watch import watch
from tests.report.made import drifting, recorded

CODE = (
    "import sys; from moetrace.cli import main; code = main(sys.argv[1:]);"
    "sys.exit(99 if 'torch' in sys.modules else code)"
)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Forty windows of eight layers that end badly; finished."""
    history = drifting(windows=40, layers=8, experts=16)
    return recorded(tmp_path_factory.mktemp("runs") / "bad", *history)


def on_terminal(*arguments: str, term: str, **environment: str) -> tuple[int, str]:
    """Exit code and everything that a terminal of 40 columns received."""
    leader, follower = pty.openpty()
    known = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        stdin=follower,
        stdout=follower,
        stderr=subprocess.STDOUT,
        env={**known, "TERM": term, "COLUMNS": "40", "LINES": "24", **environment},
    )
    os.close(follower)
    parts = []
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(leader)
    return process.wait(60), b"".join(parts).decode().replace("\r\n", "\n")


class TestTerminal:
    def test_draws_in_place_in_colour_and_leaves_the_last_frame(self, bad: Run) -> None:
        """The other screen while it goes on; a finished run ends it. No torch is imported."""
        code, text = on_terminal("watch", str(bad.path), term="xterm-256color")
        assert code == 0, text
        _, switched, after = text.partition("\x1b[?1049l")
        assert switched
        assert re.search(r"\x1b\[[0-9;]*48;(5|2);", after)
        said = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", after).split())
        assert "model.layers.2.mlp has been far out of balance since steps" in said

    @pytest.mark.parametrize(
        ("term", "environment"), [("xterm-256color", {"NO_COLOR": "1"}), ("dumb", {})]
    )
    def test_without_colour_the_map_is_letters(
        self, bad: Run, term: str, environment: dict[str, str]
    ) -> None:
        """NO_COLOR and a dumb terminal: no colour is sent, and no line is wider than 40."""
        code, text = on_terminal("watch", "--once", str(bad.path), term=term, **environment)
        assert code == 0, text
        assert "\x1b[4" not in text
        assert "x none _<1/4 -<1/2 .fair +2x *4x #8x" in text
        assert max(map(len, text.splitlines())) <= 40


class TestPipe:
    def test_json_is_one_document(self, bad: Run) -> None:
        """For scripts: what the frame says, and nothing else on the output."""
        done = subprocess.run(
            [sys.executable, "-c", CODE, "watch", "--json", str(bad.path)],
            capture_output=True,
            check=True,
            text=True,
        )
        assert json.loads(done.stdout)["findings"][0]["tone"] == "bad"

    @pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x"])
    def test_an_interval_is_a_number_of_seconds(self, value: str, bad: Run) -> None:
        """Wrong use is one line and exit code 2."""
        from moetrace.cli import main

        with pytest.raises(SystemExit, match="2"):
            main(["watch", f"--interval={value}", str(bad.path)])


class TestWaiting:
    def test_a_folder_without_a_run_is_waited_for(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Started before the training: it says so once, and begins when the run is there."""
        looks = []

        def sleep(_: float) -> None:
            looks.append(1)
            if len(looks) == 3:
                recorded(tmp_path / "run", *drifting(windows=2, layers=2, experts=4))

        view = watch(tmp_path / "run", sleep=sleep)
        assert len(looks) == 3
        assert view.windows is not None
        assert capsys.readouterr().out.count("waiting for the run to begin") == 1
