"""What is learnt: pairs of a source and a target text, read from files, grouped and divided."""

import csv
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.config import DatasetType
from src.errors import ExperimentError

__all__ = ["COLUMNS", "Example", "Prompt", "divided", "grouped", "pairs_of", "read_file", "sampled"]

COLUMNS = {
    DatasetType.E2E_NLG: (("meaning_representation", "mr"), ("human_reference", "ref")),
    DatasetType.SAMSUM: (("dialogue",), ("summary",)),
}
"""Names that the columns of source and target have."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sample.

    Attributes:
        source: A meaning representation or a dialogue.
        target: A text that says the same.
    """

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A source with everything that people wrote for it.

    Attributes:
        source: The source.
        references: Texts, one at least.
    """

    source: str
    references: tuple[str, ...]


def read_file(path: str, dataset: DatasetType, *, option: str = "--data_file") -> list[Example]:
    """The samples of a CSV, TSV, JSON or JSONL file.

    Args:
        path: The file.
        dataset: Decides how its columns are called.
        option: The option that named the file, for messages.

    Raises:
        ExperimentError: It cannot be read, or lacks the columns.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ExperimentError(f"cannot read {option} {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExperimentError(f"found no UTF-8 text in {option} {path!r}: {error}") from error
    try:
        rows = _rows(file.suffix.lower(), text)
        return pairs_of(rows, dataset)
    except (ValueError, ExperimentError) as error:
        raise ExperimentError(f"cannot use {option} {path!r}: {error}") from error


def _rows(suffix: str, text: str) -> Iterable[Mapping[str, object]]:
    if suffix in (".csv", ".tsv"):
        return csv.DictReader(text.splitlines(True), delimiter="\t" if suffix == ".tsv" else ",")
    if suffix in (".jsonl", ".ndjson"):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if suffix == ".json":
        rows = json.loads(text)
        if isinstance(rows, list):
            return rows
        raise ValueError("the JSON holds no list of objects")
    raise ValueError(f"found the ending {suffix!r}; it is .csv, .tsv, .json or .jsonl")


def pairs_of(rows: Iterable[Mapping[str, object]], dataset: DatasetType) -> list[Example]:
    """The samples of rows that are mappings; those without a text are left out.

    Raises:
        ExperimentError: There is none, or a column is missing.

    >>> pairs_of([{"mr": "name[Aromi]", "ref": "Aromi."}], DatasetType.E2E_NLG)
    [Example(source='name[Aromi]', target='Aromi.')]
    """
    sources, targets = COLUMNS[dataset]
    examples = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise ExperimentError(f"found {type(row).__name__} in place of an object")
        source = next((row[name] for name in sources if name in row), None)
        target = next((row[name] for name in targets if name in row), None)
        if source is None or target is None:
            raise ExperimentError(
                f"found the columns {list(row)}; {dataset.value} needs "
                f"{' or '.join(sources)}, and {' or '.join(targets)}"
            )
        if str(source).strip() and str(target).strip():
            examples.append(Example(str(source).strip(), str(target).strip()))
    if not examples:
        raise ExperimentError("found no sample")
    return examples


def sampled(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """``count`` of the samples in a random order that the seed decides; all of them for 0."""
    order = list(examples)
    random.Random(seed).shuffle(order)
    return order[:count] if count else order


def divided(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Samples to learn and samples that are held out; no source is in both.

    Args:
        examples: The samples.
        share: Least share that is held out; 0, or a single source, holds out nothing.
        seed: Of the choice.
    """
    sources = list(dict.fromkeys(example.source for example in examples))
    random.Random(seed).shuffle(sources)
    wanted = share * len(examples)
    counts: dict[str, int] = dict.fromkeys(sources, 0)
    for example in examples:
        counts[example.source] += 1
    held: set[str] = set()
    for source in sources[:-1]:
        if sum(counts[name] for name in held) >= wanted:
            break
        held.add(source)
    learnt = [example for example in examples if example.source not in held]
    return learnt, [example for example in examples if example.source in held]


def grouped(examples: Iterable[Example]) -> list[Prompt]:
    """One prompt per source, with every different reference, in the order of the samples.

    >>> grouped([Example("a", "1"), Example("b", "2"), Example("a", "3")])
    [Prompt(source='a', references=('1', '3')), Prompt(source='b', references=('2',))]
    """
    references: dict[str, dict[str, None]] = {}
    for example in examples:
        references.setdefault(example.source, {})[example.target] = None
    return [Prompt(source, tuple(texts)) for source, texts in references.items()]
