"""JSON that every reader takes: no NaN, no Infinity, whole files or none."""

import json
import math
import os
from pathlib import Path
from typing import Any

from src.errors import ExperimentError

__all__ = ["finite", "read_json", "write_json"]


def finite(value: Any) -> Any:
    """The same value with null in place of numbers that are not finite.

    >>> finite({"ratio": float("inf"), "norms": (1.0, float("nan"))})
    {'ratio': None, 'norms': [1.0, None]}
    """
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, str):
        return str(value)  # a member of an enumeration is its text
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: str | os.PathLike[str], value: Any) -> Any:
    """Write ``value`` and return what stands in the file; one that is there is replaced at once.

    Args:
        path: The file; its folder is made.
        value: Mappings, lists, text and numbers.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = finite(value)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    text = json.dumps(written, indent=2, ensure_ascii=False, allow_nan=False)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(file)
    return written


def read_json(path: str | os.PathLike[str]) -> Any:
    """What stands in a JSON file.

    Raises:
        ExperimentError: It is not there, or holds no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentError(f"found no file {str(path)!r} ({error.strerror})") from error
    except ValueError as error:
        raise ExperimentError(f"found no JSON in {str(path)!r}: {error}") from error
