"""What a tracer must have done with every routed token, kept by hand beside it.

A slow, independent account: lists of integers, one rule of the documentation after the other. It
knows nothing of tensors, bins or files.
"""

from collections import defaultdict
from dataclasses import dataclass, field

__all__ = ["EXPERTS", "LAYERS", "Ledger", "Window"]

EXPERTS = 4
LAYERS = ("blocks.0", "blocks.1")


def nothing():
    """No token, in any layer; the last entry is the overflow bin."""
    return {layer: [0] * (EXPERTS + 1) for layer in LAYERS}


def added(one, other):
    """Both together."""
    return {
        layer: [a + b for a, b in zip(one[layer], other[layer], strict=True)] for layer in LAYERS
    }


@dataclass
class Window:
    """What one window of one phase holds."""

    attempt: int
    phase: str
    first: int
    last: int
    counts: dict = field(default_factory=nothing)


class Ledger:
    """Where every token went, over all attempts of one run.

    ``written`` are the windows that were closed; ``routed`` is every token that a router chose
    experts for, ``left_out`` those of steps that sampling leaves out, and ``lost`` those that a
    killed process had not closed a window over.
    """

    def __init__(self):
        self.attempt = -1
        self.written = []
        self.routed, self.left_out, self.lost = nothing(), nothing(), nothing()

    def attach(self, every, sample):
        """A process begins."""
        self.attempt += 1
        self.every, self.sample = every, sample
        self.step, self.in_step, self.has_stepped, self.skipping = 0, False, False, False
        self.phases, self.open = [], {}
        self.pending = {"grad": None, "no_grad": None, "other": None}

    def forward(self, chosen, *, training, grad):
        """A forward chose these experts, per layer that it reached."""
        counts = nothing()
        for layer, ids in chosen.items():
            for expert in ids:
                counts[layer][expert if 0 <= expert < EXPERTS else EXPERTS] += 1
        self.routed = added(self.routed, counts)
        if self.phases or not training:
            self._note("other", counts)
        elif self.skipping:
            self.left_out = added(self.left_out, counts)
        else:
            self._note("grad" if grad else "no_grad", counts)

    def begin(self, step):
        """A step begins."""
        if self.pending["grad"] or self.pending["no_grad"]:
            self._give_up("aborted" if self.in_step else "unstepped")
        if self.pending["other"] and not self.phases:
            self._move("other", "eval")
            self._close("eval")
        self.in_step = self.has_stepped = True
        if step is not None:
            self._go_to(step - 1)
        self.skipping = self.step % self.sample != 0

    def end(self, *, skipped):
        """A step has finished."""
        self.in_step, self.has_stepped = False, True
        if not skipped:
            self.step += 1
        if not self.skipping:
            self._commit("skipped" if skipped else "train")
        if not skipped:
            self.skipping = self.step % self.sample != 0
            if self.step % self.every == 0:
                self.close_windows()

    def enter(self, phase):
        """A named phase begins."""
        self._collect()
        self.phases.append(phase)

    def leave(self):
        """It ends."""
        self._collect()
        self.phases.pop()

    def flush(self):
        """Every window is closed now."""
        if not self.has_stepped and (self.pending["grad"] or self.pending["no_grad"]):
            self._commit("train")
        self.close_windows()

    def close(self):
        """The tracer is closed."""
        if not self.has_stepped and (self.pending["grad"] or self.pending["no_grad"]):
            self._commit("train")
        if self.pending["grad"] or self.pending["no_grad"]:
            self._give_up("aborted")
        self.close_windows()

    def kill(self):
        """The process dies: what no window was closed over is lost with it."""
        for counts in (*self.pending.values(), *(window.counts for window in self.open.values())):
            if counts is not None:
                self.lost = added(self.lost, counts)
        self.pending, self.open = dict.fromkeys(self.pending), {}

    def close_windows(self):
        """Every open window becomes one that is written."""
        self._collect()
        for phase in list(self.open):
            self._close(phase)

    def current(self):
        """The windows that no later attempt has written again."""
        kept = []
        for window in self.written:
            again = [
                min(found.first for found in ours)
                for later in range(window.attempt + 1, self.attempt + 1)
                if (ours := self._deciding(later, window.phase))
            ]
            if not again or window.last < min(again):
                kept.append(window)
        return kept

    def _deciding(self, attempt, phase):
        """The windows of an attempt that say where it began."""
        own = [window for window in self.written if window.attempt == attempt]
        train = [window for window in own if window.phase == "train"]
        return train or [window for window in own if window.phase == phase]

    def _note(self, kind, counts):
        known = self.pending[kind]
        self.pending[kind] = counts if known is None else added(known, counts)

    def _move(self, kind, phase):
        counts, self.pending[kind] = self.pending[kind] or nothing(), None
        window = self.open.setdefault(phase, Window(self.attempt, phase, self.step, self.step))
        window.first, window.last = min(window.first, self.step), max(window.last, self.step)
        window.counts = added(window.counts, counts)

    def _commit(self, phase):
        if self.pending["no_grad"] is not None:
            self._move("no_grad", "rollout")
        self._move("grad", phase)

    def _give_up(self, label):
        label = label if self.pending["grad"] is not None else "rollout"
        for kind in ("grad", "no_grad"):
            if self.pending[kind] is not None:
                self._move(kind, label)

    def _collect(self):
        if self.pending["other"] is not None:
            self._move("other", self.phases[-1] if self.phases else "eval")

    def _go_to(self, step):
        if step < self.step:
            self.close_windows()
        self.step = step

    def _close(self, phase):
        window = self.open.pop(phase)
        if phase == "train" or any(sum(row) for row in window.counts.values()):
            self.written.append(window)

    def summed(self):
        """Tokens per phase over the windows that were written."""
        total = defaultdict(nothing)
        for window in self.written:
            total[window.phase] = added(total[window.phase], window.counts)
        return {phase: counts for phase, counts in total.items() if any(map(any, counts.values()))}
