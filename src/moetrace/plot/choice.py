# pyright: strict
"""What of a run a picture shows: phase, window, layers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from moetrace.printable import printable, span_text
from moetrace.run import Run
from moetrace.snapshot import Snapshot

__all__ = ["Choice"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a run a picture shows.

    Attributes:
        run: The run.
        phase: Windows of this phase.
        step: A step of the window, where one is shown; None for the last.
        layers: Glob over the names of the layers.
    """

    run: Run
    phase: str = "train"
    step: int | None = None
    layers: str = "*"

    def window(self) -> Snapshot:
        """The window that is shown; no other one is read.

        Raises:
            ValueError: There is none, or none that holds the step.
        """
        if self.phase not in self.run.phases:
            known = ", ".join(self.run.phases) or "none yet"
            raise ValueError(f"found no phase {self.phase!r}; this run has {known}")
        spans = self.run.steps(phase=self.phase).tolist()
        wanted = [
            (first, last)
            for first, last in spans
            if self.step is None or first <= self.step <= last
        ]
        for first, last in reversed(wanted):
            found = next(self.run.windows(phase=self.phase, after=last - 1), None)
            if found is not None and found.first_step == first:
                return found
        where = "" if self.step is None else f" with step {self.step}"
        raise ValueError(f"found no window{where}; there are steps {spans[0][0]} to {spans[-1][1]}")

    def matching(self, names: Iterable[str], *, of: str) -> list[str]:
        """Those of some layers that are to be shown, in their order.

        Args:
            names: Names of layers.
            of: What they have, in words, for the message.

        Raises:
            ValueError: None of them is to be shown.
        """
        there = list(dict.fromkeys(names))
        found = [name for name in there if fnmatchcase(name, self.layers)]
        if not found:
            listed = ", ".join(there[:8]) + (" and more" if len(there) > 8 else "")
            raise ValueError(
                f"found no layer {self.layers!r} with {of}; there is {listed or 'none'}"
            )
        return found

    def worst(self, names: Sequence[str]) -> str:
        """The layer furthest over its noise floor in the last window, or the first of all."""
        table = self.run.metric("max_vio_excess", phase=self.phase)
        place = {name: at for at, name in enumerate(self.run.layers)}
        last = {name: table[-1, place[name]] for name in names if name in place and len(table)}
        known = {name: float(value) for name, value in last.items() if np.isfinite(value)}
        return max(known, key=known.__getitem__) if known else names[0]

    def title(self, what: str, window: Snapshot | None = None) -> str:
        """The line over a picture: what it is, of which model, phase and steps."""
        model = printable(str(self.run.manifest.get("model") or "a model"))
        where = [model, printable(self.phase)]
        if window is not None:
            where.append(span_text(window.first_step, window.last_step))
        return f"{what} ({', '.join(where)})"
