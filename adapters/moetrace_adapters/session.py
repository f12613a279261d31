"""One tracer's life inside a framework's loop: opened, opened again, closed, never in the way.

Mistakes of use are raised by `Session.open`, before the first step. Whatever of ours fails after
that is said once and stays here.
"""

import json
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from moetrace.attachment import attach
from moetrace.errors import MoETraceError, NoRouterFound
from moetrace.settings import Settings
from moetrace.sinks.base import Sink
from moetrace.sinks.recognised import recognised
from moetrace.snapshot import Snapshot
from moetrace.tracer import Tracer

__all__ = ["POINTER", "Inbox", "OnMissing", "Session"]

_log = logging.getLogger("moetrace")

POINTER = "moetrace.json"
"""File in a checkpoint that says which run it belongs to, and at which step it was taken."""

OnMissing = Literal["raise", "warn"]
"""What to do with a model in which no router was found."""


class Inbox:
    """A sink whose windows wait for the training thread: a framework's loggers belong to it."""

    def __init__(self) -> None:
        self._waiting: deque[Snapshot] = deque()

    def write(self, snapshot: Snapshot, /) -> None:
        """Keep it until it is asked for."""
        self._waiting.append(snapshot)

    def close(self) -> None:
        """Do nothing: what waits can still be asked for."""

    def __iter__(self) -> Iterator[Snapshot]:
        """The windows that came since the last time, each once."""
        while self._waiting:
            yield self._waiting.popleft()


class Session:
    """Holds the tracer of a training that a framework drives.

    Args:
        settings: What the tracer is attached with, each time anew.
        on_missing: ``"raise"`` `NoRouterFound`, or ``"warn"`` and train untraced.

    Attributes:
        tracer: The tracer that is open or was open last, or None.

    Raises:
        ValueError: ``on_missing`` is neither.
    """

    def __init__(self, settings: Settings, on_missing: OnMissing) -> None:
        if on_missing not in ("raise", "warn"):
            raise ValueError(f"found on_missing={on_missing!r}; it is 'raise' or 'warn'")
        self.settings = settings
        self.tracer: Tracer | None = None
        self._on_missing = on_missing
        self._said: set[str] = set()
        self._lent: dict[int, _Lent] = {}
        weakref.finalize(self, _give_back, self._lent)

    def open(
        self,
        model: nn.Module,
        *,
        run: str | os.PathLike[str] | None = None,
        sinks: Iterable[Sink] = (),
    ) -> None:
        """Attach to ``model``; a tracer that is open already is closed first, its sinks are not.

        Args:
            model: The model that is trained.
            run: Folder in place of the one in the settings.
            sinks: Sinks beside those in the settings.

        Raises:
            MoETraceError, ValueError, TypeError: A mistake of use.
        """
        self.close(last=False)
        self.tracer = None
        settings = replace(
            self.settings,
            run=self.settings.run if run is None else run,
            sinks=[*map(self._lend, self.settings.sinks), *sinks],
        )
        try:
            self.tracer = attach(model, **settings.attach_arguments())
        except NoRouterFound as error:
            if self._on_missing == "raise":
                raise
            self._say(f"training goes on untraced: {error}")
        except (MoETraceError, ValueError, TypeError):
            raise
        except Exception as error:
            self._keep_in(error)

    def do(self, act: Callable[[Tracer], Any]) -> Any:
        """What ``act`` returns for the tracer; None without one, or where something of ours failed.

        Raises:
            Exception: With ``strict`` in the settings, what ``act`` raised.
        """
        if self.tracer is None:
            return None
        try:
            return act(self.tracer)
        except Exception as error:
            self._keep_in(error)
        return None

    def close(self, *, last: bool = True) -> None:
        """Close the tracer where one is open. Safe to call twice.

        Args:
            last: Close the caller's sinks too; False where another tracer gets them.
        """
        for lent in self._lent.values():
            lent.last = last
        self.do(lambda tracer: tracer.close())

    def point(self, folder: Path | None, *, step: int) -> None:
        """Close the windows, so that they end where a resume begins; leave a pointer in ``folder``.

        Args:
            folder: The checkpoint; None leaves none, as on every rank but the first.
            step: Completed steps.
        """
        newest = self.do(lambda tracer: tracer.flush())
        if folder is not None and newest is not None and self.tracer is not None:
            run = None if self.tracer.run is None else str(self.tracer.run)
            place = {"run": run, "run_id": newest.run_id, "attempt": newest.attempt, "step": step}
            text = json.dumps(place) + "\n"
            self.do(lambda _: (folder / POINTER).write_text(text, encoding="utf-8"))

    def _lend(self, item: Any) -> Any:
        """A sink of the caller's in its cover; a logger or a name serves one tracer only."""
        if isinstance(item, str | Mapping):
            return item
        sink = recognised(item)
        return self._lent.setdefault(id(item), _cover(sink)) if sink is item else sink

    def _keep_in(self, error: Exception) -> None:
        if self.settings.strict:
            raise error
        self._say(f"moetrace failed and training goes on: {type(error).__name__}: {error}")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _log.warning(text)


class _Lent:
    """A sink of the caller's, lent to one tracer after the other and closed by the last."""

    def __init__(self, sink: Sink) -> None:
        self.last = False
        self.closed = False
        self.write = sink.write
        self._close = sink.close
        alert = getattr(sink, "alert", None)
        if alert is not None:
            self.alert = alert

    def close(self) -> None:
        if self.last and not self.closed:
            self.closed = True
            self._close()


def _cover(sink: Sink) -> _Lent:
    # A class of the same name, since the log names a sink that fails by its class.
    cover: _Lent = type(type(sink).__name__, (_Lent,), {})(sink)
    return cover


def _give_back(lent: Mapping[int, _Lent]) -> None:
    for sink in lent.values():
        sink.last = True
        sink.close()
