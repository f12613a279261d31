"""What the model itself says: modules replaced, hooks gone, forwards replaced, graphs recorded."""

import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetrace.diagnosis.finding import Finding
from moetrace.probes import RoutingProbe
from moetrace.readers import Reader, Site

__all__ = ["Traced", "check_structure", "missing_interfaces", "replaced_forward", "scored_by"]


@dataclass(frozen=True, slots=True)
class Traced:
    """A hooked router.

    Attributes:
        site: What attach found.
        module: The module that carries the hook.
        reader: Reads its routing.
        recorded: False where ``layers=`` of attach leaves it out of the snapshots.
    """

    site: Site
    module: weakref.ref[nn.Module]
    reader: Reader
    recorded: bool


def check_structure(model: nn.Module, traced: Sequence[Traced]) -> list[Finding]:
    """What has changed in the model since attach, and what runs where no hook fires.

    Cost: a walk over the modules; nothing is run and no value is read off a device.
    """
    present = {id(module) for module in model.modules()}
    live = [(item.site, module) for item in traced if (module := item.module()) is not None]
    gone = [item.site.name for item in traced if item.module() is None]
    gone += [site.name for site, module in live if id(module) not in present]
    unhooked = [
        site.name for site, module in live if id(module) in present and not _has_probe(module)
    ]
    findings = []
    if gone:
        text = "the router that was hooked is no longer in the model"
        advice = "close() this tracer and attach again: what replaced it is not counted"
        findings.append(Finding("router-replaced", "error", text, advice, tuple(gone)))
    if unhooked:
        text = "the hook of moetrace is gone from the router"
        advice = "something cleared its forward hooks: close() this tracer and attach again"
        findings.append(Finding("hook-gone", "error", text, advice, tuple(unhooked)))
    return [*findings, *_untraced_twins(model, [module for _, module in live]), *_graphs()]


def replaced_forward(model: nn.Module, path: str) -> str:
    """Which forward on the way to a module was replaced, in words; empty where none was.

    An instance with a ``forward`` of its own (kernel libraries put one there, graphed callables
    too), or a class whose ``forward`` comes from another package than every class it inherits from.
    """
    steps = path.split(".") if path else []
    for depth in range(len(steps), -1, -1):
        inner = ".".join(steps[:depth])
        try:
            module = model.get_submodule(inner)
        except AttributeError:
            continue
        own = vars(module).get("forward")
        function = own if own is not None else type(module).forward
        home = str(getattr(function, "__module__", ""))
        roots = {base.__module__.partition(".")[0] for base in type(module).__mro__}
        if own is not None or (home and home.partition(".")[0] not in roots):
            name = getattr(function, "__qualname__", type(function).__name__)
            return f"the forward of {inner or 'the model'} was replaced by {name} of {home or '?'}"
    return ""


def scored_by(router: nn.Module | None, scoring: str) -> str:
    """How the scoring of a router was decided, in words."""
    for name, value in vars(router).items() if router is not None else ():
        if isinstance(value, str) and value == scoring:
            return f"its attribute {name} says so"
    return "" if router is None else "by the functions its forward names"


def missing_interfaces() -> list[str]:
    """Private names of torch that moetrace likes to use and that this torch does not have."""
    wanted: dict[str, Any] = {
        "torch._C._current_graph_task_id": getattr(torch._C, "_current_graph_task_id", None),
        "torch._C._len_torch_dispatch_stack": getattr(torch._C, "_len_torch_dispatch_stack", None),
        "torch._C._functorch.peek_interpreter_stack": getattr(
            getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None
        ),
        "torch._foreach_zero_": getattr(torch, "_foreach_zero_", None),
    }
    return [name for name, value in wanted.items() if value is None]


def _has_probe(module: nn.Module) -> bool:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(isinstance(hook, RoutingProbe) for hook in hooks)


def _untraced_twins(model: nn.Module, routers: Sequence[nn.Module]) -> list[Finding]:
    """Modules of a router's class that carry no hook: made after attach, or left out by a reader.

    Classes of torch itself (a bare ``nn.Linear`` as a gate) stand in for many things and are left.
    """
    hooked = {type(module) for module in routers if not type(module).__module__.startswith("torch")}
    paths = [
        path
        for path, module in model.named_modules()
        if type(module) in hooked and not _has_probe(module)
    ]
    known = {id(module) for module in routers}
    paths = [path for path in paths if id(model.get_submodule(path)) not in known]
    if not paths:
        return []
    names = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
    return [
        Finding(
            "some-not-traced",
            "warning",
            f"{len(paths)} modules of the class of a traced router are not traced ({names})",
            "they came after attach, or no rule took them: attach again, and see discover(model)",
        )
    ]


def _graphs() -> list[Finding]:
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    if not getattr(getattr(trees, "local", None), "tree_manager_containers", None):
        return []
    text = "CUDA graphs were recorded in this process; a replay runs kernels and no Python"
    advice = (
        "phases, pauses and sampling stay as they were at the recording; compare tokens with the "
        "batch, or compile without cudagraphs while in doubt"
    )
    return [Finding("cuda-graphs", "note", text, advice)]
