"""``moetrace plot``: what it prints and what it refuses."""

import argparse
import json
from pathlib import Path

import pytest

from moetrace.cli import main, parser
from moetrace.plot import KINDS
from tests.plot.made import full, kept


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on disk."""
    folder = tmp_path_factory.mktemp("plots") / "run"
    kept(folder, *full(windows=2))
    return folder


class TestPlot:
    def test_writes_beside_the_run_and_prints_where(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """By default a PNG that is called after its kind."""
        assert main(["plot", str(path), "--kind", "coverage"]) == 0
        assert capsys.readouterr().out == f"{path / 'coverage.png'}\n"
        assert (path / "coverage.png").stat().st_size > 5000

    def test_json_says_which_file(
        self, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With what could not be read."""
        out = tmp_path / "a.svg"
        assert main(["plot", str(path), "--kind", "rank", "-o", str(out), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert (record["kind"], record["plot"], record["faults"]) == ("rank", str(out), [])

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--kind", "rnak"], "found no kind 'rnak'; did you mean rank"),
            (["--kind", "rank", "-o", "/proc/nowhere/a.png"], "No such file"),
            (["--kind", "rank", "--layers", "none"], "found no layer 'none'"),
        ],
    )
    def test_says_what_it_cannot_draw(
        self,
        arguments: list[str],
        said: str,
        path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Exit code 2 and one line."""
        assert main(["plot", str(path), *arguments]) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert (printed.out, printed.err.count("\n")) == ("", 1)

    def test_help_names_every_kind(self) -> None:
        """The list of the command is the list of the kinds, without importing them."""
        (group,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
        kind = next(a for a in group.choices["plot"]._actions if a.dest == "kind")
        assert (kind.help or "").split(", ") == list(KINDS)
