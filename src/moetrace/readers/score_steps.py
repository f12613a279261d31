"""What one call makes of a gate's scores, and what it is taken over."""

import ast

import torch

from moetrace.readers.choice_rule import SCORES, NoChoiceRule, Step
from moetrace.readers.source import called, is_method, short

__all__ = ["Steps", "refuse_other_axes", "stepped"]

_SAME = ("view", "reshape", "squeeze", "unsqueeze", "flatten", "contiguous", "detach", "clone")
_CASTS = {"float": torch.float32, "double": torch.float64, "bfloat16": torch.bfloat16}

Steps = tuple[Step, ...]


def stepped(call: ast.Call, name: str, scores: Steps) -> Steps:
    """The steps to what a call makes of scores.

    Raises:
        NoChoiceRule: It is no step that is known.
    """
    if name in _SAME:
        return scores
    if name in SCORES:
        dtype = _dtype(call)
        if "softmax" in name:
            refuse_other_axes(call)
        return (*scores, Step(name, dtype=dtype))
    if name in _CASTS:
        return (*scores, Step("cast", dtype=_CASTS[name]))
    if name in ("to", "type") and (dtype := _dtype(call)) is not None:
        return (*scores, Step("cast", dtype=dtype))
    raise NoChoiceRule(f"{short(call)} is no step that is known")


def refuse_other_axes(call: ast.Call) -> None:
    """Refuse what is taken over the tokens.

    Raises:
        NoChoiceRule: It is not taken over the experts.
    """
    axes = [word.value for word in call.keywords if word.arg in ("dim", "axis")]
    axes += call.args[1 - is_method(call) + (called(call) == "topk") :][:1]
    for axis in axes:
        if ast.unparse(axis) not in ("-1", "1", "2"):
            raise NoChoiceRule(f"{short(call)} is not taken over the experts")


def _dtype(call: ast.Call) -> torch.dtype | None:
    given = [word.value for word in call.keywords if word.arg == "dtype"]
    given += call.args if called(call) in ("to", "type") else []
    for value in given:
        found = getattr(torch, ast.unparse(value).removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise NoChoiceRule(f"the precision of {short(call)} cannot be read")
        return found
    return None
