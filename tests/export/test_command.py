"""``moetrace export``: what it writes, what it prints, what it refuses."""

import json
from pathlib import Path

import pytest

from moetrace.cli import main
from moetrace.export import FORMATS
from tests.export.made import full, kept


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which everything is recorded."""
    folder = tmp_path_factory.mktemp("export") / "run"
    kept(folder, *full())
    return folder


class TestExport:
    @pytest.mark.parametrize("form", FORMATS)
    def test_prints_the_files_it_wrote(
        self, form: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Each of them is there, and nothing else is: no draft stays."""
        assert main(["export", str(path), "--format", form, "-o", str(tmp_path / "out")]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert sorted(map(Path, printed)) == sorted((tmp_path / "out").iterdir())

    def test_goes_beside_the_run_by_default(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """And as JSON it says which files and how many rows."""
        assert main(["export", str(path), "--format", "csv", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert str(path / "export" / "layers.csv") in record["files"]
        assert record["rows"] == {
            "layers": 6,
            "indices": 3,
            "weights": 6,
            "gradients": 27,
            "events": 0,
        }

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--format", "cvs"], "found no format 'cvs'; the formats are csv, json, parquet"),
            (["--format", "perfetto", "--experts"], "experts are a table; 'perfetto' has none"),
            (["--format", "csv", "-o", "/proc/nowhere"], "No such file"),
        ],
    )
    def test_says_what_it_cannot_do(
        self,
        arguments: list[str],
        said: str,
        path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Exit code 2 and one line."""
        assert main(["export", str(path), *arguments]) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert (printed.out, printed.err.count("\n")) == ("", 1)

    def test_a_failed_export_leaves_what_was_there(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All files are put in place at the end, or none."""
        arguments = ["export", str(path), "--format", "csv", "-o", str(tmp_path)]
        assert main(arguments) == 0
        before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}

        def full_disk(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("moetrace.export.exported.json_text", full_disk)
        assert main(arguments) == 2
        assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before
