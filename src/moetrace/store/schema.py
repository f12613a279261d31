"""Field by field, what a record must hold; a field that is something else damages its record."""

from collections.abc import Mapping
from typing import Any

from moetrace.store.lines import DamagedRecord, restored
from moetrace.store.names import RUN_ID

__all__ = [
    "FORMAT",
    "MAX_LAYERS",
    "MAX_NAME",
    "column",
    "integer",
    "is_text",
    "mapping",
    "real",
    "run_id",
    "text",
]

FORMAT = 1
"""Version of the run folder's bytes; it rises when a reader of the old one would go wrong."""

MAX_LAYERS = 65_536
MAX_NAME = 4096


def integer(record: Mapping[str, Any], name: str, *, below: int = 2**63) -> int:
    """The field ``name``, an integer from 0.

    Raises:
        DamagedRecord: It is something else.

    >>> integer({"row": 3}, "row", below=16)
    3
    """
    value = record.get(name)
    if type(value) is not int or not 0 <= value < below:
        raise DamagedRecord(f"{name} is not an integer in range")
    return value


def text(record: Mapping[str, Any], name: str) -> str:
    """The field ``name``, a string that is not empty.

    Raises:
        DamagedRecord: It is something else.
    """
    value = record.get(name)
    if not is_text(value) or not value:
        raise DamagedRecord(f"{name} is not a string of 1 to {MAX_NAME} characters")
    return str(value)


def is_text(value: Any) -> bool:
    """Whether this is a string of at most 4096 characters."""
    return isinstance(value, str) and len(value) <= MAX_NAME


def real(record: Mapping[str, Any], name: str) -> float:
    """The field ``name``, a number, not necessarily finite.

    Raises:
        DamagedRecord: It is something else.
    """
    value = restored(record.get(name))
    if type(value) not in (int, float):
        raise DamagedRecord(f"{name} is not a number")
    return float(value)


def mapping(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The field ``name``, an object.

    Raises:
        DamagedRecord: It is something else.
    """
    value = restored(record.get(name))
    if not isinstance(value, dict):
        raise DamagedRecord(f"{name} is not an object")
    return value


def column(record: Mapping[str, Any], name: str, *, length: int | None = None) -> list[Any]:
    """The field ``name``, a list of at most 65,536 entries, or of exactly ``length``.

    Raises:
        DamagedRecord: It is something else.
    """
    value = record.get(name)
    if not isinstance(value, list) or len(value) > MAX_LAYERS:
        raise DamagedRecord(f"{name} is not a list of at most {MAX_LAYERS} entries")
    if length is not None and len(value) != length:
        raise DamagedRecord(f"{name} has {len(value)} entries, not {length}")
    return value


def run_id(record: Mapping[str, Any]) -> str:
    """The run that a record says it belongs to.

    Raises:
        DamagedRecord: It says none.
    """
    value = record.get("run_id")
    if not isinstance(value, str) or not RUN_ID.fullmatch(value):
        raise DamagedRecord("run_id is not the name of a run")
    return value
