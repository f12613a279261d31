"""The judgements of a run's rules in words."""

import sys
from collections.abc import Sequence
from typing import TextIO

from moetrace.check.judgement import Judgement, Sighting
from moetrace.printable import printable, span_text
from moetrace.show.columns import print_line

__all__ = ["show_check"]

INDENT = " " * 8


def show_check(
    judgements: Sequence[Judgement], *, faults: Sequence[str] = (), stream: TextIO | None = None
) -> None:
    """Print what became of each rule, and where one was broken.

    Args:
        judgements: What `check_run` found.
        faults: What of the run could not be read and so was not judged.
        stream: Where to; standard output by default.
    """
    out: TextIO = sys.stdout if stream is None else stream
    for judgement in judgements:
        rule = judgement.rule
        told = rule.text if rule.name == rule.text else f"{rule.name}: {rule.text}"
        print_line(f"{'holds' if judgement.holds else 'broken':<8}{printable(told)}", out)
        for remark in _remarks(judgement):
            print_line(INDENT + remark, out)
    for fault in faults:
        print_line(f"fault: {printable(fault)}; it is not judged", out)


def _remarks(judgement: Judgement) -> list[str]:
    figure, found = judgement.rule.figure, []
    if judgement.first is not None and judgement.worst is not None:
        found.append(_sighting(judgement.first, judgement) + ", for the first time")
        if judgement.worst != judgement.first:
            found.append(_sighting(judgement.worst, judgement) + ", the worst")
        found.append(f"{judgement.broken} of {judgement.judged} values break it")
    elif judgement.holds:
        found.append(
            f"{_count(judgement.judged, 'value')} in {_count(judgement.windows, 'window')}"
        )
    else:
        found += _nothing(judgement)
    for reason, count in judgement.withheld.items():
        found.append(f"{_count(count, 'value')} of {figure} withheld: {printable(reason)}")
    return found


def _sighting(found: Sighting, judgement: Judgement) -> str:
    rule, layer = judgement.rule, printable(found.layer)
    where = span_text(found.first_step, found.last_step)
    if rule.reduction is None:
        return f"{layer} has {found.value:g} in {where}"
    return f"{rule.reduction} is {found.value:g} in {where} (furthest off: {layer})"


def _nothing(judgement: Judgement) -> list[str]:
    rule, said = judgement.rule, "nothing to judge, so it does not hold"
    if judgement.withheld:
        return [said]
    where = f"of phase {rule.phase!r} with a layer {rule.layers!r} begins after step {rule.after}"
    return [said, printable(f"no window {where}")]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
