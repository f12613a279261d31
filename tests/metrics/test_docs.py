import re
from pathlib import Path

from moetrace import metrics
from moetrace.metrics import METRICS
from moetrace.metrics.summary import DETAIL, SUMMARY
from tests.metrics.test_snapshot_metrics import layer

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def entries():
    """The metrics with an entry: the names in code marks that head a level-3 section."""
    heads = re.findall(r"^### (.+)$", PAGE, flags=re.MULTILINE)
    return {name for head in heads for name in re.findall(r"`([a-z_]+)`", head)}


class TestMetricsPage:
    def test_every_metric_has_an_entry(self):
        """Whoever sees a metric finds its meaning in docs/metrics.md, and nothing is made up."""
        assert entries() == set(METRICS)

    def test_every_entry_says_what_to_do(self):
        """An entry has formula, range, healthy range, what a bad value means, and the levers."""
        for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
            name = section.splitlines()[0]
            for label in ("Formula", "Range", "Healthy", "Bad", "Levers"):
                assert f"**{label}**" in section, (name, label)

    def test_every_logged_key_is_named(self):
        """The keys that a tracker shows stand on the page."""
        keys = [
            *SUMMARY,
            "moe/dropped_assignments",
            "moe/nonfinite_tokens",
            "moe/identity_assignments",
            "moe/total_unused_experts",
            *(f"moe/{{layer}}/{name}" for name in DETAIL),
        ]
        assert [key for key in keys if f"`{key}`" not in PAGE] == []

    def test_the_table_of_floors_is_computed(self):
        """Each row of the floors' table is what the functions give, to 4 decimals."""
        head = re.search(r"^\| T \| E \| K \|(.+)\|$", PAGE, flags=re.MULTILINE)
        floors = [getattr(metrics, name) for name in re.findall(r"`([a-z_]+)`", head[1])]
        rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \|(.+)\|$", PAGE, flags=re.MULTILINE)
        assert len(floors) == 5
        assert len(rows) == 8
        for tokens, experts, top_k, cells in rows:
            found = [f(int(tokens), num_experts=int(experts), top_k=int(top_k)) for f in floors]
            assert [float(cell) for cell in cells.split("|")] == [round(x, 4) for x in found]

    def test_the_worked_window_is_worked_right(self):
        """Each row of the worked window is what a snapshot of it shows, to 4 decimals."""
        found = layer(
            [6, 4, 4, 2],
            tokens=16,
            prob=[0.375, 0.25, 0.25, 0.125],
            entropy_sum=16.0,
            confidence_sum=8.0,
            margin_sum=8.0,
            lse_sq_sum=64.0,
        ).metrics()
        rows = re.findall(
            r"^\| `([a-z_]+)` \| (-?[0-9.]+) \| [^|]+ \| [^|]+ \|$", PAGE, re.MULTILINE
        )
        assert [name for name, _ in rows] == list(METRICS)
        assert {name: float(number) for name, number in rows} == {
            name: round(value, 4) + 0.0 for name, value in found.items()
        }
