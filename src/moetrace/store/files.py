"""Every call of the run folder to the operating system; nothing else in the store makes one.

Callers write ``files.write(...)``, so that a test replaces one function here and sees, fails,
shortens or kills every operation. All descriptors are close-on-exec, as Python makes them.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence

__all__ = [
    "close",
    "link",
    "links",
    "list_names",
    "make_folder",
    "monotonic",
    "open_append",
    "open_folder",
    "open_regular",
    "open_sized",
    "open_within",
    "pread",
    "process_id",
    "pwrite",
    "pwrite_all",
    "remove_file",
    "remove_folder",
    "replace",
    "size",
    "sync",
    "sync_folder",
    "token",
    "truncate",
    "wall",
    "write",
    "write_all",
]

STALLS = 100
"""Writes in a row that took nothing, or were interrupted, before the file counts as broken."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def open_append(path: str) -> int:
    """Create a file that must not exist yet, to be written at its end only."""
    return os.open(path, _NEW | os.O_APPEND, 0o666)


def open_sized(path: str) -> int:
    """Create a file that must not exist yet, to be written anywhere in it.

    Apart from `open_append` because Linux ignores the offset of a pwrite under ``O_APPEND``.
    """
    return os.open(path, _NEW, 0o666)


def open_folder(path: str, *, within: int | None = None) -> int:
    """Open a folder to read; below another one (``within``) a symbolic link is refused."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(path, flags if within is None else flags | os.O_NOFOLLOW, dir_fd=within)


def open_regular(name: str, *, within: int | None = None) -> int:
    """Open a regular file to read.

    Raises:
        OSError: It is not there, or it is a link, a pipe, a socket, a device or a folder; none of
            them is waited for.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=within)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return descriptor


def open_within(root: str, names: Sequence[str]) -> int:
    """Open the regular file ``root/names[0]/names[1]/...``; below the root no link is followed."""
    folder = open_folder(root)
    try:
        for name in names[:-1]:
            parent, folder = folder, open_folder(name, within=folder)
            os.close(parent)
        return open_regular(names[-1], within=folder)
    finally:
        os.close(folder)


def write(descriptor: int, data: memoryview) -> int:
    """Write at the end of the file; the system may take a part only."""
    return os.write(descriptor, data)


def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
    """Write at an offset; the system may take a part only."""
    return os.pwrite(descriptor, data, offset)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data at the end of the file, in as many parts as the system wants."""
    _in_parts(data, lambda rest, _: write(descriptor, rest))


def pwrite_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of the data at an offset, in as many parts as the system wants."""
    _in_parts(data, lambda rest, done: pwrite(descriptor, rest, offset + done))


def _in_parts(data: bytes, take: Callable[[memoryview, int], int]) -> None:
    rest, done, stalls = memoryview(data), 0, 0
    while done < len(data):
        try:
            taken = take(rest[done:], done)
        except (InterruptedError, BlockingIOError):
            taken = 0
        done += taken
        stalls = 0 if taken else stalls + 1
        if stalls == STALLS:
            raise OSError(errno.EIO, f"the file took {done} of {len(data)} bytes and no more")


def pread(descriptor: int, count: int, offset: int) -> bytes:
    """The bytes from an offset: ``count`` of them, fewer only where the file ends."""
    parts: list[bytes] = []
    while count > 0:
        part = os.pread(descriptor, count, offset)
        if not part:
            break
        parts.append(part)
        count, offset = count - len(part), offset + len(part)
    return b"".join(parts)


def size(descriptor: int) -> int:
    """Bytes of an open file."""
    return os.fstat(descriptor).st_size


def links(descriptor: int) -> int:
    """Names that an open file still has; 0 once it is deleted."""
    return os.fstat(descriptor).st_nlink


def truncate(descriptor: int, length: int) -> None:
    """Set the length of an open file; what is added reads as zeros and takes no space."""
    os.ftruncate(descriptor, length)


def sync(descriptor: int) -> None:
    """Bring the data of an open file to the device."""
    os.fdatasync(descriptor)


def sync_folder(path: str) -> None:
    """Bring the names in a folder to the device, where its file system can do that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor."""
    os.close(descriptor)


def make_folder(path: str, *, fresh: bool = False) -> None:
    """Create a folder with its parents; ``fresh`` refuses one that exists."""
    if fresh:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path)
    else:
        os.makedirs(path, exist_ok=True)


def list_names(path: str | int) -> list[str]:
    """Names in a folder, by path or descriptor, sorted."""
    return sorted(os.listdir(path))


def link(source: str, target: str) -> None:
    """Give a file a second name that must not exist yet."""
    os.link(source, target)


def replace(source: str, target: str) -> None:
    """Rename a file over another one, in one step."""
    os.replace(source, target)


def remove_file(path: str) -> None:
    """Remove a file."""
    os.unlink(path)


def remove_folder(path: str) -> None:
    """Remove an empty folder."""
    os.rmdir(path)


def monotonic() -> float:
    """Seconds on a clock that only runs forward."""
    return time.monotonic()


def wall() -> float:
    """Unix time in seconds; informative only."""
    return time.time()


def process_id() -> int:
    """This process, not the one it was forked from."""
    return os.getpid()


def token(count: int) -> str:
    """Fresh hexadecimal digits from the system; Python's and torch's generators stay untouched."""
    return os.urandom((count + 1) // 2).hex()[:count]
