"""The certificate as a page of the documentation."""

import datetime
from collections.abc import Iterable, Sequence

from tests.coverage.certificate import Row
from tests.coverage.look_alikes import LOOK_ALIKES
from tests.coverage.scan import Suspect

__all__ = ["render", "summary"]

_HEAD = """\
# Coverage

<!-- Written by `python -m tests.coverage_certificate`; do not edit. -->

Every architecture with a mixture of experts in transformers {transformers}, found by reading its
sources. A tiny random model of each (3 layers, 8 experts, 2 per token where it can, biases of the
choice not zero) is run with padding, once in train mode and once in eval mode, under
`moetrace.attach(model, every=1)` with no further argument; some once more with another setting.
What moetrace counted per layer and expert is compared with what the experts were called with, or
with the router's rule computed again where that does not say it; the mean entropy with the one of
the router's own normalised scores in float64; the name of each site with the name of its block.
{date}, torch {torch}, moetrace {moetrace}, on a CPU.

**{summary}**

- *counts*: equal for every expert of every layer in both modes, padding left out, or what happened
  instead. *silent*: attached, but nothing was counted, and moetrace said so after the first window.
- *drops missed*: assignments are right, but not how many of them a capacity limit threw away.
- *no router*: the caller chooses; attach refuses the model, and says what the note says.
- *entropy*: equal to {tolerance} nats; `-` where there are no scores of all experts.
- *scores*: what turns the logits into scores, as the weights of the chosen experts show it.

"""

_COLUMNS = (
    "architecture",
    "block",
    "router",
    "reader",
    "sites",
    "counts",
    "entropy",
    "scores",
    "notes",
)

_LEFT = """
## Looked at and left

{count} more folders look in some way as if they chose among experts, and do not.

| folder | what made it a suspect | what it is |
| --- | --- | --- |
"""


def render(rows: Sequence[Row], suspects: Iterable[Suspect], versions: dict[str, str]) -> str:
    """The page; ``versions`` names transformers, torch, moetrace and the tolerance."""
    today = datetime.date.today().isoformat()
    text = _HEAD.format(**versions, date=today, summary=summary(rows))
    text += _line(_COLUMNS) + _line("---" for _ in _COLUMNS)
    text += "".join(_line(_cells(row)) for row in rows)
    left = [item for item in suspects if item.folder in LOOK_ALIKES]
    text += _LEFT.format(count=len(left))
    for item in left:
        why = "; ".join([*(f"it has a {part}" for part in item.parts), *item.hints][:2])
        text += _line((item.folder, why, LOOK_ALIKES[item.folder]))
    return text


def summary(rows: Sequence[Row]) -> str:
    """How many are exact, in one sentence."""
    architectures = {row.architecture for row in rows}
    short = {row.architecture for row in rows if not row.exact}
    refused = sorted({row.architecture for row in rows if row.refused})
    built = [row for row in rows if row.counts != "not built"]
    text = (
        f"{len(architectures - short)} of {len(architectures)} architectures are exact, "
        f"{sum(row.exact for row in rows)} of {len(built)} kinds of block; "
        f"{len(rows) - len(built)} could not be built."
    )
    if refused:
        text += f" Without a router of its own, and refused as such: {', '.join(refused)}."
    return text


def _cells(row: Row) -> Iterable[str]:
    notes = list(row.notes[:1])
    if not row.exact and not row.refused:
        notes += [line.partition(";")[0].partition(": ")[0] for line in row.said[:1]]
    if row.variant:
        notes.insert(0, f"with {row.variant}")
    return (
        row.architecture,
        row.block or "-",
        row.router or "-",
        row.reader.removesuffix("Reader") or "-",
        str(row.sites),
        row.counts,
        row.entropy,
        row.scoring or "-",
        "; ".join(notes),
    )


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"
