"""Steps, phases and windows of one tracer: what happens between the hooks and the writer."""

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moetrace.accumulator import Accumulators
from moetrace.host_copy import is_capturing
from moetrace.look_ups import LookUps
from moetrace.ops import TracerState
from moetrace.outbox import Meter, Outbox
from moetrace.probes import GradientMeter, IndexMeter
from moetrace.probes.placement import Placement
from moetrace.probes.places import Places
from moetrace.remarks import Remarks
from moetrace.snapshot import Snapshot
from moetrace.writer import Writer

__all__ = ["Recording"]

CLOSE_TIMEOUT = 5.0
"""Seconds that closing may take, whatever a disk or a sink does."""

EXPERTS_PER_SECOND = 1_000_000
"""Experts in tables for which closing may take a second longer."""


class Recording:
    """Commits pending forwards at step ends, closes windows, hands them to the writer.

    It never waits for the device, a disk, a sink or another rank; `flush` and `close` wait for the
    writer, with a deadline.

    Args:
        state: Shared with the hooks.
        accumulators: The sums.
        writer: Takes closed windows.
        every: Optimizer steps per window.
        sample: Count the first of so many steps; 1 counts all.
        placement: The hooks on the model, removed by `close`.
        meters: What is measured beside routing.
        places: Where the routers hang, looked at whenever windows close.

    Attributes:
        remarks: What it says of itself.
    """

    def __init__(
        self,
        state: TracerState,
        accumulators: Accumulators,
        writer: Writer,
        every: int,
        sample: int,
        placement: Placement,
        meters: Sequence[Meter] = (),
        places: Places | None = None,
    ) -> None:
        self.writer = writer
        self.step = 0
        self.closed = False
        self._state = state
        self._accumulators = accumulators
        self._every = every
        self._sample = sample
        self._placement = placement
        self._meters = tuple(meters)
        self.remarks = Remarks(state, placement.probes, places, sample)
        self._outbox = Outbox(accumulators, writer, meters, placement.receipts)
        self._spans: dict[str, list[int]] = {}
        self._phases: list[str] = []
        self._in_step = False
        self._has_stepped = False
        self._owner = os.getpid()
        _recordings.add(self)
        self._lock = threading.RLock()

    def begin(self, step: int | None) -> None:
        """A step begins. Whatever is pending belongs to none, or to one that did not finish."""
        if self._asleep():
            return
        with self._lock:
            self._outbox.hand_over()
            if self._state.saw_first or self._state.saw_no_grad:
                self._give_up_pending("aborted" if self._in_step else "unstepped")
            if self._state.saw_other and not self._phases:
                self._collect("eval")
                self._close_window("eval")
            for meter in self._meters:
                meter.drop_step()
            self._in_step, self._has_stepped = True, True
            if self._valid(step):
                self._go_to(max(0, int(step or 0) - 1))
            self._state.skipping = self.step % self._sample != 0

    def end(self, step: int | None, *, skipped: bool = False) -> None:
        """A step has finished: commit what it counted; every N-th closes the windows."""
        if self._asleep():
            return
        with self._lock:
            if not self._in_step:
                self.remarks.say(
                    "on_step_end() was called without on_step_begin(); what ran since the last "
                    "step end was counted as this step. Call on_step_begin() before its first "
                    "forward, so that a failed or repeated step can be told apart"
                )
            self._in_step, self._has_stepped = False, True
            if not skipped:
                self._go_to(int(step or 0) if self._valid(step) else self.step + 1)
            if not self._state.skipping:
                self._commit("skipped" if skipped else "train")
            for meter in self._meters:
                if skipped:
                    meter.drop_step()
                else:
                    meter.end_step()
            if skipped:
                return
            self._state.skipping = self.step % self._sample != 0
            if self.step % self._every == 0:
                self.close_windows()

    def measure_gradients(self, scale: Tensor | float | None, measured: str) -> None:
        """The gradients of the open step are complete: take their norms."""
        meters = [meter for meter in self._meters if isinstance(meter, GradientMeter)]
        if not meters or self._state.skipping or self._asleep():
            return
        with self._lock:
            for meter in meters:
                meter.measure(scale=scale, measured=measured)

    def enter_phase(self, name: str) -> None:
        """What runs from here on belongs to the phase ``name``."""
        with self._lock:
            self._collect_open_phase()
            self._phases.append(name)
            self._state.named = True

    def leave_phase(self) -> None:
        """Back to the phase before."""
        with self._lock:
            self._collect_open_phase()
            if self._phases:
                self._phases.pop()
            self._state.named = bool(self._phases)

    def give_mask(self, mask: Tensor | None) -> None:
        """Use this mask for the forwards that follow, or go back to the model's own (None)."""
        self._state.given_mask = mask is not None
        self._state.mask_T = None if mask is None else mask.detach().reshape(-1) != 0

    def close_windows(self) -> bool:
        """Close every open window; False if the writer is behind, so that some grow instead."""
        with self._lock:
            self._collect_open_phase()
            if self._state.misplaced:
                self._state.misplaced = False
                self._placement.follow(self._accumulators)
            self._let_go_of_lost()
            for phase in self._open_phases():
                if self._outbox.full():
                    self.remarks.coalesced += 1
                    return False
                self._close_window(phase)
        return True

    def flush(self, deadline: float) -> Snapshot | None:
        """Close all windows now, wait for the writer, return the newest snapshot.

        Waits without the lock, which a step on another thread may want.
        """
        if self._asleep():
            return self.writer.latest
        self.settle(deadline)
        with self._lock:
            self._commit_unstepped()
        while not self.close_windows() and time.monotonic() < deadline:
            self.settle(deadline)
        self.settle(deadline)
        return self.writer.latest

    def close(self) -> None:
        """Take the hooks off, write everything, end the threads. Safe to call twice.

        In a forked child it does nothing: the run belongs to the process that attached.
        """
        if self._asleep():
            return
        with self._lock:
            self.closed = True
            self._placement.remove()
            for meter in self._meters:
                meter.close()
            if self._state.saw_first and not self._has_stepped:
                self.remarks.say(
                    "no step was ever named, so all that ran is one window of step 0; call "
                    "tracer.on_step_begin() and tracer.on_step_end() around each optimizer step"
                )
            self._commit_unstepped()
            if self._state.saw_first or self._state.saw_no_grad:
                self._give_up_pending("aborted")
            self._collect_open_phase()
            for phase in self._open_phases():
                self._close_window(phase)
            self._state.paused = True
            deadline = time.monotonic() + CLOSE_TIMEOUT + self._patience()
            self._outbox.hand_over(deadline)
        self.writer.close(deadline)

    def foreign(self) -> bool:
        """Whether this process is a forked child of the one that attached."""
        return os.getpid() != self._owner

    def settle(self, deadline: float) -> None:
        """Wait until every window that is closed is written, at most until ``deadline``."""
        if self._asleep():
            return
        with self._lock:
            self._outbox.hand_over(deadline)
        self.writer.drain(deadline)

    def open_sums(self) -> list[NDArray[np.int64]]:
        """What each router has counted and no closed window holds, all phases together.

        Reads the device: for a diagnosis, never for a step.
        """
        with self._lock:
            return [sums.cpu().numpy() for sums in self._accumulators.open()]

    def _patience(self) -> float:
        """Seconds more that closing may take: the reductions of a million experts are work."""
        meters = (meter for meter in self._meters if isinstance(meter, IndexMeter))
        return sum(meter.experts for meter in meters) / EXPERTS_PER_SECOND

    @property
    def tables(self) -> tuple[str, ...]:
        """Layers whose look-ups in a table of experts are counted."""
        meters = (meter for meter in self._meters if isinstance(meter, IndexMeter))
        return tuple(layer for meter in meters for layer in meter.layers)

    @property
    def look_ups(self) -> dict[str, LookUps]:
        """How often each of those tables was looked up so far, counted or not."""
        meters = (meter for meter in self._meters if isinstance(meter, IndexMeter))
        return {layer: found for meter in meters for layer, found in meter.look_ups.items()}

    @contextmanager
    def paused(self) -> Iterator[Callable[[], Tensor | None]]:
        """Count nothing inside; the padding mask that was there is there again afterwards.

        Yields:
            What returns the mask of the forward that runs.
        """
        state = self._state
        before = state.paused, state.mask_T, state.mask_by_kind_T
        state.paused = True
        if not state.given_mask:
            state.mask_T = None  # the next mask gets a tensor of its own, and leaves this one be
        try:
            yield lambda: state.mask_T
        finally:
            state.paused, state.mask_T, state.mask_by_kind_T = before

    def leave_to_parent(self) -> None:
        """In a forked child: take the hooks off its copy of the model, and do nothing any more."""
        self.closed = True
        self._placement.remove()

    def _asleep(self) -> bool:
        # Asked before the lock is taken: a forked child may have inherited it locked. While a CUDA
        # graph is captured nothing of ours may end up in it but the operators of the hooks.
        if self.closed or os.getpid() != self._owner:
            return True
        return is_capturing()

    def _commit(self, phase: str) -> None:
        undecided = self._state.saw_no_grad
        self._state.saw_first = self._state.saw_no_grad = False
        self._accumulators.commit(undecided=undecided, phase=phase)
        self._span(phase)
        if undecided:
            self._span("rollout")

    def _go_to(self, step: int) -> None:
        # What is counted a second time gets windows of its own, so that a reader sees both.
        if step < self.step:
            self.remarks.steps_back += 1
            self.remarks.say(
                f"the step number went back from {self.step} to {step} without a new attach(); the "
                "run shows these steps twice, in the order in which they were counted"
            )
            self.close_windows()
        self.step = step

    def _commit_unstepped(self) -> None:
        # A loop that never names its steps (a notebook) still wants to see what ran.
        if not self._has_stepped and (self._state.saw_first or self._state.saw_no_grad):
            self._commit("train")
            for meter in self._meters:
                meter.end_step()

    def _give_up_pending(self, label: str) -> None:
        if not self._state.saw_first:
            label = "rollout"
        self._state.saw_first = self._state.saw_no_grad = False
        self._accumulators.relabel(label)
        if label == "aborted":
            for receipts in self._placement.receipts:
                receipts.partial = True
        self._span(label)

    def _collect_open_phase(self) -> None:
        if self._state.saw_other:
            self._collect(self._phases[-1] if self._phases else "eval")

    def _collect(self, phase: str) -> None:
        self._state.saw_other = False
        self._accumulators.collect_other(phase)
        self._span(phase)

    def _span(self, phase: str) -> None:
        span = self._spans.setdefault(phase, [self.step, self.step])
        span[0], span[1] = min(span[0], self.step), max(span[1], self.step)

    def _close_window(self, phase: str) -> None:
        span = self._spans.pop(phase, [self.step, self.step])
        self._outbox.send(phase, span, step=self.step, health=self.remarks.health())

    def _open_phases(self) -> tuple[str, ...]:
        """Phases with an open window; ``train`` too where only other probes have counted."""
        found = self._accumulators.phases
        alone = self._meters and "train" in self._spans and "train" not in found
        return (*found, "train") if alone else found

    def _let_go_of_lost(self) -> None:
        for name in self.remarks.newly_lost():
            self.writer.lose(name)

    def _valid(self, step: int | None) -> bool:
        if step is None:
            return False
        # numpy's integers too; a tensor's value would have to be waited for
        if isinstance(step, Integral) and not isinstance(step, bool) and 0 <= step < 1 << 62:
            return True
        self.remarks.say(f"step={step!r} is not a step number; the tracer counts on by itself")
        return False


_recordings: weakref.WeakSet[Recording] = weakref.WeakSet()


def _leave_to_parents() -> None:
    for recording in list(_recordings):
        recording.leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parents)
