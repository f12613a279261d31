"""``moetrace check``: what it prints, its exit codes, and its document."""

import json
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from moetrace.cli import main
from tests.report.made import recorded, stats, window

EVEN, UNEVEN = [25, 25, 25, 25], [85, 5, 10, 0]
HOSTILE = "\x1b[2J\u202e[/red]"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two windows; in the second one layer is uneven."""
    folder = tmp_path_factory.mktemp("check") / "run"
    last = window(11, 20, stats("layers.0", EVEN), stats("layers.1", UNEVEN))
    recorded(folder, window(1, 10, stats("layers.0", EVEN), stats("layers.1", EVEN)), last)
    return folder


class TestCheck:
    def test_ends_with_1_and_says_which_layer_which_steps_and_what(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A rule that holds, one that does not, one over layers, one with nothing to judge."""
        rules = ["cv < 2", "dead == 0", "max_vio p100 < 2", "cv < 1 after 99"]
        assert main(["check", str(path), *(f"--rule={rule}" for rule in rules)]) == 1
        assert capsys.readouterr().out == snapshot("""\
holds   cv < 2
        4 values in 2 windows
broken  dead == 0
        layers.1 has 1 in steps 11-20, for the first time
        1 of 4 values break it
broken  max_vio p100 < 2
        p100 is 2.4 in steps 11-20 (furthest off: layers.1), for the first time
        1 of 2 values break it
broken  cv < 1 after 99
        nothing to judge, so it does not hold
        no window of phase 'train' with a layer '*' begins after step 99
""")

    def test_ends_with_0_where_every_rule_holds(
        self, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Rules of files and of the command line together; the names are those of the file."""
        (tmp_path / "rules.toml").write_text('[rules]\neven = "cv < 2"\n')
        rules = ["--rules", str(tmp_path / "rules.toml"), "--rule", "dead < 2"]
        assert main(["check", str(path), *rules]) == 0
        assert "holds   even: cv < 2\n" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "found no rule to check"),
            (["--rule", "cvv < 1"], "did you mean cv"),
            (["--rules", "/nowhere/rules.toml"], "No such file"),
        ],
    )
    def test_ends_with_2_where_a_rule_cannot_be_read(
        self, arguments: list[str], said: str, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Told in one line on standard error; nothing on standard output."""
        assert main(["check", str(path), *arguments]) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert (printed.out, printed.err.count("\n")) == ("", 1)

    def test_json_says_the_same(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """One document, with the exit code of the text."""
        assert main(["check", str(path), "--rule", "dead == 0", "--json"]) == 1
        record = json.loads(capsys.readouterr().out)
        assert (record["holds"], record["faults"]) == (False, [])
        place = {"layer": "layers.1", "first_step": 11, "last_step": 20, "value": 1.0}
        assert record["rules"] == [
            {
                "name": "dead == 0",
                "rule": "dead == 0",
                "holds": False,
                "windows": 2,
                "judged": 4,
                "broken": 1,
                "withheld": {},
                "first": place,
                "worst": place,
            }
        ]

    def test_says_what_could_not_be_read(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A damaged window is not judged; that it was there is said."""
        path = tmp_path / "run"
        recorded(path, window(1, 10, stats("a", EVEN)), window(11, 20, stats("a", UNEVEN)))
        (log,) = path.glob("segments/*/log.jsonl")
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines[:2]) + lines[2].replace(b"1", b"2") + b"".join(lines[3:]))
        assert main(["check", str(path), "--rule", "cv < 1"]) == 0
        assert "it is not judged" in capsys.readouterr().out

    def test_no_text_of_a_run_can_act(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """J3 to J5: a name is spelled out, in text and in JSON."""
        recorded(tmp_path / "run", window(1, 10, stats(HOSTILE, UNEVEN)))
        main(["check", str(tmp_path / "run"), "--rule", "cv < 1"])
        main(["check", str(tmp_path / "run"), "--rule", "cv < 1", "--json"])
        printed = capsys.readouterr().out
        assert "\\x1b[2J\\u202e[/red] has" in printed
        assert set(filter(lambda character: not " " <= character <= "~", printed)) == {"\n"}
