"""The command line on runs made by hand: what it prints, in which form, and what it refuses."""

import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from moetrace.cli import main
from moetrace.run import open_run
from moetrace.show import show_facts, show_table
from tests.report.made import manifest, recorded, stats, window
from tests.store import windows

EVEN, UNEVEN = [25, 25, 25, 25], [85, 5, 10, 0]
LAYERS = ("model.layers.0.mlp", "model.layers.1.mlp")
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e[/red][link=file:///]x\r\b"


def two_layers(first: int, last: int, *, phase: str = "train"):
    """A window whose second layer is uneven and has one dead expert."""
    return window(
        first,
        last,
        stats(LAYERS[0], EVEN, entropy=1.25),
        stats(LAYERS[1], UNEVEN, entropy=0.5),
        phase=phase,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two windows of training and one of evaluation."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    header = manifest(LAYERS, experts=4, top_k=1)
    history = two_layers(1, 10), two_layers(10, 10, phase="eval"), two_layers(11, 20)
    recorded(folder, *history, header=header)
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every text would like to act."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    header = manifest([HOSTILE], experts=4, top_k=1)
    header["model"] = header["versions"]["torch"] = header["sites"][0]["router"] = HOSTILE
    header["sites"][0]["aliases"] = [HOSTILE]
    recorded(folder, window(1, 10, stats(HOSTILE, UNEVEN)), header=header)
    return folder


class Terminal(io.StringIO):
    """Standard output as a terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def moetrace(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own, its output in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "moetrace", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        # On a loaded machine two threads that wait for each other are ten times slower than one.
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def on_terminal(arguments: Sequence[str | Path], **environment: str) -> str:
    """What the command prints on a real terminal of 80 columns."""
    ours, theirs = pty.openpty()
    clean = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "moetrace", *map(str, arguments)],
        stdout=theirs,
        stdin=theirs,
        env={**clean, "COLUMNS": "80", "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        printed += part
    os.close(ours)
    assert process.wait(60) == 0
    return printed.decode().replace("\r\n", "\n")


class TestShow:
    def test_prints_the_last_window_layer_by_layer(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A row per layer, columns in line, and below them what they mean."""
        assert main(["show", str(path)]) == 0
        assert capsys.readouterr().out == snapshot("""\
Qwen3MoeForCausalLM, train, steps 11-20
layer               tokens     CV  MaxVio  floor  excess  entropy  dead
model.layers.0.mlp     100  0.000   0.000  0.208  -0.208    1.250   0/4
model.layers.1.mlp     100  1.393   2.400  0.208   2.192    0.500   1/4
MaxVio: heaviest expert over its fair share, minus 1; floor: what a uniform
router would show by chance. Entropy in nats. dead: experts without a token.
""")

    def test_finds_the_window_of_a_step_and_a_phase(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """``--step`` takes any step that the window covers."""
        assert main(["show", str(path), "--step", "7"]) == 0
        assert "train, steps 1-10\n" in capsys.readouterr().out
        assert main(["show", str(path), "--phase", "eval"]) == 0
        assert "eval, step 10\n" in capsys.readouterr().out

    def test_json_holds_the_counts_and_every_metric(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The document's numbers are those of the run."""
        assert main(["show", str(path), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert list(record) == snapshot(
            [
                "run_id",
                "phase",
                "first_step",
                "last_step",
                "summary",
                "layers",
                "tables",
                "weights",
                "gradients",
            ]
        )
        assert list(record["layers"][1]) == snapshot(
            [
                "layer",
                "num_experts",
                "top_k",
                "scoring",
                "tokens",
                "calls",
                "masked",
                "dropped",
                "nonfinite",
                "out_of_range",
                "identity",
                "tokens_per_expert",
                "metrics",
                "withheld",
            ]
        )
        assert (record["first_step"], record["last_step"]) == (11, 20)
        assert [layer["layer"] for layer in record["layers"]] == list(LAYERS)
        assert record["layers"][1]["tokens_per_expert"] == UNEVEN
        assert record["layers"][1]["metrics"]["max_vio"] == 85 / 25 - 1
        assert record["layers"][1]["metrics"]["dead_experts"] == 1
        last = open_run(path).snapshots()[-1]
        assert record["layers"][0]["metrics"] == last[LAYERS[0]].metrics()
        assert record["summary"] == last.metrics()

    def test_says_why_a_figure_is_missing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A metric without a value is a dash in the table, and its reason stands below."""
        run = recorded(tmp_path / "run", window(1, 1, stats("mlp", [2, 2], scoring="none")))
        show_table(run, run.snapshots()[-1])
        printed = capsys.readouterr().out
        assert re.search(r"^mlp +4 +0.000 .* - +0/2$", printed, re.MULTILINE)
        assert "mlp has no routing_entropy: " in printed

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--step", "21"), "found no window with step 21; there are steps 1 to 20"),
            (("--phase", "evl"), "found no phase 'evl'; this run has train, eval"),
        ],
    )
    def test_names_what_there_is_where_something_is_not(
        self, path: Path, arguments: tuple[str, ...], said: str
    ) -> None:
        """Asked for a window that is not there, it says which there are."""
        done = moetrace("show", path, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"moetrace show: {said}\n"


class TestInspect:
    def test_prints_what_was_recorded(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Model, ranks, attempts, versions, windows per phase, routers, health, faults."""
        assert main(["inspect", str(path)]) == 0
        printed = capsys.readouterr().out.replace(open_run(path).run_id, "RUN-ID")
        assert printed.replace(str(path), "RUN") == snapshot("""\
run       RUN-ID (finished)
folder    RUN
model     Qwen3MoeForCausalLM
window    every 10 steps
ranks     0 of world size 1
attempts  0
operator  host kernel
versions  moetrace 0.1.0, numpy 2.3.0, python 3.11.7, torch 2.13.0
events    0

phase  windows  steps  tokens
train        2   1-20     200
eval         1     10     100

2 x Qwen3MoeTopKRouter, 4 experts, top-1, softmax, read by standard
  counted in train, eval: model.layers.0.mlp, model.layers.1.mlp

health (train): not told
health (eval): not told
fault: none
""")

    def test_json_spells_a_number_that_json_lacks(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """I14: NaN in health or infinity in the header cost no document: as in the run folder."""
        windows.write(tmp_path, [windows.window(health={"drift": math.nan})], every=math.inf)
        assert main(["inspect", str(tmp_path), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["health"]["train"] == {"drift": {"$float": "nan"}}
        assert record["every"] == {"$float": "inf"}

    def test_json_holds_it_all(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The document has the summary of the run, its sites, versions and health."""
        assert main(["inspect", str(path), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert list(record) == snapshot(
            [
                "path",
                "run_id",
                "model",
                "layers",
                "experts",
                "windows",
                "steps",
                "tokens",
                "ranks",
                "attempts",
                "coverage",
                "finished",
                "faults",
                "every",
                "world_size",
                "sites",
                "near_misses",
                "operator",
                "versions",
                "health",
                "events",
                "tables",
                "weights",
                "gradients",
            ]
        )
        assert record["layers"] == list(LAYERS)
        assert record["windows"] == {"train": 2, "eval": 1}
        assert record["steps"] == {"train": [1, 20], "eval": [10, 10]}
        assert record["tokens"] == {"train": 200, "eval": 100}
        assert [site["router"] for site in record["sites"]] == ["Qwen3MoeTopKRouter"] * 2

    def test_shows_what_could_not_be_read(self, tmp_path: Path) -> None:
        """A torn tail is a fault that is printed, not an error."""
        run = recorded(tmp_path / "run", two_layers(1, 10), two_layers(11, 20))
        (log,) = Path(run.path).glob("segments/*/log.jsonl")
        log.write_bytes(log.read_bytes()[:-5])
        done = moetrace("inspect", run.path)
        assert done.returncode == 0
        (fault,) = [line for line in done.stdout.splitlines() if line.startswith("fault: ")]
        assert fault != "fault: none"


class TestReport:
    def test_writes_the_page_beside_the_run_and_prints_where(self, path: Path) -> None:
        """The one line that it prints is the path of the page."""
        done = moetrace("report", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{path / 'report.html'}\n"
        assert (path / "report.html").read_text().startswith("<!doctype html>")

    def test_writes_where_it_is_told(self, path: Path, tmp_path: Path) -> None:
        """``-o`` names the file, and ``--json`` says the path in a document."""
        out = tmp_path / "page.html"
        done = moetrace("report", path, "-o", out, "--json")
        assert json.loads(done.stdout) == {"run_id": open_run(path).run_id, "report": str(out)}
        assert out.stat().st_size > 1000


class TestDemo:
    def test_trains_traces_and_reports(self, tmp_path: Path) -> None:
        """A few steps of the real demo leave a run that can be read, and its page."""
        run = tmp_path / "run"
        done = moetrace("demo", "--run", run, "--steps", "10", "--json")
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert Path(record["report"]).parent == run
        assert Path(record["report"]).is_file()
        read = open_run(run)
        assert (len(read.layers), read.steps().tolist()) == (6, [[1, 10]])

    def test_names_the_package_that_it_lacks(self, tmp_path: Path) -> None:
        """Without transformers it says what to install."""
        code = (
            "import sys; sys.modules['transformers'] = None; from moetrace.cli import main; "
            f"sys.exit(main(['demo', '--run', {str(tmp_path / 'run')!r}]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 2
        assert done.stderr == (
            "moetrace demo: the demo needs transformers, which is not installed; "
            "pip install 'moetrace[demo]' brings it\n"
        )


class TestWrongUse:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "the following arguments are required: COMMAND"),
            (("shwo",), "invalid choice: 'shwo'"),
            (("show",), "the following arguments are required: RUN"),
            (("show", "run", "--js"), "unrecognized arguments: --js"),
            (("demo", "--steps", "0"), "found '0'; it takes a whole number of at least 1"),
        ],
    )
    def test_is_one_line_and_exit_code_2(self, arguments: tuple[str, ...], said: str) -> None:
        """Wrong arguments, abbreviated options among them, are told in one line."""
        done = moetrace(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("command", ["inspect", "show", "report"])
    def test_a_folder_without_a_run_is_told_without_a_traceback(
        self, command: str, tmp_path: Path
    ) -> None:
        """What is no run is named, in one line."""
        done = moetrace(command, tmp_path / "\x1b[31mnowhere")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"moetrace {command}: cannot read a run in ")
        assert "\x1b" not in done.stderr
        assert done.stderr.count("\n") == 1

    def test_a_page_that_cannot_be_written_is_told(self, path: Path) -> None:
        """An error of the system is one line as well."""
        done = moetrace("report", path, "-o", "/proc/nowhere/page.html")
        assert done.returncode == 2
        assert done.stderr == (
            "moetrace report: cannot write '/proc/nowhere/page.html': No such file or directory; "
            "name another file with -o\n"
        )

    def test_a_reader_that_has_enough_is_no_error(self, path: Path) -> None:
        """Piped into something that closes early, it ends in silence."""
        done = subprocess.run(
            f"{sys.executable} -u -m moetrace show {path} --json | head -c 10",
            shell=True,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


class TestTerminal:
    def test_colours_a_terminal_and_nothing_else(self, path: Path) -> None:
        """Colour is for a terminal; a pipe, ``NO_COLOR`` and a dumb terminal get none."""
        assert "\x1b[1;31m" not in moetrace("show", path).stdout
        assert re.search(r"\x1b\[[0-9;]*3[13]m *2\.400", on_terminal(["show", path]))
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", on_terminal(["show", path], NO_COLOR="1"))
        assert "\x1b" not in on_terminal(["show", path], TERM="dumb")

    @pytest.mark.parametrize("command", ["show", "inspect"])
    def test_fits_eighty_columns(self, command: str, tmp_path: Path) -> None:
        """A deep model's names lose what they share, so that no line is broken."""
        names = [f"decoder.layers.{at}.feed_forward.mixture.of_experts" for at in (0, 11)]
        run = recorded(
            tmp_path / "run",
            window(1, 10, *(stats(name, [10**6] * 128) for name in names)),
            header=manifest(names, experts=128, top_k=1),
        )
        printed = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal([command, run.path]))
        lines = [line for line in printed.splitlines() if str(tmp_path) not in line]
        assert max(map(len, lines)) <= 80
        assert "0.feed_forward" in printed
        assert "11.feed_forward" in printed

    def test_does_without_rich(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where rich is not installed a terminal gets the plain table of a pipe."""
        monkeypatch.setitem(sys.modules, "rich", None)
        run = open_run(path)
        terminal, pipe = Terminal(), io.StringIO()
        show_table(run, run.snapshots()[-1], stream=terminal)
        show_table(run, run.snapshots()[-1], stream=pipe)
        assert terminal.getvalue() == pipe.getvalue()

    @pytest.mark.parametrize("stream", [io.StringIO, Terminal])
    def test_no_text_of_a_run_can_act(self, hostile: Path, stream: type[io.StringIO]) -> None:
        """J3 to J5: escapes and reordering are spelled out, and markup of rich is plain text."""
        run = open_run(hostile)
        out = stream()
        show_table(run, run.snapshots()[-1], stream=out)
        show_facts(run, stream=out)
        colours = r"\x1b\[[0-9;]*m"
        printed = re.sub(colours, "", out.getvalue()) if stream is Terminal else out.getvalue()
        assert "\\x1b]0;owned\\x07\\x1b[2J\\u202e[/red][link=file:///]x\\r\\x08" in printed
        acting = {character for character in printed if unicodedata.category(character) in "CcCfCs"}
        assert acting == {"\n"}

    def test_markup_of_rich_is_plain_text(self, tmp_path: Path) -> None:
        """J4: a name that is markup, an emoji or a link to rich is printed as it is."""
        names = ["[/x]", "[bold]b", "[link=u]v", ":smile:"]
        run = recorded(tmp_path / "run", window(1, 1, *(stats(name, [1, 1]) for name in names)))
        terminal = Terminal()
        show_table(run, run.snapshots()[-1], stream=terminal)
        rows = terminal.getvalue().splitlines()[2:6]
        assert [re.sub(r"\x1b\[[0-9;]*m", "", row).split()[0] for row in rows] == names

    def test_no_text_of_a_run_can_act_through_json(
        self, hostile: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """JSON spells out everything beyond ASCII, and a program reads the name as it was."""
        for command in ("show", "inspect"):
            assert main([command, str(hostile), "--json"]) == 0
        printed = capsys.readouterr().out
        assert set(filter(lambda character: not " " <= character <= "~", printed)) == {"\n"}
        record, _ = json.JSONDecoder().raw_decode(printed)
        assert record["layers"][0]["layer"] == HOSTILE
