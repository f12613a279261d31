"""Code that was compiled before our hooks came, and would run on without them.

Dynamo guards on the hooks that a module has, never on a module that had none (its default
``skip_nnmodule_hook_guards``). A model that ran compiled before `attach` would be counted as 0, in
silence; so the compiled code of its classes is dropped, and they compile once more.
"""

import sys

from torch import nn

__all__ = ["drop_stale_code"]


def drop_stale_code(model: nn.Module) -> bool:
    """Drop what dynamo compiled for the classes of this model.

    Other models of the same classes in the process compile once more too.

    Returns:
        Whether there was anything to drop. Where nothing was ever compiled it imports nothing.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return False
    functions = {type(module).forward for module in model.modules()}
    # What ``module.compile()`` compiles is the call around the forward.
    functions |= {nn.Module._call_impl, nn.Module._wrapped_call_impl}
    compiled = getattr(dynamo.eval_frame, "_debug_get_cache_entry_list", lambda code: True)
    dropped = False
    for function in functions:
        code = getattr(function, "__code__", None)
        if code is not None and compiled(code):
            dynamo.eval_frame.reset_code(code)
            dropped = True
    return dropped
