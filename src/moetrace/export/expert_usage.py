# pyright: strict
"""A run in the file of an expert-usage tracker.

```
expert_usage_summary.json   total_tokens_processed, hot_experts_count, hot_experts, layer_stats
```

It is of the newest window, with the tokens of all windows, all ranks together.
"""

from moetrace.export.files import Drafts, json_text
from moetrace.index_stats import IndexStats
from moetrace.run import Run
from moetrace.usage_summary import usage_summary

__all__ = ["write_expert_usage"]


def write_expert_usage(run: Run, drafts: Drafts) -> int:
    """Write the file.

    Args:
        run: The run.
        drafts: Where to.

    Returns:
        How many windows hold tables of experts.

    Raises:
        ValueError: None does.
    """
    newest: tuple[IndexStats, ...] = ()
    tokens: dict[str, int] = {}
    windows = 0
    for window in run.windows():
        for record in window.indices:
            tokens[record.layer] = tokens.get(record.layer, 0) + record.tokens
        newest = window.indices or newest
        windows += bool(window.indices)
    if not windows:
        raise ValueError(
            "found no tables of experts in this run; count them with "
            "attach(model, run, probes=[moetrace.IndexProbe()])"
        )
    found = usage_summary(newest, tokens=max(tokens.values()))
    layers = {str(at): stats for at, stats in found["layer_stats"].items()}
    drafts.write("expert_usage_summary.json", json_text({**found, "layer_stats": layers}))
    return windows
