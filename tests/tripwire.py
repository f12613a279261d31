"""A wire across every collective of torch: moetrace may not step on it, the user's code may.

A rank that is late, has no MoE layer or has died would hang all others if moetrace took part in a
collective. What raises inside a hook is contained by design, so whoever steps on the wire is also
written down. Processes that a test starts lay their own wire: ``tripwire.lay()``.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

__all__ = [
    "COLLECTIVES",
    "PROCESS_GROUP",
    "SteppedOn",
    "lay",
    "passed",
    "reduction_allowed",
    "steps_on_it",
]

COLLECTIVES = (
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_gather_single",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "batch_isend_irecv",
    "broadcast",
    "broadcast_object_list",
    "destroy_process_group",
    "gather",
    "gather_object",
    "init_process_group",
    "irecv",
    "isend",
    "monitored_barrier",
    "new_group",
    "new_subgroups",
    "new_subgroups_by_enumeration",
    "recv",
    "recv_object_list",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
    "send_object_list",
    "split_group",
)
"""Functions of ``torch.distributed`` that talk to another rank, or wait for one."""

PROCESS_GROUP = (
    "_allgather_base",
    "_reduce_scatter_base",
    "all_gather_single",
    "all_gather_single_coalesced",
    "all_to_all_single",
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "allreduce",
    "allreduce_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "gather",
    "monitored_barrier",
    "recv",
    "recv_anysource",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "scatter",
    "send",
)
"""The same as methods of a process group, and of the backend under it."""

OURS = {"moetrace", "moetrace_adapters"}
REDUCTION = "moetrace-reduction"
"""The one thread that may, where a test allows it: the live reduction was asked for."""

steps_on_it: list[str] = []
"""Who stepped on the wire since somebody last looked, and with what."""

_allowed: list[str] = []


class SteppedOn(AssertionError):
    """Code of moetrace called a collective."""


@contextmanager
def reduction_allowed() -> Iterator[list[str]]:
    """Let the live reduction's own thread pass; every other thread, and later on all, may not.

    Yields:
        What passed.
    """
    _allowed.append(REDUCTION)
    passed.clear()
    try:
        yield passed
    finally:
        _allowed.pop()


passed: list[str] = []
"""What the thread of the reduction called while it was allowed to."""


def lay() -> None:
    """Lay the wire in this process; a second time does nothing. Needs torch to be imported."""
    import torch.distributed as dist  # noqa: TID251 - the wire is laid on it

    if not dist.is_available() or hasattr(dist.all_reduce, "_wired"):
        return
    for name in COLLECTIVES:
        wired = _wired(getattr(dist, name))
        setattr(dist, name, wired)
        if hasattr(dist.distributed_c10d, name):
            setattr(dist.distributed_c10d, name, wired)
    for name in PROCESS_GROUP:
        setattr(dist.ProcessGroup, name, _wired(getattr(dist.ProcessGroup, name)))
    if dist.is_gloo_available():
        backend = dist.distributed_c10d.ProcessGroupGloo.__mro__[1]
        for name in PROCESS_GROUP:
            if name in vars(backend):
                setattr(backend, name, _wired(getattr(backend, name)))


def _wired(collective: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(collective)
    def wire(*args: Any, **kwargs: Any) -> Any:
        caller = _caller_of_ours()
        if caller is not None:
            thread = threading.current_thread().name
            if thread in _allowed:
                passed.append(collective.__name__)
                return collective(*args, **kwargs)
            steps_on_it.append(f"{caller} called {collective.__name__}")
            raise SteppedOn(steps_on_it[-1])
        return collective(*args, **kwargs)

    wire._wired = True  # type: ignore[attr-defined]
    return wire


def _caller_of_ours() -> str | None:
    frame = sys._getframe(2)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".", 1)[0] in OURS:
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return None
