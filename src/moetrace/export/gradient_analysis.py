# pyright: strict
"""A run in the files of an analysis of gradient norms.

```
gradient_analysis.group_norms.csv   step,embed_norm,attention_norm,mlp_norm,lm_head_norm,total_norm
gradient_analysis.layer_norms.csv   step,layer_0_attention,layer_0_mlp,layer_1_attention,...
gradient_analysis.summary.json      per group mean, std, max, min, peak_step
```

A norm is the root of the sum of squares over parameters, and the root mean square over the finite
steps of its window; with windows of one step it is that of the step. A group without parameters
has norm 0, a window without a finite step an empty field. Routers and experts count with the MLP of
their block; ``total_norm`` is over all parameters, also those that are in none of these groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moetrace.export.csv_file import field
from moetrace.export.files import Drafts, json_text
from moetrace.export.weight_layers import layer_keys
from moetrace.gradient_stats import GradientStats, norm_of
from moetrace.run import Run

__all__ = [
    "GROUPS_SHOWN",
    "GradientRow",
    "blocks_of",
    "gradient_rows",
    "write_gradient_analysis",
]

GROUPS_SHOWN = {
    "embed": ("embed",),
    "attention": ("attention",),
    "mlp": ("mlp", "router", "experts"),
    "lm_head": ("lm_head",),
}
"""Columns, and the groups of parameters that count in each."""

_PARTS = ("attention", "mlp")
_STEM = "gradient_analysis"


@dataclass(frozen=True, slots=True)
class GradientRow:
    """The gradients of one window.

    Attributes:
        step: Its last step.
        records: One per block, group and part, all measured at the same point.
    """

    step: int
    records: tuple[GradientStats, ...]

    def norm(self, *groups: str, layer: str | None = None) -> float | None:
        """Norm of some groups, of a block, of both, or of everything; 0 where there is nothing.

        Args:
            groups: Names in `moetrace.parameter_groups.GROUPS`; all of them where none is named.
            layer: Dotted name of a block; None for the whole model.

        Returns:
            The norm, or None where no step of the window was finite.
        """
        chosen = [
            record
            for record in self.records
            if (not groups or record.group in groups) and layer in (None, record.layer)
        ]
        return norm_of(chosen) if chosen else 0.0


def gradient_rows(run: Run) -> list[GradientRow]:
    """The training windows that hold gradients.

    Where a window has them before clipping and at the optimizer's step, those before clipping.

    Args:
        run: The run.

    Raises:
        ValueError: There is none.
    """
    rows: list[GradientRow] = []
    for window in run.windows():
        kinds = {record.measured for record in window.gradients}
        kind = "pre_clip" if "pre_clip" in kinds else "at_step"
        records = tuple(record for record in window.gradients if record.measured == kind)
        if records:
            rows.append(GradientRow(window.last_step, records))
    if not rows:
        raise ValueError(
            "found no gradients in this run; record them with "
            "attach(model, run, probes=[moetrace.GradientProbe()]) and tracer.on_gradients()"
        )
    return rows


def blocks_of(rows: Sequence[GradientRow]) -> list[str]:
    """The blocks that have gradients, in the order of their numbers: 2 before 10."""
    return sorted({r.layer for row in rows for r in row.records if r.layer}, key=_by_number)


def write_gradient_analysis(run: Run, drafts: Drafts) -> int:
    """Write the files.

    Args:
        run: The run.
        drafts: Where to.

    Returns:
        How many windows hold gradients.

    Raises:
        ValueError: None does.
    """
    rows = gradient_rows(run)
    steps = [row.step for row in rows]
    groups = {name: [row.norm(*own) for row in rows] for name, own in GROUPS_SHOWN.items()}
    groups["total"] = [row.norm() for row in rows]
    named = {f"{group}_norm": values for group, values in groups.items()}
    drafts.write(f"{_STEM}.group_norms.csv", _csv(steps, named))

    blocks = blocks_of(rows)
    layers = {
        f"{key}_{part}": [row.norm(*GROUPS_SHOWN[part], layer=block) for row in rows]
        for key, block in zip(layer_keys(blocks), blocks, strict=True)
        for part in _PARTS
    }
    drafts.write(f"{_STEM}.layer_norms.csv", _csv(steps, layers))
    told = {group: _summary(steps, values) for group, values in groups.items()}
    drafts.write(f"{_STEM}.summary.json", json_text(told))
    return len(rows)


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _csv(steps: Sequence[int], columns: dict[str, list[float | None]]) -> bytes:
    # the header stands as those files have it, without quotes
    lines = [",".join(["step", *columns])]
    for at, step in enumerate(steps):
        lines.append(",".join([str(step), *(field(values[at]) for values in columns.values())]))
    return ("\n".join(lines) + "\n").encode("utf-8")


def _summary(steps: Sequence[int], values: Sequence[float | None]) -> dict[str, float | int | None]:
    known = [(value, step) for value, step in zip(values, steps, strict=True) if value is not None]
    if not known:
        return dict.fromkeys(("mean", "std", "max", "min", "peak_step"))
    norms = np.array([value for value, _ in known])
    return {
        "mean": float(norms.mean()),
        "std": float(norms.std()),
        "max": float(norms.max()),
        "min": float(norms.min()),
        "peak_step": known[int(norms.argmax())][1],
    }
