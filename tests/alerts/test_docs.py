import re
from dataclasses import fields
from pathlib import Path

from moetrace.alerts import KINDS, AlertRules

PAGE = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([a-z_]+)` \|(.+)\|$", PAGE, flags=re.MULTILINE))


class TestAlertsPage:
    def test_every_kind_has_a_row_that_says_what_to_do(self) -> None:
        """S1-40: whoever reads an alert finds its threshold and what acts on it."""
        assert tuple(ROWS) == KINDS
        assert all(len(row.split(" | ")) == 3 for row in ROWS.values())

    def test_the_defaults_are_those_of_the_rules(self) -> None:
        """Each threshold stands on the page with the value that the code has."""
        named = dict(re.findall(r"`([a-z_]+)` (True|[0-9.]+)", " ".join(ROWS.values())))
        rules = AlertRules()
        assert {name: str(getattr(rules, name)) for name in named} == named
        apart = {"above_floor", "duration", "leave", "least_load", "phases"}
        assert {item.name for item in fields(rules)} - apart == set(named)
