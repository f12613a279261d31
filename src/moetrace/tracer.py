"""What watches a model after `attach`: the tracer, and the barrier that keeps it harmless."""

import multiprocessing.util
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from moetrace.diagnosis.finding import Diagnosis, Finding
from moetrace.diagnosis.tracing import Attached, diagnose
from moetrace.readers import Site
from moetrace.recording import Recording
from moetrace.snapshot import Snapshot

__all__ = ["Tracer"]

_FLUSH_TIMEOUT = 5.0


class Tracer:
    """Watches one model. Made by `attach`; all methods are safe in the middle of a training.

    Attributes:
        sites: The routers that are recorded.
        run: Folder of the run, or None.
    """

    def __init__(
        self,
        recording: Recording,
        sites: Sequence[Site],
        run: Path | None,
        *,
        attached: Attached,
        strict: bool,
    ) -> None:
        self.sites = tuple(sites)
        self.run = run
        self._recording = recording
        self._attached = attached
        self._strict = strict
        # At interpreter exit, when the tracer is dropped, and where a multiprocessing child ends.
        self._finalizer = weakref.finalize(self, recording.close)
        self._at_child_exit = multiprocessing.util.Finalize(None, self._finalizer, exitpriority=100)

    @property
    def step(self) -> int:
        """Optimizer steps completed; 0 before the first one has finished."""
        return self._recording.step

    @property
    def tables(self) -> tuple[str, ...]:
        """Layers whose look-ups in a table of experts are counted, see `moetrace.IndexProbe`."""
        return self._recording.tables

    @property
    def latest(self) -> Snapshot | None:
        """The newest snapshot that was written, or None before the first."""
        return self._recording.writer.latest

    @property
    def failed_sinks(self) -> dict[str, Exception]:
        """The first error of every sink that raised, by its class name."""
        feeds = self._recording.writer.feeds
        return {feed.name: feed.first_error for feed in feeds if feed.first_error is not None}

    def on_step_begin(self, step: int | None = None) -> None:
        """Say that an optimizer step begins, before its first forward.

        Args:
            step: Number of the step that begins, from 1; by default one more than the last. Give
                it after a resume.
        """
        with self._barrier():
            self._recording.begin(step)

    def on_step_end(self, step: int | None = None, *, skipped: bool = False) -> None:
        """Say that an optimizer step has finished, after ``optimizer.step()``.

        Args:
            step: Number of the step that has finished, as in `on_step_begin`.
            skipped: Whether no weight was changed, as where a gradient scaler met an infinity. What
                ran is then counted in the phase ``"skipped"``, and the number of the step stays.

        Cost: three small operations per device; every N-th time one copy to the host more. No sync.

        Raises:
            Exception: With ``strict=True``, what a sink or the run folder raised before.
        """
        with self._barrier():
            self._recording.end(step, skipped=bool(skipped))
        if self._strict:
            self._raise_noted()

    def on_gradients(self, *, scale: Tensor | float | None = None, clipped: bool = False) -> None:
        """Say that this step's gradients are complete: after its last backward, before clipping.

        Their norms are taken per block and group of parameters; without
        ``probes=[GradientProbe()]`` at `attach` this does nothing. The first call in a step counts.

        Args:
            scale: What the gradients are still multiplied with. Under a gradient scaler either call
                this after ``scaler.unscale_(optimizer)``, or give its factor.
            clipped: They may be clipped already; the record then says ``"at_step"``.

        Cost: one fused norm over all gradients and some ten small operations; no sync.
        """
        with self._barrier():
            self._recording.measure_gradients(scale, "at_step" if clipped else "pre_clip")

    def tokens(self, mask: Tensor | None = None) -> AbstractContextManager[None]:
        """Say which tokens are real where the model gets no ``attention_mask`` of its own.

        Args:
            mask: True or non-zero where a token is real; any shape with one entry per token that
                the routers see, on the model's device. None goes back to the model's own mask.

        Returns:
            A context manager that goes back on leaving; as a plain call it holds until the next.
        """
        with self._barrier():
            self._recording.give_mask(mask)
        return self._until_left(lambda: self._recording.give_mask(None))

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count what runs inside ``with tracer.phase("rollout"):`` in windows of that phase.

        Raises:
            ValueError: The name is empty, or ``"train"``, which is what steps commit.
        """
        if not isinstance(name, str) or not name or name == "train":
            raise ValueError(
                f"found phase {name!r}; a phase needs a name of its own, since 'train' is what "
                "on_step_end commits"
            )
        return self._in_phase(name)

    def flush(self) -> Snapshot | None:
        """Close every window now and wait until it is written, at most 5 s.

        Forwards of a step that has not ended stay pending. Without any step so far, what ran is
        committed as step 0.

        Returns:
            The newest snapshot, or None where nothing was counted.
        """
        with self._barrier():
            return self._recording.flush(time.monotonic() + _FLUSH_TIMEOUT)
        return None

    def doctor(self, inputs: Any = None, *, training: bool | None = None) -> Diagnosis:
        """What is wrong with this tracing, and what to do: ``print(tracer.doctor())``.

        Without ``inputs`` it says what is known: every site with how it is read, which counted and
        which never did, whether the counts add up, masks, hooks, hazards, sinks. With ``inputs`` it
        runs one forward of the model besides and compares what each router decided with what its
        experts received. That forward is uncompiled, without gradients, and counts nothing; random
        states, buffers and attributes of the modules are put back, so that the training goes on bit
        for bit as without it. A cache among the inputs is filled as by any forward. A model whose
        weights are spread over ranks is not run.

        Call it between steps, on the training thread. What the findings mean: ``docs/doctor.md``.

        Args:
            inputs: Keyword arguments of the model as a dict, positional ones as a tuple, or one
                tensor, on the model's device.
            training: Train or eval mode in that forward; None leaves every module as it is.

        Returns:
            The diagnosis; ``.ok`` where nothing is worse than a note.

        Cost: waits for the writer at most 5 s and reads the open window off the device; with
        ``inputs`` one forward and a copy of the model's buffers. Nothing where it is not called.
        """
        with self._barrier():
            return diagnose(self._recording, self._attached, inputs, training=training)
        text = "the diagnosis itself failed; the log names the exception"
        failed = Finding("doctor-failed", "error", text, "report it; the training is not affected")
        return Diagnosis("a model", (), (failed,))

    def close(self) -> None:
        """Commit and write everything, take the hooks off, end the threads; at most 5 s.

        Where tables of experts are counted a second more for each million of their experts.

        Safe to call twice. The model is as it was before `attach`.

        Raises:
            Exception: With ``strict=True``, what a sink or the run folder raised before.
        """
        with self._barrier():
            self._at_child_exit.cancel()
            self._finalizer()
        if self._strict:
            self._raise_noted()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "memory" if self.run is None else str(self.run)
        tables = f" and {len(self.tables)} tables" if self.tables else ""
        return f"<Tracer of {len(self.sites)} routers{tables}, step {self.step}, into {where}>"

    def _barrier(self) -> "_Barrier":
        return _Barrier(self._recording.remarks.say, self._strict)

    @contextmanager
    def _in_phase(self, name: str) -> Iterator[None]:
        with self._barrier():
            self._recording.enter_phase(name)
        try:
            yield
        finally:
            with self._barrier():
                self._recording.leave_phase()

    @contextmanager
    def _until_left(self, leave: Callable[[], None]) -> Iterator[None]:
        try:
            yield
        finally:
            with self._barrier():
                leave()

    def _raise_noted(self) -> None:
        for error in (*self.failed_sinks.values(), self._recording.writer.log_error):
            if error is not None:
                raise error


class _Barrier:
    """Lets no exception of ours into the training; says it once."""

    def __init__(self, say: Callable[[str], None], strict: bool) -> None:
        self._say, self._strict = say, strict

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception) or self._strict:
            return False
        self._say(f"moetrace failed and goes on: {type(error).__name__}: {error}")
        return True
