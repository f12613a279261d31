"""What a segment writer puts on disk, and when."""

import ast
import fcntl
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from moetrace.routing_stats import COUNTERS, VECTORS, RoutingStats
from moetrace.run import open_run
from moetrace.snapshot import Snapshot
from moetrace.store import files
from moetrace.store.arrays import row_count
from tests.store.windows import RUN, arrays_of, log_of, plain, stats, window, write, writer

COUNT = st.integers(0, 2**62)
SIGNED = st.integers(-(2**63), 2**63 - 1)
NAME = st.text(max_size=20)
REAL = st.floats(allow_nan=True, allow_infinity=True)
FREE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | REAL | NAME,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def routing(draw: st.DrawFn, layer: str) -> RoutingStats:
    """Any numbers of one layer that a snapshot may hold."""
    experts = draw(st.integers(1, 5))
    counts: dict[str, Any] = {
        name: np.array(draw(st.lists(kind, min_size=experts, max_size=experts)), np.int64)
        for name, kind in zip(VECTORS, (COUNT, SIGNED, SIGNED), strict=True)
    }
    signed = ("margin_sum", "lse_sum")
    scalars: dict[str, Any] = {name: draw(SIGNED if name in signed else COUNT) for name in COUNTERS}
    return RoutingStats(
        layer=layer,
        num_experts=experts,
        top_k=draw(st.integers(0, experts)),
        scoring=draw(st.sampled_from(["softmax", "sigmoid", "none"])),
        **counts,
        **scalars,
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Any snapshot of attempt 0 of rank 0."""
    layers = draw(st.lists(NAME, max_size=4, unique=True))
    return Snapshot(
        run_id=RUN,
        rank=0,
        attempt=0,
        seq=draw(COUNT),
        phase=draw(st.text(min_size=1, max_size=20)),
        first_step=draw(COUNT),
        last_step=draw(COUNT),
        wall_time=draw(REAL),
        routing=tuple(draw(routing(layer)) for layer in layers),
        health=draw(st.dictionaries(NAME, FREE, max_size=3)),
    )


def lines(root: Path) -> list[dict[str, Any]]:
    """The records of the only log, as any JSON reader sees them."""
    return [json.loads(line) for line in log_of(root).read_text("utf-8").splitlines()]


class TestRoundTrip:
    @settings(max_examples=150, deadline=None)
    @given(written=st.lists(snapshots(), max_size=4))
    def test_what_is_appended_is_read_back(
        self, written: list[Snapshot], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Any snapshots come back equal in every field, non-finite numbers included."""
        root = tmp_path_factory.mktemp("run")
        segment = writer(root)
        for snapshot in written:
            segment.append(snapshot)
        segment.close()
        run = open_run(root)
        found = [snapshot for phase in run.phases for snapshot in run.snapshots(phase=phase)]
        assert run.faults == ()
        assert sorted(map(repr, plain(found))) == sorted(map(repr, plain(written)))

    def test_events_are_read_back(self, tmp_path: Path) -> None:
        """An event keeps its kind, its fields, its rank and its attempt."""
        segment = writer(tmp_path, rank=3, attempt=1)
        segment.event("alert", {"layer": "a", "value": float("inf")})
        segment.close()
        (event,) = open_run(tmp_path).events()
        assert event.pop("wall_time") > 1e9
        assert event == {"layer": "a", "value": np.inf, "kind": "alert", "rank": 3, "attempt": 1}

    def test_a_text_that_is_not_unicode_is_kept_readable(self, tmp_path: Path) -> None:
        """A path that is not UTF-8 does not cost the snapshot that mentions it."""
        write(tmp_path, [window(health={"path": os.fsdecode(b"run-\xff")})])
        (found,) = open_run(tmp_path).snapshots()
        assert found.health == {"path": "run-\\udcff"}


class TestLine:
    def test_a_snapshot_is_one_json_object_with_a_column_per_number(self, tmp_path: Path) -> None:
        """duckdb, polars and jq find plain columns: one entry per layer, in the order of layer."""
        write(tmp_path, [window(3, {"a": (3, 1), "b": (0, 4)})])
        header, snapshot, end = lines(tmp_path)
        assert header["model"] == "TinyMoE"
        assert end["snapshots"] == 1
        assert snapshot["layer"] == ["a", "b"]
        assert snapshot["tokens"] == [4, 4]
        assert snapshot["load_cv"] == [0.5, 1.0]
        assert snapshot["max_vio"] == [0.5, 1.0]
        assert (snapshot["rank"], snapshot["attempt"], snapshot["run_id"]) == (0, 0, RUN)
        assert list(snapshot)[-1] == "crc32"

    def test_an_undefined_metric_is_null(self, tmp_path: Path) -> None:
        """null says that there is nothing to divide by; it never stands for NaN."""
        write(tmp_path, [window(0, {"a": (0, 0)})])
        assert lines(tmp_path)[1]["load_cv"] == [None]

    def test_a_non_finite_number_is_spelled_out(self, tmp_path: Path) -> None:
        """G2: NaN and infinities do not become null."""
        write(tmp_path, [window(health={"loss": float("nan"), "norm": -np.inf})])
        health = lines(tmp_path)[1]["health"]
        assert health == {"loss": {"$float": "nan"}, "norm": {"$float": "-inf"}}

    def test_the_header_is_kept_word_for_word(self, tmp_path: Path) -> None:
        """The tracer's mapping stands in the first line as given, beside the store's keys."""
        writer(tmp_path, versions={"torch": "2.13.0"}).close()
        header = lines(tmp_path)[0]
        assert header["versions"] == {"torch": "2.13.0"}
        assert (header["format"], header["pid"], header["line"]) == (1, os.getpid(), 0)


class TestArrayFile:
    def test_it_is_valid_while_it_is_written(self, tmp_path: Path) -> None:
        """Another process opens it with safetensors after every append and finds the rows."""
        segment = writer(tmp_path)
        with reader_process() as ask:
            for seq in range(5):
                segment.append(window(seq))
                assert ask(str(arrays_of(tmp_path))) == [[[s, 1]] for s in range(seq + 1)]
        segment.close()

    def test_it_takes_no_space_that_was_not_written(self, tmp_path: Path) -> None:
        """The file has its full length at once and is sparse."""
        segment = writer(tmp_path)
        segment.append(window(0, {"a": range(64), "b": range(64)}))
        segment.close()
        found = arrays_of(tmp_path).stat()
        assert found.st_size > 1024 * 2 * 64 * 20
        assert found.st_blocks * 512 < found.st_size / 10

    def test_counts_are_i32_and_sums_i64(self, tmp_path: Path) -> None:
        """Three tensors of shape (rows, layers, experts); only the counts are narrow."""
        write(tmp_path, [window(0, {"a": (1, 2, 3), "b": (4, 5, 6)})])
        with safe_open(arrays_of(tmp_path), framework="numpy") as arrays:
            found = {name: arrays.get_tensor(name) for name in arrays.keys()}  # noqa: SIM118
        assert {name: (item.dtype.str, item.shape) for name, item in found.items()} == {
            "tokens_per_expert": ("<i4", (1024, 2, 3)),
            "prob_sum": ("<i8", (1024, 2, 3)),
            "gate_weight_sum": ("<i8", (1024, 2, 3)),
        }
        assert found["tokens_per_expert"][0].tolist() == [[1, 2, 3], [4, 5, 6]]

    def test_a_count_beyond_i32_starts_a_wider_file(self, tmp_path: Path) -> None:
        """2147483647 fits the narrow file; one more goes to a file of I64."""
        counts = [(2**31 - 1, 0), (2**31, 0), (5, 0)]
        write(tmp_path, [window(seq, {"a": pair}) for seq, pair in enumerate(counts)])
        widths = [line["arrays"][0]["dtypes"][0] for line in lines(tmp_path)[1:-1]]
        assert widths == ["I32", "I64", "I32"]
        assert open_run(tmp_path).counts()[:, 0, 0].tolist() == [2**31 - 1, 2**31, 5]

    def test_a_full_file_is_followed_by_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows 0 to 15 go to g0-00000, the next 16 to g0-00001, and so on."""
        monkeypatch.setattr("moetrace.store.array_writer.row_count", lambda entries: 16)
        write(tmp_path, [window(seq) for seq in range(40)])
        places = [
            tuple(line["arrays"][0][k] for k in ("file", "row")) for line in lines(tmp_path)[1:-1]
        ]
        assert places[15] == ("g0-00000.safetensors", 15)
        assert places[16] == ("g0-00001.safetensors", 0)
        assert places[39] == ("g0-00002.safetensors", 7)
        assert open_run(tmp_path).counts()[:, 0, 0].tolist() == list(range(40))

    def test_layers_with_other_expert_numbers_have_files_of_their_own(self, tmp_path: Path) -> None:
        """Each group of layers with the same number of experts is a tensor without holes."""
        layers = {"a": (1, 2), "b": (1, 2, 3), "c": (7, 8)}
        write(tmp_path, [window(0, layers)])
        found = [(item["file"][:2], item["shape"]) for item in lines(tmp_path)[1]["arrays"]]
        assert found == [("g0", [1024, 2, 2]), ("g1", [1024, 1, 3])]

    def test_another_set_of_layers_starts_another_file(self, tmp_path: Path) -> None:
        """Phases that see other layers go on in their own files when they take turns."""
        layers = [{"a": (1, 2)}, {"b": (3, 4)}] * 3
        write(tmp_path, [window(seq, found) for seq, found in enumerate(layers)])
        places = [
            tuple(line["arrays"][0][k] for k in ("file", "row")) for line in lines(tmp_path)[1:-1]
        ]
        assert places == [(f"g0-0000{seq % 2}.safetensors", seq // 2) for seq in range(6)]

    @pytest.mark.parametrize(
        ("entries", "rows"), [(48 * 128, 256), (1, 1024), (10**7, 16), (16 * 4, 1024)]
    )
    def test_its_length(self, entries: int, rows: int) -> None:
        """About 32 MiB, in a power of two of rows from 16 to 1024."""
        assert row_count(entries) == rows


class reader_process:  # noqa: N801 - used like a function
    """Another process that opens an array file and tells the counts of its committed rows."""

    PROGRAM = """
import sys
from safetensors import safe_open
for path in sys.stdin:
    with safe_open(path.strip(), framework="numpy") as arrays:
        counts = arrays.get_tensor("tokens_per_expert")
    print([row.tolist() for row in counts if row.any()], flush=True)
"""

    def __enter__(self) -> Any:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self._ask

    def _ask(self, path: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(path, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)


class TestRefusal:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"rank": 1}, "this is"),
            ({"attempt": 7}, "this is"),
            ({"run_id": "other"}, "this is"),
            ({"phase": ""}, "phase"),
            ({"seq": -1}, "seq"),
            ({"schema": 99}, "schema"),
            ({"routing": (stats("a", (1, 1)), stats("a", (1, 1)))}, "distinct"),
            ({"routing": (stats("a", (1, -1)),)}, "negative count"),
            ({"routing": (stats("a", (1, 1), tokens=-1),)}, "tokens"),
            ({"routing": (stats("a", (1, 1), dropped=2**63),)}, "dropped"),
            ({"routing": (stats("x" * 5000, (1, 1)),)}, "layer names"),
        ],
    )
    def test_what_would_not_be_read_back_is_not_acknowledged(
        self, tmp_path: Path, changes: dict[str, Any], words: str
    ) -> None:
        """Such a snapshot raises ValueError, and the next good one is written as if nothing was."""
        segment = writer(tmp_path)
        with pytest.raises(ValueError, match=words):
            segment.append(replace(window(0), **changes))
        segment.append(window(1))
        segment.close()
        run = open_run(tmp_path)
        assert plain(run.snapshots()) == plain([window(1)])
        assert run.faults == ()

    def test_a_value_that_json_has_no_word_for_is_a_type_error(self, tmp_path: Path) -> None:
        """An object in health is named and refused, not turned into a string."""
        segment = writer(tmp_path)
        with pytest.raises(TypeError, match="cannot store <object"):
            segment.append(window(health={"model": object()}))
        segment.close()

    def test_a_header_cannot_take_the_store_s_keys(self, tmp_path: Path) -> None:
        """The tracer cannot say what the store says; the message names the keys."""
        with pytest.raises(ValueError, match=r"\['nonce', 'pid'\]"):
            writer(tmp_path, pid=3, nonce="x")


class TestLifetime:
    def test_closing_again_has_no_effect(self, tmp_path: Path) -> None:
        """close() ends the log once."""
        segment = writer(tmp_path)
        segment.close()
        segment.close()
        assert [line["record"] for line in lines(tmp_path)] == ["header", "end"]

    def test_a_closed_segment_takes_nothing(self, tmp_path: Path) -> None:
        """An append after close() raises and says so."""
        segment = writer(tmp_path)
        segment.close()
        with pytest.raises(ValueError, match="closed"):
            segment.append(window(0))

    def test_an_open_run_is_not_finished(self, tmp_path: Path) -> None:
        """Only close() makes a run finished."""
        segment = writer(tmp_path)
        segment.append(window(0))
        assert not open_run(tmp_path).finished
        segment.close()
        assert open_run(tmp_path).finished

    def test_a_forked_process_writes_nothing(self, tmp_path: Path) -> None:
        """D9: a child that inherited the writer neither appends to nor ends its parent's log."""
        segment = writer(tmp_path)
        segment.append(window(0))

        def child() -> None:
            try:
                segment.append(window(1))
            except RuntimeError:
                segment.close()
                os._exit(17)
            os._exit(1)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        assert process.exitcode == 17
        segment.append(window(1))
        segment.close()
        assert plain(open_run(tmp_path).snapshots()) == plain([window(0), window(1)])

    def test_no_descriptor_passes_to_a_program_that_is_started(self, tmp_path: Path) -> None:
        """D9: log and array file are close-on-exec, and there are two of them for one group."""
        segment = writer(tmp_path)
        segment.append(window(0))
        ours = [
            int(fd)
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
            and os.readlink(f"/proc/self/fd/{fd}").startswith(str(tmp_path))
        ]
        assert len(ours) == 2
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in ours)
        segment.close()

    def test_many_groups_do_not_keep_many_files_open(self, tmp_path: Path) -> None:
        """C19: twenty groups of layers are written with nine descriptors, and read back."""
        layers = {str(experts): [1] * experts for experts in range(1, 21)}
        segment = writer(tmp_path)
        for seq in range(3):
            segment.append(window(seq, layers))
        ours = [
            fd
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
            and os.readlink(f"/proc/self/fd/{fd}").startswith(str(tmp_path))
        ]
        assert len(ours) == 9
        segment.close()
        assert plain(open_run(tmp_path).snapshots()) == plain(
            [window(seq, layers) for seq in range(3)]
        )

    def test_a_folder_that_was_renamed_is_written_on(self, tmp_path: Path) -> None:
        """C8: a run folder that moves away while it is written keeps what is appended, and ends."""
        (tmp_path / "before").mkdir()
        segment = writer(tmp_path / "before")
        segment.append(window(0))
        (tmp_path / "before").rename(tmp_path / "after")
        segment.append(window(1))
        segment.close()
        run = open_run(tmp_path / "after")
        assert (plain(run.snapshots()), run.finished) == (plain([window(0), window(1)]), True)

    def test_a_folder_that_was_deleted_is_made_again(self, tmp_path: Path) -> None:
        """C8: what was not synced when the folder went is there again after the next sync."""
        root = tmp_path / "run"
        segment = writer(root)
        segment.append(window(0))
        shutil.rmtree(root)
        segment.append(window(1))
        segment.close()
        run = open_run(root)
        assert (plain(run.snapshots()), run.finished) == (plain([window(0), window(1)]), True)

    def test_the_environment_is_not_recorded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """I19: nothing of the environment, the arguments or the host gets into a run by itself."""
        monkeypatch.setenv("WANDB_API_KEY", "canary-of-the-environment")
        write(tmp_path, [window(0)])
        text = log_of(tmp_path).read_text()
        assert "canary" not in text
        assert os.uname().nodename not in text


def test_every_operation_of_the_store_goes_through_files() -> None:
    """No other module of the store calls the system, opens a file or asks for the time."""
    harmless = {"path", "PathLike", "fsdecode"}
    for path in Path(files.__file__).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("ascii"))))
        called = {
            node.attr
            for node in nodes
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("os", "time")
        }
        called |= {node.id for node in nodes if isinstance(node, ast.Name) and node.id == "open"}
        assert path.name == "files.py" or called <= harmless, (path.name, called)
