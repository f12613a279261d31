"""What a test may not leave behind: hooks on a model, threads of moetrace, open files.

Looking is cheap, since it happens after every test: hooks are noted when they are registered
instead of searched for among all objects, and nothing here imports torch.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

__all__ = ["hooks", "note_hooks", "open_files", "settled", "threads"]

PATIENCE = 2.0
"""Seconds that a thread gets to end and the collector to find a dropped model."""

_handles: list[Any] = []


def note_hooks() -> None:
    """Note every hook of moetrace from now on; a second time, or without torch, do nothing."""
    torch = sys.modules.get("torch")
    module = getattr(getattr(torch, "nn", None), "Module", None)
    if module is None or hasattr(module.register_forward_hook, "_noted"):
        return
    for name in ("register_forward_hook", "register_forward_pre_hook"):
        setattr(module, name, _noting(getattr(module, name)))


def _noting(register: Callable[..., Any]) -> Callable[..., Any]:
    def noting(self: Any, hook: Any, **options: Any) -> Any:
        handle = register(self, hook, **options)
        if type(hook).__module__.split(".", 1)[0] == "moetrace":
            _handles.append(handle)
        return handle

    noting._noted = True  # type: ignore[attr-defined]
    return noting


def hooks() -> list[str]:
    """Hooks of moetrace that are on a module now."""
    left = []
    for handle in _handles:
        registered = handle.hooks_dict_ref()
        if registered is not None and handle.id in registered:
            left.append(type(registered[handle.id]).__name__)
    return left


def threads() -> list[str]:
    """Threads of moetrace that are alive now."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("moetrace")]


def open_files(folder: Path) -> list[str]:
    """Files below ``folder`` that this process holds open, deleted ones included."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith(f"{folder}/"):
            found.append(target)
    return found


def settled(look: Callable[[], list[str]], allowed: Collection[str] = ()) -> list[str]:
    """What ``look`` still finds, beside ``allowed``, when dropped objects and ends had their time.

    Free where it finds nothing at once, which is nearly always.
    """
    deadline = time.monotonic() + PATIENCE
    while left := [item for item in look() if item not in allowed]:
        if time.monotonic() > deadline:
            return left
        gc.collect()
        time.sleep(0.01)
    return []
