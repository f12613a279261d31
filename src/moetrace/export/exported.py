# pyright: strict
"""One export: a run, a format, and the files that came of it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moetrace.export.detailed_logs import write_detailed_logs
from moetrace.export.expert_usage import write_expert_usage
from moetrace.export.files import Drafts, json_text
from moetrace.export.gradient_analysis import write_gradient_analysis
from moetrace.export.perfetto import write_perfetto
from moetrace.export.run_tables import TABLE_FORMS, write_tables
from moetrace.export.weight_tracking import write_weight_tracking
from moetrace.run import Run

__all__ = ["FORMATS", "Exported", "export_run"]

FILES: Mapping[str, Callable[[Run, Drafts], int]] = {
    "seed000": write_weight_tracking,
    "seed001": write_detailed_logs,
    "seed002": write_expert_usage,
    "seed003": write_gradient_analysis,
}
"""Formats of other programs; what writes the files of each, and says of how many windows."""

FORMATS = (*TABLE_FORMS, *FILES, "perfetto")
"""What a run can be exported as."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export has written.

    Attributes:
        form: The format.
        files: The files.
        rows: How many rows each table has, windows the files of a tracker, events a trace.
    """

    form: str
    files: tuple[Path, ...]
    rows: dict[str, int]


def export_run(
    run: Run, out: str | os.PathLike[str], *, form: str, experts: bool = False
) -> Exported:
    """Write a run in another format; files that are there already are replaced.

    All files are put in place at the end; an error leaves those that were there.

    Args:
        run: The run, live or finished.
        out: Folder of the files; it is made.
        form: One of `FORMATS`.
        experts: For tables: also a row per window, layer and expert. 1,000 windows of 48 layers
            with 512 experts are 24.6 million rows.

    Raises:
        ValueError: There is no such format, or the run does not hold what it needs.
        ImportError: Parquet, and neither pyarrow nor polars is installed.
        OSError: A file cannot be written.
    """
    if form not in FORMATS:
        raise ValueError(f"found no format {form!r}; the formats are {', '.join(FORMATS)}")
    if experts and form not in TABLE_FORMS:
        raise ValueError(f"experts are a table; {form!r} has none, {', '.join(TABLE_FORMS)} do")
    with Drafts(out) as drafts:
        if form in TABLE_FORMS:
            rows = write_tables(run, drafts, form, experts=experts)
            facts = {**run.summary(), "format": form, "rows": rows}
            drafts.write("export.json", json_text(facts))
        elif form == "perfetto":
            rows = {"events": write_perfetto(run, drafts.draft("perfetto.json"))}
        else:
            rows = {"windows": FILES[form](run, drafts)}
        files = tuple(drafts.files)
    return Exported(form, files, rows)
