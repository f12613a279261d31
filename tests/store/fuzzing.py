"""Run folders that are broken at random, and what every reader of them must withstand.

A case is a mapping from paths to bytes; kept ones stand in ``corpus/`` as JSON with base64.
``python -m tests.store.fuzzing SECONDS`` mutates them for so long and keeps what a reader fails at.
"""

import base64
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moetrace.cli import main as command
from moetrace.errors import RunNotReadable
from moetrace.run import open_run
from moetrace.store.lines import seal_line

Case = dict[str, bytes]

CORPUS = Path(__file__).parent / "corpus"
NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 0.5, 1e308, -0.0),
    *("", "a", "\0", "../../etc/passwd", "x" * 5000, "\x1b[2J", "\ud7ff", "__proto__", "1"),
    *([], {}, [[]], [0], [-1], ["a", "a"], {"a": 1}, {"$float": "nan"}, {"$float": []}),
    [[]] * 100,
    *(["I32", "I64", "I64"], [1024, 65536, 65536], [2**40, 1, 1], [1, 1, 2**25]),
)
NAMES = (
    *("run.json", "segments/00000-00000.claim", "segments/00001-00000.claim", "segments/x"),
    *("segments/00000-00000-00000000/log.jsonl", "segments/00000-00000-zzzzzzzz/log.jsonl"),
    "segments/00000-00000-00000000.new/log.jsonl",
)


def load(path: Path) -> Case:
    """A kept case."""
    return {name: base64.b64decode(data) for name, data in json.loads(path.read_text()).items()}


def keep(case: Case, path: Path) -> None:
    """Keep a case."""
    text = {name: base64.b64encode(data).decode() for name, data in sorted(case.items())}
    path.write_text(json.dumps(text, indent=1) + "\n")


def read_tree(root: Path) -> Case:
    """A run folder as a case."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def write_tree(case: Case, root: Path) -> None:
    """Make the folder of a case."""
    for name, data in case.items():
        path = root / name
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def mutated(case: Case, chance: random.Random) -> Case:
    """The case with one to four faults in it."""
    case = dict(case)
    for _ in range(chance.randint(1, 4)):
        if case:
            chance.choice(_MUTATIONS)(case, chance)
    return case


def read_all(root: Path, *, with_commands: bool) -> None:
    """Read a folder in every way; it may hold less than was written, and raises nothing else."""
    try:
        run = open_run(root)
    except RunNotReadable:
        run = None
    if run is not None:
        json.dumps(run.summary())
        run.events()
        for phase in run.phases:
            counts = run.counts(phase=phase)
            assert counts.ndim == 3
            run.metric("load_cv", phase=phase)
            for snapshot in run.windows(phase=phase):
                snapshot.metrics(per_layer=True)
                json.dumps(snapshot.to_dict())
    if with_commands:
        for arguments in (["inspect"], ["inspect", "--json"], ["show"], ["show", "--json"]):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = command([arguments[0], str(root), *arguments[1:]])
            assert code in (0, 2)
            assert (code == 2) == (len(err.getvalue().splitlines()) == 1)


def fuzz(chance: random.Random, *, seconds: float, most: int, folder: Path) -> tuple[int, int]:
    """Break kept cases for so long, or so often; how often, and how often a reader failed.

    What a reader failed at is kept in the corpus.
    """
    kept = [load(path) for path in sorted(CORPUS.glob("*.json"))]
    tries = failures = 0
    deadline = time.monotonic() + seconds
    while tries < most and time.monotonic() < deadline:
        tries += 1
        case = mutated(chance.choice(kept), chance)
        root = folder / "case"
        root.mkdir()
        write_tree(case, root)
        try:
            read_all(root, with_commands=tries % 10 == 0)
        except Exception as error:
            failures += 1
            name = f"found-{zlib.crc32(repr(case).encode()):08x}.json"
            keep(case, CORPUS / name)
            print(f"{name}: {error!r}", file=sys.stderr)  # noqa: T201
        shutil.rmtree(root)
    return tries, failures


def _bytes(change: Callable[[bytearray, random.Random], None]) -> Callable[..., None]:
    def mutation(case: Case, chance: random.Random) -> None:
        name = chance.choice(sorted(case))
        data = bytearray(case[name])
        if data:
            change(data, chance)
            case[name] = bytes(data)

    return mutation


def _flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _remove(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.randint(1, 300)]


def _repeat(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    data[start:start] = data[start : start + chance.randint(1, 600)]


def _zero(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    stop = min(len(data), start + chance.randint(1, 600))
    data[start:stop] = bytes(stop - start)


def _insert(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    data[start:start] = chance.randbytes(chance.randint(1, 40))


def _forge(case: Case, chance: random.Random) -> None:
    """Put something else into a record and give it a right checksum, as an attacker would."""
    logs = [name for name in sorted(case) if name.endswith("log.jsonl")]
    if not logs:
        return
    name = chance.choice(logs)
    texts = case[name].splitlines(keepends=True)
    if not texts:
        return
    number = chance.randrange(len(texts))
    try:
        record = json.loads(texts[number])
        record.pop("crc32", None)
        _replace_in(record, chance)
        texts[number] = seal_line(record)
    except (ValueError, TypeError, AttributeError):
        return
    case[name] = b"".join(texts)


def _replace_in(value: Any, chance: random.Random) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = chance.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and chance.random() < 0.7:
            value = inner
            continue
        value[key] = chance.choice(NASTY)
        return


def _reorder(case: Case, chance: random.Random) -> None:
    logs = [name for name in sorted(case) if name.endswith("log.jsonl")]
    if logs:
        name = chance.choice(logs)
        texts = case[name].splitlines(keepends=True)
        chance.shuffle(texts)
        case[name] = b"".join(texts)


def _drop_file(case: Case, chance: random.Random) -> None:
    del case[chance.choice(sorted(case))]


def _copy_file(case: Case, chance: random.Random) -> None:
    source = case[chance.choice(sorted(case))]
    case[chance.choice((*NAMES, *sorted(case)))] = source


_MUTATIONS: tuple[Callable[[Case, random.Random], None], ...] = (
    *(_bytes(change) for change in (_flip, _cut, _remove, _repeat, _zero, _insert)),
    *(_forge, _forge, _forge, _forge, _reorder, _drop_file, _copy_file),
)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = fuzz(
            random.Random(os.urandom(8)),
            seconds=float(sys.argv[1]),
            most=10**9,
            folder=Path(place),
        )
    print(*found)  # noqa: T201
