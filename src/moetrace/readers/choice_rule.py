"""How a block chooses from its gate's logits: a named rule, and what is said where there is none.

Letters: T tokens (any leading dimensions), E experts, K experts chosen per token.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SCORES", "ChoiceRule", "NoChoiceRule", "Step", "held_by"]

SCORES = ("softmax", "log_softmax", "sigmoid", "logsigmoid", "softplus", "sqrt", "tanh", "exp")
"""Functions that a block may take its highest of; each by its name in torch."""


_SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


class NoChoiceRule(LookupError):
    """A block shows no rule; the message says why, to be put after "but"."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step from the logits to what the highest are taken of.

    Attributes:
        does: A name in `SCORES`, ``"cast"``, or one of ``+ - * /``.
        attribute: Dotted name of the operand in the block; empty where it is a number.
        number: The operand, where it is a number.
        dtype: What is cast to; for a softmax before it.
    """

    does: str
    attribute: str = ""
    number: float = 0.0
    dtype: torch.dtype | None = None

    def apply(self, scores_TE: Tensor, block: nn.Module) -> Tensor:
        """The scores after this step, by the operation that the block runs itself."""
        if self.does == "cast":
            return scores_TE.to(self.dtype)
        if self.does in ("softmax", "log_softmax"):
            normalise = (
                nn.functional.softmax if self.does == "softmax" else nn.functional.log_softmax
            )
            return normalise(scores_TE, dim=-1, dtype=self.dtype)
        if self.does in SCORES:
            function = getattr(torch, self.does, None) or getattr(nn.functional, self.does)
            scored: Tensor = function(scores_TE)
            return scored
        operand = held_by(block, self.attribute) if self.attribute else self.number
        if isinstance(operand, Tensor):
            operand = operand.detach()
        stepped: Tensor = _SIGNS[self.does](scores_TE, operand)
        return stepped

    def __str__(self) -> str:
        if self.does == "cast":
            return str(self.dtype).removeprefix("torch.")
        if self.does in SCORES:
            precision = f" in {self.dtype}".replace("torch.", "") if self.dtype else ""
            return f"{self.does}{precision}"
        return f"{self.does} {self.attribute or format(self.number, 'g')}"


@dataclass(frozen=True, slots=True)
class ChoiceRule:
    """Which experts a block takes for given logits: the ``top_k`` highest after these steps.

    Attributes:
        top_k: K.
        steps: From the logits on, in order.
        single: Whether the one highest is taken by ``argmax`` or ``max``, which may settle a tie in
            another way than a top-k of 1.
    """

    top_k: int
    steps: tuple[Step, ...] = ()
    single: bool = False

    def choose(self, logits_TE: Tensor, block: nn.Module) -> tuple[Tensor, Tensor]:
        """The ids ``(..., K)`` of the chosen experts, and the logits as they are scored.

        Steps in front of the first function of the scores, such as a temperature, are in those
        logits. Cost: the block's own operations, again.
        """
        scores_TE = scored_TE = logits_TE.detach()
        scored = False
        for step in self.steps:
            if step.does in SCORES and not scored:
                scored, scored_TE = True, scores_TE
            scores_TE = step.apply(scores_TE, block)
        if self.single:
            return scores_TE.argmax(-1, keepdim=True), scored_TE
        return scores_TE.topk(self.top_k, dim=-1).indices, scored_TE

    @property
    def scoring(self) -> str:
        """What turns the logits into probabilities; empty where no step before the top-k does."""
        functions = [step.does for step in self.steps if step.does in SCORES]
        if functions[:2] == ["softplus", "sqrt"]:
            return "sqrtsoftplus"
        known = {"softmax": "softmax", "log_softmax": "softmax"}
        known |= {"sigmoid": "sigmoid", "logsigmoid": "sigmoid"}
        return known.get(functions[0], "") if functions else ""

    def __str__(self) -> str:
        """The rule in words.

        >>> str(ChoiceRule(2, (Step("sigmoid"), Step("+", "bias"))))
        "the highest 2 of the gate's logits, sigmoid, + bias"
        """
        return ", ".join([f"the highest {self.top_k} of the gate's logits", *map(str, self.steps)])


def held_by(block: nn.Module, dotted: str) -> Any:
    """What a block holds under a dotted name, or None."""
    found: Any = block
    for name in dotted.split("."):
        found = getattr(found, name, None)
    return found
