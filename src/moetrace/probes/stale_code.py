"""Code that was compiled before our hooks came, and would run on without them.

Dynamo guards on the hooks that a module has, never on a module that had none (its default
``skip_nnmodule_hook_guards``). A model that ran compiled before `attach` would be counted as 0, in
silence; so what is compiled is dropped, and compiles once more.
"""

import sys
from typing import Any

__all__ = ["drop_stale_code"]


def drop_stale_code() -> bool:
    """Drop all that dynamo has compiled in this process.

    All of it, since a model's code is more than its forwards: what goes on after a graph break,
    helpers, and functions under a decorator are code of their own. Other models compile once more
    too.

    Returns:
        Whether there was anything to drop. Where nothing was ever compiled it imports nothing.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return False
    frames: Any = getattr(dynamo, "convert_frame", None)
    seen = [
        code
        for codes in (getattr(frames, "input_codes", None), getattr(frames, "output_codes", None))
        for reference in getattr(codes, "seen", ())
        if (code := reference()) is not None
    ]
    for code in seen:
        dynamo.eval_frame.reset_code(code)
    return bool(seen)
