"""The truth about a forward, found without any code of moetrace.

A pre-hook on each router keeps its input; the router's documented rule is then computed again from
that input and the router's weights, token by token, in float64 and in plain Python. Which forward
belongs to what is said by the test around it, never asked of autograd: a forward outside of any
label, such as a recomputation, is not the truth and is not counted.
"""

import math
from collections import defaultdict
from contextlib import contextmanager

import numpy as np
import torch


class Oracle:
    """Counts what each router of a transformers model must have decided, per label.

    Args:
        model: An untraced, uncompiled model without checkpointing.
        routers: Pairs of the site name and the path of the router module.
    """

    def __init__(self, model, routers):
        self.counts = defaultdict(lambda: defaultdict(int))
        self.probs = defaultdict(lambda: defaultdict(float))
        self.entropy = defaultdict(lambda: defaultdict(float))
        self.tokens = defaultdict(lambda: defaultdict(int))
        self._label = None
        self._kept = []
        for name, path in routers:
            model.get_submodule(path).register_forward_pre_hook(_Keep(self, name))

    @contextmanager
    def says(self, label, mask=None):
        """What runs inside belongs to ``label``; ``mask`` is non-zero for real tokens."""
        before, self._label = self._label, label
        kept, self._kept = self._kept, []
        try:
            yield
        finally:
            for name, router, hidden_TD in self._kept:
                self._count(label, name, router, hidden_TD, mask)
            self._label, self._kept = before, kept

    def _count(self, label, name, router, hidden_TD, mask):
        # Logits in the model's own precision: a tie that float64 breaks is another decision.
        bias = getattr(router, "bias", None)
        logits = torch.nn.functional.linear(hidden_TD, router.weight.detach(), bias)
        real = [True] * len(logits) if mask is None else mask.reshape(-1).tolist()
        for row, keep in zip(logits.detach().double().tolist(), real, strict=True):
            if not keep:
                continue
            scores, chosen = RULES[rule_of(router)](row, router)
            total = sum(scores)
            probs = [score / total for score in scores]
            self.counts[label][name] += np.bincount(chosen, minlength=len(row))
            self.probs[label][name] += np.array(probs)
            self.entropy[label][name] -= sum(p * math.log(p) for p in probs)
            self.tokens[label][name] += 1


class _Keep:
    def __init__(self, oracle, name):
        self.oracle, self.name = oracle, name

    def __call__(self, router, args):
        if self.oracle._label is not None:
            hidden = args[0].detach()
            self.oracle._kept.append((self.name, router, hidden.reshape(-1, hidden.shape[-1])))


def rule_of(router):
    """Group-limited sigmoid routing with a correction bias (DeepSeek-V3), else softmax top-k."""
    return "deepseek_v3" if hasattr(router, "e_score_correction_bias") else "softmax"


def _softmax(row, router):
    highest = max(row)
    scores = [math.exp(logit - highest) for logit in row]
    return scores, _best(scores, router.top_k)


def _deepseek_v3(row, router):
    scores = [1.0 / (1.0 + math.exp(-logit)) for logit in row]
    biased = [s + b for s, b in zip(scores, router.e_score_correction_bias.tolist(), strict=True)]
    size = len(row) // router.num_group
    groups = [range(g * size, (g + 1) * size) for g in range(router.num_group)]
    worth = [sum(sorted((biased[e] for e in group), reverse=True)[:2]) for group in groups]
    open_groups = set(_best(worth, router.topk_group))
    allowed = [biased[e] if e // size in open_groups else float("-inf") for e in range(len(row))]
    return scores, _best(allowed, router.top_k)


def _best(values, count):
    return sorted(range(len(values)), key=lambda index: -values[index])[:count]


RULES = {"softmax": _softmax, "deepseek_v3": _deepseek_v3}
