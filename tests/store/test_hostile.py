"""A run folder that somebody made to hurt its reader: a named fault, in bounded time and memory."""

import json
import os
import resource
import socket
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moetrace.errors import RunNotReadable
from moetrace.run import Run, open_run
from moetrace.store import lines as log_lines
from moetrace.store.lines import seal_line
from tests.store.windows import arrays_of, log_of, plain, window, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good run of three windows."""
    write(tmp_path, [window(seq) for seq in range(3)])
    return tmp_path


def reason(run: Run) -> str:
    """The only fault, without the name of the segment."""
    (fault,) = run.faults
    return fault.partition(": ")[2]


def forge(root: Path, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a record of the log and give it a right checksum, as an attacker would."""
    log = log_of(root)
    texts = log.read_bytes().splitlines(keepends=True)
    record = json.loads(texts[number])
    del record["crc32"]
    change(record)
    texts[number] = seal_line(record)
    log.write_bytes(b"".join(texts))


def replace_log(root: Path, text: bytes) -> None:
    """Put other bytes in the place of the log."""
    log_of(root).write_bytes(text)


class TestLines:
    def test_a_bad_line_in_the_middle_is_skipped_and_named(self, root: Path) -> None:
        """C12: the lines before and after a damaged one are read; its number is told."""
        texts = log_of(root).read_bytes().splitlines(keepends=True)
        texts[2] = b"garbage\n"
        replace_log(root, b"".join(texts))
        run = open_run(root)
        assert plain(run.snapshots()) == plain([window(0), window(2)])
        assert reason(run) == "line 3: bad checksum; skipped"

    def test_a_repeated_line_counts_once(self, root: Path) -> None:
        """C13: a line that stands twice, checksum and all, is not added twice."""
        texts = log_of(root).read_bytes().splitlines(keepends=True)
        replace_log(root, b"".join([*texts[:3], texts[2], *texts[3:]]))
        run = open_run(root)
        assert plain(run.snapshots()) == plain([window(seq) for seq in range(3)])
        assert reason(run) == "line 4: repeats record 2; skipped"

    def test_lines_that_are_gone_are_missed(self, root: Path) -> None:
        """C13: a line that was cut out cleanly leaves a gap in the numbers."""
        texts = log_of(root).read_bytes().splitlines(keepends=True)
        replace_log(root, b"".join([*texts[:1], *texts[3:]]))
        assert reason(open_run(root)) == "2 lines before line 2 are missing"

    def test_a_line_of_another_segment_is_not_taken(self, root: Path, tmp_path: Path) -> None:
        """A good line of another rank that got into this log does not count here."""
        write(tmp_path / "other", [window(0, rank=0), window(1)])
        other = log_of(tmp_path / "other").read_bytes().splitlines(keepends=True)
        forge(root, 3, lambda record: record.update(rank=1))
        assert other
        assert reason(open_run(root)) == "line 4: a snapshot of another segment; skipped"

    def test_a_damaged_header_costs_no_snapshot(self, root: Path) -> None:
        """C12, I15: rank and attempt also stand in the folder's name, and the run in every line."""
        texts = log_of(root).read_bytes().splitlines(keepends=True)
        replace_log(root, b"x" + b"".join(texts)[1:])
        run = open_run(root)
        assert plain(run.snapshots()) == plain([window(seq) for seq in range(3)])
        assert run.run_id == "run-1"
        assert reason(run) == "line 1: bad checksum; skipped"

    def test_a_line_without_end_is_not_read_to_its_end(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """I4, I9: a log of 1 TB without a newline is given up after the longest line."""
        os.truncate(log_of(root), 1 << 40)
        run = open_run(root)
        assert len(run.snapshots()) == 3
        assert reason(run) == "line 6 is longer than 16777216 bytes; reading ends there"

    @pytest.mark.parametrize(
        "body",
        [
            b"[" * 200_000,
            b'{"a":' * 2_000,
            b'{"record":NaN',
            b'{"record":1e999',
            b'{"line":' + b"9" * 5_000,
            b"\xff\xfe{\x00",
            b"\xef\xbb\xbf{",
            b'{"record":"\x00"',
            b"[1",
            b'"text',
            b"",
        ],
    )
    def test_json_that_bites_is_a_damaged_line(self, root: Path, body: bytes) -> None:
        """I4, I14: depth, infinities, endless numbers, other encodings, under a right checksum."""
        texts = log_of(root).read_bytes().splitlines(keepends=True)
        forged = body + b',"crc32":"%08x"}\n' % zlib.crc32(body)
        replace_log(root, b"".join([*texts[:2], forged, *texts[3:]]))
        run = open_run(root)
        assert plain(run.snapshots()) == plain([window(0), window(2)])
        assert reason(run).startswith("line 3: ")

    def test_carriage_returns_do_not_pass(self, root: Path) -> None:
        """I4: a log that went through a text conversion is damaged in every line."""
        replace_log(root, log_of(root).read_bytes().replace(b"\n", b"\r\n"))
        with pytest.raises(RunNotReadable, match="line 1: bad checksum"):
            open_run(root)

    def test_a_thousand_faults_are_counted_and_not_listed(self, root: Path) -> None:
        """I1: a log of rubbish does not fill the terminal."""
        with log_of(root).open("ab") as log:
            log.write(b"rubbish\n" * 1_000)
        faults = open_run(root).faults
        assert len(faults) == 101
        assert faults[-1].endswith("900 more faults")


class TestForgedRecords:
    """The checksum is right: it protects against damage, not against people."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"first_step": -1}, "first_step"),
            ({"first_step": 2**63}, "first_step"),
            ({"seq": True}, "seq"),
            ({"seq": 1.0}, "seq"),
            ({"phase": ["train"]}, "phase"),
            ({"wall_time": "noon"}, "wall_time"),
            ({"health": []}, "health"),
            ({"health": {"x": {"$float": "many"}}}, "float"),
            ({"layer": "a"}, "layer"),
            ({"layer": [1]}, "layer names"),
            ({"layer": ["a", "a"]}, "layer names"),
            ({"layer": ["a"] * 70_000}, "layer"),
            ({"tokens": [-1]}, "tokens"),
            ({"tokens": [1, 2]}, "tokens has 2 entries"),
            ({"scoring": ["argmax"]}, "scoring"),
            ({"num_experts": [10**9]}, "shape"),
            ({"num_experts": [0]}, "shape"),
            ({"arrays": []}, "arrays"),
            ({"arrays": [1]}, "arrays"),
            ({"schema": 2}, "schema 2, this version reads 1"),
            ({"run_id": "../../etc"}, "run_id"),
        ],
    )
    def test_a_field_out_of_range_is_a_damaged_line(
        self, root: Path, change: dict[str, Any], words: str
    ) -> None:
        """I13, I14: each field has a type and a range; the record is skipped, the field named."""
        forge(root, 2, lambda record: record.update(change))
        run = open_run(root)
        assert plain(run.snapshots()) == plain([window(0), window(2)])
        assert words in reason(run)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"file": "../../../../etc/passwd"}, "a file that is none"),
            ({"file": "/etc/passwd"}, "a file that is none"),
            ({"file": "g0-00000.safetensors\0"}, "a file that is none"),
            ({"file": "g0-00009.safetensors"}, "No such file"),
            ({"row": 1024}, "row"),
            ({"row": 1023}, "bad checksum of row 1023"),
            ({"data": 1 << 30}, "data"),
            ({"data": 1 << 19}, "ends before row"),
            ({"shape": [1024, 1, 2, 1]}, "shape has 4 entries"),
            ({"shape": [0, 1, 2]}, "shape"),
            ({"shape": [10**12, 1, 2]}, "larger than this version reads"),
            ({"shape": [1024, 1, 10**12]}, "larger than this version reads"),
            ({"shape": [1024, 1, 1 << 20]}, "another shape"),
            ({"dtypes": ["F8", "I64", "I64"]}, "number types"),
            ({"crc32": [1, 2]}, "crc32"),
            ({"crc32": [0, 0, 0]}, "bad checksum of row"),
        ],
    )
    def test_rows_that_are_not_there_are_a_damaged_line(
        self, root: Path, change: dict[str, Any], words: str
    ) -> None:
        """I6, I13, I14: a record leads no reader out of its segment, nor to take much memory."""
        forge(root, 2, lambda record: record["arrays"][0].update(change))
        run = open_run(root)
        assert plain(run.snapshots()) == plain([window(0), window(2)])
        assert any(words in fault for fault in run.faults)

    def test_a_huge_row_of_a_small_file_sets_no_memory_aside(self, root: Path) -> None:
        """I13, I14: the largest row that a record may claim is held against the file's size."""

        def claim(record: dict[str, Any]) -> None:
            record["num_experts"] = [1 << 25]
            record["arrays"][0]["shape"] = [1024, 1, 1 << 25]

        forge(root, 2, claim)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run = open_run(root)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
        assert "ends before row" in reason(run)

    def test_negative_counts_are_damage(self, root: Path) -> None:
        """I13: a count below zero is not plotted."""
        arrays = arrays_of(root)
        data = bytearray(arrays.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start + 8 : start + 16] = row = b"\xff" * 8
        arrays.write_bytes(data)
        forge(root, 2, lambda record: record["arrays"][0]["crc32"].__setitem__(0, zlib.crc32(row)))
        assert reason(open_run(root)).startswith("line 3: negative counts")

    def test_another_format_is_named(self, root: Path) -> None:
        """I15: a run of a later version says so, and is not half read."""
        forge(root, 0, lambda record: record.update(format=2))
        with pytest.raises(RunNotReadable, match="written in format 2, this version reads 1"):
            open_run(root)

    def test_unknown_keys_and_kinds_are_ignored(self, root: Path) -> None:
        """A later version may add to the format without breaking this one."""
        forge(root, 1, lambda record: record.update(colour="blue"))
        forge(root, 2, lambda record: record.update(record="weather"))
        run = open_run(root)
        assert plain(run.snapshots()) == plain([window(0), window(2)])
        assert run.faults == ()

    def test_a_segment_of_another_run_is_left_out(self, root: Path) -> None:
        """I15: of two runs in one folder one is read, and the other one is told."""
        segments = root / "segments"
        write(root / "x", [window(seq, attempt=1, run_id="run-1") for seq in range(2)])
        (other,) = (root / "x" / "segments").iterdir()
        other.rename(segments / other.name)
        log = segments / other.name / "log.jsonl"
        texts = []
        for text in log.read_bytes().splitlines():
            record = json.loads(text)
            del record["crc32"]
            texts.append(seal_line({**record, "run_id": "run-2"}))
        log.write_bytes(b"".join(texts))
        (root / "run.json").write_text('{"format": 1, "run_id": "run-1"}')
        run = open_run(root)
        assert plain(run.snapshots()) == plain([window(seq) for seq in range(3)])
        assert run.faults == ("1 segments of other runs than run-1 were not read",)


class TestFiles:
    """What stands where a file should stand."""

    def test_a_pipe_is_not_waited_for(self, root: Path) -> None:
        """I8: a FIFO in place of the log or of the arrays is a fault, and no reader hangs on it."""
        for path in (arrays_of(root), log_of(root)):
            path.unlink()
            os.mkfifo(path)
        with pytest.raises(RunNotReadable, match=r"log\.jsonl cannot be read: not a regular file"):
            open_run(root)

    def test_a_pipe_in_place_of_the_arrays_costs_their_snapshots(self, root: Path) -> None:
        """I8: the run opens; every snapshot of that file is named as lost."""
        arrays = arrays_of(root)
        arrays.unlink()
        os.mkfifo(arrays)
        run = open_run(root)
        assert run.snapshots() == []
        assert len(run.faults) == 3
        assert all("not a regular file" in fault for fault in run.faults)

    def test_a_link_is_not_followed(self, root: Path, tmp_path: Path) -> None:
        """I7: links inside a run lead nowhere: no log, arrays or segments are behind one."""
        log, secret = log_of(root), tmp_path / "secret"
        for path in (arrays_of(root), log, log.parent, log.parents[1]):
            path.rename(secret)
            path.symlink_to(secret)
            try:
                faults: tuple[str, ...] = open_run(root).faults
            except RunNotReadable as error:
                faults = (str(error),)
            assert faults, path
            path.unlink()
            secret.rename(path)
        assert open_run(root).faults == ()

    def test_the_run_folder_itself_may_be_a_link(self, root: Path, tmp_path: Path) -> None:
        """People keep runs on other disks."""
        (tmp_path / "link").symlink_to(root)
        assert len(open_run(tmp_path / "link").snapshots()) == 3

    @pytest.mark.parametrize("what", ["socket", "folder"])
    def test_a_socket_or_a_folder_is_no_log(
        self, root: Path, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """I8: whatever else is called log.jsonl is refused."""
        log = log_of(root)
        log.unlink()
        if what == "folder":
            log.mkdir()
        else:
            monkeypatch.chdir(log.parent)  # the path of a socket is short
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind("log.jsonl")
        with pytest.raises(RunNotReadable, match="cannot be read"):
            open_run(root)

    def test_strange_names_are_counted_and_not_opened(self, root: Path) -> None:
        """I6, I9: only names that the store makes are read."""
        for name in ("00000-00000-ZZZZZZZZ", "latest", "00000-00000-0123456", "..-..-01234567"):
            (root / "segments" / name).mkdir()
        run = open_run(root)
        assert len(run.snapshots()) == 3
        assert run.faults == ("4 names in segments are no segment's and were not read",)

    def test_nothing_outside_the_run_is_opened(self, root: Path) -> None:
        """I6, I7: names in the content of a run are never paths that are opened."""
        nasty = ["../../etc/passwd", "/etc/passwd", "C:\\x", "\\\\host\\share", "%2e%2e", "a\0b"]
        write(
            root,
            [window(seq, {name: (1, 1)}, attempt=1) for seq, name in enumerate(nasty)],
            sites=[{"name": name} for name in nasty],
            model="../../etc/passwd",
        )
        opened: list[object] = []
        watching = True

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if watching and event == "open":
                opened.append(arguments[0])

        sys.addaudithook(watch)
        run = open_run(root)
        assert set(run.layers) == {"a", *nasty}
        assert len(run.snapshots()) == len(nasty)
        watching = False
        allowed = {str(root), "segments", "log.jsonl", "run.json", "g0-00000.safetensors"}
        allowed |= {path.name for path in (root / "segments").iterdir()}
        allowed |= {f"g0-{number:05d}.safetensors" for number in range(len(nasty))}
        assert set(opened) <= allowed

    def test_a_header_bomb_is_never_parsed(self, root: Path) -> None:
        """I2: what a safetensors header claims is not looked at: only its checksum is."""
        arrays = arrays_of(root)
        good = arrays.read_bytes()
        start = 8 + int.from_bytes(good[:8], "little")
        for claim in (2**63 - 1, 2**63, 99 << 20, 0):
            arrays.write_bytes(claim.to_bytes(8, "little") + good[8:])
            run = open_run(root)
            assert plain(run.snapshots()) == plain([window(seq) for seq in range(3)])
            assert reason(run).startswith("the header of g0-00000.safetensors is damaged")
        many = b'{"a":{"dtype":"I32","shape":[0,1000000000000],"data_offsets":[0,0]}}'
        arrays.write_bytes(good[:8] + many.ljust(start - 8) + good[start:])
        assert reason(open_run(root)).startswith("the header of g0-00000.safetensors is damaged")

    def test_a_file_that_shrinks_while_it_is_read_is_a_fault(self, root: Path) -> None:
        """I10: a row that is gone since the run was opened is left out and told."""
        run = open_run(root)
        os.truncate(arrays_of(root), 300)
        assert run.snapshots() == []
        assert len(run.faults) == 3
        assert run.counts().tolist() == [[[-1, -1]]] * 3

    def test_a_record_that_was_exchanged_since_is_a_fault(self, root: Path) -> None:
        """I10: a line that is no longer the one that was found is left out and told."""
        run = open_run(root)
        forge(root, 2, lambda record: record.update(layer=["b"]))
        assert plain(run.snapshots()) == plain([window(0), window(2)])
        assert "not the record any more that was found there" in reason(run)

    def test_a_reader_writes_nothing(self, root: Path) -> None:
        """I18: opening a run leaves every name, size and time as it was."""

        def seen() -> list[tuple[str, int, int]]:
            return [
                (str(path), path.stat().st_size, path.stat().st_mtime_ns)
                for path in sorted(root.rglob("*"))
            ]

        before = seen()
        open_run(root).summary()
        open_run(root).counts()
        assert seen() == before


class TestAnyBytes:
    @settings(
        max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_mutated_files_never_raise_anything_else(self, root: Path, data: st.DataObject) -> None:
        """I1: bytes cut out, put in or changed anywhere give faults, or RunNotReadable."""
        for path in (log_of(root), arrays_of(root)):
            kept = path.with_suffix(".kept")
            good = kept.read_bytes() if kept.exists() else path.read_bytes()
            kept.write_bytes(good)
            end = min(len(good), 4_000)
            begin = data.draw(st.integers(0, end))
            stop = data.draw(st.integers(begin, end))
            path.write_bytes(good[:begin] + data.draw(st.binary(max_size=50)) + good[stop:])
        originals = plain([window(seq) for seq in range(3)])
        try:
            run = open_run(root)
        except RunNotReadable:
            return
        assert all(snapshot in originals for snapshot in plain(run.snapshots()))
        run.summary()


def test_the_longest_line_is_read_and_one_byte_more_is_not() -> None:
    """I4: the writer refuses a line that the reader would refuse."""
    room = log_lines.MAX_LINE - len(seal_line({"text": ""}))
    assert len(seal_line({"text": "x" * room})) == log_lines.MAX_LINE
    with pytest.raises(ValueError, match="a line holds at most 16777216"):
        seal_line({"text": "x" * (room + 1)})
