"""``moetrace doctor RUN``: what recorded windows tell, its exit code, and what it looks like."""

import io
import json
import re
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inline_snapshot import snapshot

from moetrace.cli import main
from moetrace.diagnosis.finding import KINDS
from moetrace.run import open_run
from moetrace.show import diagnose_run, show_diagnosis, show_facts
from moetrace.store import RunFolder
from tests.report.made import manifest, recorded, stats, window

LAYERS = ("model.layers.0.mlp", "model.layers.1.mlp")
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e[/red][link=file:///]x\r\b"


def healthy(first, last, **options):
    """A window of two even layers."""
    return window(first, last, *(stats(name, [25] * 4) for name in LAYERS), **options)


def changed(whole, layer, **fields):
    """The window with other numbers in one layer."""
    routing = [
        replace(item, **fields) if item.layer == LAYERS[layer] else item for item in whole.routing
    ]
    return replace(whole, routing=tuple(routing))


def diagnosed(path, *history, **header):
    """What the doctor says of a run of these windows."""
    return diagnose_run(
        recorded(path / "run", *history, header=manifest(LAYERS, experts=4, top_k=1) | header)
    )


def line(diagnosis, kind):
    """The one line of a finding."""
    lines = [text.split() for text in str(diagnosis).splitlines()]
    (words,) = [words for words in lines if words[1:2] == [f"{kind}:"]]
    return " ".join(words)


class Terminal(io.StringIO):
    """Standard output as a terminal."""

    def isatty(self):
        """It is one."""
        return True


class TestFindings:
    def test_a_healthy_run(self, tmp_path) -> None:
        """Nothing to say but which sites counted."""
        diagnosis = diagnosed(tmp_path, healthy(1, 10), healthy(10, 10, phase="eval"))
        assert (diagnosis.ok, diagnosis.findings) == (True, ())
        assert [(site.state, site.calls, site.tokens) for site in diagnosis.sites] == [
            ("counted", 2, 200)
        ] * 2

    def test_says_in_which_windows(self, tmp_path) -> None:
        """A counter that should be 0: how much in all, in how many windows, and since when."""
        bad = [changed(healthy(11, 20), 1, nonfinite=3), changed(healthy(21, 30), 1, nonfinite=7)]
        prob_sum = np.full(4, round(97 / 4 * (1 << 30)))
        bad[0] = changed(bad[0], 1, prob_sum=prob_sum)
        bad[1] = changed(bad[1], 1, prob_sum=np.full(4, round(93 / 4 * (1 << 30))))
        diagnosis = diagnosed(tmp_path, healthy(1, 10), *bad)
        assert line(diagnosis, "nan-logits").startswith(
            "error nan-logits: model.layers.1.mlp: 10 of 200 tokens had NaN or infinite logits in "
            "2 of 3 windows, first steps 11-20 (train) -> "
        )
        assert len(diagnosis.findings) == 1

    def test_counts_that_contradict_each_other(self, tmp_path) -> None:
        """Counts, out-of-range and dropped assignments add up to tokens x top-k."""
        bad = changed(healthy(1, 10), 0, tokens_per_expert=np.array([25, 25, 25, 5]))
        assert line(diagnosed(tmp_path, bad), "counts-contradict").startswith(
            "error counts-contradict: model.layers.0.mlp: counts, out-of-range and dropped "
            "assignments miss tokens x top-k by 20 of 100 -> do not use the counts"
        )

    @pytest.mark.parametrize(("dropped", "severity"), [(20, "warning"), (5, "note")])
    def test_dropped_assignments_add_up(self, tmp_path, dropped, severity) -> None:
        """What a capacity limit dropped is no contradiction; a tenth of it is a warning."""
        counts = np.array([25, 25, 25, 25 - dropped])
        bad = changed(healthy(1, 10), 0, tokens_per_expert=counts, dropped=dropped)
        diagnosis = diagnosed(tmp_path, bad)
        assert [finding.kind for finding in diagnosis.findings] == ["dropped"]
        assert line(diagnosis, "dropped").startswith(
            f"{severity} dropped: model.layers.0.mlp: {dropped} of 100 assignments"
        )

    def test_probabilities_that_are_not_one_per_token(self, tmp_path) -> None:
        """Summed probabilities of half a token each cannot be."""
        bad = changed(healthy(1, 10), 1, prob_sum=np.full(4, round(12.5 * (1 << 30))))
        assert line(diagnosed(tmp_path, bad), "scores-contradict").startswith(
            "error scores-contradict: model.layers.1.mlp: the summed probabilities are not one per "
            "token -> "
        )

    def test_sites_that_never_counted(self, tmp_path) -> None:
        """A site of the header without a window: a part of the model, or one among others."""
        names = [*LAYERS, "model.layers.2.mlp", "vision.blocks.0.moe", "vision.blocks.1.moe"]
        sites = manifest(names, experts=4, top_k=1)["sites"]
        diagnosis = diagnosed(tmp_path, healthy(1, 10), sites=sites)
        assert line(diagnosis, "part-silent").startswith(
            "warning part-silent: vision.blocks.0.moe, vision.blocks.1.moe: no site below vision "
        )
        assert line(diagnosis, "silent").startswith(
            "warning silent: model.layers.2.mlp: counted no"
        )
        assert [site.state for site in diagnosis.sites] == ["counted"] * 2 + ["silent"] * 3

    def test_sites_that_were_left_out_are_not_missed(self, tmp_path) -> None:
        """``layers=`` of attach leaves sites out, and the header says which."""
        sites = manifest([*LAYERS, "model.layers.2.mlp"], experts=4, top_k=1)["sites"]
        sites[2]["recorded"] = False
        assert diagnosed(tmp_path, healthy(1, 10), sites=sites).ok

    def test_a_site_that_went_silent(self, tmp_path) -> None:
        """It counted for a while, others went on, and since when is told."""
        silent = changed(
            healthy(21, 30), 0, tokens_per_expert=np.zeros(4, int), tokens=0, calls=0,
            prob_sum=np.zeros(4, int), entropy_sum=0,
        )  # fmt: skip
        diagnosis = diagnosed(tmp_path, healthy(1, 10), healthy(11, 20), silent)
        assert line(diagnosis, "went-silent").startswith(
            "warning went-silent: model.layers.0.mlp: counted until steps 11-20 and nothing since, "
            "while others went on -> "
        )

    def test_health(self, tmp_path) -> None:
        """The tracer's own state at the end, as in the live diagnosis."""
        health = {"coalesced_windows": 3, "failed_sinks": "WandbSink", "lost_layers": 2, "x": 1}
        diagnosis = diagnosed(tmp_path, replace(healthy(1, 10), health=health))
        kinds = ["router-replaced", "sink-failed", "coalesced"]
        assert [finding.kind for finding in diagnosis.findings] == kinds

    def test_aborted_steps_are_a_note_and_no_evidence(self, tmp_path) -> None:
        """What a failed step counted is not judged."""
        failed = changed(healthy(5, 5, phase="aborted"), 0, nonfinite=50)
        diagnosis = diagnosed(tmp_path, healthy(1, 10), failed)
        assert [finding.kind for finding in diagnosis.findings] == ["aborted"]

    def test_near_misses_of_the_header(self, tmp_path) -> None:
        """What attach left, one line for all layers of a kind."""
        group = {"router": "Linear", "reason": "bare logits", "paths": ["a", "b"], "count": 24}
        diagnosis = diagnosed(tmp_path, healthy(1, 10), near_misses=[group, 3])
        assert line(diagnosis, "near-miss").startswith(
            "note near-miss: a, b: 24 x Linear not traced: bare logits -> "
        )

    def test_an_open_run_and_faults(self, tmp_path) -> None:
        """A run that was not closed is a note; what cannot be read is an error."""
        folder = RunFolder.prepare(tmp_path / "open")
        segment = folder.open_segment(rank=0, header=manifest(LAYERS, experts=4, top_k=1))
        segment.append(replace(healthy(1, 10), run_id=folder.run_id))
        try:
            diagnosis = diagnose_run(open_run(tmp_path / "open"))
        finally:
            segment.close()
        assert [finding.kind for finding in diagnosis.findings] == ["open"]
        (log,) = Path(tmp_path / "open").glob("segments/*/log.jsonl")
        data = bytearray(log.read_bytes())
        data[len(data) // 2] ^= 1
        log.write_bytes(data)
        finding = diagnose_run(open_run(tmp_path / "open")).findings[0]
        assert (finding.kind, finding.severity) == ("fault", "error")


class TestCommand:
    def test_says_by_its_exit_code_whether_all_is_well(self, tmp_path, capsys) -> None:
        """0 with nothing worse than a note, 1 with a warning or an error, 2 without a run."""
        diagnosed(tmp_path, healthy(1, 10))
        assert main(["doctor", str(tmp_path / "run")]) == 0
        bad = changed(
            healthy(1, 10), 0, out_of_range=1, tokens_per_expert=np.array([25, 25, 25, 24])
        )
        diagnosed(tmp_path / "bad", bad)
        assert main(["doctor", str(tmp_path / "bad" / "run")]) == 1
        assert main(["doctor", str(tmp_path / "nowhere")]) == 2
        assert "cannot read a run" in capsys.readouterr().err

    def test_prints_the_worst_first(self, tmp_path, monkeypatch) -> None:
        """What was found, where, what to do; then the sites."""
        counts = np.array([25, 25, 25, 24])
        bad = changed(healthy(1, 10), 0, out_of_range=1, tokens_per_expert=counts)
        diagnosis = diagnosed(tmp_path, replace(bad, health={"sample": 4, "failed_sinks": "X"}))
        monkeypatch.setenv("COLUMNS", "80")
        show_diagnosis(diagnosis, stream=(out := Terminal()))
        assert re.sub(r"run \S+:", "run RUN-ID:", out.getvalue()) == snapshot("""\
run RUN-ID: 2 of 2 sites counted; 1 error, 1 warning, 1 note

error    out-of-range: model.layers.0.mlp: 1 of 100 assignments went to experts
         that do not exist -> compare num_experts of the configuration with the
         router's weight; sentinel ids of expert parallelism and of capacity
         limits look the same
warning  sink-failed: X raised while it wrote a snapshot -> the run folder has
         every window: look at tracer.failed_sinks, mend it, read the run
note     sampled: one of every 4 steps was counted (sample=) -> nothing;
         multiply tokens by that number to compare with the batch

2 x Qwen3MoeTopKRouter, 4 experts, top-1, softmax, read by standard
  counted: model.layers.0.mlp, model.layers.1.mlp
""")

    def test_json_is_the_same_diagnosis(self, tmp_path, capsys) -> None:
        """The document holds every field of every finding and site."""
        diagnosis = diagnosed(tmp_path, replace(healthy(1, 10), health={"sample": 4}))
        assert main(["doctor", str(tmp_path / "run"), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record == json.loads(json.dumps(diagnosis.to_dict()))
        assert list(record) == ["ok", "subject", "sites", "findings"]

    def test_imports_no_torch(self, tmp_path) -> None:
        """It reads runs on a machine without torch."""
        diagnosed(tmp_path, healthy(1, 10))
        code = (
            "import sys; sys.modules['torch'] = None; from moetrace.cli import main; "
            f"sys.exit(main(['doctor', {str(tmp_path / 'run')!r}]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "2 of 2 sites counted; healthy" in done.stdout


class TestScreens:
    @pytest.mark.parametrize("columns", [80, 120])
    @pytest.mark.parametrize("show", [show_facts, show_diagnosis])
    def test_fold_at_the_width_of_a_terminal(self, tmp_path, monkeypatch, columns, show) -> None:
        """No line is broken by the terminal, whatever the names, and every name is there."""
        names = [f"decoder.layers.{at}.feed_forward.mixture.of_experts" for at in range(12)]
        header = manifest(names, experts=128, top_k=1)
        group = {"router": "Linear", "reason": "bare logits " * 9, "paths": names[:4], "count": 12}
        run = recorded(
            tmp_path / "run",
            window(1, 10, *(stats(name, [10] * 128) for name in names[:5])),
            header=header | {"near_misses": [group]},
        )
        monkeypatch.setenv("COLUMNS", str(columns))
        out = Terminal()
        show(diagnose_run(run) if show is show_diagnosis else run, stream=out)
        printed = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
        lines = [text for text in printed.splitlines() if str(tmp_path) not in text]
        assert max(map(len, lines)) <= columns
        assert all(name in printed for name in names)

    @pytest.mark.parametrize("stream", [io.StringIO, Terminal])
    def test_no_text_of_a_run_can_act(self, tmp_path, stream) -> None:
        """Names, reasons and health of a stranger's run are spelled out, never obeyed."""
        header = manifest([HOSTILE], experts=4, top_k=1)
        header["sites"][0] |= {"router": HOSTILE, "scored_by": HOSTILE, "reader": HOSTILE}
        header["near_misses"] = [
            {"router": HOSTILE, "reason": HOSTILE, "paths": [HOSTILE], "count": HOSTILE}
        ]
        bad = window(1, 1, replace(stats(HOSTILE, [1, 1]), out_of_range=1))
        run = recorded(
            tmp_path / "run", replace(bad, health={"failed_sinks": HOSTILE}), header=header
        )
        out = stream()
        show_diagnosis(diagnose_run(run), stream=out)
        show_facts(run, stream=out)
        printed = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
        acting = {character for character in printed if unicodedata.category(character) in "CcCfCs"}
        assert acting == {"\n"}

    @pytest.mark.parametrize("value", [None, 3, "x", [3], [{}], [{"name": [1]}], {"a": 1}])
    def test_a_header_of_anything_is_survived(self, tmp_path, value) -> None:
        """Sites and near misses that are no such records are left out."""
        run = recorded(
            tmp_path / "run", healthy(1, 1), header={"sites": value, "near_misses": value}
        )
        diagnose_run(run)
        show_facts(run, stream=io.StringIO())


class TestPage:
    def test_explains_every_kind(self) -> None:
        """``docs/doctor.md`` has an entry for each kind of finding, and for nothing else."""
        page = (Path(__file__).parents[1] / "docs" / "doctor.md").read_text()
        assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == KINDS
