"""What the code and the source of a method say, without running it."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, TypeGuard

from torch import nn

__all__ = [
    "called",
    "codes_of",
    "inherited",
    "is_inherited",
    "is_method",
    "names_in",
    "receiver",
    "short",
    "source_of",
]


def names_in(function: Any, owner: type) -> set[str]:
    """Names that a function's code uses, with those of the methods of its class that it calls."""
    return _names_in(function, owner, set())


def _names_in(function: Any, owner: type, seen: set[CodeType]) -> set[str]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if not isinstance(code, CodeType) or code in seen:
        return set()
    seen.add(code)
    names = {name.lower() for name in code.co_names}
    for name in code.co_names:
        method = getattr(owner, name, None)
        if isinstance(method, FunctionType) and not hasattr(nn.Module, name):
            names |= _names_in(method, owner, seen)
    above = inherited(function, owner) if "super" in code.co_names else None
    return names if above is None else names | _names_in(above, owner, seen)


def inherited(function: Any, owner: type) -> Any:
    """What ``super()`` in a method calls under the method's own name; None where that is torch's.

    Args:
        function: The method.
        owner: The class of the module that it is called on.
    """
    name = getattr(function, "__name__", "")
    own = [base for base in owner.__mro__ if name in vars(base)]
    at = next((i for i, base in enumerate(own) if vars(base)[name] is function), len(own))
    above = own[at + 1] if at + 1 < len(own) else nn.Module
    return None if above.__module__.startswith("torch.nn") else vars(above)[name]


def codes_of(function: Any, owner: type) -> Iterator[CodeType]:
    """The code of a method, and of those that it goes on to by ``super()``."""
    while function is not None:
        code = getattr(inspect.unwrap(function), "__code__", None)
        if not isinstance(code, CodeType):
            return
        yield code
        function = inherited(function, owner) if "super" in code.co_names else None


def source_of(function: Any) -> ast.FunctionDef | None:
    """The tree of a function, or None without a source; a method's first argument is ``self``."""
    try:
        source = inspect.getsource(inspect.unwrap(function))
        (tree,) = ast.parse(textwrap.dedent(source)).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(tree, ast.FunctionDef):
        return None
    if _is_of_a_class(function, tree) and tree.args.args:
        first = tree.args.args[0].arg
        tree.args.args[0].arg = "self"
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == first:
                node.id = "self"
    return tree


def _is_of_a_class(function: Any, tree: ast.FunctionDef) -> bool:
    """Whether a function gets its module as its first argument."""
    within = getattr(inspect.unwrap(function), "__qualname__", "").split(".")[:-1]
    static = any(ast.unparse(node) == "staticmethod" for node in tree.decorator_list)
    return bool(within) and within[-1] != "<locals>" and not static


def is_inherited(value: ast.AST | None) -> TypeGuard[ast.Call]:
    """Whether an expression calls a method by ``super()``."""
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
        return False
    owner = value.func.value
    return isinstance(owner, ast.Call) and ast.unparse(owner.func) == "super"


def receiver(call: ast.Call) -> ast.expr | None:
    """What a method is called on; None for a function of a module."""
    function = call.func
    return function.value if isinstance(function, ast.Attribute) and is_method(call) else None


def is_method(call: ast.Call) -> bool:
    """Whether something is called on a value: not a function of a module, nor one of ``self``."""
    owner = ast.unparse(call.func).rpartition(".")[0]
    return bool(owner) and owner not in _MODULES


_MODULES = ("torch", "F", "functional", "nn.functional", "torch.nn.functional", "self")


def called(call: ast.Call) -> str:
    """The last part of the name of what is called."""
    return ast.unparse(call.func).rpartition(".")[2]


def short(node: ast.AST) -> str:
    """The text of an expression, at most 48 characters."""
    text = ast.unparse(node)
    return text if len(text) <= 48 else f"{text[:45]}..."
