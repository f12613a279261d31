"""The run folder of a training as the files of a gradient analysis.

Three are moetrace's own export. Beside the raw norms, which grow with rank, alpha and the number
of parameters, a fourth holds what does not:

```
gradient_analysis.normalized_norms.csv
    step, then for each of embed, attention, mlp, lm_head, total
    {group}_rms         norm / sqrt(parameters)
    {group}_scale_free  norm / (alpha / sqrt(r))
    then lora_A_norm and lora_B_norm: B begins at 0, so that A has no gradient at first
```
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import moetrace
from moetrace.export import export_run
from moetrace.gradient_stats import GradientStats, norm_of
from src.errors import ExperimentError
from src.json_file import read_json, write_json

__all__ = ["GROUPS", "STEM", "write_gradient_files"]

STEM = "gradient_analysis"
"""Beginning of the names of all files."""

GROUPS = ("embed", "attention", "mlp", "lm_head")
"""Groups of parameters that have a column."""


def write_gradient_files(folder: Path, *, layers: bool = True, as_json: bool = False) -> Any:
    """Write the files of the run in ``folder / "run"``.

    Args:
        folder: The results of an experiment.
        layers: Whether there is a file per layer.
        as_json: Write the same columns as ``gradient_analysis.json`` too.

    Returns:
        The summary: mean, std, max, min, peak_step of each group.

    Raises:
        ExperimentError: No gradient was seen.
    """
    run = moetrace.open_run(folder / "run")
    try:
        export_run(run, folder, form="seed003")
    except ValueError as error:
        raise ExperimentError(
            "found no gradients in this training; under DeepSpeed they are not in parameters and "
            f"cannot be measured ({error})"
        ) from error
    per_layer = folder / f"{STEM}.layer_norms.csv"
    if not layers:
        per_layer.unlink()
    (folder / f"{STEM}.normalized_norms.csv").write_text(_normalized(run), encoding="utf-8")
    if as_json:
        kinds = ("group_norms", "layer_norms", "normalized_norms")
        files = {kind: folder / f"{STEM}.{kind}.csv" for kind in kinds}
        there = {kind: _columns(file) for kind, file in files.items() if file.exists()}
        write_json(folder / f"{STEM}.json", there)
    return read_json(folder / f"{STEM}.summary.json")


def _normalized(run: Any) -> str:
    names = [f"{group}_{kind}" for group in (*GROUPS, "total") for kind in ("rms", "scale_free")]
    lines = [",".join(["step", *names, "lora_A_norm", "lora_B_norm"])]
    for window in run.windows():
        if not window.gradients:
            continue
        row: list[float | None] = []
        for group in (*GROUPS, "total"):
            chosen = [item for item in window.gradients if group in (item.group, "total")]
            row += [_rms(chosen), norm_of(chosen, scale_free=True)]
        for part in ("lora_A", "lora_B"):
            row.append(norm_of([item for item in window.gradients if item.part == part]))
        cells = ["" if value is None else repr(value) for value in row]
        lines.append(",".join([str(window.last_step), *cells]))
    return "\n".join(lines) + "\n"


def _rms(records: Sequence[GradientStats]) -> float | None:
    norm = norm_of(records)
    return None if norm is None else norm / math.sqrt(sum(item.numel for item in records))


def _columns(file: Path) -> dict[str, list[float | None]]:
    header, *rows = [line.split(",") for line in file.read_text(encoding="utf-8").splitlines()]
    return {
        name: [float(row[at]) if row[at] else None for row in rows]
        for at, name in enumerate(header)
    }
