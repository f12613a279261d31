"""Run folders as something that a fuzzer can hold: a case maps paths to bytes.

One that is kept stands in ``corpus/`` as JSON with base64, which is also what the fuzzer mutates.
"""

import base64
import binascii
import contextlib
import re
from pathlib import Path

import orjson

Case = dict[str, bytes]

CORPUS = Path(__file__).parent / "corpus"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", re.ASCII)


def packed(case: Case) -> bytes:
    """A case as the bytes of its file."""
    text = {name: base64.b64encode(data).decode() for name, data in sorted(case.items())}
    return orjson.dumps(text, option=orjson.OPT_INDENT_2) + b"\n"


def unpacked(data: bytes) -> Case:
    """The case in these bytes; without what is none, and empty where nothing is."""
    try:
        text = orjson.loads(data)
        return {name: base64.b64decode(text[name]) for name in text if _is_path(name)}
    except (orjson.JSONDecodeError, TypeError, ValueError, binascii.Error):
        return {}


def kept() -> dict[str, bytes]:
    """The files of the corpus by name."""
    return {path.name: path.read_bytes() for path in sorted(CORPUS.glob("*.json"))}


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


def _is_path(name: str) -> bool:
    # no case writes beside its folder, wherever its file comes from
    parts = name.split("/")
    return len(parts) <= 4 and all(map(_NAME.fullmatch, parts))
