"""The safetensors file of one group of layers: its header, and where a row stands in it.

```
u64 header length | JSON header, padded with spaces to 8 bytes | tensor 0 | tensor 1 | tensor 2
```

Each tensor is ``[S, L, E]`` for S rows (snapshots), L layers and E experts. The header is written
once and the file gets its full length at once, sparse, so that it is a valid safetensors file from
then on; a row is three pwrites. Nothing here reads a header back: the log says where rows are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

__all__ = ["MAX_ENTRIES", "MAX_HEADER", "MAX_ROWS", "TENSORS", "ArrayShape", "row_count"]

TENSORS = ("tokens_per_expert", "prob_sum", "gate_weight_sum")
"""The tensors of a file, in their order in it."""

MAX_ENTRIES = 1 << 25
"""L * E of one row: 32 layers of a million experts, 256 MiB a tensor."""

MAX_ROWS = 1024
MAX_HEADER = 1 << 20
"""Bytes before the first tensor, the length field included."""

_WIDTHS = {"I32": 4, "I64": 8}
_FILE_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class ArrayShape:
    """Shape and number type of a file.

    Attributes:
        rows: S.
        layers: L.
        experts: E.
        counts: Type of ``tokens_per_expert``, ``"I32"`` or ``"I64"``; the other two are ``"I64"``.
    """

    rows: int
    layers: int
    experts: int
    counts: str

    @property
    def types(self) -> tuple[str, str, str]:
        """Number types of the tensors."""
        return (self.counts, "I64", "I64")

    def row_bytes(self, tensor: int) -> int:
        """Bytes of one row of a tensor.

        >>> ArrayShape(rows=16, layers=2, experts=4, counts="I32").row_bytes(0)
        32
        """
        return self.layers * self.experts * _WIDTHS[self.types[tensor]]

    def offset(self, tensor: int, row: int) -> int:
        """Bytes between the end of the header and a row of a tensor."""
        before = sum(self.rows * self.row_bytes(index) for index in range(tensor))
        return before + row * self.row_bytes(tensor)

    @property
    def data_bytes(self) -> int:
        """Bytes behind the header."""
        return self.offset(len(TENSORS) - 1, self.rows)

    def header(self) -> bytes:
        """The bytes before the first tensor, the length field included."""
        shape = [self.rows, self.layers, self.experts]
        description: dict[str, Any] = {"__metadata__": {"format": "moetrace", "rows": "log.jsonl"}}
        for index, name in enumerate(TENSORS):
            offsets = [self.offset(index, 0), self.offset(index, self.rows)]
            description[name] = {
                "dtype": self.types[index],
                "shape": shape,
                "data_offsets": offsets,
            }
        text = orjson.dumps(description)
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def to_bytes(self, tensor: int, row: NDArray[np.int64]) -> bytes:
        """The bytes of one row, shape ``(L, E)``."""
        return row.astype("<i4" if self.types[tensor] == "I32" else "<i8").tobytes()

    def from_bytes(self, tensor: int, data: bytes) -> NDArray[np.int64]:
        """The row that these bytes hold, shape ``(L, E)``, read-only."""
        flat = np.frombuffer(data, "<i4" if self.types[tensor] == "I32" else "<i8")
        row = flat.reshape(self.layers, self.experts).astype(np.int64)
        row.flags.writeable = False  # RoutingStats copies each vector that somebody could change
        return row


def row_count(entries: int) -> int:
    """S of a new file: about 32 MiB, a power of two from 16 to 1024.

    Args:
        entries: L * E.

    >>> row_count(48 * 128)
    256
    """
    bytes_per_row = entries * (_WIDTHS["I32"] + 2 * _WIDTHS["I64"])
    rows = min(max(_FILE_BYTES // bytes_per_row, 16), MAX_ROWS)
    return 1 << (rows.bit_length() - 1)
