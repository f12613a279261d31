# pyright: strict
"""A run in the files of a router weight tracker.

```
router_weight_stats_step_{N}.json   one per window: step, global_step, layers, history
router_weight_summary.json          total_steps, first_step, last_step, layers_tracked
```

The weights themselves are not in a run folder, so there are no ``router_weight_snapshot_*`` files.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from moetrace.export.files import Drafts, json_text
from moetrace.export.weight_layers import layer_keys, layers_of
from moetrace.run import Run
from moetrace.weight_stats import WeightStats

__all__ = ["write_weight_tracking"]

_KEY = re.compile(r"layer_[0-9]{1,9}")


def write_weight_tracking(run: Run, drafts: Drafts) -> int:
    """Write the files; layers are called ``layer_0`` as that tracker calls them.

    Args:
        run: The run.
        drafts: Where to.

    Returns:
        How many windows hold weights.

    Raises:
        ValueError: None does.
    """
    keys = _keys(run)
    steps: list[int] = []
    for window in run.windows():
        if not window.weights:
            continue
        told = window.health.get("step")
        record: dict[str, Any] = {
            "step": told if isinstance(told, int) else window.last_step,
            "global_step": window.last_step,
            "layers": layers_of(_renamed(window.weights, keys)),
        }
        name = f"router_weight_stats_step_{int(window.last_step)}.json"
        drafts.write(name, json_text({**record, "history": [record]}))
        steps.append(window.last_step)
    if not steps:
        raise ValueError(
            "found no router weights in this run; record them with "
            "attach(model, run, probes=[moetrace.WeightProbe()])"
        )
    summary = {
        "total_steps": len(steps),
        "first_step": min(steps),
        "last_step": max(steps),
        "layers_tracked": list(keys.values()),
    }
    drafts.write("router_weight_summary.json", json_text(summary))
    return len(steps)


def _keys(run: Run) -> dict[str, str]:
    """The key of every layer whose weights are in the run, in their order."""
    names = list(dict.fromkeys(stats.layer for window in run.windows() for stats in window.weights))
    if all(_KEY.fullmatch(name) for name in names):
        return {name: name for name in names}
    return dict(zip(names, layer_keys(names), strict=True))


def _renamed(records: Iterable[WeightStats], keys: dict[str, str]) -> list[WeightStats]:
    return [replace(stats, layer=keys[stats.layer]) for stats in records]
