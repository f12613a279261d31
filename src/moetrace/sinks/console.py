"""One readable line per window."""

import sys
from typing import TextIO

from moetrace.alerts import Alert
from moetrace.metrics import spread
from moetrace.printable import printable, span_text
from moetrace.snapshot import Snapshot

__all__ = ["ConsoleSink", "window_line"]


class ConsoleSink:
    """Prints one line per window, for whoever watches the log of a training.

    Args:
        stream: Where to; standard output by default, as it stands at each write.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def write(self, snapshot: Snapshot, /) -> None:
        """Print `window_line` of it."""
        self._print(window_line(snapshot))

    def alert(self, alert: Alert, /) -> None:
        """Print its line: one where it starts, one where it is over."""
        self._print(printable(alert.line, longest=1000))

    def close(self) -> None:
        """Do nothing: the stream belongs to whoever opened it, and every line is flushed."""

    def _print(self, text: str) -> None:
        stream = self._stream or sys.stdout
        encoding = getattr(stream, "encoding", None) or "utf-8"
        line = text.encode(encoding, "backslashreplace").decode(encoding)
        # One call: another thread's print must not come between the line and its end.
        stream.write(f"{line}\n")
        stream.flush()


def window_line(snapshot: Snapshot) -> str:
    """One window in one line: steps, tokens, load CV, worst layer, routing entropy, dead experts.

    CV and entropy are means over the layers. The worst layer is the one whose MaxVio is furthest
    above its floor, what a uniform router would show by chance in as many tokens. A figure that no
    layer has is a dash.

    >>> import numpy as np
    >>> from moetrace.routing_stats import RoutingStats
    >>> counts = np.array([3, 1])
    >>> stats = RoutingStats("mlp", 2, 1, "none", counts, counts * 0, counts * 0, tokens=4)
    >>> window_line(Snapshot("run", 0, 0, 0, "train", 1, 10, 0.0, (stats,)))
    'train steps 1-10: 4 tokens, CV 0.500, MaxVio 0.500 (floor 0.375) in mlp, entropy -, dead 0/2'
    """
    rows = {stats.layer: stats.metrics() for stats in snapshot}
    worst = spread({layer: row["max_vio_excess"] for layer, row in rows.items()})
    balance = "MaxVio -"
    if worst is not None:
        row = rows[worst.worst_layer]
        balance = (
            f"MaxVio {_number(row['max_vio'])} (floor {_number(row['max_vio_floor'])}) "
            f"in {printable(worst.worst_layer)}"
        )
    experts = sum(stats.num_experts for stats in snapshot)
    dead = [row["dead_experts"] for row in rows.values() if row["dead_experts"] is not None]
    return (
        f"{printable(snapshot.phase)} {span_text(snapshot.first_step, snapshot.last_step)}: "
        f"{max((stats.tokens for stats in snapshot), default=0):,} tokens, "
        f"CV {_mean([row['load_cv'] for row in rows.values()])}, {balance}, "
        f"entropy {_mean([row['routing_entropy'] for row in rows.values()])}, "
        f"dead {f'{sum(dead):.0f}' if dead else '-'}/{experts}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mean(values: list[float | None]) -> str:
    found = [value for value in values if value is not None]
    return _number(sum(found) / len(found) if found else None)
