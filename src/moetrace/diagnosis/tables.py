"""What the newest window of each table of experts says that no balance explains."""

from collections.abc import Iterable, Mapping

from moetrace.diagnosis.finding import Finding, SiteState
from moetrace.index_stats import IndexStats
from moetrace.index_verdict import ADVICE, index_verdicts
from moetrace.look_ups import LookUps

__all__ = ["check_look_ups", "check_tables", "table_states"]

_KINDS = {
    "unreachable_experts": "unreachable-experts",
    "dead_sub_keys": "dead-sub-keys",
    "low_coverage": "low-coverage",
}
"""Verdicts that are about the layer itself; what is hot is for alerts."""

_TRAIN = (
    "a table is counted in train mode, with gradients, between on_step_begin() and on_step_end(); "
    "no backward is needed"
)

_STRUCTURAL = "look first at how an index is formed from its sub-keys (i * columns + j); "


def check_tables(tables: Iterable[IndexStats]) -> list[Finding]:
    """Findings about tables of experts, one for each that has something wrong.

    Args:
        tables: The newest record of each table.
    """
    findings = []
    for table in tables:
        for verdict in index_verdicts(table):
            if verdict.met and verdict.kind in _KINDS:
                first = _STRUCTURAL if verdict.kind == "unreachable_experts" else ""
                kind, advice = _KINDS[verdict.kind], f"{first}{ADVICE}"
                findings.append(Finding(kind, "warning", verdict.text, advice, (table.layer,)))
        if table.out_of_range:
            text = f"{table.out_of_range} look-ups of experts that the table does not have"
            advice = "on a GPU such a look-up ends the process; look at how the index is formed"
            findings.append(Finding("out-of-range", "error", text, advice, (table.layer,)))
    return findings


def check_look_ups(asked: Mapping[str, LookUps], *, stepped: bool) -> list[Finding]:
    """Findings about tables that were looked up where nothing is counted, or not at all.

    Args:
        asked: How often each was looked up.
        stepped: Whether a step has finished.
    """
    findings = []
    for layer, seen in asked.items():
        if seen.counted and seen.outside:
            text = f"{seen.outside} look-ups in evaluation or a phase of your own are in no window"
            findings.append(Finding("uncounted-look-ups", "note", text, _TRAIN, (layer,)))
        elif not seen.counted and seen.outside + seen.without_gradients:
            text = (
                f"looked up {seen.outside} times in evaluation or a phase of your own and "
                f"{seen.without_gradients} times without gradients, which is not counted, and "
                "never in training"
            )
            findings.append(Finding("uncounted-look-ups", "warning", text, _TRAIN, (layer,)))
        elif not seen.counted and stepped:
            advice = "if its ids come in another way, give IndexProbe(indices_from=...)"
            text = "counted nothing: its forward did not run, or takes its ids otherwise"
            findings.append(Finding("silent", "warning", text, advice, (layer,)))
    return findings


def table_states(
    names: Iterable[str],
    newest: Mapping[str, IndexStats],
    asked: Mapping[str, LookUps] | None = None,
) -> list[SiteState]:
    """State of every table, as of any site.

    Args:
        names: Layers whose look-ups are counted.
        newest: The newest record of each that has one.
        asked: How often each was looked up, where the tracer is asked and not a run.
    """
    return [
        _unwritten(name, (asked or {}).get(name))
        if (found := newest.get(name)) is None
        else SiteState(
            name=name,
            router="table",
            rule="IndexMeter",
            num_experts=found.num_experts,
            top_k=(found.draws + found.out_of_range) // found.tokens if found.tokens else 0,
            scoring="none" if found.score_total is None else "scores of the layer",
            state="counted" if found.calls else "silent",
            calls=found.calls,
            tokens=found.tokens,
        )
        for name in names
    ]


def _unwritten(name: str, seen: LookUps | None) -> SiteState:
    """State of a table that no closed window holds."""
    if seen is None or not seen.counted:
        return SiteState(name, "table", "IndexMeter", state="silent")
    return SiteState(name, "table", "IndexMeter", num_experts=seen.num_experts, calls=seen.counted)
