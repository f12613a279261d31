"""Everything moetrace raises of its own.

```
MoETraceError
|- NoRouterFound      attach: nothing in the model could be read as a router
|- AlreadyAttached    attach: another tracer holds a router of this model
|- RunFolderError     attach: the run folder cannot be written, or is somebody else's
|- RunNotReadable     open_run: there is no run at that path, or none that can be read
`- SinkFailed         sync_run: a sink raised while a run was replayed into it
```

Wrong arguments raise `ValueError` or `TypeError`. After `attach` returned, nothing of these reaches
the training.
"""

__all__ = [
    "AlreadyAttached",
    "MoETraceError",
    "NoRouterFound",
    "RunFolderError",
    "RunNotReadable",
    "SinkFailed",
]


class MoETraceError(Exception):
    """Base of the exceptions that moetrace raises of its own."""


class NoRouterFound(MoETraceError, LookupError):
    """No module of the model could be read as a router; the message lists the near misses."""


class AlreadyAttached(MoETraceError, RuntimeError):
    """A router of this model is traced already; two hooks would write one truth twice."""


class RunFolderError(MoETraceError, OSError):
    """The run folder cannot be created or written, or holds files that are not a run's."""


class RunNotReadable(MoETraceError, ValueError):
    """The path holds no run, or one of a format that this version does not read."""


class SinkFailed(MoETraceError):
    """A sink raised while a run was replayed into it; the message says how to go on."""
