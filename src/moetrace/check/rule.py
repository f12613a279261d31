# pyright: strict
"""One rule: a figure of every layer and window, held against a number.

```
load_cv < 1.0                              every layer of every train window
dead_experts == 0 after step 500           windows that begin after step 500
max_vio_excess p95 < 2                     one number per window: the percentile over its layers
routing_entropy min > 0.5 layers=*.mlp phase=eval
```
"""

import math
import operator
import os
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from moetrace.check.figures import figure_named

__all__ = ["Rule", "parse_rule", "read_rules"]

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}

FORM = "a rule is METRIC [p95] < NUMBER [after step N] [layers=GLOB] [phase=NAME]"

_COMPARISON = re.compile("|".join(COMPARISONS))
_PERCENTILE = re.compile(r"p([0-9]{1,2}|100)")
_REDUCTIONS: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "sum": math.fsum,
    "min": min,
    "max": max,
}
_LONGEST_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Rule:
    """What has to hold.

    Attributes:
        name: What the rule is called where it is told about; its own text unless a file names it.
        text: The rule as it was written.
        figure: A metric of `moetrace.metrics.METRICS`, or a counter of `RoutingStats`.
        reduction: How the layers of a window become one number: ``"p95"`` or any other percentile,
            ``"mean"``, ``"sum"``, ``"min"``, ``"max"``; None holds each layer against the number.
        comparison: ``<``, ``<=``, ``>``, ``>=``, ``==`` or ``!=``.
        number: What the figure is compared with.
        after: Only windows whose first step is larger.
        layers: Only layers whose name matches this glob.
        phase: Only windows of this phase.
    """

    name: str
    text: str
    figure: str
    reduction: str | None
    comparison: str
    number: float
    after: int = 0
    layers: str = "*"
    phase: str = "train"

    def holds(self, value: float) -> bool:
        """Whether a value is as it has to be."""
        return COMPARISONS[self.comparison](value, self.number)

    def beyond(self, value: float) -> float:
        """How far a value is on the wrong side; the larger, the worse.

        >>> parse_rule("load_cv < 1").beyond(1.5)
        0.5
        """
        if self.comparison in ("<", "<="):
            return value - self.number
        if self.comparison in (">", ">="):
            return self.number - value
        return abs(value - self.number) if self.comparison == "==" else 0.0

    def reduced(self, values: list[float]) -> float:
        """One number of the values of several layers.

        >>> parse_rule("load_cv p50 < 1").reduced([1.0, 2.0, 4.0])
        2.0
        """
        assert self.reduction is not None
        percentile = _PERCENTILE.fullmatch(self.reduction)
        if percentile:
            return float(np.percentile(values, int(percentile[1])))
        return _REDUCTIONS[self.reduction](values)


def parse_rule(text: str, *, name: str = "") -> Rule:
    """The rule that a text says.

    Args:
        text: Such as ``load_cv < 1.0 after step 500``.
        name: What to call it; its text where there is none.

    Raises:
        ValueError: It is no rule; the message says which part, and names the nearest metric.

    >>> rule = parse_rule("max_vio_excess p95 < 2 after step 500")
    >>> rule.figure, rule.reduction, rule.comparison, rule.number, rule.after
    ('max_vio_excess', 'p95', '<', 2.0, 500)
    """
    found = _COMPARISON.search(text)
    if found is None:
        raise ValueError(f"found no comparison in the rule {text!r}; {FORM}")
    what = text[: found.start()].split()
    try:
        rest = shlex.split(text[found.end() :])
        if not 1 <= len(what) <= 2:
            raise ValueError(f"expected a metric before {found[0]!r}, found {' '.join(what)!r}")
        figure = figure_named(what[0])
        reduction = _reduction(what[1]) if len(what) == 2 else None
        if not rest:
            raise ValueError(f"expected a number after {found[0]!r}")
        number = _number(rest[0])
        where = _where(rest[1:])
    except ValueError as error:
        raise ValueError(f"cannot read the rule {text!r}: {error}; {FORM}") from None
    return Rule(name or text, text, figure, reduction, found[0], number, **where)


def read_rules(path: str | os.PathLike[str]) -> list[Rule]:
    """The rules of a file: a TOML table ``[rules]`` of names and rules.

    Args:
        path: The file, at most 1 MiB.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no TOML, has no rules, or one of them is none.
    """
    file = Path(path)
    with file.open("rb") as stream:
        content = stream.read(_LONGEST_FILE + 1)
    if len(content) > _LONGEST_FILE:
        raise ValueError(f"found more than 1 MiB in {str(file)!r}; a file of rules is short")
    try:
        record = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"cannot read {str(file)!r} as TOML: {error}") from error
    table: Any = record.get("rules")
    if not isinstance(table, dict) or not table:
        raise ValueError(
            f"found no rules in {str(file)!r}; it holds a table such as\n"
            '[rules]\nbalanced = "load_cv < 1.0"'
        )
    rules: list[Rule] = []
    for name, text in cast(dict[str, Any], table).items():
        if not isinstance(text, str):
            raise ValueError(f"found {text!r} as rule {name!r} in {str(file)!r}; write it as text")
        rules.append(parse_rule(text, name=name))
    return rules


def _reduction(word: str) -> str:
    if word in _REDUCTIONS or _PERCENTILE.fullmatch(word):
        return word
    raise ValueError(f"found {word!r} behind the metric; it is p0 to p100, mean, sum, min or max")


def _number(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"found {word!r} where a number belongs")
    return number


def _where(words: list[str]) -> dict[str, Any]:
    """The conditions behind the number."""
    found: dict[str, Any] = {}
    left = [word for word in words if word != "step"]
    while left:
        key, equals, value = left.pop(0).partition("=")
        if key == "after" and not equals:
            value = left.pop(0) if left else ""
        elif not equals:
            value = ""
        if key not in ("after", "layers", "phase") or key in found or not value:
            raise ValueError(f"found {key + equals + value!r} behind the number")
        found[key] = _step(value) if key == "after" else value
    return found


def _step(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise ValueError(f"found {word!r} where a step belongs")
    return int(word)
