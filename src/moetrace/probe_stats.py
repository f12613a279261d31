# pyright: strict
"""What the records of every probe beside routing have in common: how windows and ranks join."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import fields
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["ProbeStats", "ProbeWindow", "joined", "stored_fields"]


class ProbeStats(Protocol):
    """A frozen record of one thing (a group of gradients, a tensor, a table) in one window."""

    @property
    def key(self) -> Hashable:
        """What tells one record of a snapshot from another."""
        ...

    def followed_by(self, later: Self, /) -> Self:
        """This window and the next one of the same process as one."""
        ...

    def beside(self, other: Self, /) -> Self:
        """The same steps of two ranks as one."""
        ...


class ProbeWindow(Protocol):
    """What the numbers of a closed window are; it stays on the host while they travel."""

    @property
    def field(self) -> str:
        """Field of the snapshot that its records go to."""
        ...

    def stats(self, bits: NDArray[np.int64], /) -> Sequence[Any]:
        """The records, from numbers that have arrived on the host."""
        ...


def stored_fields(record: Any) -> list[str]:
    """Names of the fields of a record, or of its class, that a line holds.

    Those with a number per expert are marked ``metadata={"stored": False}``.
    """
    return [item.name for item in fields(record) if item.metadata.get("stored", True)]


Stats = TypeVar("Stats", bound=ProbeStats)


def joined(parts: Iterable[tuple[int, Sequence[Stats]]]) -> tuple[Stats, ...]:
    """Records of several windows as those of one.

    Args:
        parts: Rank and records of each window, in the order of time within a rank.
    """
    ranks: dict[int, dict[Hashable, Stats]] = {}
    for rank, records in parts:
        found = ranks.setdefault(rank, {})
        for record in records:
            before = found.get(record.key)
            found[record.key] = record if before is None else before.followed_by(record)
    whole: dict[Hashable, Stats] = {}
    for found in ranks.values():
        for key, record in found.items():
            whole[key] = record if key not in whole else whole[key].beside(record)
    return tuple(whole.values())
