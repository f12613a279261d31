"""How often do alerts cry wolf, and how soon do they see what is wrong?

Synthetic routers with a label: logits are normal noise plus a preference per expert, the top K are
chosen, and the sums of a window are what a real router would have left. Healthy routers must raise
nothing; sick ones the alert that names their sickness. Beside it the plain rule of the seeds: every
window for itself, max/mean above 4, a quarter of the experts unused, entropy below 0.1 nats. It has
no memory and says its line again in every window.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from _harness import options, publish
from numpy.typing import NDArray

from moetrace.alerts import AlertJudge, AlertRules
from moetrace.layout import FRACTION_BITS
from moetrace.routing_stats import RoutingStats
from moetrace.snapshot import Snapshot

SEED = AlertRules(
    usage_threshold=None,
    collapse_threshold=None,
    load_balancing_loss_threshold=None,
    load_balancing_loss_zero=None,
    dropped_threshold=None,
    frozen_windows=None,
    nonfinite=False,
    silent=False,
    above_floor=False,
    duration=1,
)
"""The rule of the seeds, and nothing else."""

RULES = ("moetrace", "seed")

SHAPES = ((8, 2), (64, 6), (128, 8), (64, 1))
"""E and K."""

TINY, SMALL, LARGE = 16, 128, 2048
"""Tokens per window."""


@dataclass(frozen=True)
class Router:
    """A labelled router.

    Attributes:
        label: What it is.
        sick: Alerts of which one has to come; empty for a healthy one.
        tokens: Tokens per window.
        preference: Preference per expert in a window, from its number and a generator, ``(E,)``.
        noise: Standard deviation of the logits.
    """

    label: str
    sick: tuple[str, ...]
    tokens: int
    preference: Callable[[int, int, int, np.random.Generator], NDArray[np.float64]]
    noise: float = 1.0


def flat(window: int, E: int, K: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """No preference: a uniform router."""
    return np.zeros(E)


def uneven(window: int, E: int, K: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """What a trained, healthy router looks like: experts between a third and twice their share."""
    return 0.25 * np.sin(np.arange(E) * 2.399963)


def burst(window: int, E: int, K: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Even, but one window in 20 is of one subject and goes to one expert."""
    return hot(1, E, K) if window % 20 == 7 else np.zeros(E)


def turning(window: int, E: int, K: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Even, with a mild favourite that is another expert in every window."""
    preference = np.zeros(E)
    preference[window * 7 % E] = 0.4
    return preference


def hot(experts: int, E: int, K: int) -> NDArray[np.float64]:
    """These experts get nearly every token."""
    preference = np.zeros(E)
    preference[:experts] = 4.0
    return preference


def one_hot(window: int, E: int, K: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """One expert gets nearly every token."""
    return hot(1, E, K)


def hot_set(window: int, E: int, K: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Experts as many as are chosen get nearly everything."""
    return hot(K, E, K) * 2


def rotating(window: int, E: int, K: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """One expert gets nearly every token, another one in every window."""
    return np.roll(hot(1, E, K), window * 7 % E)


def dead(window: int, E: int, K: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Three of eight experts get nothing."""
    preference = np.zeros(E)
    preference[: 3 * E // 8] = -50.0
    return preference


def slow(window: int, E: int, K: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Collapses over 200 windows onto the K experts."""
    return hot_set(window, E, K, rng) * min(1.0, window / 200)


def certain(window: int, E: int, K: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Even over the experts, and certain of every token."""
    return np.zeros(E)


HEALTHY = (
    Router("uniform, tiny batches", (), TINY, flat),
    Router("uniform", (), SMALL, flat),
    Router("uniform, large batches", (), LARGE, flat),
    Router("uneven, tiny batches", (), TINY, uneven),
    Router("uneven", (), SMALL, uneven),
    Router("uneven, large batches", (), LARGE, uneven),
    Router("rotating mildly", (), SMALL, turning),
    Router("bursts of one window", (), SMALL, burst),
    Router("bursts, tiny batches", (), TINY, burst),
)

UNEVEN_LOAD = ("severe_imbalance", "hot_experts", "routing_collapse")

SICK = (
    Router("hot expert", UNEVEN_LOAD, SMALL, one_hot),
    Router("hot expert, tiny batches", UNEVEN_LOAD, TINY, one_hot),
    Router("hot expert, large batches", UNEVEN_LOAD, LARGE, one_hot),
    Router("hot set", UNEVEN_LOAD, SMALL, hot_set),
    Router("hot set, tiny batches", UNEVEN_LOAD, TINY, hot_set),
    Router("rotating hot expert", UNEVEN_LOAD, LARGE, rotating),
    Router("dead experts", ("unused_experts",), SMALL, dead),
    Router("dead experts, tiny batches", ("unused_experts",), TINY, dead),
    Router("slow collapse", UNEVEN_LOAD, SMALL, slow),
    Router("certain of every token", ("low_entropy",), SMALL, certain, noise=60.0),
)


def windows(router: Router, E: int, K: int, count: int, seed: int) -> Iterator[Snapshot]:
    """The windows of one layer with this router, one step each."""
    rng = np.random.default_rng(seed)
    scale = {name: 1 << bits for name, bits in FRACTION_BITS.items()}
    T = router.tokens
    for window in range(count):
        logits = rng.standard_normal((T, E), dtype=np.float32) * router.noise
        logits += router.preference(window, E, K, rng).astype(np.float32)
        chosen = np.argpartition(logits, E - K, axis=1)[:, E - K :]
        logits -= logits.max(axis=1, keepdims=True)
        exp = np.exp(logits)
        total = exp.sum(axis=1, keepdims=True)
        probs = exp / total
        entropy = np.log(total[:, 0]) - (probs * logits).sum(axis=1)
        counts = np.bincount(chosen.ravel(), minlength=E).astype(np.int64)
        stats = RoutingStats(
            layer="mlp",
            num_experts=E,
            top_k=K,
            scoring="softmax",
            tokens_per_expert=counts,
            prob_sum=np.rint(probs.sum(axis=0) * scale["prob_sum"]).astype(np.int64),
            gate_weight_sum=np.zeros(E, np.int64),
            tokens=T,
            calls=1,
            entropy_sum=round(float(entropy.sum()) * scale["entropy_sum"]),
        )
        yield Snapshot("made", 0, 0, window, "train", window + 1, window + 1, 0.0, (stats,))


def possible(router: Router, E: int, K: int) -> bool:
    """Whether the sickness can exist: a top-K router loads no expert beyond E / K."""
    return router.sick != UNEVEN_LOAD or E / K > 4.5


def judge(router: Router, E: int, K: int, count: int, seed: int) -> dict[str, dict[str, Any]]:
    """Per rule: windows in which an alert starts, and the first that names the sickness."""
    ours = AlertJudge(AlertRules())
    found = {name: {"windows": 0, "first": None} for name in RULES}
    for window, snapshot in enumerate(windows(router, E, K, count, seed)):
        said = {"moetrace": ours.judge(snapshot), "seed": AlertJudge(SEED).judge(snapshot)}
        for name, alerts in said.items():
            started = [alert for alert in alerts if alert.state == "started"]
            found[name]["windows"] += bool(started)
            if found[name]["first"] is None and any(a.kind in router.sick for a in started):
                found[name]["first"] = window + 1
    return found


def false_alarms(count: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The table of healthy routers, and how many windows in 1,000 raise an alert."""
    table: list[dict[str, Any]] = []
    total = dict.fromkeys(("all", *RULES), 0)
    print(f"{'healthy router':<28}{'windows':>9}{'moetrace':>12}{'seed rule':>12}   (false alarms)")
    for router in HEALTHY:
        # Large windows cost a second per hundred, and chance plays the smaller part in them.
        each = count // 8 if router.tokens == LARGE else count
        found = [judge(router, E, K, each, 7 + E + K) for E, K in SHAPES]
        seen = each * len(SHAPES)
        wrong = {name: sum(item[name]["windows"] for item in found) for name in RULES}
        total["all"] += seen
        for name in RULES:
            total[name] += wrong[name]
        print(f"{router.label:<28}{seen:>9}{wrong['moetrace']:>12}{wrong['seed']:>12}")
        table.append({"router": router.label, "windows": seen, "false_alarms": wrong})
    rate = {name: round(1000 * total[name] / total["all"], 3) for name in RULES}
    print(f"{'all':<28}{total['all']:>9}{total['moetrace']:>12}{total['seed']:>12}")
    print(f"per 1,000 windows: moetrace {rate['moetrace']}, seed rule {rate['seed']}\n")
    return table, rate


def delays() -> list[dict[str, Any]]:
    """The table of sick routers: windows until each is named."""
    print("windows until a sick router is named, by E/K: moetrace | seed rule")
    print(" " * 28 + "".join(f"{f'{E}/{K}':>12}" for E, K in SHAPES))
    table: list[dict[str, Any]] = []
    for router in SICK:
        cells, row = "", {}
        for E, K in SHAPES:
            if not possible(router, E, K):
                cells += f"{'-':>12}"
                continue
            found = judge(router, E, K, 250, 11 + E + K)
            row[f"{E}/{K}"] = {name: found[name]["first"] for name in RULES}
            cells += f"{' | '.join(str(found[name]['first'] or 'never') for name in RULES):>12}"
        print(f"{router.label:<28}{cells}")
        table.append({"router": router.label, "tokens": router.tokens, "windows_until": row})
    return table


def main() -> None:
    """Print both tables."""
    asked = options(__doc__ or "").parse_args()
    table, rate = false_alarms(500 if asked.quick else 4000)
    result = {
        "false_alarms": table,
        "false_alarms_per_1000_windows": rate,
        "delays": delays(),
        "rules": repr(AlertRules()),
    }
    publish("alerts", result, save=asked.save)


if __name__ == "__main__":
    main()
