import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.report.names import json_island, short_names, shown


class TestShown:
    @pytest.mark.parametrize(
        ("text", "seen"),
        [
            ("model.layers.0.mlp", "model.layers.0.mlp"),
            ("</script><b>", "</script><b>"),
            ("gpj\u202etac", "gpj\\u202etac"),
            ("\u2066a\u2069", "\\u2066a\\u2069"),
            ("zero\u200bwidth", "zero\\u200bwidth"),
            ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
            ("tag\U000e0041", "tag\\U000e0041"),
            ("\ud800", "\\ud800"),
            ("Schicht \u00e9", "Schicht \u00e9"),
        ],
    )
    def test_spells_out_what_cannot_be_seen_and_leaves_the_rest(self, text: str, seen: str) -> None:
        """J5: characters that are invisible or reorder text become escapes that can be read."""
        assert shown(text) == seen

    @given(st.text())
    def test_leaves_no_control_or_reordering_character(self, text: str) -> None:
        """J5: whatever a name is made of, nothing that hides or reorders text is left."""
        assert not {unicodedata.category(c) for c in shown(text)} & {"Cc", "Cf", "Cs", "Zl", "Zp"}

    def test_cuts_a_long_name_and_says_how_long_it_was(self) -> None:
        """J7: a name of a megabyte takes a line, and two of them stay apart by their hashes."""
        first, second = shown("x" * 1_000_000), shown("x" * 999_999 + "y")
        assert first.startswith("x" * 80 + "... (1,000,000 characters, sha256 ")
        assert first != second
        assert len(first) < 200

    def test_shows_what_is_no_string_as_json(self) -> None:
        """A value of any type has a text; the folder decides what stands in it, not we."""
        assert shown({"a": [1, None, True]}) == '{"a": [1, null, true]}'
        assert shown(3) == "3"
        assert shown(b"raw") == "b'raw'"


class TestShortNames:
    @pytest.mark.parametrize(
        ("names", "short"),
        [
            (["model.layers.0.mlp", "model.layers.10.mlp"], ["0", "10"]),
            (["encoder.0.moe", "decoder.0.moe"], ["encoder", "decoder"]),
            (["a.0.mlp", "a.0.mlp.inner"], ["mlp", "mlp.inner"]),
            (["mlp"], ["mlp"]),
            (["same", "same"], ["same", "same"]),
            ([], []),
        ],
    )
    def test_keeps_what_tells_names_apart(self, names: list[str], short: list[str]) -> None:
        """Common first and last parts are left out; every label keeps one part."""
        assert short_names(names) == short

    @given(st.lists(st.text("ab.", min_size=1, max_size=8), unique=True))
    def test_different_names_stay_different(self, names: list[str]) -> None:
        """No two layers end up with one label."""
        assert len(set(short_names(names))) == len(names)


class TestJsonIsland:
    @given(st.text())
    def test_says_the_same_and_cannot_end_its_element(self, text: str) -> None:
        """J1: the island reads back as what went in, and holds no character that markup knows."""
        island = json_island({"name": text})
        assert json.loads(island) == {"name": text}
        assert not set("<>&'\u2028\u2029") & set(island)

    def test_refuses_a_number_that_json_cannot_say(self) -> None:
        """NaN in the data would be a page that does not open."""
        with pytest.raises(ValueError, match="JSON compliant"):
            json_island(float("nan"))
