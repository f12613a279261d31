"""Faults for run folders: what the fuzzer does to a case.

A fault may be anywhere: in a file, a line, a value of a record, a number of an array, the order of
lines, the names of files. Most cases are sealed afterwards.
"""

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from tests.store.cases import Case
from tests.store.sealing import TAIL, line_of, logs_of, record_of, sealed, with_sum

Change = Callable[[bytes], bytes]
"""Changes bytes at random; the fuzzer's, which has seen what they are compared with."""

INTEGERS = (-1, 0, 1, 2, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64 - 1)
FLOATS: tuple[Any, ...] = (*({"$float": name} for name in ("nan", "inf", "-inf")), 1e308, -0.0, 0.5)
NASTY: tuple[Any, ...] = (
    *(None, True, False, *INTEGERS, *FLOATS, {"$float": []}),
    *("", "a", "\0", "../../etc/passwd", "x" * 5000, "\x1b[2J", "__proto__", "1"),
    *([], {}, [[]], [0], [-1], ["a", "a"], {"a": 1}, [[]] * 100, [0] * 1000, list("abcdefgh")),
    *(["I32", "I64", "I64"], [1024, 65536, 65536], [2**40, 1, 1], [1, 1, 2**25]),
)
NAMES = (
    *("run.json", "segments/00000-00000.claim", "segments/00001-00000.claim", "segments/x"),
    *("segments/00000-00000-00000000/log.jsonl", "segments/00000-00000-zzzzzzzz/log.jsonl"),
    *("segments/00001-00000-00000000/log.jsonl", "segments/00000-00001-00000000/log.jsonl"),
    *("segments/00000-00000-00000000.new/log.jsonl", "segments/log.jsonl/x", "segments"),
)


def mutated(case: Case, chance: random.Random, change: Change) -> Case:
    """The case with one or two faults in it, three times out of four under right checksums."""
    case = dict(case)
    for _ in range(chance.randint(1, 2)):
        if case:
            chance.choice(_FAULTS)(case, chance, change)
    return sealed(case) if chance.random() < 0.75 else case


def crossed(case: Case, other: Case, chance: random.Random) -> Case:
    """The case with a line or some files of another one."""
    case = dict(case)
    mine, theirs = logs_of(case), logs_of(other)
    if mine and theirs and chance.random() < 0.5:
        name = chance.choice(mine)
        lines = case[name].splitlines(keepends=True)
        found = other[chance.choice(theirs)].splitlines(keepends=True) or [b"\n"]
        lines.insert(chance.randint(0, len(lines)), chance.choice(found))
        case[name] = b"".join(lines)
    else:
        for name in sorted(other):
            if chance.random() < 0.4:
                case[name] = other[name]
    return sealed(case)


def _change_file(case: Case, chance: random.Random, change: Change) -> None:
    name = chance.choice(sorted(case))
    case[name] = change(case[name])


def _cut_file(case: Case, chance: random.Random, _: Change) -> None:
    name = chance.choice(sorted(case))
    case[name] = case[name][: chance.randint(0, len(case[name]))]


def _drop_file(case: Case, chance: random.Random, _: Change) -> None:
    del case[chance.choice(sorted(case))]


def _copy_file(case: Case, chance: random.Random, _: Change) -> None:
    source = case[chance.choice(sorted(case))]
    case[chance.choice((*NAMES, *sorted(case)))] = source


def _copy_segment(case: Case, chance: random.Random, _: Change) -> None:
    """The same segment once more, as another attempt, rank or nonce."""
    logs = logs_of(case)
    if not logs:
        return
    folder = chance.choice(logs).removesuffix("log.jsonl")
    attempt, rank, nonce = chance.randint(0, 2), chance.randint(0, 2), chance.choice("0123")
    copy = f"segments/{attempt:05d}-{rank:05d}-{nonce * 8}/"
    for name in [name for name in case if name.startswith(folder)]:
        case[copy + name.removeprefix(folder)] = case[name]
    log = case[copy + "log.jsonl"]
    case[copy + "log.jsonl"] = _each_record(
        log, lambda record: record.update(attempt=attempt, rank=rank, nonce=nonce * 8)
    )


def _change_line(case: Case, chance: random.Random, change: Change) -> None:
    def changed(lines: list[bytes]) -> None:
        number = chance.randrange(len(lines))
        lines[number] = with_sum(change(lines[number][:-TAIL]))

    _with_lines(case, chance, changed)


def _reorder(case: Case, chance: random.Random, _: Change) -> None:
    _with_lines(case, chance, chance.shuffle)


def _repeat_line(case: Case, chance: random.Random, _: Change) -> None:
    """A line twice, the second time as the next one of its log."""

    def repeated(lines: list[bytes]) -> None:
        number = chance.randrange(len(lines))
        lines.insert(number, lines[number])

    _with_lines(case, chance, repeated)
    _number(case)


def _number(case: Case) -> None:
    for name in logs_of(case):
        count = iter(range(1 << 20))

        def numbered(record: dict[str, Any], count: Any = count) -> None:
            record["line"] = next(count)

        case[name] = _each_record(case[name], numbered)


def _each_record(log: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    lines = log.splitlines(keepends=True)
    for number, line in enumerate(lines):
        record = record_of(line)
        if record is not None:
            change(record)
            lines[number] = line_of(record)
    return b"".join(lines)


def _replace_value(case: Case, chance: random.Random, change: Change) -> None:
    """Put something else into a record: what hurts, what stands elsewhere, or a near miss."""

    def replaced(lines: list[bytes]) -> None:
        number = chance.randrange(len(lines))
        record = record_of(lines[number])
        other = record_of(chance.choice(lines))
        if record is not None:
            _replace_in(record, other or record, chance, change)
            lines[number] = line_of(record)

    _with_lines(case, chance, replaced)


def _replace_in(record: Any, other: Any, chance: random.Random, change: Change) -> None:
    holder, key = _place(record, chance)
    if key is None:
        return
    match chance.randrange(8):
        case 0:
            holder[key] = deepcopy(chance.choice(NASTY))
        case 1:
            source, found = _place(other, chance)
            holder[key] = None if found is None else deepcopy(source[found])
        case 2 if isinstance(holder, dict):
            del holder[key]
        case 2:
            holder.append(deepcopy(holder[key]))
        case _:
            holder[key] = _alike(holder[key], chance, change)


def _place(value: Any, chance: random.Random) -> tuple[Any, Any]:
    """A container in a record, and a key of it; None where it is empty."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return value, None
        key = chance.choice(keys)
        inner = value[key]
        if not (isinstance(inner, dict | list) and inner and chance.random() < 0.7):
            return value, key
        value = inner


def _alike(value: Any, chance: random.Random, change: Change) -> Any:
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return chance.choice((*INTEGERS, value + 1, value - 1, -value, 2 * value))
        case float():
            return deepcopy(chance.choice((*FLOATS, -value, value * 1e9)))
        case str():
            return change(value.encode()).decode("utf-8", "ignore")
        case list():
            return deepcopy(value) * 2 if chance.random() < 0.5 else value[:-1]
        case _:
            return deepcopy(chance.choice(NASTY))


def _with_lines(case: Case, chance: random.Random, change: Callable[[list[bytes]], None]) -> None:
    if logs := logs_of(case):
        name = chance.choice(logs)
        if lines := case[name].splitlines(keepends=True):
            change(lines)
            case[name] = b"".join(lines)


def _set_numbers(case: Case, chance: random.Random, change: Change) -> None:
    """Extreme numbers into the rows of an array file."""
    names = [name for name in sorted(case) if name.endswith(".safetensors")]
    if not names:
        return
    name = chance.choice(names)
    data = bytearray(case[name])
    start = min(len(data), 8 + int.from_bytes(data[:8], "little"))
    if len(data) - start < 8:
        return
    for _ in range(chance.randint(1, 8)):
        width = chance.choice((4, 8))
        at = start + chance.randrange((len(data) - start) // width) * width
        number = chance.choice((0, 1, -1, 2, 2**31 - 1, -(2**31), 2**62, 2**63 - 1, -(2**63)))
        data[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
    case[name] = bytes(data)


_FAULTS: tuple[Callable[[Case, random.Random, Change], None], ...] = (
    *(_replace_value,) * 6,
    *(_change_line, _change_line, _set_numbers, _set_numbers, _change_file, _cut_file),
    *(_reorder, _repeat_line, _drop_file, _copy_file, _copy_segment),
)
