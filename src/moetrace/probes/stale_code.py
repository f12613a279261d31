"""Code that was compiled before our hooks came, and would run on without them.

Dynamo guards on the hooks that a module has, never on a module that had none (its default
``skip_nnmodule_hook_guards``). A model that ran compiled before `attach` would be counted as 0, in
silence; so the compiled code of its classes is dropped, and they compile once more.
"""

import sys

from torch import nn

__all__ = ["drop_stale_code"]


def drop_stale_code(model: nn.Module) -> bool:
    """Drop what dynamo compiled for the classes of this model, if anything of it is compiled.

    Returns:
        Whether there was anything to drop. A model that was never compiled costs a look at its
        modules and imports nothing.
    """
    compiled = any(
        getattr(module, "_compiled_call_impl", None) is not None
        or type(module).__name__ == "OptimizedModule"
        for module in model.modules()
    )
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None or (not compiled and not _anything_compiled(dynamo)):
        return False
    functions = {type(module).forward for module in model.modules()}
    functions |= {nn.Module._call_impl, nn.Module._wrapped_call_impl}
    for function in functions:
        code = getattr(function, "__code__", None)
        if code is not None:
            dynamo.eval_frame.reset_code(code)
    return True


def _anything_compiled(dynamo: object) -> bool:
    # torch.compile(model) leaves no mark on the model itself, only on the wrapper around it.
    utils = getattr(dynamo, "utils", None)
    counters = getattr(utils, "counters", {})
    return bool(counters.get("frames", {}).get("total", 0))
