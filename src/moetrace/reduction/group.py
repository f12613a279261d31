"""The ranks of the default process group, met through its store and then over gloo, with deadlines.

The group is made from a copy of the store's connection and is known to nobody else. What makes
groups by turns (``new_group``) is not called: two threads that did so at once could give the
user's own groups each other's names on different ranks.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from numpy.typing import NDArray

from moetrace.rank import own_rank
from moetrace.reduction.agreement import NoAgreement, Offer

__all__ = ["Group", "GroupFailed", "Meeting"]

HANDSHAKE_TIMEOUT = 60.0
"""Seconds that a rank waits for the offers of all others."""
ROUND_TIMEOUT = 30.0
"""Seconds that one operation may take; a rank that is further behind is not waited for."""
_POLL = 0.05

_meetings: Counter[str] = Counter()


class GroupFailed(Exception):
    """The other ranks could not be reached in time, in words."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks of one process group find each other. Making one talks to nobody.

    Attributes:
        rank: This process.
        size: Number of ranks; 0 without a process group.
        place: Where in the store: the same for ranks that attach to a run equally often.
    """

    rank: int
    size: int
    place: str
    store: Any

    @classmethod
    def of_default_group(cls, run_id: str) -> "Meeting":
        """The meeting of the default process group, as it is now. No collective."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(own_rank(), 0, "", None)
        _meetings[run_id] += 1
        place = f"moetrace/{run_id}/{_meetings[run_id]}"
        try:
            store = c10d._get_default_store()
        except Exception:
            store = None
        return cls(dist.get_rank(), dist.get_world_size(), place, store)

    def exchange(self, offer: Offer, given_up: Callable[[], bool]) -> list[Offer]:
        """Put down this rank's offer and wait for those of all others.

        Args:
            offer: What this rank counts.
            given_up: Asked while waiting; True ends it.

        Raises:
            GroupFailed: There is no process group, or some rank made no offer in time.
            NoAgreement: Some rank's offer cannot be read.
        """
        if self.store is None:
            raise GroupFailed("there was no process group when attach() was called")
        store = self._copy()
        store.set(f"offer/{self.rank}", offer.to_bytes())
        deadline = time.monotonic() + HANDSHAKE_TIMEOUT
        absent = set(range(self.size))
        while True:
            absent = {rank for rank in absent if not store.check([f"offer/{rank}"])}
            if not absent:
                break
            if time.monotonic() > deadline or given_up():
                raise GroupFailed(
                    f"rank {min(absent)} did not attach with reduce='live'"
                    if len(absent) == 1
                    else f"{len(absent)} ranks did not attach with reduce='live'"
                )
            time.sleep(_POLL)
        offers = []
        for rank in range(self.size):
            try:
                offers.append(Offer.from_bytes(store.get(f"offer/{rank}")))
            except NoAgreement as error:
                raise NoAgreement(f"rank {rank}: {error}") from error
        return offers

    def group(self, members: Sequence[int]) -> "Group":
        """A group of these ranks, of which this one is one.

        Raises:
            GroupFailed: They did not all come in time.
        """
        try:
            return Group(
                c10d.ProcessGroupGloo(
                    c10d.PrefixStore("group", self._copy()),
                    members.index(self.rank),
                    len(members),
                    timedelta(seconds=ROUND_TIMEOUT),
                )
            )
        except RuntimeError as error:
            raise GroupFailed(f"no connection between the ranks: {_first_line(error)}") from error

    def _copy(self) -> Any:
        # A connection of its own: on a shared one a wait would hold up the training's own use.
        try:
            return c10d.PrefixStore(self.place, self.store.clone())
        except RuntimeError as error:
            raise GroupFailed(f"the group's store is gone: {_first_line(error)}") from error


class Group:
    """Ranks that add int64 vectors.

    Args:
        backend: A gloo process group that nobody else uses.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def summed(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sum over all ranks, of the same shape. Waits for them, with a deadline.

        Raises:
            GroupFailed: A rank is gone or late.
        """
        flat = torch.from_numpy(np.ascontiguousarray(values).reshape(-1).copy())
        try:
            self._backend.allreduce([flat]).wait()
        except RuntimeError as error:
            raise GroupFailed(f"a rank is gone or late: {_first_line(error)}") from error
        total: NDArray[np.int64] = flat.numpy().reshape(values.shape)
        return total


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
