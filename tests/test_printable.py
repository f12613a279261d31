import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.printable import printable


class TestPrintable:
    @pytest.mark.parametrize(
        ("text", "seen"),
        [
            ("model.layers.0.mlp", "model.layers.0.mlp"),
            ("Schicht \u00e9 \u4e2d", "Schicht \u00e9 \u4e2d"),
            ("\x1b[2J", "\\x1b[2J"),
            ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
            ("\x9b31m", "\\x9b31m"),
            ("a\r\nb\tc\x08", "a\\r\\nb\\tc\\x08"),
            ("\u202egpj", "\\u202egpj"),
            ("zero\u200bwidth", "zero\\u200bwidth"),
            ("line\u2028end", "line\\u2028end"),
            ("\ud800", "\\ud800"),
            ("\U000e0041", "\\U000e0041"),
        ],
    )
    def test_spells_out_what_would_act(self, text: str, seen: str) -> None:
        """J3, J5: what moves the cursor, hides or reorders is spelled out; the rest is itself."""
        assert printable(text) == seen

    @given(st.text(max_size=300))
    def test_leaves_nothing_that_acts(self, text: str) -> None:
        """Whatever a name is made of, no control, format or line-breaking character is left."""
        kinds = {unicodedata.category(character) for character in printable(text)}
        assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}

    def test_cuts_what_is_longer_than_a_name(self) -> None:
        """J7: a name of a megabyte takes a line, and says how long it was."""
        assert (
            printable("x" * 1_000_000) == "x" * 80 + "... (1,000,000 characters, sha256 1b977e9f)"
        )
        assert printable("x" * 160) == "x" * 160
        assert printable("x" * 161, longest=161) == "x" * 161
