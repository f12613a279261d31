"""Which rows a test names, and what the ledger makes of its results."""

import json
from pathlib import Path

import pytest

from tests.chaos.ledger import ELSEWHERE, Ledger, rows, rows_named


class TestRowsNamed:
    @pytest.mark.parametrize(
        ("docstring", "named"),
        [
            ("B2: a sink hangs", ["B2"]),
            ("C5, D2: killed", ["C5", "D2"]),
            ("C1 to C3, C5: errors", ["C1", "C2", "C3", "C5"]),
            ("F1-L2: totals are equal", ["F1"]),
            ("A sink hangs", []),
            ("Row B2: hangs", []),
            (None, []),
        ],
    )
    def test_the_head_of_the_docstring_counts(
        self, docstring: str | None, named: list[str]
    ) -> None:
        """Rows stand before the first colon, one by one or as a span."""
        assert rows_named(docstring) == named

    def test_there_are_164(self) -> None:
        """The matrix has 164 rows, and only rows of it are explained."""
        assert len(list(rows())) == 164
        assert set(ELSEWHERE) <= set(rows())


class TestLedger:
    def test_runs_what_names_rows_and_counts(self, pytester_like: Path) -> None:
        """Of three tests two name rows; one of those fails."""
        ledger = Ledger()
        pytest.main(["-q", "-p", "no:cacheprovider", str(pytester_like)], plugins=[ledger])
        found = {line["id"]: line for line in ledger.to_json()}
        assert (found["B2"]["tries"], found["B2"]["failures"]) == (2, 1)
        assert (found["C5"]["tries"], found["C5"]["failures"]) == (1, 0)
        assert found["A28"]["note"] == "needs a free-threaded Python"
        json.dumps(found)

    @pytest.fixture
    def pytester_like(self, tmp_path: Path) -> Path:
        """A module of tests."""
        path = tmp_path / "test_made.py"
        path.write_text(
            'def test_a():\n    """B2, C5: holds."""\n'
            'def test_b():\n    """B2: fails."""\n    assert False\n'
            'def test_c():\n    """Names none."""\n    assert False\n'
        )
        return path
