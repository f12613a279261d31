"""The tables of ``docs/cost.md``, formed from the newest kept result of each question.

``make docs`` writes them anew and ``make lint`` refuses a page that says something else than what
is kept in ``results``.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

SIZE = "T=256 E=64 K=8"
LARGE = "T=16384 E=128 K=8"


def where(question: str) -> str:
    """On what, when, and how busy the machine was."""
    found = kept(question)["environment"]
    return (
        f"{found['machine']}; torch {found['torch']}, transformers {found['transformers']}; "
        f"commit {found['commit']}, {found['date']}; load {found['load']} at its end."
    )


def counted() -> str:
    """What does not vary: operators, synchronisations, copies, bytes."""
    counts = kept("counted_cost")["counts"]
    ours = counts["router_call"][SIZE]
    rival = counts["seed_style"][SIZE]
    sees, inside = ours["seen_by_the_model"], ours["inside"]
    on_a_device = ours["composition"]
    end = counts["step_end"]["16 routers"]["closing_a_window"]
    return table(
        ("", "moetrace", "callback"),
        [
            ("host synchronisations per router call", sees["syncs"], rival["syncs"]),
            (
                "operators that compile and checkpointing see",
                sees["operators"],
                rival["operators"],
            ),
            ("operators inside, on a CPU", inside["operators"], "-"),
            ("operators inside, without a kernel of ours", on_a_device["operators"], "-"),
            ("copies to the host per window, 16 routers", end["host_copies"], "-"),
            (
                "synchronisations of a step end, a window closing or not",
                end["syncs"],
                "8 per layer",
            ),
            ("collectives", sees["collectives"], rival["collectives"]),
        ],
    )


def microseconds() -> str:
    """Least process CPU time of one router call."""
    found = kept("counted_cost")["microseconds"]
    names = list(found[SIZE])
    rows = [(name, found[SIZE][name], found[LARGE][name]) for name in names]
    return table(("us per router call", "256 tokens, 64 experts", "16,384 tokens, 128"), rows)


def steps(question: str) -> str:
    """Whole steps against untraced ones: median and quartiles of paired ratios of CPU time."""
    sizes = kept(question)["sizes"]
    arms = list(sizes[0]["arms"])
    rows = [
        (
            size["tokens"],
            f"{size['step_ms']:.1f} ms",
            *(ratio(size["arms"][arm]["cpu"]) for arm in arms),
        )
        for size in sizes
    ]
    return table(("tokens", "untraced step", *arms), rows)


def growth(sweep: str) -> str:
    """One sweep of the growth."""
    rows = kept("growth")[sweep]
    return table([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows])


def kept(question: str) -> dict[str, Any]:
    """The newest result of a question."""
    found = sorted(RESULTS.glob(f"{question}_cpu_*.json"))
    return json.loads(found[-1].read_text())


def ratio(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} [{found['low']:.3f}-{found['high']:.3f}]"


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
