"""Writes array rows: one open file per group of layers, a fresh one when it is full."""

import errno
import os
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from moetrace.routing_stats import RoutingStats
from moetrace.store import files
from moetrace.store.arrays import MAX_ENTRIES, TENSORS, ArrayShape, row_count
from moetrace.store.names import array_file
from moetrace.store.records import Rows

__all__ = ["ArrayWriter"]

_MOST_OPEN = 8
_I32_MAX = 2**31 - 1


class _OpenFile:
    """A file that is being filled; ``row`` is the first row that no line has named."""

    def __init__(self, folder: str, name: str, shape: ArrayShape) -> None:
        self.name, self.shape, self.row = name, shape, 0
        header = shape.header()
        self.data, self.header_crc = len(header), zlib.crc32(header)
        self.descriptor = files.open_sized(os.path.join(folder, name))
        try:
            files.truncate(self.descriptor, self.data + shape.data_bytes)
            files.pwrite_all(self.descriptor, header, 0)
        except BaseException:
            files.close(self.descriptor)
            files.remove_file(os.path.join(folder, name))
            raise


class ArrayWriter:
    """The array files of one segment.

    A file belongs to the layers whose rows it holds, in their order, and to one width of counts; a
    change of either starts another file. At most 8 are open at a time.

    Args:
        folder: Path of the segment, until it is renamed.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._open: dict[tuple[tuple[str, ...], int, str], _OpenFile] = {}
        self._made: dict[int, int] = {}  # files made so far, by number of experts
        self._failed_sync: OSError | None = None

    def put(self, stats: Sequence[RoutingStats]) -> Rows:
        """Write one row per tensor for a group of layers with the same number of experts.

        Until `commit` the rows count as free, and the next ones go to the same place.

        Raises:
            OSError: The system did not take all of it.
            ValueError: A row would be larger than what is read back, or a count is negative.
        """
        vectors = [np.stack([getattr(item, name) for item in stats]) for name in TENSORS]
        if vectors[0].min() < 0:
            raise ValueError("found a negative count in tokens_per_expert")
        file = self._file(stats, vectors[0])
        crcs = []
        for index, row in enumerate(vectors):
            part = file.shape.to_bytes(index, row)
            crcs.append(zlib.crc32(part))
            offset = file.data + file.shape.offset(index, file.row)
            files.pwrite_all(file.descriptor, part, offset)
        return Rows(file.name, file.row, file.shape, file.data, file.header_crc, tuple(crcs))

    def commit(self, put: Iterable[Rows]) -> None:
        """Count rows as used: the line that names them is written."""
        used = {rows.file: rows.row + 1 for rows in put}
        for file in self._open.values():
            file.row = used.get(file.name, file.row)

    def sync(self) -> None:
        """Bring the rows of all files to the device.

        Raises:
            OSError: That failed, now or when a full file was left behind.
        """
        if self._failed_sync is not None:
            raise self._failed_sync
        for file in self._open.values():
            files.sync(file.descriptor)

    def close(self) -> None:
        """Close all files, whatever happens to one of them.

        Raises:
            OSError: The last of the errors.
        """
        error: OSError | None = None
        while self._open:
            _, file = self._open.popitem()
            try:
                files.close(file.descriptor)
            except OSError as trouble:
                error = trouble
        if error is not None:
            raise error

    def _file(self, stats: Sequence[RoutingStats], counts: NDArray[np.int64]) -> _OpenFile:
        layers, experts = tuple(item.layer for item in stats), stats[0].num_experts
        key = (layers, experts, "I32" if int(counts.max()) <= _I32_MAX else "I64")
        file = self._open.get(key)
        if file is not None and file.row < file.shape.rows:
            self._open[key] = self._open.pop(key)  # the first one is the longest unused
            return file
        if file is not None:
            self._end(key)
        elif len(self._open) == _MOST_OPEN:
            self._end(next(iter(self._open)))
        self._open[key] = self._fresh(len(layers), experts, key[2])
        return self._open[key]

    def _fresh(self, layers: int, experts: int, counts: str) -> _OpenFile:
        if layers * experts > MAX_ENTRIES:
            raise ValueError(
                f"found {layers} layers of {experts} experts; dense rows hold at most "
                f"{MAX_ENTRIES} entries, so store their reductions instead"
            )
        number = self._made.get(experts, 0)
        self._made[experts] = number + 1
        name = array_file(list(self._made).index(experts), number)
        rows = row_count(layers * experts)
        while True:
            shape = ArrayShape(rows, layers, experts, counts)
            try:
                return _OpenFile(self.folder, name, shape)
            except OSError as error:
                if error.errno != errno.EFBIG or rows == 1:
                    raise
            rows //= 2  # the system limits the length of a file

    def _end(self, key: tuple[tuple[str, ...], int, str]) -> None:
        file = self._open.pop(key)
        try:
            files.sync(file.descriptor)
        except OSError as error:
            self._failed_sync = error
            raise
        finally:
            files.close(file.descriptor)
