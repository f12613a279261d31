"""What the tracer's own state says, as every snapshot carries it in ``health``."""

from collections.abc import Mapping
from typing import Any

from moetrace.diagnosis.finding import Finding

__all__ = ["UNREAD", "WITHHELD", "check_health"]

WITHHELD = "pass readers=[...] with a reader that knows how it chooses, see docs/readers.md"
UNREAD = "write a reader of three lines for it (readers=[...]), see docs/readers.md"

_FINDINGS = {
    "errors": (
        "counting-failed",
        "error",
        "{} forwards could not be counted",
        "the log names the exception; a reader of your own is the usual cause",
    ),
    "unread": (
        "not-read",
        "error",
        "{} forwards of routers ran and could not be read: they are in no count",
        UNREAD,
    ),
    "withheld": (
        "withheld",
        "error",
        "what was read of {} cannot be right, and is not written",
        WITHHELD,
    ),
    "masks_not_applied": (
        "mask-not-applied",
        "warning",
        "{} forwards had a padding mask that does not fit the tokens of a router",
        "padding is counted there: give the mask of these tokens with tracer.tokens(mask=...)",
    ),
    "lost_layers": (
        "router-replaced",
        "error",
        "{} routers were replaced after attach and count nothing any more",
        "close() the tracer and attach again; to have one run, attach after the model is complete",
    ),
    "failed_sinks": (
        "sink-failed",
        "warning",
        "{} raised while it wrote a snapshot",
        "the run folder has every window: look at tracer.failed_sinks, mend it, read the run",
    ),
    "coalesced_windows": (
        "coalesced",
        "note",
        "{} windows were merged with the next, since the writer was behind",
        "nothing is lost but resolution; a slow disk or a small every= is the usual cause",
    ),
    "sample": (
        "sampled",
        "note",
        "one of every {} steps was counted (sample=)",
        "nothing; multiply tokens by that number to compare with the batch",
    ),
}
"""Kind, severity, text and advice by the name in ``health``."""


def check_health(health: Mapping[str, Any]) -> list[Finding]:
    """A finding for each entry that is told; names that are not known here are left."""
    return [
        Finding(kind, severity, found.format(health[name]), advice)
        for name, (kind, severity, found, advice) in _FINDINGS.items()
        if health.get(name)
    ]
