"""What a disk may hold after the machine dies: a model of files whose writes were not synced.

`Disk` watches every operation of `moetrace.store.files` and keeps them in order. `Disk.state` then
makes, from any moment, one of the folders that the machine may wake up with. Per file all that a
good sync covered is there; of what came after it, or before a sync that failed, each sector of 512
bytes is there, missing, or zeroed. Per folder the names up to its last sync are there, and a
part of the later ones, in their order. Method: ALICE, CrashMonkey, and SQLite's ``test6.c``.
"""

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from moetrace.store import files

SECTOR = 512


@dataclass
class _Node:
    """A file, or a folder: what was done to it, and up to where that is safe."""

    is_folder: bool
    done: list[tuple[int, Any]] = field(default_factory=list)  # moment and operation
    syncs: list[tuple[int, bool]] = field(default_factory=list)  # moment and success

    def safe(self, moment: int) -> Callable[[int], bool]:
        """Whether an operation of that time is surely on the disk at a moment."""
        covered: list[tuple[int, int]] = []
        start = 0
        for at, good in self.syncs:
            if at <= moment:
                if good:
                    covered.append((start, at))
                start = at  # what a failed sync was to cover no later one does
        return lambda time: any(first < time <= last for first, last in covered)


class Disk:
    """Watches the store while `watched` lasts.

    Args:
        root: The folder that is watched; operations elsewhere are not kept.
        failing: Syncs of files that fail, counted from 1.
    """

    def __init__(self, root: Path, *, failing: frozenset[int] = frozenset()) -> None:
        self._root, self._failing = str(root), failing
        self._syncs = 0
        self._nodes: dict[str, _Node] = {self._root: _Node(is_folder=True)}
        self._open: dict[int, _Node] = {}
        self.moment = 0
        self.durable: list[tuple[int, int]] = [(0, 0)]

    def note_durable(self, snapshots: int) -> None:
        """So many snapshots are acknowledged and synced from here on."""
        self.durable.append((self.moment, snapshots))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keep what the store does."""
        real = {name: getattr(files, name) for name in _WATCHED}

        def watch(name: str) -> Callable[..., Any]:
            def watching(*args: Any, **options: Any) -> Any:
                self.moment += 1
                if name == "sync" and self._fails(args[0]):
                    raise OSError(errno.EIO, "Input/output error")
                result = real[name](*args, **options)
                getattr(self, f"_on_{name}")(result, *args, **options)
                return result

            return watching

        with contextlib.ExitStack() as stack:
            for name in _WATCHED:
                stack.enter_context(mock.patch.object(files, name, watch(name)))
            yield

    def state(self, moment: int, chance: random.Random, target: Path) -> int:
        """Make a folder that the machine may wake up with; how many snapshots it must hold."""
        names = self._names(self._root, moment, chance)
        target.mkdir()
        for path, node in names.items():
            place = target / os.path.relpath(path, self._root)
            if node.is_folder:
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(_content(node, moment, chance))
        return max(count for at, count in self.durable if at <= moment)

    def _names(self, path: str, moment: int, chance: random.Random) -> dict[str, _Node]:
        folder = self._nodes[path]
        return self._inside(folder, path, moment, chance)

    def _inside(
        self, folder: _Node, path: str, moment: int, chance: random.Random
    ) -> dict[str, _Node]:
        safe = folder.safe(moment)
        done = [(at, change) for at, change in folder.done if at <= moment]
        unsafe = sum(not safe(at) for at, _ in done)
        left = chance.randint(0, unsafe)
        entries: dict[str, _Node] = {}
        for at, change in done:
            if not safe(at):
                if left == 0:
                    continue
                left -= 1
            for name, node in change:
                entries.pop(name, None)
                if node is not None:
                    entries[name] = node
        found: dict[str, _Node] = {}
        for name, node in entries.items():
            below = os.path.join(path, name)
            found[below] = node
            if node.is_folder:
                found.update(self._inside(node, below, moment, chance))
        return found

    def _fails(self, descriptor: int) -> bool:
        self._syncs += 1
        fails = self._syncs in self._failing
        if fails and descriptor in self._open:
            self._open[descriptor].syncs.append((self.moment, False))
        return fails

    def _change(self, *changes: tuple[str, _Node | None]) -> None:
        parent = self._nodes[os.path.dirname(changes[0][0])]
        parent.done.append((self.moment, [(os.path.basename(p), node) for p, node in changes]))

    def _made(self, path: str, *, is_folder: bool) -> _Node:
        node = self._nodes[path] = _Node(is_folder)
        self._change((path, node))
        return node

    def _on_make_folder(self, _: None, path: str, *, fresh: bool = False) -> None:
        missing = []
        while path not in self._nodes:
            missing.append(path)
            path = os.path.dirname(path)
        for made in reversed(missing):
            self._made(made, is_folder=True)

    def _on_open_append(self, descriptor: int, path: str) -> None:
        self._open[descriptor] = self._made(path, is_folder=False)

    _on_open_sized = _on_open_append

    def _on_write(self, taken: int, descriptor: int, data: memoryview) -> None:
        self._open[descriptor].done.append((self.moment, (None, bytes(data[:taken]))))

    def _on_pwrite(self, taken: int, descriptor: int, data: memoryview, offset: int) -> None:
        self._open[descriptor].done.append((self.moment, (offset, bytes(data[:taken]))))

    def _on_truncate(self, _: None, descriptor: int, length: int) -> None:
        self._open[descriptor].done.append((self.moment, (length, b"")))

    def _on_sync(self, _: None, descriptor: int) -> None:
        self._open[descriptor].syncs.append((self.moment, True))

    def _on_sync_folder(self, _: None, path: str) -> None:
        self._nodes[path].syncs.append((self.moment, True))

    def _on_close(self, _: None, descriptor: int) -> None:
        self._open.pop(descriptor, None)

    def _on_link(self, _: None, source: str, target: str) -> None:
        self._nodes[target] = self._nodes[source]
        self._change((target, self._nodes[source]))

    def _on_replace(self, _: None, source: str, target: str) -> None:
        moved = {
            target + path.removeprefix(source): node
            for path, node in self._nodes.items()
            if path == source or path.startswith(source + os.sep)
        }
        self._nodes.update(moved)
        self._change((source, None), (target, self._nodes[source]))

    def _on_remove_file(self, _: None, path: str) -> None:
        self._change((path, None))

    _on_remove_folder = _on_remove_file


_WATCHED = tuple(
    name.removeprefix("_on_") for name in vars(Disk) if name.startswith("_on_")
)  # every operation that has a meaning above


def _content(node: _Node, moment: int, chance: random.Random) -> bytes:
    safe, content, end = node.safe(moment), bytearray(), 0
    for at, (offset, data) in node.done:
        if at > moment:
            break
        if not data:  # a truncate
            if safe(at) or chance.random() < 0.7:
                content.extend(bytes(max(0, offset - len(content))))
            continue
        start = end if offset is None else offset
        end = max(end, start + len(data)) if offset is None else end
        for first, last in _sectors(start, start + len(data)):
            fate = 0.0 if safe(at) else chance.random()
            if fate < 0.6:
                content.extend(bytes(max(0, last - len(content))))
                content[first:last] = data[first - start : last - start]
            elif fate < 0.8:  # its length arrived, its bytes did not
                content.extend(bytes(max(0, last - len(content))))
    return bytes(content)


def _sectors(start: int, stop: int) -> Iterator[tuple[int, int]]:
    while start < stop:
        last = min(stop, (start // SECTOR + 1) * SECTOR)
        yield start, last
        start = last
