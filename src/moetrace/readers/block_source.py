"""Reading a block's rule of choice off the source of its forward.

A block with a bare gate makes its choice in a few lines of its own, and nothing that a hook sees
shows it. Those lines are read once, at attach: from the gate's output through known steps to a
top-k. What is no known step, depends on a condition or changes scores in place makes no rule.
Nothing of the user's is run, and the rule is held against what the experts receive later on.
"""

import ast
import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.readers.choice_rule import SCORES, ChoiceRule, NoChoiceRule, Step, held_by
from moetrace.readers.wrapping import class_of

__all__ = ["choice_rule", "returns_one_value"]

_CHOICES = ("topk", "argmax", "max")
_SAME = ("view", "reshape", "squeeze", "unsqueeze", "flatten", "contiguous", "detach", "clone")
_CASTS = {"float": torch.float32, "double": torch.float64, "bfloat16": torch.bfloat16}
_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_DEEPEST = 4

Steps = tuple[Step, ...]
_Scores = Steps | NoChoiceRule | None  # of the gate by these steps; of it somehow; not of it


def choice_rule(block: nn.Module, gate: str, *, stated: int = 0) -> ChoiceRule:
    """The rule by which the source of a block's forward chooses from the output of its gate.

    Args:
        block: The block; methods of its own that its forward calls are read too.
        gate: Name of the gate in it.
        stated: K, where the source does not show it.

    Raises:
        NoChoiceRule: There is no source, no top-k that starts from the gate, or more than one.
    """
    walk = _Walk(block, gate, stated)
    walk.method("forward", {})
    # The highest one beside several highest is a statistic of the block's, as for its loss.
    kind = "topk" if walk.rules["topk"] or walk.trouble["topk"] else "single"
    rules, trouble = walk.rules[kind], walk.trouble[kind]
    if trouble or not rules:
        raise trouble or NoChoiceRule("its forward takes no top-k of them")
    if len(rules) > 1:
        raise NoChoiceRule("its forward takes more than one top-k of them")
    return rules.pop()


def returns_one_value(function: Any) -> bool:
    """Whether a function returns one thing that is no tuple, dict or call of a class; else False.

    What cannot be read is taken to return several.
    """
    tree = _source_of(function)
    if tree is None:
        return False
    given = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value]
    several = (ast.Tuple, ast.List, ast.Dict, ast.Set)
    return bool(given) and not any(
        isinstance(value, several) or (isinstance(value, ast.Call) and _called(value)[:1].isupper())
        for value in given
    )


class _Walk:
    """Walks a forward from top to bottom and keeps what each name holds of the gate's scores."""

    def __init__(self, block: nn.Module, gate: str, stated: int) -> None:
        self.block, self.gate, self.stated = block, gate, stated
        self.rules: dict[str, set[ChoiceRule]] = {"topk": set(), "single": set()}
        self.trouble: dict[str, NoChoiceRule | None] = {"topk": None, "single": None}
        self._depth = 0
        self._numbers: dict[str, ast.expr] = {}

    def method(self, name: str, given: dict[str, _Scores]) -> _Scores:
        """Walk a method of the block; what it returns of the gate's scores."""
        tree = _source_of(getattr(class_of(self.block), name, None))
        if tree is None or self._depth >= _DEEPEST:
            if name == "forward":
                raise NoChoiceRule("the source of its forward cannot be read")
            return _worst(given.values(), f"{name} cannot be read")
        held: dict[str, _Scores] = dict(given)
        self._depth += 1
        self._statements(tree.body, held)
        self._depth -= 1
        return held.get("return")

    def _statements(self, body: Sequence[ast.stmt], held: dict[str, _Scores]) -> None:
        for statement in body:
            if isinstance(statement, ast.If):
                self._value(statement.test, held)
                self._branches(statement, held)
            elif isinstance(statement, ast.For | ast.While | ast.With | ast.Try):
                for value in ast.iter_child_nodes(statement):
                    if isinstance(value, ast.expr):
                        self._value(value, held)
                self._statements(statement.body, held)
                self._statements(statement.body, held)  # a later round sees what this one left
            elif isinstance(statement, ast.AugAssign):
                value = ast.BinOp(statement.target, statement.op, statement.value)
                self._assign(statement.target, self._value(value, held), held)
            elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.Return | ast.Expr):
                self._statement(statement, held)

    def _statement(
        self,
        statement: ast.Assign | ast.AnnAssign | ast.Return | ast.Expr,
        held: dict[str, _Scores],
    ) -> None:
        if statement.value is None:
            return
        found = self._value(statement.value, held)
        if isinstance(statement, ast.Return):
            held["return"] = found
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                self._assign(target, found, held)
                if isinstance(target, ast.Name):
                    self._numbers[target.id] = statement.value
        elif isinstance(statement, ast.AnnAssign):
            self._assign(statement.target, found, held)
        elif isinstance(statement.value, ast.Call) and _called(statement.value).endswith("_"):
            self._spoil(_receiver(statement.value), statement, held)

    def _branches(self, statement: ast.If, held: dict[str, _Scores]) -> None:
        either, other = dict(held), dict(held)
        self._statements(statement.body, either)
        self._statements(statement.orelse, other)
        for name in either | other:
            same = either.get(name) == other.get(name)
            trouble = NoChoiceRule(f"{name!r} depends on a condition")
            held[name] = either.get(name) if same else trouble

    def _assign(self, target: ast.expr, found: _Scores, held: dict[str, _Scores]) -> None:
        if isinstance(target, ast.Name):
            held[target.id] = found
            self._numbers.pop(target.id, None)
        elif isinstance(target, ast.Tuple):
            for item in target.elts:
                self._assign(item, None, held)
        elif isinstance(target, ast.Subscript):
            self._spoil(target.value, target, held)

    def _spoil(self, value: ast.expr | None, where: ast.AST, held: dict[str, _Scores]) -> None:
        if isinstance(value, ast.Name) and held.get(value.id) is not None:
            held[value.id] = NoChoiceRule(f"{_short(where)} changes them in place")

    def _value(self, value: ast.expr, held: dict[str, _Scores]) -> _Scores:
        """What an expression holds of the gate's scores; notes every choice in it."""
        if isinstance(value, ast.Name):
            return held.get(value.id)
        if isinstance(value, ast.BinOp) and type(value.op) in _SIGNS:
            return self._operator(value, held)
        if isinstance(value, ast.Call):
            return self._call(value, held)
        inner = [
            self._value(part, held)
            for part in ast.iter_child_nodes(value)
            if isinstance(part, ast.expr)
        ]
        return _worst(inner, f"{_short(value)} is no step that is known")

    def _operator(self, value: ast.BinOp, held: dict[str, _Scores]) -> _Scores:
        does = _SIGNS[type(value.op)]
        left, right = self._value(value.left, held), self._value(value.right, held)
        scores, operand = (left, value.right) if left is not None else (right, value.left)
        known = self._operand(operand)
        swapped = left is None and does in "-/"
        if not isinstance(scores, tuple) or known is None or swapped:
            return _worst([left, right], f"{_short(value)} is no step that is known")
        return (*scores, Step(does, *known))

    def _call(self, call: ast.Call, held: dict[str, _Scores]) -> _Scores:
        function, name = ast.unparse(call.func), _called(call)
        if function == f"self.{self.gate}":
            return ()
        arguments = [v for v in (_receiver(call), *call.args) if v is not None]
        arguments += [word.value for word in call.keywords]
        found = [self._value(argument, held) for argument in arguments]
        if function == f"self.{name}" and inspect.isfunction(
            getattr(class_of(self.block), name, None)
        ):
            return self._own_method(name, call, held)
        if name in _CHOICES and found and found[0] is not None:
            self._choice(call, name, found[0])
            return NoChoiceRule("they are what was chosen already")
        scores = found[0] if found else None
        if isinstance(scores, tuple) and not any(item is not None for item in found[1:]):
            try:
                return self._step(call, name, scores)
            except NoChoiceRule as trouble:
                return trouble
        return _worst(found, f"{_short(call)} is no step that is known")

    def _own_method(self, name: str, call: ast.Call, held: dict[str, _Scores]) -> _Scores:
        tree = _source_of(getattr(class_of(self.block), name))
        names = [] if tree is None else [argument.arg for argument in tree.args.args][1:]
        given = dict(zip(names, (self._value(v, held) for v in call.args), strict=False))
        given |= {word.arg or "": self._value(word.value, held) for word in call.keywords}
        return self.method(name, given)

    def _step(self, call: ast.Call, name: str, scores: Steps) -> _Scores:
        if name in _SAME:
            return scores
        if name in SCORES:
            dtype = _dtype(call)
            if "softmax" in name:
                _over_experts(call)
            return (*scores, Step(name, dtype=dtype))
        if name in _CASTS:
            return (*scores, Step("cast", dtype=_CASTS[name]))
        if name in ("to", "type") and (dtype := _dtype(call)) is not None:
            return (*scores, Step("cast", dtype=dtype))
        raise NoChoiceRule(f"{_short(call)} is no step that is known")

    def _choice(self, call: ast.Call, name: str, scores: Steps | NoChoiceRule) -> None:
        kind = "topk" if name == "topk" else "single"
        if name == "max" and len(call.args) + len(call.keywords) < 2 - _is_method(call):
            return  # the highest of all numbers chooses nothing
        try:
            if isinstance(scores, NoChoiceRule):
                raise scores
            _over_experts(call)
            top_k = self._top_k(call) if kind == "topk" else 1
            self.rules[kind].add(ChoiceRule(top_k, scores, kind == "single"))
        except NoChoiceRule as trouble:
            self.trouble[kind] = trouble

    def _top_k(self, call: ast.Call) -> int:
        given = [word.value for word in call.keywords if word.arg == "k"]
        given += call.args[1 - _is_method(call) :][:1]
        found = self._number(given[0]) if given else None
        if not isinstance(found, int) or isinstance(found, bool):
            found = self.stated
        if found < 1:
            raise NoChoiceRule("how many of them it takes cannot be read")
        return found

    def _number(self, value: ast.expr, depth: int = 0) -> Any:
        """What a number is: written out, the block's own, a name for one, or the least of some."""
        if isinstance(value, ast.Constant):
            return value.value
        if isinstance(value, ast.Name) and value.id in self._numbers and depth < _DEEPEST:
            return self._number(self._numbers[value.id], depth + 1)
        if isinstance(value, ast.Name):
            function = inspect.unwrap(class_of(self.block).forward)
            return getattr(function, "__globals__", {}).get(value.id)
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "min" and depth < _DEEPEST:
            found = [self._number(argument, depth + 1) for argument in value.args]
            return min(found) if found and all(isinstance(item, int) for item in found) else None
        return self._own(value)

    def _operand(self, value: ast.expr) -> tuple[str, float] | None:
        """What the block itself holds, by its name, or a number."""
        if isinstance(value, ast.Constant) and isinstance(value.value, int | float):
            return "", float(value.value)
        if isinstance(self._own(value), Tensor | int | float):
            return ast.unparse(value).removeprefix("self."), 0.0
        return None

    def _own(self, value: ast.expr | None) -> Any:
        if not isinstance(value, ast.Attribute):
            return None
        text = ast.unparse(value)
        return held_by(self.block, text[5:]) if text.startswith("self.") else None


def _source_of(function: Any) -> ast.FunctionDef | None:
    try:
        source = inspect.getsource(inspect.unwrap(function))
        (tree,) = ast.parse(textwrap.dedent(source)).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None


def _receiver(call: ast.Call) -> ast.expr | None:
    """What a method is called on; None for a function of a module."""
    function = call.func
    is_method = isinstance(function, ast.Attribute) and _is_method(call)
    return function.value if is_method and isinstance(function, ast.Attribute) else None


def _is_method(call: ast.Call) -> bool:
    owner = ast.unparse(call.func).rpartition(".")[0]
    return bool(owner) and owner not in _MODULES


_MODULES = ("torch", "F", "functional", "nn.functional", "torch.nn.functional", "self")


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def _over_experts(call: ast.Call) -> None:
    """Refuse what is taken over the tokens."""
    axes = [word.value for word in call.keywords if word.arg in ("dim", "axis")]
    axes += call.args[1 - _is_method(call) + (_called(call) == "topk") :][:1]
    for axis in axes:
        if ast.unparse(axis) not in ("-1", "1", "2"):
            raise NoChoiceRule(f"{_short(call)} is not taken over the experts")


def _dtype(call: ast.Call) -> torch.dtype | None:
    given = [word.value for word in call.keywords if word.arg == "dtype"]
    given += call.args if _called(call) in ("to", "type") else []
    for value in given:
        found = getattr(torch, ast.unparse(value).removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise NoChoiceRule(f"the precision of {_short(call)} cannot be read")
        return found
    return None


def _worst(found: Any, otherwise: str) -> _Scores:
    """None where nothing is of the gate's scores, else why it is no rule any more."""
    seen = [item for item in found if item is not None]
    trouble = next((item for item in seen if isinstance(item, NoChoiceRule)), None)
    return trouble or (NoChoiceRule(otherwise) if seen else None)


def _short(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 48 else f"{text[:45]}..."
