"""The diagnosis of a tracing that goes on: what is counted, what is hooked, and a trial forward."""

import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from moetrace.closed_window import stats_of
from moetrace.diagnosis.comparison import compared, received_of
from moetrace.diagnosis.finding import Diagnosis, Finding, SiteState, worst_first
from moetrace.diagnosis.health import UNREAD, WITHHELD, check_health
from moetrace.diagnosis.near_misses import check_near_misses, grouped
from moetrace.diagnosis.silence import check_silence
from moetrace.diagnosis.structure import (
    Traced,
    check_structure,
    missing_interfaces,
    replaced_forward,
    scored_by,
)
from moetrace.diagnosis.tables import check_look_ups, check_tables, table_states
from moetrace.diagnosis.trial import bare_model, refusal, run_once, untouched
from moetrace.diagnosis.windows import check_windows
from moetrace.diagnosis.witness import Witness
from moetrace.printable import printable
from moetrace.readers import Site
from moetrace.recording import Recording
from moetrace.routing_stats import RoutingStats, merge_stats
from moetrace.snapshot import Snapshot

__all__ = ["Attached", "diagnose"]

_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Attached:
    """What attach found and did, for a later look.

    Attributes:
        model: The model.
        traced: Every hooked router.
        near_misses: Candidates that were left.
        dropped_code: Whether compiled code was dropped.
    """

    model: weakref.ref[nn.Module]
    traced: tuple[Traced, ...]
    near_misses: tuple[Site, ...]
    dropped_code: bool = False


def diagnose(
    recording: Recording, attached: Attached, inputs: Any = None, *, training: bool | None = None
) -> Diagnosis:
    """What is wrong with a tracing.

    Args:
        recording: Its counts and its state.
        attached: What attach found.
        inputs: What to run the model with once, or None to run nothing.
        training: Train or eval mode in that forward; None leaves every module as it is.
    """
    model = attached.model()
    recording.settle(time.monotonic() + _PATIENCE)
    open_window = _open_window(recording, attached)
    windows = [*recording.writer.newest.values(), *([open_window] if open_window else [])]
    stats = _by_site(windows)
    counted = {name for name, found in stats.items() if found.calls}
    newest = {item.layer: item for window in windows for item in window.indices}
    routed = {item.site.name for item in attached.traced}
    asked = {name: found for name, found in recording.look_ups.items() if name not in routed}
    tables = table_states(asked, newest, asked)
    witnesses: list[Witness] = []
    trial: list[Finding] = []
    if inputs is not None and model is not None and not recording.closed:
        witnesses, trial = _trial(recording, attached, model, inputs, training)
    stated = {item.site.name: item.site.top_k for item in attached.traced}
    findings = [
        *_of_the_process(recording, model),
        *_less_asked(check_windows(windows, stated), asked=bool(witnesses)),
        *(check_structure(model, attached.traced) if model is not None else ()),
        *check_tables(newest.values()),
        *check_look_ups(asked, stepped=recording.step > 0),
        *trial,
        *_unread(recording, attached),
        *_withheld(recording),
        *_silence(model, attached, counted, recording, witnesses),
        *check_health(_health(recording)),
        *_of_attach(attached),
        *_unmasked(model, stats.values(), inputs, witnesses),
        *check_near_misses(grouped(attached.near_misses)),
    ]
    by_name = {witness.site.name: witness for witness in witnesses}
    return Diagnosis(
        "a model that is gone" if model is None else type(model).__name__,
        (*(_state(item, stats, by_name.get(item.site.name)) for item in attached.traced), *tables),
        worst_first(_once(findings)),
    )


def _less_asked(findings: list[Finding], *, asked: bool) -> list[Finding]:
    """Without the guess that a trial has answered."""
    guess = ("logits-are-probabilities", "note")
    return [item for item in findings if not (asked and (item.kind, item.severity) == guess)]


def _open_window(recording: Recording, attached: Attached) -> Snapshot | None:
    """What was counted and is in no closed window yet, of all phases together."""
    if recording.foreign():
        return None
    sums = recording.open_sums()
    routing = [
        stats_of(item.site, found)
        for item, found in zip(attached.traced, sums, strict=True)
        if item.recorded
    ]
    if not any(stats.calls for stats in routing):
        return None
    first = recording.step
    return Snapshot("", 0, 0, 0, "open", first, first, 0.0, tuple(routing))


def _by_site(windows: Sequence[Snapshot]) -> dict[str, RoutingStats]:
    records: dict[str, list[RoutingStats]] = {}
    for window in windows:
        for stats in window:
            records.setdefault(stats.layer, []).append(stats)
    return {name: merge_stats(found) for name, found in records.items()}


def _health(recording: Recording) -> Mapping[str, Any]:
    failed = [feed.name for feed in recording.writer.feeds if feed.first_error is not None]
    return {**recording.remarks.told(), "failed_sinks": ", ".join(failed)}


def _of_the_process(recording: Recording, model: nn.Module | None) -> list[Finding]:
    findings = []
    if recording.foreign():
        text = "this is a forked child of the process that attached; nothing is counted here"
        findings.append(
            Finding("forked", "error", text, "attach in this process, or ask the other")
        )
    if recording.closed:
        findings.append(Finding("closed", "note", "the tracer is closed", "attach again to go on"))
    if model is None:
        findings.append(Finding("model-gone", "note", "the model was deleted", "close the tracer"))
    if recording.writer.log_error is not None:
        text = f"the run folder could not be written: {recording.writer.log_error}"
        advice = "windows wait in memory and are written when it can be again: make room, or access"
        findings.append(Finding("run-not-written", "error", text, advice))
    missing = missing_interfaces()
    if missing:
        text = f"this torch lacks {', '.join(missing)}; a fallback is in use"
        findings.append(Finding("fallback", "note", text, "nothing; counts are the same"))
    return findings


def _of_attach(attached: Attached) -> list[Finding]:
    findings = []
    if attached.dropped_code:
        text = "code had been compiled in this process before attach; it was dropped"
        advice = "nothing; it compiles once more. Attach before the first compiled call to save it"
        findings.append(Finding("compiled-before", "note", text, advice))
    for site in (item.site for item in attached.traced if item.site.shared):
        others = printable(", ".join(site.aliases))
        text = f"its router is that of {others} too, and its counts are of all of them together"
        advice = "nothing, if that was meant; a copy of the router per layer would tell them apart"
        findings.append(Finding("shared-router", "note", text, advice, (site.name,)))
    left = [item.site.name for item in attached.traced if not item.recorded]
    if left:
        text = f"{len(left)} of {len(attached.traced)} sites are hooked and not recorded (layers=)"
        advice = "nothing, if that was meant"
        findings.append(Finding("not-recorded", "note", text, advice, tuple(left)))
    return findings


def _unread(recording: Recording, attached: Attached) -> list[Finding]:
    """Sites that ran in the training and were not read, one finding for those of one reason."""
    unread = recording.remarks.unread()
    findings = []
    for why in dict.fromkeys(reason for _, _, reason in unread):
        forwards = sum(number for _, number, reason in unread if reason == why)
        sites = tuple(attached.traced[i].site.name for i, _, reason in unread if reason == why)
        text = f"its router ran and {forwards:,} forwards were not counted: {why}"
        findings.append(Finding("not-read", "error", text, UNREAD, sites))
    return findings


def _withheld(recording: Recording) -> list[Finding]:
    """Sites whose numbers cannot be right, one finding for those of one reason."""
    reasons = recording.writer.withheld
    return [
        Finding(
            "withheld",
            "error",
            f"its numbers are withheld: {why}",
            WITHHELD,
            tuple(name for name, reason in reasons.items() if reason == why),
        )
        for why in dict.fromkeys(reasons.values())
    ]


def _silence(
    model: nn.Module | None,
    attached: Attached,
    counted: set[str],
    recording: Recording,
    witnesses: Sequence[Witness],
) -> list[Finding]:
    """Silent sites that nothing has explained, with the forward that was replaced, if any."""
    steps = recording.step
    explained = {witness.site.name for witness in witnesses if not witness.read}
    explained |= {attached.traced[index].site.name for index, _, _ in recording.remarks.unread()}
    explained |= set(recording.writer.withheld)
    recorded = [item.site for item in attached.traced if item.recorded]
    names = [site.name for site in recorded if site.name not in explained]
    findings = check_silence(names, counted, steps=steps)
    replaced = {
        site.name: why
        for site in recorded
        if model is not None
        and site.name in names
        and site.name not in counted
        and (why := replaced_forward(model, site.path))
    }
    if counted or steps:
        for why in dict.fromkeys(replaced.values()):
            sites = tuple(name for name, text in replaced.items() if text == why)
            advice = (
                "its hooks may never fire: turn that off for this block, or trace what it calls"
            )
            findings.append(Finding("forward-replaced", "warning", why, advice, sites))
    return findings


def _unmasked(
    model: nn.Module | None, stats: Any, inputs: Any, witnesses: Sequence[Witness]
) -> list[Finding]:
    """Padding that nobody masks: seen in the inputs, or only possible."""
    config = getattr(model, "config", None)
    pad = getattr(config, "pad_token_id", None)
    if not isinstance(pad, int):
        return []
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    advice = "pass attention_mask to the model, or its mask to tracer.tokens(mask=...)"
    if isinstance(ids, Tensor) and witnesses:
        padding = int((ids == pad).sum())
        if not padding or any(witness.decision.masked for witness in witnesses):
            return []
        text = f"input_ids hold the padding id {pad} {padding:,} times and no mask came with them"
        return [Finding("no-mask", "warning", f"{text}: padding is counted", advice)]
    records = list(stats)
    if not any(record.tokens for record in records) or any(record.masked for record in records):
        return []
    text = f"no token was masked so far, and the model has a padding id ({pad})"
    return [Finding("no-mask", "note", text, f"if batches hold padding: {advice}")]


def _trial(
    recording: Recording,
    attached: Attached,
    model: nn.Module,
    inputs: Any,
    training: bool | None,
) -> tuple[list[Witness], list[Finding]]:
    refused = refusal(model)
    if refused:
        advice = "call doctor(inputs) on a copy of the model on one device"
        text = f"no trial forward was run: {refused}"
        return [], [Finding("trial-refused", "note", text, advice)]
    witnesses = [
        Witness(model, item.site, module, item.reader)
        for item in attached.traced
        if item.recorded and (module := item.module()) is not None and _reachable(model, item.site)
    ]
    try:
        with ExitStack() as stack:
            stack.enter_context(untouched(model, training=training))
            mask_of = stack.enter_context(recording.paused())
            for witness in witnesses:
                # The mask of tokens of one kind is not the running one; nothing is said of it.
                stack.enter_context(
                    witness.watching(mask_of if witness.site.kind is None else lambda: None)
                )
            run_once(bare_model(model), inputs)
    except Exception as error:
        text = f"the trial forward raised {type(error).__name__}: {error}"
        advice = "call the model with these inputs yourself; the training is as it was"
        return [], [Finding("trial-failed", "error", text, advice)]
    return witnesses, compared(model, witnesses)


def _reachable(model: nn.Module, site: Site) -> bool:
    try:
        model.get_submodule(site.path)
    except AttributeError:
        return False
    return True


def _state(item: Traced, stats: Mapping[str, RoutingStats], witness: Witness | None) -> SiteState:
    site, found = item.site, stats.get(item.site.name)
    counted = found is not None and found.calls > 0
    state = "counted" if counted else "silent" if item.recorded else "not recorded"
    ran = witness is not None and witness.read
    received, seen_by = received_of(witness) if witness is not None and ran else (None, "")
    scoring = site.scoring if found is None or not counted else found.scoring
    how, top_k = scored_by(item.module(), site.scoring), site.top_k
    if witness is not None and ran:
        top_k = top_k or witness.decision.choices
        if not (witness.decision.looks_like or counted or site.gate):
            scoring = "none"
        elif scoring in witness.decision.explained_by:
            how = "the mixing weights say so"
    if scoring == "none":
        how = "it shows no logits"
    return SiteState(
        name=site.name,
        router=site.router,
        rule=f"{site.reader} ({site.rule})" if site.rule else site.reader,
        num_experts=site.num_experts,
        top_k=top_k or (found.top_k if found is not None else 0),
        scoring=scoring,
        scored_by=how,
        state=state,
        calls=found.calls if found is not None else 0,
        tokens=found.tokens if found is not None else 0,
        decided=tuple(witness.decision.counts) if witness is not None and ran else None,
        received=received,
        seen_by=seen_by,
        identity_experts=site.identity_experts,
    )


def _once(findings: Sequence[Finding]) -> list[Finding]:
    """Without what has been told before, by a more exact source, of all of its sites."""
    told: dict[str, set[str]] = {}
    kept = []
    for finding in findings:
        if finding.kind not in told or not set(finding.sites) <= told[finding.kind]:
            kept.append(finding)
            told.setdefault(finding.kind, set()).update(finding.sites)
    return kept
