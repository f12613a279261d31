"""Whether this thread is inside an autograd backward, which makes a forward a recomputation."""

from collections.abc import Callable

import torch

__all__ = ["in_backward"]


def _resolve() -> Callable[[], bool]:
    graph_task_id = getattr(torch._C, "_current_graph_task_id", None)
    if graph_task_id is not None:
        return lambda: bool(graph_task_id() != -1)
    # The same truth table in every kind of checkpointing, should the private name above go away.
    current_node = torch._C._current_autograd_node
    return lambda: current_node() is not None


in_backward: Callable[[], bool] = _resolve()
"""True while this thread runs an autograd backward. Cost: about 0.1 us, no sync, thread-local.

Has to be asked at run time, inside the operator: in a traced hook it breaks the graph. Known
limits: a genuine forward inside a backward hook counts as a recomputation, and reading
``grad_fn._saved_*`` outside a backward recomputes without being inside one.
"""
