from dataclasses import replace
from pathlib import Path

import numpy as np

from moetrace.index_stats import IndexStats, index_stats_of
from moetrace.report import write_report
from moetrace.report.tables import index_findings, index_tables
from moetrace.snapshot import Snapshot
from tests.report.browser import Page
from tests.report.made import recorded, stats, window
from tests.report.test_browser import cells, opened


def table(layer: str, counts: list[int], *, columns: int = 0) -> IndexStats:
    """A table with these draws, one a token."""
    found = index_stats_of(
        layer, np.array(counts), columns=columns, scalars={"tokens": sum(counts)}
    )
    return found.reduced()


def looked_up(*tables: IndexStats, step: int = 1) -> Snapshot:
    """A window of tables and no router."""
    return replace(window(step, step), indices=tables)


def summed_keys() -> list[int]:
    """A table of 32 x 32 whose indices were formed as i + j: 63 of 1,024 are reachable."""
    return [sum(1 for i in range(32) if 0 <= k - i < 32) * 20 for k in range(63)] + [0] * 961


class TestFindings:
    def test_name_a_table_that_cannot_be_reached(self) -> None:
        """The index bug of product keys, in one window, with what to try."""
        (first, *_) = index_findings([looked_up(table("ffn", summed_keys(), columns=32))])
        assert first.tone == "bad"
        assert first.text.startswith(
            "ffn: 6.2 % of the experts drawn, 30 of 32 row keys dead, no index above 62 of 1,024: "
            "structural, not load imbalance"
        )
        assert "query_dim" in first.advice

    def test_an_even_table_is_no_finding(self) -> None:
        """Every expert drawn as often as every other."""
        assert index_findings([looked_up(table("ffn", [20] * 64))]) == []


class TestPayload:
    def test_holds_each_table_s_newest_window_and_curves_of_all(self) -> None:
        """A table that the last window does not have is shown as it was last."""
        history = [
            looked_up(table("a", [3, 1, 0, 0], columns=2), table("b", [1, 1]), step=1),
            looked_up(table("a", [1, 1, 1, 1], columns=2), step=2),
        ]
        found = index_tables({"train": history})
        assert found is not None
        first, second = found["tables"]
        assert (first["rows"], first["columns"], first["draws"]) == ([2, 2], [2, 2], 4)
        assert (second["name"], second["draws"]) == ("b", 2)
        assert found["spans"] == [[1, 1], [2, 2]]
        assert found["metrics"]["coverage"]["rows"] == 2

    def test_is_nothing_where_nothing_was_looked_up(self) -> None:
        """A model of routers alone."""
        assert index_tables({"train": [window(1, 1, stats("mlp", [5, 3]))]}) is None


class TestOnThePage:
    def test_a_model_without_a_router_is_a_page(self, browser: Page, tmp_path: Path) -> None:
        """The worst table first, its figures in words, sub-keys and the busiest experts."""
        even = table("l.0.ffn", [20] * 1024, columns=32)
        history = [
            looked_up(even, table("l.1.ffn", summed_keys(), columns=32), step=n) for n in (1, 2)
        ]
        made = recorded(tmp_path / "run", *history)
        page = opened(browser, write_report(made, tmp_path / "report.html"))
        assert page.text("#table-said").startswith(
            "l.1.ffn: 20,480 draws of 1,024 experts by 20,480 tokens; 63 experts drawn"
        )
        assert "30 of 32 row keys and 0 of 32 column keys without a draw" in page.text(
            "#table-said"
        )
        assert page.run("document.getElementById('views').hidden") is True
        assert page.run("document.getElementById('row-keys').width") == 32
        assert "30 without a draw" in page.run(
            "document.getElementById('row-keys').getAttribute('aria-label')"
        )
        assert page.run("document.querySelectorAll('#table-curves .u-over').length") == 4
        assert page.run("!!document.querySelector('#rank-curve .u-over')")
        assert cells(page, "#busiest")[0] == ["expert 31", "640", "32.00"]
        page.focus("#table")
        page.press("ArrowUp")
        assert page.text("#table-said").startswith("l.0.ffn: 20,480 draws")
        assert page.complaints() == []

    def test_a_map_of_the_newest_counts(self, browser: Page, tmp_path: Path) -> None:
        """Where a window kept counts per expert each is a pixel: black was never drawn."""
        dense = index_stats_of(
            "ffn", np.array(summed_keys()), columns=32, scalars={"tokens": 20_480}, due=True
        )
        history = [looked_up(dense), looked_up(table("ffn", summed_keys(), columns=32), step=2)]
        made = recorded(tmp_path / "run", *history)
        page = opened(browser, write_report(made, tmp_path / "report.html"))
        label = "document.getElementById('expert-pixels').getAttribute('aria-label')"
        page.wait(f"!!{label}")
        assert page.run(label) == "63 of 1,024 pixels hold an expert that was drawn"
        assert page.text("#expert-map-of").startswith("steps 1-1; a pixel an expert")
        page.run(
            "window.drawn = document.getElementById('expert-pixels').getContext('2d')"
            ".getImageData(0, 0, 32, 2).data"
        )
        first, busiest, never = (
            page.run(f"Array.from(window.drawn.slice({4 * at}, {4 * at + 4}))")
            for at in (0, 31, 63)
        )
        assert never == [0, 0, 4, 255]
        assert busiest == [252, 255, 164, 255]
        assert sum(never) < sum(first) < sum(busiest)
        assert page.complaints() == []

    def test_stays_away_where_there_is_no_table(self, browser: Page, tmp_path: Path) -> None:
        """No empty section."""
        made = recorded(tmp_path / "run", window(1, 1, stats("mlp", [5, 3])))
        page = opened(browser, write_report(made, tmp_path / "report.html"))
        assert page.run("document.getElementById('tables').hidden") is True

    def test_stands_beside_routers(self, browser: Page, tmp_path: Path) -> None:
        """A model may have both; the button for the scheme repaints both."""
        both = replace(window(1, 1, stats("mlp", [5, 3])), indices=(table("ffn", [9, 1]),))
        made = recorded(tmp_path / "run", both)
        page = opened(browser, write_report(made, tmp_path / "report.html"))
        page.click("#theme")
        page.click("#theme")
        assert page.run("document.getElementById('views').hidden") is False
        assert page.text("#table-said").startswith("ffn: 10 draws of 2 experts")
        assert page.complaints() == []
