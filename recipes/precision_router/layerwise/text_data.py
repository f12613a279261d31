"""Texts, and pieces of them of one length, drawn without repeats.

A data set is a name of the hub or a local file or folder: ``.jsonl`` has a ``text`` in each line,
any other file is one text.
"""

import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerwise.errors import RecipeError

__all__ = ["HUB", "Pieces", "byte_ids", "draw_pieces", "texts_of", "token_reader"]

_log = logging.getLogger("layerwise")

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class HubSet:
    """Where a data set is on the hub, and whether its entries are lines of one long text."""

    arguments: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    column: str
    joined: bool


HUB = {
    "c4": HubSet(
        ("allenai/c4",),
        (("data_files", "en/c4-train.00000-of-01024.json.gz"), ("split", "train")),
        "text",
        joined=False,
    ),
    "wikitext2": HubSet(
        ("Salesforce/wikitext", "wikitext-2-raw-v1"), (("split", "train"),), "text", joined=True
    ),
    "ptb": HubSet(
        ("ptb-text-only/ptb_text_only",),
        (("revision", "refs/convert/parquet"), ("split", "train")),
        "sentence",
        joined=True,
    ),
    "pileval": HubSet(
        ("mit-han-lab/pile-val-backup",), (("split", "validation"),), "text", joined=False
    ),
}
"""The data sets that have a name here; their hub pages have moved before, a local file has not."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of text to train on and to validate with, no one in both.

    Attributes:
        train: Token ids, shape ``(n, seq_len)``.
        validation: The same, of other texts or places.
    """

    train: Tensor
    validation: Tensor


def texts_of(dataset: str) -> tuple[Sequence[str], bool]:
    """The texts of a data set, and whether a text has more than one piece in it.

    Raises:
        RecipeError: It is no file and no name, or the hub does not give it.
    """
    path = Path(dataset)
    if path.exists():
        files = (
            sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
        )
        return [text for item in files for text in _read(item)], True
    if dataset not in HUB:
        raise RecipeError(
            f"found no file {dataset!r} and no data set of that name; "
            f"--dataset is one of {', '.join(HUB)}, or a file or folder of text"
        )
    entry = HUB[dataset]
    try:
        import datasets  # type: ignore[import-untyped]

        rows: Any = datasets.load_dataset(*entry.arguments, **dict(entry.options))
        texts: Sequence[str] = rows[entry.column]  # not read before it is looked at
    except Exception as error:  # the hub's errors are of many kinds, and all mean the same here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise RecipeError(
            f"data set {dataset} cannot be reached ({type(error).__name__}: {reason}); "
            "give a local file or folder of text as --dataset"
        ) from error
    return (["\n".join(texts)], True) if entry.joined else (texts, False)


def token_reader(folder: str, vocabulary: int, *, trust_remote_code: bool = False) -> Encode:
    """The tokenizer of a model folder, or bytes where there is none and the vocabulary has them.

    Raises:
        RecipeError: There is no tokenizer, and the vocabulary is smaller than 256.
    """
    if any(Path(folder).glob("tokenizer*")) or any(Path(folder).glob("vocab*")):
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if vocabulary < 256:
        raise RecipeError(
            f"found no tokenizer in {folder}, and {vocabulary} tokens are too few for bytes; "
            "quantise from a folder with a tokenizer"
        )
    return byte_ids


def byte_ids(text: str) -> list[int]:
    """A text as its UTF-8 bytes.

    >>> byte_ids("ab")
    [97, 98]
    """
    return list(text.encode("utf-8"))


def draw_pieces(
    texts: Sequence[str],
    encode: Encode,
    *,
    length: int,
    train: int,
    validation: int,
    seed: int,
    long_texts: bool,
    skip: int = 0,
) -> Pieces:
    """Draw pieces of ``length`` tokens, none twice; the same seed draws the same ones.

    The first piece of each text that is long enough, or with ``long_texts`` every piece of each
    text, one after the other without overlap. Texts are shuffled, not piece by piece chosen, so
    that no more are encoded than needed. The validation pieces are drawn first.

    Args:
        texts: What `texts_of` gives.
        encode: What `token_reader` gives.
        length: Tokens per piece.
        train: How many to train on.
        validation: How many to validate with.
        seed: Of the shuffle.
        long_texts: Whether a text has more than one piece in it.
        skip: Leave out so many first ones, which another program has drawn with the same seed.

    Raises:
        RecipeError: There are no pieces, or too few to validate.
    """
    draw = random.Random(seed)
    wanted = train + validation
    if long_texts:
        every = [piece for text in texts for piece in _cut(encode(text), length)]
        draw.shuffle(every)
        pieces = every[skip : skip + wanted]
    else:
        order = list(range(len(texts)))
        draw.shuffle(order)
        shuffled = (str(texts[index]) for index in order)
        pieces = _firsts(shuffled, encode, length, skip + wanted)[skip:]
    if len(pieces) < min(wanted, 1 + bool(validation)):
        beyond = f" beyond the {skip} that were trained on" if skip else ""
        raise RecipeError(
            f"found {len(pieces)} pieces of {length} tokens in the data{beyond}; "
            "take a smaller --seq_len, or another --dataset with more text"
        )
    if len(pieces) < wanted:
        _log.warning("found %d pieces of %d tokens, fewer than %d", len(pieces), length, wanted)
        validation = max(bool(validation), len(pieces) * validation // wanted)
    ids = torch.tensor(pieces, dtype=torch.long).reshape(-1, length)
    return Pieces(ids[validation:], ids[:validation])


def _cut(ids: Sequence[int], length: int) -> Iterator[list[int]]:
    for start in range(0, len(ids) - length + 1, length):
        yield list(ids[start : start + length])


def _firsts(texts: Iterable[str], encode: Encode, length: int, wanted: int) -> list[list[int]]:
    pieces: list[list[int]] = []
    for text in texts:
        if len(pieces) == wanted:
            break
        ids = encode(text)
        if len(ids) >= length:
            pieces.append(list(ids[:length]))
    return pieces


def _read(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix != ".jsonl":
            return [text]
        return [str(json.loads(line)["text"]) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"found {path}, which cannot be read as text ({type(error).__name__}: {error}); "
            "--dataset takes text files, and .jsonl with a 'text' in each line"
        ) from None
