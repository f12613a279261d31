"""Records of one kind as columns of a line, and back, by the fields that their class declares.

A column is a list with one entry per record. What is read back is held against the declared types:
a field that is something else damages its record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from moetrace.probe_stats import stored_fields
from moetrace.store.lines import DamagedRecord, plain, restored
from moetrace.store.schema import column, is_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["MAX_TUPLE", "from_columns", "to_columns"]

MAX_TUPLE = 1 << 16
"""Entries that a field of several numbers may have."""

_INT64 = range(-(2**63), 2**63)

Record = TypeVar("Record", bound="DataclassInstance")


def to_columns(records: "Sequence[DataclassInstance]") -> dict[str, Any]:
    """The records as columns.

    Raises:
        TypeError: A field holds something that a line cannot.
    """
    names = stored_fields(records[0]) if records else []
    return {name: [plain(getattr(record, name)) for record in records] for name in names}


def from_columns(kind: type[Record], table: Mapping[str, Any]) -> tuple[Record, ...]:
    """The records that `to_columns` was given.

    A column whose field may be None may be missing: older versions did not know all of them.

    Raises:
        DamagedRecord: A column is missing, has another length, or an entry another type.
    """
    if not table:
        return ()
    there = stored_fields(kind)
    declared = {
        item.name: item.type
        for item in fields(kind)
        if item.name in there and (item.name in table or item.default is not None)
    }
    length = len(column(table, next(iter(declared))))
    columns = {
        name: [_checked(name, kind_, entry) for entry in column(table, name, length=length)]
        for name, kind_ in declared.items()
    }
    try:
        return tuple(
            kind(**dict(zip(columns, row, strict=True)))
            for row in zip(*columns.values(), strict=True)
        )
    except ValueError as error:
        raise DamagedRecord(str(error)) from None


def _checked(name: str, declared: Any, entry: Any) -> Any:
    if get_origin(declared) is tuple:
        item = get_args(declared)[0]
        if not isinstance(entry, list) or len(entry) > MAX_TUPLE:
            raise DamagedRecord(f"{name} is not a list of at most {MAX_TUPLE} entries")
        return tuple(_checked(name, item, part) for part in entry)
    options = get_args(declared) or (declared,)
    entry = restored(entry)
    if entry is None and type(None) in options:
        return None
    if float in options and isinstance(entry, int | float) and not isinstance(entry, bool):
        return float(entry)
    if type(entry) in options:
        if type(entry) is int and entry not in _INT64:
            raise DamagedRecord(f"{name} out of range")
        if isinstance(entry, str) and not is_text(entry):
            raise DamagedRecord(f"{name} is longer than a name may be")
        return entry
    raise DamagedRecord(f"{name} is not a {declared}")
