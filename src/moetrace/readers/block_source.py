"""What the source of a block or a router says about its choice and its scores.

A block with a bare gate makes its choice in a few lines of its own, and nothing that a hook sees
shows it. Those lines are read once, at attach, as a rule that is held against what the experts
receive later on.
"""

import ast
from dataclasses import dataclass
from typing import Any

from torch import nn

from moetrace.readers.choice_rule import SCORES, ChoiceRule, NoChoiceRule
from moetrace.readers.score_walk import Scores, ScoreWalk
from moetrace.readers.source import called, inherited, is_inherited, source_of

__all__ = ["Returned", "choice_rule", "returned_scores", "returns_one_value"]


def choice_rule(block: nn.Module, gate: str, *, stated: int = 0) -> ChoiceRule:
    """The rule by which the source of a block's forward chooses from the output of its gate.

    Args:
        block: The block; methods of its own that its forward calls are read too.
        gate: Name of the gate in it.
        stated: K, where the source does not show it.

    Raises:
        NoChoiceRule: There is no source, no top-k that starts from the gate, or more than one.
    """
    walk = ScoreWalk(block, [gate], stated)
    walk.method("forward", {})
    # The highest one beside several highest is a statistic of the block's, as for its loss.
    kind = "topk" if walk.rules["topk"] or walk.trouble["topk"] else "single"
    rules, trouble = walk.rules[kind], walk.trouble[kind]
    if trouble or not rules:
        raise trouble or NoChoiceRule("its forward takes no top-k of them")
    if len(rules) > 1:
        raise NoChoiceRule("its forward takes more than one top-k of them")
    return rules.pop()


_STILL_LOGITS = ("log_softmax", "logsigmoid", "tanh")
"""Functions whose values are below 0 too; a capped logit is one."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What the source of a router says about the things it returns, by position.

    Attributes:
        logits: Which one holds its logits, or None.
        probabilities: Which one holds what a softmax or sigmoid made of them, or None.
        others: Which ones are made of its scores and are neither, so that they may have zeros.
    """

    logits: int | None = None
    probabilities: int | None = None
    others: tuple[int, ...] = ()


def returned_scores(router: nn.Module, num_experts: int) -> Returned:
    """What a router returns of its scores, by the source of its forward.

    Scores come from a linear layer of its own with E outputs, or from a product with a matrix that
    it holds itself. Where the source says nothing, or two things, all of it is None.
    """
    gates = [
        name
        for name, child in router.named_modules()
        if isinstance(child, nn.Linear) and child.out_features == num_experts
    ]
    own = [name for name, p in router.named_parameters() if p.dim() == 2 and num_experts in p.shape]
    walk = ScoreWalk(
        router, gates, 0, [name for name in own if name.rpartition(".")[0] not in gates]
    )
    try:
        walk.method("forward", {})
    except NoChoiceRule:
        return Returned()
    kinds = [_kind(scores) for scores in walk.returned]
    return Returned(
        kinds.index("logits") if "logits" in kinds else None,
        kinds.index("probabilities") if "probabilities" in kinds else None,
        tuple(index for index, kind in enumerate(kinds) if kind == "other"),
    )


def _kind(scores: Scores) -> str:
    if not isinstance(scores, tuple):
        return "" if scores is None else "other"
    if any(step.attribute for step in scores):
        return ""  # with a bias they decide, and are no probabilities
    functions = [step.does for step in scores if step.does in SCORES]
    return "logits" if not functions or functions[-1] in _STILL_LOGITS else "probabilities"


def returns_one_value(function: Any, owner: type) -> bool:
    """Whether a method returns one thing that is no tuple, dict or call of a class; else False.

    What cannot be read is taken to return several.

    Args:
        function: The method.
        owner: The class of the module that it is called on.
    """
    tree = source_of(function)
    if tree is None:
        return False
    given = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value]
    several = (ast.Tuple, ast.List, ast.Dict, ast.Set)
    if any(is_inherited(value) for value in given) and (above := inherited(function, owner)):
        return returns_one_value(above, owner)
    return bool(given) and not any(
        isinstance(value, several) or (isinstance(value, ast.Call) and called(value)[:1].isupper())
        for value in given
    )
