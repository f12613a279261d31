"""What the routers decided in a trial forward beside what their experts received.

Letters: T tokens, E experts, K chosen per token.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from moetrace.diagnosis.decision import Decision
from moetrace.diagnosis.finding import Finding
from moetrace.diagnosis.health import UNREAD
from moetrace.diagnosis.receipt import Receipt
from moetrace.diagnosis.structure import replaced_forward
from moetrace.diagnosis.windows import MANY_DROPPED
from moetrace.diagnosis.witness import Witness

__all__ = ["compared", "received_of"]

SEEN_BY = {
    "rows": "rows that each expert was called with",
    "ids": "ids that the experts were called with",
    "sizes": "sizes that the experts were called with",
    "used": "read where it is used",
}
"""Where a receipt comes from, by its kind."""

ENOUGH = 20
"""Assignments per expert from which a uniform router leaves none unchosen: e**-20 is its chance."""

EVERY_TOKEN = "every expert computes every token, and the choice is applied as a mask"


def compared(model: nn.Module, witnesses: Sequence[Witness]) -> list[Finding]:
    """What the trial shows, one finding a kind.

    Args:
        model: The model that was run.
        witnesses: One per site.
    """
    ran = [witness for witness in witnesses if witness.read]
    return [
        *_not_reached(model, [witness for witness in witnesses if not witness.read]),
        *_gathered(ran, _differs, "not-run-as-decided", "error", FOLLOW),
        *_gathered(ran, _double_softmax, "logits-are-probabilities", "error", RESCORE),
        *_gathered(ran, _no_probabilities, "not-probabilities", "error", RESCORE),
        *_gathered(ran, _outside, "out-of-range", "error", COMPARE_E),
        *_gathered(ran, _other_scoring, "other-scoring", "warning", RESCORE),
        *_gathered(ran, _misfit, "mask-not-applied", "warning", GIVE_MASK),
        *_dropped(ran),
        *_gathered(ran, _weightless, "zero-weight", "note", "nothing, if the router means it"),
        *_gathered(ran, _no_weights, "experts-without-weights", "note", SKIPPED),
        *_gathered(ran, _unused, "unused-in-trial", "warning", MORE_TOKENS),
        *_gathered(ran, _every_token, "all-experts-run", "note", COST),
        *_gathered(ran, _invisible, "not-visible", "note", BY_HAND),
    ]


FOLLOW = (
    "the experts do not follow the router: read the block's forward between the two "
    "(transformers 5.23's NLLB-MoE makes its choice one-hot twice)"
)
RESCORE = "counts are right, entropies are not: let the router say how it scores (router.scoring)"
COMPARE_E = "compare num_experts of the configuration with the router's weight"
GIVE_MASK = "padding is counted there: give the mask of these tokens with tracer.tokens(mask=...)"
SKIPPED = "nothing, if these are identity, zero or skip experts: they cost no computation"
MORE_TOKENS = "their weights get no gradient from such a batch: watch dead_experts in training"
COST = "nothing for the counts; the computation saves nothing by being sparse"
BY_HAND = "trust the router, or check by hand: fill an unchosen expert with NaN and run"


def received_of(witness: Witness) -> tuple[tuple[int, ...] | None, str]:
    """Assignments per expert that the experts received and where that was seen, or why not."""
    receipt = witness.receipt()
    if _gets_all(witness, receipt):
        return None, EVERY_TOKEN
    if not receipt.kind:
        return None, receipt.why_not
    counts = _best(witness.decision, receipt)
    return tuple(counts), SEEN_BY[receipt.kind]


def _best(decision: Decision, receipt: Receipt) -> list[int]:
    """With or without what has no weight, whichever the router's counts are."""
    E = len(receipt.counts)
    return receipt.counts if receipt.counts == decision.counts[:E] else receipt.effective


def _gets_all(witness: Witness, receipt: Receipt) -> bool:
    T, E = witness.decision.tokens, witness.site.num_experts
    if receipt.kind == "rows":
        # Zero rows tell a masked expert from one that got a token; without them nothing does.
        full = set(receipt.effective) == {receipt.counts[0]} and receipt.counts[0] >= T > 0
        return full and witness.decision.counts[: len(receipt.counts)] != receipt.counts
    return not receipt.kind and T > 0 and receipt.rows == T * E


def _differs(witness: Witness) -> tuple[int, int, str] | None:
    received, _ = received_of(witness)
    if received is None or not _more_than_decided(witness, received):
        return None
    decided = witness.decision.counts
    chosen = sum(count > 0 for count in decided)
    got = [expert for expert, count in enumerate(received) if count]
    who = f"only experts {_listed(got)}" if len(got) < chosen else "others"
    text = (
        f"the router chose {chosen} of {len(decided)} experts and {who} ran: decided "
        f"{_counts(decided)}, received {_counts(received)}"
    )
    return 1, 1, text


def _more_than_decided(witness: Witness, received: Sequence[int]) -> bool:
    decided = witness.decision.counts
    return any(got > had for had, got in zip(decided, received, strict=False))


def _lost(witness: Witness) -> tuple[int, int]:
    """Assignments that were dropped, by the router or behind it, and all that it should make."""
    decision, receipt = witness.decision, witness.receipt()
    received, _ = received_of(witness)
    behind = 0
    if received is not None and not _more_than_decided(witness, received):
        if receipt.kind == "ids":
            behind = sum(decision.counts) - sum(receipt.effective) - decision.weightless
        else:
            behind = sum(decision.counts[: len(received)]) - sum(received)
    fewer = 0 if witness.site.varies else decision.dropped
    return fewer + max(0, behind), decision.tokens * decision.choices


def _dropped(witnesses: Sequence[Witness]) -> list[Finding]:
    lost = {w.site.name: _lost(w) for w in witnesses}
    lost = {name: pair for name, pair in lost.items() if pair[0]}
    if not lost:
        return []
    amount, of = sum(a for a, _ in lost.values()), sum(b for _, b in lost.values())
    names = sorted(lost, key=lambda name: -lost[name][0] / lost[name][1])
    text = f"{amount:,} of {of:,} assignments ({amount / of:.1%}) reached no expert: capacity drops"
    advice = "these tokens skip their experts: raise the capacity factor, or balance the load"
    severity = "note" if amount < MANY_DROPPED * of else "warning"
    return [Finding("dropped", severity, text, advice, tuple(names))]


def _not_reached(model: nn.Module, witnesses: Sequence[Witness]) -> list[Finding]:
    findings: list[Finding] = []
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for witness in witnesses:
        if witness.routers_ran:
            key = (
                "not-read",
                "error",
                f"its router ran and nothing was read: {witness.unread}",
                UNREAD,
            )
        elif witness.blocks_ran:
            why = replaced_forward(model, witness.site.path) or "its block computes without it"
            key = (
                "router-not-called",
                "error",
                f"its block ran and its router did not: {why}",
                "turn the kernel library off for this block, or trace what it calls instead",
            )
        else:
            key = (
                "not-run",
                "note",
                "its part of the model was not run by this forward",
                "nothing, if these inputs do not need it",
            )
        groups.setdefault(key, []).append(witness.site.name)
    for (kind, severity, found, advice), names in groups.items():
        findings.append(Finding(kind, severity, found, advice, tuple(names)))
    return findings


Look = Callable[[Witness], tuple[int, int, str] | None]


def _gathered(
    witnesses: Sequence[Witness], look: Look, kind: str, severity: str, advice: str
) -> list[Finding]:
    """One finding for all sites that show the same; the text is that of the worst."""
    hits = {w.site.name: hit for w in witnesses if (hit := look(w)) is not None and hit[0]}
    if not hits:
        return []
    names = sorted(hits, key=lambda name: -_share(hits[name]))
    return [Finding(kind, severity, _total_text(hits, names), advice, tuple(names))]


def _share(hit: tuple[int, int, str]) -> float:
    return hit[0] / max(1, hit[1])


def _total_text(hits: Mapping[str, tuple[int, int, str]], names: Sequence[str]) -> str:
    amount, of = sum(hits[name][0] for name in names), sum(hits[name][1] for name in names)
    return hits[names[0]][2].format(amount=amount, of=of)


def _double_softmax(witness: Witness) -> tuple[int, int, str] | None:
    scoring, looks = witness.site.scoring, witness.decision.looks_like
    if scoring == "probabilities" or looks not in ("probabilities", "scores"):
        return None
    if looks == "scores":
        # Between 0 and 1 a few logits may be by chance; a sigmoid's or a ReLU's are always.
        return None
    return 1, 1, f"what is read as logits adds up to 1 per token, and {scoring} is applied to it"


def _no_probabilities(witness: Witness) -> tuple[int, int, str] | None:
    looks = witness.decision.looks_like
    if witness.site.scoring != "probabilities" or looks in ("", "probabilities"):
        return None
    return 1, 1, "what is read as probabilities does not add up to 1 per token"


def _other_scoring(witness: Witness) -> tuple[int, int, str] | None:
    explained, scoring = witness.decision.explained_by, witness.site.scoring
    if not explained or scoring in explained or witness.decision.looks_like == "probabilities":
        return None
    names = " or ".join(sorted(explained))
    return 1, 1, f"the mixing weights are of {names}, and the logits are read as {scoring}"


def _outside(witness: Witness) -> tuple[int, int, str] | None:
    of = witness.decision.tokens * witness.decision.choices
    return witness.decision.outside, of, "{amount:,} of {of:,} ids are of no expert that exists"


def _misfit(witness: Witness) -> tuple[int, int, str] | None:
    decision = witness.decision
    text = f"a padding mask of {decision.misfit} tokens does not fit the {decision.tokens} it saw"
    return decision.misfit, 1, text


def _weightless(witness: Witness) -> tuple[int, int, str] | None:
    skipped = sum(witness.decision.counts[witness.tables :])
    amount = witness.decision.ignored - skipped
    of = witness.decision.tokens * witness.decision.choices
    if amount <= 0:
        return None
    return amount, of, "{amount:,} of {of:,} choices carry a weight of 0: counted, without effect"


def _no_weights(witness: Witness) -> tuple[int, int, str] | None:
    counts, tables = witness.decision.counts, witness.tables
    if tables >= len(counts):
        return None
    which = _listed(list(range(tables, len(counts))))
    kind = (
        "identity experts" if len(counts) - tables == witness.site.identity_experts else "experts"
    )
    text = f"{{amount:,}} of {{of:,}} assignments went to {kind} without weights ({which})"
    return max(1, sum(counts[tables:])), sum(counts), text


def _unused(witness: Witness) -> tuple[int, int, str] | None:
    decision, E = witness.decision, len(witness.decision.counts)
    if decision.tokens * decision.choices < ENOUGH * E:
        return None
    return decision.counts.count(0), E, "{amount:,} of {of:,} experts were chosen by no token"


def _every_token(witness: Witness) -> tuple[int, int, str] | None:
    return int(_gets_all(witness, witness.receipt())), 1, EVERY_TOKEN


def _invisible(witness: Witness) -> tuple[int, int, str] | None:
    received, why = received_of(witness)
    if received is not None or why == EVERY_TOKEN:
        return None
    return 1, 1, f"what the experts received is not visible: {why.replace('{', '(')}"


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown}, ..." if len(numbers) > 8 else shown


def _counts(counts: Sequence[int]) -> str:
    return f"[{', '.join(map(str, counts[:8]))}{', ...' if len(counts) > 8 else ''}]"
