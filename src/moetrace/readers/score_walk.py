"""A walk through the source of a forward that follows the scores of its gate.

From top to bottom, once: what each name holds of the scores, in steps that are known, which of them
a top-k is taken of, and what is returned. What is no known step, depends on a condition or changes
scores in place is kept as a reason why there is no rule. Nothing of the user's is run.
"""

import ast
import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from moetrace.readers.choice_rule import ChoiceRule, NoChoiceRule, Step, held_by
from moetrace.readers.score_steps import Steps, refuse_other_axes, stepped
from moetrace.readers.source import (
    called,
    inherited,
    is_inherited,
    is_method,
    receiver,
    short,
    source_of,
)
from moetrace.readers.wrapping import class_of

__all__ = ["ScoreWalk", "Scores"]

_CHOICES = ("topk", "argmax", "max")
_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_DEEPEST = 4

Scores = Steps | NoChoiceRule | None  # of the gate by these steps; of it somehow; not of it


class ScoreWalk:
    """Walks a forward from top to bottom and keeps what each name holds of the gate's scores."""

    def __init__(
        self, block: nn.Module, gates: Sequence[str], stated: int, matrices: Sequence[str] = ()
    ) -> None:
        self.block, self.stated = block, stated
        self.gates = [f"self.{name}" for name in gates]
        self.matrices = [f"self.{name}" for name in matrices]
        self.returned: list[Scores] = []
        self.rules: dict[str, set[ChoiceRule]] = {"topk": set(), "single": set()}
        self.trouble: dict[str, NoChoiceRule | None] = {"topk": None, "single": None}
        self._depth = 0
        self._numbers: dict[str, ast.expr] = {}
        self._function: Any = None
        self._passed: dict[str, list[Scores]] = {}

    def method(self, name: str, given: dict[str, Scores]) -> Scores:
        """Walk a method of the block; what it returns of the gate's scores."""
        return self._walk(getattr(class_of(self.block), name, None), name, given)

    def _walk(
        self,
        function: Any,
        name: str,
        given: dict[str, Scores],
        numbers: dict[str, ast.expr] | None = None,
        deeper: int = 1,
    ) -> Scores:
        tree = source_of(function)
        if tree is None or self._depth >= _DEEPEST:
            if name == "forward":
                raise NoChoiceRule("the source of its forward cannot be read")
            return _worst(given.values(), f"{name} cannot be read")
        held: dict[str, Scores] = dict(given)
        around = self._function, self._numbers
        self._function, self._numbers = function, dict(numbers or {})
        self._depth += deeper
        self._statements(tree.body, held)
        self._depth -= deeper
        self._function, self._numbers = around
        return held.get("return")

    def _statements(self, body: Sequence[ast.stmt], held: dict[str, Scores]) -> None:
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
        held: dict[str, Scores],
    ) -> None:
        if statement.value is None:
            return
        if isinstance(statement, ast.Return) and is_inherited(statement.value):
            held["return"] = self._inherited(statement.value, held, deeper=0)
            return
        found = self._value(statement.value, held)
        if isinstance(statement, ast.Return):
            held["return"] = found
            if self._depth == 1:
                self._note_returned(statement.value, held)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                self._assign(target, found, held)
                if is_inherited(statement.value) and self._depth == 1:
                    self._pass_on(target, statement.value, held)
                if isinstance(target, ast.Name):
                    self._numbers[target.id] = statement.value
        elif isinstance(statement, ast.AnnAssign):
            self._assign(statement.target, found, held)
        elif isinstance(statement.value, ast.Call) and called(statement.value).endswith("_"):
            self._spoil(receiver(statement.value), statement, held)

    def _note_returned(self, value: ast.expr, held: dict[str, Scores]) -> None:
        """Keep what each of the returned things holds; two returns that differ show nothing."""
        parts = [value]
        if isinstance(value, ast.Tuple | ast.List):
            parts = value.elts
        elif isinstance(value, ast.Dict):
            parts = value.values
        elif isinstance(value, ast.Call) and called(value)[:1].isupper():
            parts = [*value.args, *(word.value for word in value.keywords)]
        found = [self._value(part, held) for part in parts]
        if isinstance(value, ast.Name) and value.id in self._passed:
            found = self._passed[value.id]
        same = not self.returned or [type(item) for item in found] == [
            type(item) for item in self.returned
        ]
        self.returned = found if same else []

    def _pass_on(self, target: ast.expr, call: ast.Call, held: dict[str, Scores]) -> None:
        """Keep what each of the things holds that a method got by ``super()``, by their names."""
        before, self.returned = self.returned, []
        self._inherited(call, held, deeper=0)
        passed, self.returned = self.returned, before
        if isinstance(target, ast.Name):
            self._passed[target.id] = passed
        elif isinstance(target, ast.Tuple) and len(target.elts) == len(passed):
            for item, scores in zip(target.elts, passed, strict=True):
                self._assign(item, scores, held)

    def _multiplies(self, values: Sequence[ast.expr]) -> bool:
        """Whether one of the factors is a matrix that the module holds, as it is or transposed."""
        texts = [ast.unparse(value) for value in values]
        return any(
            text == name or text.startswith((f"{name}.", f"{name}["))
            for text in texts
            for name in self.matrices
        )

    def _branches(self, statement: ast.If, held: dict[str, Scores]) -> None:
        either, other = dict(held), dict(held)
        self._statements(statement.body, either)
        self._statements(statement.orelse, other)
        for name in either | other:
            same = either.get(name) == other.get(name)
            trouble = NoChoiceRule(f"{name!r} depends on a condition")
            held[name] = either.get(name) if same else trouble

    def _assign(self, target: ast.expr, found: Scores, held: dict[str, Scores]) -> None:
        if isinstance(target, ast.Name):
            held[target.id] = found
            self._numbers.pop(target.id, None)
        elif isinstance(target, ast.Tuple):
            for item in target.elts:
                self._assign(item, None, held)
        elif isinstance(target, ast.Subscript):
            self._spoil(target.value, target, held)

    def _spoil(self, value: ast.expr | None, where: ast.AST, held: dict[str, Scores]) -> None:
        if isinstance(value, ast.Name) and held.get(value.id) is not None:
            held[value.id] = NoChoiceRule(f"{short(where)} changes them in place")

    def _value(self, value: ast.expr, held: dict[str, Scores]) -> Scores:
        """What an expression holds of the gate's scores; notes every choice in it."""
        if isinstance(value, ast.Name):
            return held.get(value.id)
        product = isinstance(value, ast.BinOp) and isinstance(value.op, ast.MatMult)
        if isinstance(value, ast.BinOp) and product and self._multiplies([value.left, value.right]):
            return ()
        if isinstance(value, ast.BinOp) and type(value.op) in _SIGNS:
            return self._operator(value, held)
        if isinstance(value, ast.Call):
            return self._call(value, held)
        inner = [
            self._value(part, held)
            for part in ast.iter_child_nodes(value)
            if isinstance(part, ast.expr)
        ]
        return _worst(inner, f"{short(value)} is no step that is known")

    def _operator(self, value: ast.BinOp, held: dict[str, Scores]) -> Scores:
        does = _SIGNS[type(value.op)]
        left, right = self._value(value.left, held), self._value(value.right, held)
        scores, operand = (left, value.right) if left is not None else (right, value.left)
        known = self._operand(operand)
        swapped = left is None and does in "-/"
        if not isinstance(scores, tuple) or known is None or swapped:
            return _worst([left, right], f"{short(value)} is no step that is known")
        return (*scores, Step(does, *known))

    def _call(self, call: ast.Call, held: dict[str, Scores]) -> Scores:
        function, name = ast.unparse(call.func), called(call)
        if function in self.gates or (name in ("linear", "matmul") and self._multiplies(call.args)):
            return ()
        arguments = [v for v in (receiver(call), *call.args) if v is not None]
        arguments += [word.value for word in call.keywords]
        found = [self._value(argument, held) for argument in arguments]
        if function == f"self.{name}" and inspect.isfunction(
            getattr(class_of(self.block), name, None)
        ):
            return self._own_method(name, call, held)
        if is_inherited(call):
            return self._inherited(call, held)
        if function_ := self._own_function(call.func):
            return self._walk(function_, name, *self._given(function_, call, held))
        if name in _CHOICES and found and found[0] is not None:
            self._choice(call, name, found[0])
            return NoChoiceRule("they went through a top-k before, of groups or of a limit")
        scores = found[0] if found else None
        if isinstance(scores, tuple) and not any(item is not None for item in found[1:]):
            try:
                return stepped(call, name, scores)
            except NoChoiceRule as trouble:
                return trouble
        return _worst(found, f"{short(call)} is no step that is known")

    def _own_method(self, name: str, call: ast.Call, held: dict[str, Scores]) -> Scores:
        function = getattr(class_of(self.block), name)
        return self._walk(function, name, *self._given(function, call, held))

    def _own_function(self, called_as: ast.expr) -> Any:
        """A function that somebody has written beside the block, and not one of a package."""
        if not isinstance(called_as, ast.Name):
            return None
        found = getattr(inspect.unwrap(self._function), "__globals__", {}).get(called_as.id)
        home = str(getattr(found, "__module__", "")).partition(".")[0]
        return found if inspect.isfunction(found) and home != "torch" else None

    def _inherited(self, call: ast.Call, held: dict[str, Scores], deeper: int = 1) -> Scores:
        """Walk what a method goes on to by ``super()``, where that has the method's own name."""
        name, function = called(call), inherited(self._function, class_of(self.block))
        given, numbers = self._given(function, call, held)
        if name != getattr(self._function, "__name__", "") or function is None:
            return _worst(given.values(), f"{short(call)} cannot be read")
        return self._walk(function, name, given, numbers, deeper)

    def _given(
        self, function: Any, call: ast.Call, held: dict[str, Scores]
    ) -> tuple[dict[str, Scores], dict[str, ast.expr]]:
        """What a function is called with, by the names of its arguments: scores, and numbers."""
        tree = source_of(function)
        arguments = [] if tree is None else tree.args.args
        names = [argument.arg for argument in arguments]
        defaults = [] if tree is None else tree.args.defaults
        values: dict[str, ast.expr] = dict(zip(names[::-1], defaults[::-1], strict=False))
        names = names[1:] if names[:1] == ["self"] else names
        values |= dict(zip(names, call.args, strict=False))
        values |= {word.arg or "": word.value for word in call.keywords}
        numbers = {name: self._number(value) for name, value in values.items()}
        return (
            {name: self._value(value, held) for name, value in values.items()},
            {name: ast.Constant(n) for name, n in numbers.items() if isinstance(n, int)},
        )

    def _choice(self, call: ast.Call, name: str, scores: Steps | NoChoiceRule) -> None:
        kind = "topk" if name == "topk" else "single"
        if name == "max" and len(call.args) + len(call.keywords) < 2 - is_method(call):
            return  # the highest of all numbers chooses nothing
        try:
            if isinstance(scores, NoChoiceRule):
                raise scores
            refuse_other_axes(call)
            top_k = self._top_k(call) if kind == "topk" else 1
            self.rules[kind].add(ChoiceRule(top_k, scores, kind == "single"))
        except NoChoiceRule as trouble:
            self.trouble[kind] = trouble

    def _top_k(self, call: ast.Call) -> int:
        given = [word.value for word in call.keywords if word.arg == "k"]
        given += call.args[1 - is_method(call) :][:1]
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
            function = inspect.unwrap(self._function)
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


def _worst(found: Any, otherwise: str) -> Scores:
    """None where nothing is of the gate's scores, else why it is no rule any more."""
    seen = [item for item in found if item is not None]
    trouble = next((item for item in seen if isinstance(item, NoChoiceRule)), None)
    return trouble or (NoChoiceRule(otherwise) if seen else None)
