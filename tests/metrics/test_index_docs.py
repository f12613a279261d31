"""The page of metrics on tables of experts: every figure, and worked numbers that are right."""

import re
from pathlib import Path

import numpy as np

from moetrace.index_stats import INDEX_METRICS, index_stats_of

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
PART = PAGE.partition("## Tables of experts")[2]


class TestTablesOfExperts:
    def test_every_worked_number_is_worked_right(self):
        """Each row of the table is what a record of that window shows, to 4 decimals."""
        counts = np.array([6, 1, 0, 1, 0, 0, 0, 0])
        found = index_stats_of(
            "ffn",
            counts,
            columns=4,
            score_sum=counts << 29,
            scalars={"tokens": 8, "score_sq_sum": 8 << 22},
        ).metrics()
        rows = re.findall(r"^\| `([a-z_]+)` \|.*\| (-|-?[0-9.]+) \|$", PART, re.MULTILINE)
        assert tuple(name for name, _ in rows) == INDEX_METRICS
        shown = {name: None if text == "-" else float(text) for name, text in rows}
        assert shown == {
            name: None if value is None else round(value, 4) + 0.0 for name, value in found.items()
        }
