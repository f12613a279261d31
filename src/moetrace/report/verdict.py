"""The verdict: what is wrong, where, since when, in sentences whose every number is in the run.

A router that picks evenly at random is uneven too, by chance. So nothing is called uneven or dead
unless a uniform router would show as much in fewer than `RARE` of all windows, over all layers and
experts together.

Letters: T tokens, E experts, K chosen per token, p = K / E.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetrace.metrics import FAR_OUT, HEAVY, chance_of_dead, chance_of_maximum
from moetrace.printable import span_text
from moetrace.report.advice import ADVICE
from moetrace.report.finding import Finding
from moetrace.report.names import shown
from moetrace.report.payload import worst_layers
from moetrace.report.windows import Layer, Windows

__all__ = ["RARE", "verdict"]

RARE = 0.01
"""Below this chance a uniform router is ruled out."""

RECEDED = 1.2
"""How much further over the floor an earlier window has to be, to be told beside the last one."""

FALLEN = 0.5
"""Share of its first routing entropy below which a layer is told of by name."""

NAMED = 3
"""Layers or experts that a sentence names before it says how many more there are."""


def verdict(windows: Windows) -> list[Finding]:
    """What the last window of a phase says, the most important first, and since when.

    Args:
        windows: The windows of the phase, one row per snapshot; at least one.
    """
    if not windows.layers:
        return [Finding("note", "No router was recorded: there is no balance to judge.")]
    return [
        *_silent(windows),
        *_balance(windows),
        *_withheld(windows),
        *_dead(windows),
        *_falling(windows),
        _entropy(windows),
    ]


def _silent(windows: Windows) -> list[Finding]:
    """Layers that have routed tokens, and route none while others do."""
    routes = windows.tokens > 0
    if not routes[-1].any():
        return []
    gone = [at for at in range(len(windows.layers)) if routes[:, at].any() and not routes[-1, at]]
    if not gone:
        return []
    firsts = [int(np.flatnonzero(routes[:, at])[-1]) + 1 for at in gone]
    named = "; ".join(
        f"{shown(windows.layers[at].name)} {_since(windows, first)}"
        for first, at in sorted(zip(firsts, gone, strict=True))[:NAMED]
    )
    rest = f"; and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
    noun = "1 layer routes" if len(gone) == 1 else f"{len(gone)} layers route"
    text = f"{noun} no token any more while others do: {named}{rest}."
    return [Finding("bad", text, ADVICE["silent"])]


def _balance(windows: Windows) -> list[Finding]:
    where = span_text(*windows.spans[-1])
    worst = worst_layers(windows)
    if not worst:
        return [Finding("note", f"No layer has a balance to judge in {where}.")]
    at = worst[0]
    layer, name = windows.layers[at], shown(windows.layers[at].name)
    max_vio, floor = _last(windows, "max_vio", at), _last(windows, "max_vio_floor", at)
    if not _beyond_chance(windows, -1, at):
        return [
            Finding(
                "good",
                f"Within the noise of a uniform router: the most uneven layer in {where} is "
                f"{name}, MaxVio {max_vio:.3f} where chance alone gives {floor:.3f}.",
            )
        ]
    counts = windows.counts(at)[-1]
    hottest, tokens = int(counts.argmax()), int(windows.tokens[-1, at])
    excess = _last(windows, "max_vio_excess", at)
    far_out = excess >= FAR_OUT or (excess >= HEAVY and counts.max() >= 0.9 * tokens)
    tone = "bad" if far_out else "warn" if excess >= HEAVY else "note"
    word = {"bad": "far out of balance", "warn": "heavily uneven", "note": "uneven"}[tone]
    share = counts.max() / counts.sum()
    onset = _onset(windows, at)
    state = f"is {word}"
    if len(windows) > 1:
        state = f"has been {word} {_since(windows, onset.half)}"
    kind = {"bad": "collapse", "warn": "uneven", "note": ""}[tone]
    # from the first window on there is no checkpoint from before it
    advice = ADVICE["never_even" if onset.half == 0 else kind] if kind else ""
    advice = advice.format(step=windows.spans[onset.tenth or onset.half, 0])
    found = [
        Finding(
            tone,
            f"{name} {state}: expert {hottest} takes {share:.1%} of the "
            f"assignments, {share * layer.num_experts:.2f} times its fair share, in {where}.",
            advice,
        ),
        Finding(
            "note",
            f"MaxVio of {name} is {max_vio:.3f} where chance alone gives {floor:.3f}; it has been "
            f"{_since_uneven(windows, at, onset)}.",
        ),
    ]
    others = [index for index in range(len(windows.layers)) if index != at]
    more = sum(_beyond_chance(windows, -1, index) for index in others)
    if others:
        what = "also uneven beyond chance"
        text = f"{more} of the {len(others)} other layers are {what}."
        if more == len(others):
            text = f"All {len(others)} other layers are {what}."
        if more < 2:
            text = f"{'One' if more else 'None'} of the {len(others)} other layers is {what}."
        if len(others) == 1:
            text = f"The other layer is {'' if more else 'not '}{what}."
        found.append(Finding("note", text))
    return found


@dataclass(frozen=True, slots=True)
class _Onset:
    """Windows since which a layer is beyond chance, has a tenth and half of its present excess."""

    first: int
    tenth: int
    half: int


def _onset(windows: Windows, at: int) -> _Onset:
    first = len(windows) - 1
    while first > 0 and _beyond_chance(windows, first - 1, at):
        first -= 1
    excess = windows.metrics["max_vio_excess"][:, at]
    return _Onset(first, *(_since_share(excess, share, first) for share in (0.1, 0.5)))


def _since_share(excess: NDArray[np.float64], share: float, first: int) -> int:
    """Window since which the excess is at least this share of the last one; not before first."""
    below = np.flatnonzero(~(excess[first:] >= share * excess[-1]))
    return first + int(below[-1]) + 1 if below.size else first


def _since_uneven(windows: Windows, at: int, onset: _Onset) -> str:
    excess = windows.metrics["max_vio_excess"][:, at]
    parts = [f"beyond chance {_since(windows, onset.first)}"]
    if onset.tenth > onset.first:
        parts.append(f"a tenth as far over the floor as now {_since(windows, onset.tenth)}")
    if onset.half > onset.tenth:
        unit = "" if len(parts) > 1 else " over the floor as now"
        parts.append(f"half as far{unit} {_since(windows, onset.half)}")
    text = ", ".join(parts[:2]) + "".join(f" and {part}" for part in parts[2:])
    peak = int(np.nanargmax(excess))
    if excess[peak] > RECEDED * excess[-1]:
        text += (
            f"; at its worst it was {windows.metrics['max_vio'][peak, at]:.3f}, "
            f"in {span_text(*windows.spans[peak])}"
        )
    return text


def _withheld(windows: Windows) -> list[Finding]:
    """Layers that routed tokens whose balance cannot be judged; silent ones are told apart."""
    where = span_text(*windows.spans[-1])
    routed = {windows.layers[at].name for at in np.flatnonzero(windows.tokens[-1] > 0)}
    quiet = not routed  # nobody routed: then it is no layer's silence
    found = [item for item in windows.withheld.items() if quiet or item[0] in routed]
    return [
        Finding("warn", f"{shown(name)} has no balance figure in {where}: {shown(reason)}.")
        for name, reason in found[:NAMED]
    ]


def _dead(windows: Windows) -> list[Finding]:
    """Experts without a token in layers that route; of a silent layer all are, which is said."""
    where = span_text(*windows.spans[-1])
    named, chance, total, silent = [], 0, 0, False
    for index, layer in enumerate(windows.layers):
        if windows.tokens[-1, index] <= 0:
            silent = True
            continue
        counts = windows.counts(index)
        total += layer.num_experts
        for expert in np.flatnonzero(counts[-1] == 0):
            idle_rows = counts[:, expert] == 0
            first = len(idle_rows) - int(np.argmin(idle_rows[::-1])) if not idle_rows.all() else 0
            idle = int(windows.tokens[first:, index].clip(min=0).sum())
            if chance_of_dead(idle, num_experts=layer.num_experts, top_k=layer.top_k) < RARE:
                named.append((first, f"{shown(layer.name)} expert {expert}"))
            else:
                chance += 1
    if not total:
        return []
    routing = " in layers that route" if silent else ""
    if not named and not chance:
        text = f"No dead expert: each of the {total:,}{routing} got tokens in {where}."
        return [Finding("good", text)]
    if not named:
        text = (
            f"No expert is dead beyond chance: {chance} of {total:,}{routing} got no token in "
            f"{where}, which a uniform router leaves out as well."
        )
        return [Finding("good", text)]
    named.sort(key=lambda item: item[0])
    listed = "; ".join(f"{name} {_since(windows, first)}" for first, name in named[:NAMED])
    rest = f"; and {len(named) - NAMED} more" if len(named) > NAMED else ""
    verb = "is" if len(named) == 1 else "are"
    text = f"{len(named)} of {total:,} experts{routing} {verb} dead: {listed}{rest}."
    if chance:
        text += f" {chance} more got no token in {where}, which in so short a time can be chance."
    return [Finding("bad", text, ADVICE["dead"])]


def _falling(windows: Windows) -> list[Finding]:
    """The layer whose tokens are chosen for with ever less doubt, where it fell far."""
    entropy = windows.metrics["routing_entropy"]
    worst: tuple[float, int] | None = None
    for at in range(len(windows.layers)):
        known = entropy[~np.isnan(entropy[:, at]), at]
        if known.size and known[0] > 0 and known[-1] < FALLEN * known[0]:
            worst = min(worst or (1.0, at), (float(known[-1] / known[0]), at))
    if worst is None:
        return []
    at = worst[1]
    known = np.flatnonzero(~np.isnan(entropy[:, at]))
    start, end = entropy[known[0], at], entropy[known[-1], at]
    halfway = (start + end) / 2
    above = known[entropy[known, at] > halfway]
    since = int(known[np.searchsorted(known, above[-1]) + 1])
    text = (
        f"Routing entropy of {shown(windows.layers[at].name)} fell from {start:.3f} to {end:.3f} "
        f"nats ({end / start - 1:+.0%}), half of it by {span_text(*windows.spans[since])}."
    )
    return [Finding("warn", text, ADVICE["certain"])]


def _entropy(windows: Windows) -> Finding:
    entropy = windows.metrics["routing_entropy"]
    seen = np.flatnonzero(~np.isnan(entropy).all(axis=1))
    if not seen.size:
        return Finding("note", "No routing entropy: no layer shows its router's logits.")
    first, last = int(seen[0]), int(seen[-1])
    start, end = float(np.nanmedian(entropy[first])), float(np.nanmedian(entropy[last]))
    most = math.log(max(layer.num_experts for layer in windows.layers))
    scale = f"{most:.2f} nats would be total indecision"
    if first == last:
        text = (
            f"Routing entropy is {end:.3f} nats (median layer, {span_text(*windows.spans[last])})"
        )
        return Finding("note", f"{text}; {scale}.")
    change = (end - start) / start if start else 0.0
    trend = "held" if abs(change) < 0.02 else "fell" if change < 0 else "rose"
    how = f"at {end:.3f}" if trend == "held" else f"from {start:.3f} to {end:.3f}"
    share = "" if trend == "held" else f" ({change:+.0%})"
    return Finding(
        "note",
        f"Routing entropy {trend} {how} nats{share} between {span_text(*windows.spans[first])} and "
        f"{span_text(*windows.spans[last])} (median layer); {scale}.",
    )


def _beyond_chance(windows: Windows, row: int, at: int) -> bool:
    tokens = int(windows.tokens[row, at])
    if tokens <= 0:
        return False
    layer: Layer = windows.layers[at]
    bound = chance_of_maximum(
        int(windows.counts(at)[row].max()),
        tokens,
        num_experts=layer.num_experts,
        top_k=layer.top_k,
    )
    return bound * len(windows.layers) < RARE


def _last(windows: Windows, name: str, at: int) -> float:
    return float(windows.metrics[name][-1, at])


def _since(windows: Windows, first: int) -> str:
    if first == 0:
        return f"since the first window ({span_text(*windows.spans[0])})"
    return f"since {span_text(*windows.spans[first])}"
