import base64
import gzip
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moetrace.errors import RunNotReadable
from moetrace.report.packing import pack_integers, pack_reals


def unpacked(packed: dict[str, Any]) -> list[list[int]]:
    """What decode.js does, slowly and in Python integers."""
    data = gzip.decompress(base64.b64decode(packed["data"]))
    rows, columns, width = packed["rows"], packed["columns"], packed["width"]
    assert len(data) == rows * columns * width
    table: list[list[int]] = []
    for row in range(rows):
        line = []
        for column in range(columns):
            at = row * columns + column
            value = sum(data[plane * rows * columns + at] << 8 * plane for plane in range(width))
            step = -(value + 1) // 2 if value % 2 else value // 2
            line.append(step + (table[row - 1][column] if row else 0))
        table.append(line)
    return table


class TestPackIntegers:
    def test_lays_out_steps_along_time_plane_by_plane(self) -> None:
        """5, 4 then 5, 300: steps 5, 4, 0, 296 are 10, 8, 0, 592, lowest bytes first."""
        packed = pack_integers(np.array([[5, 4], [5, 300]]))
        assert (packed["rows"], packed["columns"], packed["width"]) == (2, 2, 2)
        raw = gzip.decompress(base64.b64decode(packed["data"]))
        assert list(raw) == [10, 8, 0, 592 % 256, 0, 0, 0, 592 // 256]

    @given(
        arrays(
            np.int64,
            st.tuples(st.integers(0, 5), st.integers(0, 6)),
            elements=st.integers(-(2**52) + 1, 2**52 - 1),
        )
    )
    def test_reads_back_as_what_went_in(self, values: np.ndarray[Any, Any]) -> None:
        """Packing loses nothing, whatever the sign and size."""
        assert unpacked(pack_integers(values)) == values.tolist()

    def test_the_same_table_gives_the_same_text(self) -> None:
        """No clock goes into the page: the same run makes the same bytes."""
        assert pack_integers(np.array([[1]]))["data"] == pack_integers(np.array([[1]]))["data"]

    def test_refuses_what_a_browser_cannot_hold(self) -> None:
        """I13: a count from 2**52 on is an error here and not another number there."""
        for number in (2**52, 2**63 - 1, -(2**63)):
            with pytest.raises(RunNotReadable, match="integers below"):
                pack_integers(np.array([[number]]))
        with pytest.raises(ValueError, match=r"expected \(windows, columns\)"):
            pack_integers(np.array([1, 2]))


class TestPackReals:
    @given(arrays(np.float64, (3, 4), elements=st.floats(width=32)))
    def test_reads_back_as_float32_and_keeps_nan(self, values: np.ndarray[Any, Any]) -> None:
        """Every float32, infinities and NaN among them, comes back bit for bit."""
        patterns = [pattern for row in unpacked(pack_reals(values)) for pattern in row]
        back = [struct.unpack("<f", struct.pack("<i", pattern))[0] for pattern in patterns]
        np.testing.assert_array_equal(np.array(back), values.reshape(-1))
