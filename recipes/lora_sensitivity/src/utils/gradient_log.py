"""The gradient norms of an experiment, read back from its files."""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.errors import ExperimentError

__all__ = ["GROUPS", "GradientLog", "load_gradient_log_from_csv"]

GROUPS = ("embed", "attention", "mlp", "lm_head")
"""Groups of parameters, without the total."""

_LAYER = re.compile(r"layer_(\d+)_(attention|mlp)")


@dataclass(frozen=True, slots=True, eq=False)
class GradientLog:
    """Gradient norms of one experiment.

    Letters: S rows, L blocks.

    Attributes:
        steps: Last step of each row, shape ``(S,)``.
        groups: Norm by group, and ``"total"``, each of shape ``(S,)``; NaN where no step of a row
            was finite.
        blocks: Numbers of the blocks; empty where they were not measured.
        layers: Norm by ``"attention"`` and ``"mlp"``, each of shape ``(S, L)``.
        normalized: Norms that do not grow with rank, alpha or size, by column; empty where the file
            is not there.
    """

    steps: NDArray[np.int64]
    groups: Mapping[str, NDArray[np.float64]]
    blocks: tuple[int, ...]
    layers: Mapping[str, NDArray[np.float64]]
    normalized: Mapping[str, NDArray[np.float64]]

    @property
    def trained(self) -> tuple[str, ...]:
        """Groups that have parameters."""
        return tuple(name for name in GROUPS if np.nanmax(self.groups[name], initial=0.0) > 0)

    def block_norms(self, part: str) -> NDArray[np.float64]:
        """Norms of the blocks, shape ``(S, L)``.

        Args:
            part: ``"attention"``, ``"mlp"``, or ``"all"`` for both: the root of the sum of their
                squares, since norms do not add up.
        """
        if part != "all":
            return self.layers[part]
        return np.asarray(np.hypot(self.layers["attention"], self.layers["mlp"]))


def load_gradient_log_from_csv(base: str | os.PathLike[str]) -> GradientLog:
    """The log whose files begin with ``base``.

    Args:
        base: Path without the ending: ``results/e2e_all/gradient_analysis``.

    Raises:
        ExperimentError: The file of the groups is not there, or not such a file.
    """
    steps, columns = _table(Path(f"{os.fspath(base)}.group_norms.csv"))
    try:
        groups = {name: columns[f"{name}_norm"] for name in (*GROUPS, "total")}
    except KeyError as error:
        raise ExperimentError(f"found no column {error} in {base}.group_norms.csv") from error
    normalized = Path(f"{os.fspath(base)}.normalized_norms.csv")
    per_layer = Path(f"{os.fspath(base)}.layer_norms.csv")
    by_layer = _table(per_layer)[1] if per_layer.exists() else {}
    numbers = sorted({int(match[1]) for name in by_layer if (match := _LAYER.fullmatch(name))})
    nothing = np.zeros(len(steps))
    layers = {
        part: _stacked([by_layer.get(f"layer_{number}_{part}", nothing) for number in numbers])
        for part in ("attention", "mlp")
    }
    return GradientLog(
        steps,
        groups,
        tuple(numbers),
        layers if numbers else {},
        _table(normalized)[1] if normalized.exists() else {},
    )


def _stacked(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.stack(columns, axis=1) if columns else np.zeros((0, 0))


def _table(path: Path) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file))
        steps = np.array([int(row[0]) for row in rows], np.int64)
        columns = {
            name: np.array([float(row[at]) if row[at] else np.nan for row in rows])
            for at, name in enumerate(header)
            if at
        }
    except OSError as error:
        raise ExperimentError(f"found no file {str(path)!r} ({error.strerror})") from error
    except (ValueError, IndexError) as error:
        raise ExperimentError(f"found no table of norms in {str(path)!r}: {error}") from error
    if not len(steps):
        raise ExperimentError(f"found no row in {str(path)!r}")
    return steps, columns
