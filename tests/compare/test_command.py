"""``moetrace compare``: what it prints and what it refuses."""

import json
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from moetrace.cli import main
from tests.compare.made import kept, uniform
from tests.report.made import recorded, stats, window

HOSTILE = "\x1b[2J\u202e[/red]"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A uniform run, and one with a hot expert in layer 1 from step 41 on."""
    folder = tmp_path_factory.mktemp("compare")
    kept(folder / "a", *uniform(seed=1))
    kept(folder / "b", *uniform(seed=2, hot_from=4))
    return [str(folder / "a"), str(folder / "b")]


class TestCompare:
    def test_prints_layers_changes_and_when(
        self, paths: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The planted fault stands on top, with its layer; the strip shows that it begins."""
        assert main(["compare", *paths]) == 0
        printed = capsys.readouterr().out
        assert printed[printed.index("12 spans") :] == snapshot("""\
12 spans of steps of phase 'train' that all runs have

B against A, steps 111-120:
layer               moved  times   CV A   CV B  Vio A  Vio B  ent A  ent B
model.layers.0.mlp   2.8%    1.2  0.031  0.049  0.050  0.078  1.000  1.000
model.layers.1.mlp  15.7%    6.6  0.038  0.482  0.060  1.270  1.000  1.000
model.layers.2.mlp   1.6%    0.7  0.036  0.023  0.058  0.034  1.000  1.000
moved: load on other experts than in A; times: over what chance would show;
Vio: MaxVio; ent: routing entropy, nats.

what differs by 3 times its noise or more:
  model.layers.1.mlp: max_vio 0.06 -> 1.27 (18.6 times its noise)
  model.layers.1.mlp: load_cv 0.03776 -> 0.4819 (18.3 times its noise)
  model.layers.1.mlp: load_gini 0.0215 -> 0.1786 (13.5 times its noise)
  model.layers.1.mlp: 15.7% of the load on other experts (6.6 times its noise)

load moved, over its noise, steps 1 to 120:
  model.layers.0.mlp  ......:....:
  model.layers.1.mlp  :.::++++++++
  model.layers.2.mlp  ..::..:.::..
  . to 1 : to 2 - to 3 = to 5 + to 8 * to 12 # to 20 % to 40 @ more
""")

    @pytest.mark.parametrize(
        "line",
        ["A B --step 45 --json", "A --step 45 B --json", "--json A --step 45 B", "--json A B"],
    )
    def test_options_may_stand_anywhere(
        self, paths: list[str], line: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Before, between and behind the runs, whose order is that of the line."""
        words = [{"A": paths[0], "B": paths[1]}.get(word, word) for word in line.split()]
        assert main(["compare", *words]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [run["path"] for run in document["runs"]] == paths
        assert document["shown"] == ([41, 50] if "45" in line else [111, 120])

    def test_an_unknown_option_between_runs_is_no_run(
        self, paths: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is refused by its name, with exit code 2."""
        with pytest.raises(SystemExit, match="2"):
            main(["compare", paths[0], "--nosuch", paths[1]])
        assert "unrecognized arguments: --nosuch;" in capsys.readouterr().err

    def test_fits_eighty_columns(
        self, paths: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Beside the names of the runs no line is longer."""
        main(["compare", *paths])
        lines = capsys.readouterr().out.splitlines()[2:]
        assert max(map(len, lines)) <= 80

    def test_writes_the_page_and_says_where(
        self, paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """``-o`` leaves one file; its path is the last line."""
        out = tmp_path / "page.html"
        assert main(["compare", *paths, "-o", str(out)]) == 0
        assert capsys.readouterr().out.endswith(f"\n{out}\n")
        assert out.stat().st_size < 100_000

    def test_json_is_one_document(
        self, paths: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Runs, spans, layers and changes."""
        assert main(["compare", *paths, "--step", "45", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert list(record) == snapshot(
            ["phase", "runs", "spans", "shown", "layers", "left_out", "against", "page", "faults"]
        )
        assert record["shown"] == [41, 50]
        assert record["against"][0]["changes"][0]["layer"] == "model.layers.1.mlp"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [([], "a comparison takes two or more"), (["--phase", "eval"], "no steps of phase 'eval'")],
    )
    def test_says_what_it_cannot_compare(
        self,
        arguments: list[str],
        said: str,
        paths: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Exit code 2 and one line."""
        runs = paths if arguments else paths[:1]
        assert main(["compare", *runs, *arguments]) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert (printed.out, printed.err.count("\n")) == ("", 1)

    def test_no_text_of_a_run_can_act(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """J3 to J5: names are spelled out, in text and in JSON."""
        for name, counts in (("a", [9, 1]), ("b", [1, 9])):
            history = (window(n, n, stats(HOSTILE, counts)) for n in range(1, 7))
            recorded(tmp_path / name, *history, header={"model": HOSTILE})
        for form in ([], ["--json"]):
            assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), *form]) == 0
        printed = capsys.readouterr().out
        assert set(filter(lambda character: not " " <= character <= "~", printed)) == {"\n"}
