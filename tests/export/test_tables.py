"""A run as tables, read back by the programs that people read tables with."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pandas
import polars
import pytest

from moetrace.export import export_run
from moetrace.index_stats import INDEX_METRICS
from moetrace.metrics import METRICS
from moetrace.routing_stats import COUNTERS
from moetrace.run import Run, open_run
from moetrace.store import RunFolder
from tests.export.made import LAYERS, full, kept
from tests.report.made import stats, window

PAYLOADS = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    ' "=1+1',
    ";=1+1",
    "'=1+1",
    "\uff1d1",
    'a"b,c\nd',
    "\x1b[2J\u202e",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three windows of training and one of evaluation, in which one layer shows no logits."""
    shy = window(10, 10, stats(LAYERS[0], [4, 0], scoring="none"), phase="eval")
    return kept(tmp_path_factory.mktemp("tables") / "run", *full(), shy)


def read(folder: Path, name: str, form: str, reader: str) -> list[dict[str, Any]]:
    """The rows of a table, as a reader of its format gives them; None for what is missing."""
    path = folder / f"{name}.{form}"
    if reader == "pandas":
        frame = getattr(pandas, f"read_{form}")(path)
        return frame.astype(object).where(frame.notna(), None).to_dict("records")
    return getattr(polars, f"read_{form}")(path, **_whole(form)).to_dicts()


def _whole(form: str) -> dict[str, Any]:
    return {} if form == "parquet" else {"infer_schema_length": None}


class TestTables:
    @pytest.mark.parametrize("reader", ["pandas", "polars"])
    @pytest.mark.parametrize("form", ["csv", "json", "parquet"])
    def test_layers_round_trip(self, run: Run, form: str, reader: str, tmp_path: Path) -> None:
        """Every counter and metric of every window comes back as it was; None stays None."""
        export_run(run, tmp_path, form=form)
        rows = read(tmp_path, "layers", form, reader)
        expected = [
            {
                "phase": snapshot.phase,
                "first_step": snapshot.first_step,
                "last_step": snapshot.last_step,
                "layer": item.layer,
                "num_experts": item.num_experts,
                "top_k": item.top_k,
                "scoring": item.scoring,
                **{n: getattr(item, n) for n in COUNTERS if not n.endswith("_sum")},
                **item.metrics(),
            }
            for phase in run.phases
            for snapshot in run.snapshots(phase=phase)
            for item in snapshot
        ]
        assert set(rows[0]) == set(expected[0])
        assert len(rows) == len(expected) == 7
        exact = (form, reader) != ("json", "pandas")  # pandas reads 16 digits of 17
        for row, wanted in zip(rows, expected, strict=True):
            for name, value in wanted.items():
                close = value if exact or not isinstance(value, float) else pytest.approx(value)
                assert row[name] == close, name

    @pytest.mark.parametrize("reader", ["pandas", "polars"])
    @pytest.mark.parametrize("form", ["csv", "json", "parquet"])
    def test_experts_round_trip(self, run: Run, form: str, reader: str, tmp_path: Path) -> None:
        """A row per expert where they are asked for, and no file where they are not."""
        assert export_run(run, tmp_path, form=form, experts=True).rows["experts"] == 26
        rows = read(tmp_path, "experts", form, reader)
        counts = [row["tokens"] for row in rows if row["layer"] == LAYERS[1]]
        assert counts == [10, 10, 12, 8, 11, 9, 12, 8, 12, 8, 12, 8]
        assert [row["expert"] for row in rows[:5]] == [0, 1, 2, 3, 0]
        assert rows[0]["prob_sum"] == 5.0
        export_run(run, tmp_path / "without", form=form)
        assert not list((tmp_path / "without").glob("experts*"))

    @pytest.mark.parametrize("form", ["csv", "json", "parquet"])
    def test_weights_and_gradients_round_trip(self, run: Run, form: str, tmp_path: Path) -> None:
        """What is formed of the sums stands in the table: norm 5 of (3, 4), and its change."""
        export_run(run, tmp_path, form=form)
        first, _, second, *_ = read(tmp_path, "weights", form, "polars")
        assert (first["layer"], first["name"], str(first["shape"])) == (LAYERS[0], "weight", "2")
        assert (first["norm"], first["min"], first["trainable"]) == (5.0, 3.0, True)
        assert first["diff_norm"] is None
        assert second["diff_norm"] == pytest.approx(2**0.5)
        rows = read(tmp_path, "gradients", form, "polars")
        assert len(rows) == 27
        attention = [row["norm"] for row in rows if row["group"] == "attention"]
        assert attention == [3.0] * 3 + [6.0] * 3 + [9.0] * 3

    @pytest.mark.parametrize("form", ["csv", "json", "parquet"])
    def test_tables_of_experts_round_trip(self, run: Run, form: str, tmp_path: Path) -> None:
        """Counters and every metric of each window; None stays None."""
        export_run(run, tmp_path, form=form)
        rows = read(tmp_path, "indices", form, "polars")
        expected = [(window.last_step, window.indices[0]) for window in run.snapshots()]
        for row, (step, own) in zip(rows, expected, strict=True):
            assert (row["last_step"], row["layer"], row["num_experts"]) == (step, "ffn", 4)
            assert {name: row[name] for name in INDEX_METRICS} == own.metrics()

    def test_events_hold_their_fields_as_json(self, tmp_path: Path) -> None:
        """Kind, place and time are columns; the rest is one text."""
        folder = RunFolder.prepare(tmp_path / "run")
        segment = folder.open_segment(rank=0, header={})
        segment.event("layer_lost", {"layer": "a", "step": 7})
        segment.close()
        run = open_run(tmp_path / "run")
        export_run(run, tmp_path / "out", form="csv")
        (row,) = csv.DictReader((tmp_path / "out" / "events.csv").open(encoding="utf-8"))
        assert (row["kind"], row["rank"], row["attempt"]) == ("layer_lost", "0", "0")
        assert float(row["wall_time"]) == run.events()[0]["wall_time"]
        assert json.loads(row["fields"]) == {"layer": "a", "step": 7}

    def test_says_what_it_is_of(self, run: Run, tmp_path: Path) -> None:
        """``export.json`` holds the summary of the run and the rows of each table."""
        exported = export_run(run, tmp_path, form="csv")
        record = json.loads((tmp_path / "export.json").read_text())
        assert record["run_id"] == run.run_id
        assert record["rows"] == exported.rows
        assert exported.rows == {
            "layers": 7,
            "indices": 3,
            "weights": 6,
            "gradients": 27,
            "events": 0,
        }
        assert sorted(item.name for item in exported.files) == sorted(
            item.name for item in tmp_path.iterdir()
        )

    @pytest.mark.parametrize("form", ["csv", "json", "parquet"])
    def test_a_run_without_windows_has_tables_without_rows(self, form: str, tmp_path: Path) -> None:
        """The columns are there all the same, where the format can say so."""
        export_run(kept(tmp_path / "run"), tmp_path / "out", form=form)
        if form == "json":
            assert json.loads((tmp_path / "out" / "layers.json").read_text()) == []
            return
        columns = getattr(polars, f"read_{form}")(tmp_path / "out" / f"layers.{form}").columns
        assert set(METRICS) <= set(columns)

    def test_parquet_does_with_polars_alone(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without pyarrow the same table comes from polars."""
        export_run(run, tmp_path / "arrow", form="parquet")
        _without(monkeypatch, "pyarrow")
        export_run(run, tmp_path / "polars", form="parquet")
        for table in ("layers", "weights", "gradients", "events"):
            one, two = (
                polars.read_parquet(tmp_path / name / f"{table}.parquet")
                for name in ("arrow", "polars")
            )
            assert one.equals(two)
            assert one.schema == two.schema

    def test_parquet_says_what_it_lacks(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither of both: what to install, what to take instead, and no file left."""
        _without(monkeypatch, "pyarrow", "polars")
        with pytest.raises(ImportError, match=r"moetrace\[parquet\].*or take --format csv"):
            export_run(run, tmp_path, form="parquet")
        assert list(tmp_path.iterdir()) == []


class TestCsv:
    def test_no_field_can_act_in_a_spreadsheet(self, tmp_path: Path) -> None:
        """J6: no cell begins with what starts a formula, whatever a layer is called."""
        layers = [stats(name, [1, 1]) for name in PAYLOADS]
        export_run(kept(tmp_path / "run", window(1, 1, *layers)), tmp_path / "out", form="csv")
        text = (tmp_path / "out" / "layers.csv").read_text(encoding="utf-8")
        names = [row["layer"] for row in csv.DictReader(text.splitlines())]
        assert len(names) == len(PAYLOADS)
        assert not [name for name in names if name.lstrip(" \"';,")[:1] in set("=+-@\t\r\uff1d")
                    and not name.startswith("'")]  # fmt: skip
        assert names[-2:] == ['a"b,c\\nd', "\\x1b[2J\\u202e"]
        assert names[0] == "'=1+1"

    def test_text_stands_in_quotes_and_numbers_do_not(self, run: Run, tmp_path: Path) -> None:
        """A negative number stays a number."""
        export_run(run, tmp_path, form="csv")
        first = (tmp_path / "layers.csv").read_text().splitlines()[1]
        assert first.startswith('"train",1,10,"model.layers.0.mlp",4,2,"softmax",20,1,0,0,0,0,')
        assert ",-0." in first


def _without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in packages else found(name)
    )
