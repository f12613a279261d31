"""What every router of a model really did, found without any code of moetrace.

The experts' own call arguments say which experts ran for which token; where they do not, the
documented rule of that router is computed again from its input and its weights. Letters: T tokens,
E experts, K experts chosen per token.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from tests.coverage.look_alikes import SPARE_PARTS

__all__ = ["Call", "TrueSite", "Truth", "describe", "scoring_by_weights"]


@dataclass(frozen=True, slots=True)
class Call:
    """One execution of one site.

    Attributes:
        ids_TK: Chosen experts, before dropping; -1 where a choice goes to no expert.
        weights_TK: What the experts were called with, or None.
        logits_TE: The router's scores of every expert as it returns them, or None.
        scoring: The name in `SCORES` of what turns them into weights; empty where none does.
        dropped_T: How many choices of each token a capacity limit threw away, or None.
    """

    ids_TK: Tensor
    weights_TK: Tensor | None = None
    logits_TE: Tensor | None = None
    scoring: str = ""
    dropped_T: Tensor | None = None


@dataclass(slots=True)
class TrueSite:
    """One mixture of experts in a model.

    Attributes:
        name: Dotted name of its block.
        block, router, experts: Class names; ``router`` is empty where the block chooses itself.
        num_experts: Experts that it owns, 0 where that is not one stack of parameters.
        rule: Where the truth was taken from.
        router_output, experts_call: Types and shapes that were seen.
        calls: Its executions by label.
    """

    name: str
    block: str
    router: str
    experts: str
    num_experts: int
    rule: str
    router_output: str = ""
    experts_call: str = ""
    calls: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))

    @property
    def routed(self) -> bool:
        """Whether the model chooses among its experts, and not its caller."""
        return RULES.get(self.experts) is not _vitpose

    def counts(self, label: str, masks: dict[str, Tensor]) -> list[int]:
        """Assignments per expert of the real tokens, as long as the highest expert that got one."""
        total: dict[int, int] = defaultdict(int)
        for call in self.calls[label]:
            for row in call.ids_TK[self._real(call, masks)].tolist():
                for expert in row:
                    total[expert] += expert >= 0
        return [total[expert] for expert in range(max(total, default=-1) + 1)]

    def skipped(self, label: str, masks: dict[str, Tensor]) -> int:
        """Choices of the real tokens that go to no expert."""
        calls = self.calls[label]
        return sum(int((call.ids_TK[self._real(call, masks)] < 0).sum()) for call in calls)

    def dropped(self, label: str, masks: dict[str, Tensor]) -> int:
        """Choices of the real tokens that a capacity limit threw away."""
        return sum(
            int(call.dropped_T[self._real(call, masks)].sum())
            for call in self.calls[label]
            if call.dropped_T is not None
        )

    def tokens(self, label: str, masks: dict[str, Tensor]) -> int:
        """Real tokens that came by."""
        return sum(int(self._real(call, masks).sum()) for call in self.calls[label])

    def entropy(self, label: str, masks: dict[str, Tensor]) -> float | None:
        """Mean over the real tokens of the entropy of the router's own normalised scores, nats."""
        values: list[float] = []
        for call in self.calls[label]:
            if call.logits_TE is None or not call.scoring:
                return None
            logits = call.logits_TE[self._real(call, masks)].double()
            probs = SCORES[call.scoring](logits)
            probs = probs / probs.sum(-1, keepdim=True)
            values += torch.special.entr(probs).sum(-1).tolist()
        return math.fsum(values) / len(values) if values else None

    def _real(self, call: Call, masks: dict[str, Tensor]) -> Tensor:
        named = [key for key in masks if key and key in self.name.split(".")]
        mask = masks.get(named[0] if named else "")
        if mask is None:
            return torch.ones(len(call.ids_TK), dtype=torch.bool)
        return mask.reshape(-1).bool()


class Truth:
    """Watches the experts and the routers of an untraced or traced model by hooks of its own.

    Args:
        model: The model.
        parts: Class names that the scan took for experts, routers or blocks.
    """

    def __init__(self, model: nn.Module, parts: tuple[str, ...]) -> None:
        self._label = ""
        self._seen: list[tuple[TrueSite, str, Any, Any]] = []
        self.sites = list(self._find(model, parts))

    @contextmanager
    def says(self, label: str) -> Iterator[None]:
        """What runs inside belongs to ``label``."""
        self._label, self._seen = label, []
        try:
            yield
        finally:
            self._label = ""
            outputs: dict[int, tuple[Any, Any, nn.Module]] = {}
            for site, kind, module, what in self._seen:
                if kind == "router":
                    outputs[id(site)] = (*what, module)
                    site.router_output = describe(what[1])
                else:
                    site.experts_call = describe(what)
                    rule = RULES.get(site.experts, _experts_arguments)
                    site.calls[label].append(rule(what, *outputs.get(id(site), (None,) * 3)))

    def _find(self, model: nn.Module, parts: tuple[str, ...]) -> Iterator[TrueSite]:
        taken: set[str] = set()
        for path, module in model.named_modules():
            name = type(module).__name__
            holds = name in parts and (name in RULES or "Expert" in name)
            holds = holds and name not in SPARE_PARTS
            block_path = path.rpartition(".")[0]
            if not holds or any(path.startswith(f"{other}.") for other in taken):
                continue
            block, experts = model.get_submodule(block_path), module
            if name == "DogeCDMoE":
                block_path, block, experts = path, module, module.get_submodule("up_embed")
            if block_path in {site for site in taken if RULES.get(name) is _jetmoe}:
                continue
            taken.add(block_path if RULES.get(name) is _jetmoe else path)
            router = next((c for c in block.children() if _is_router(c, parts)), None)
            site = TrueSite(
                block_path,
                type(block).__name__,
                type(router).__name__ if router is not None else "",
                name,
                next((len(p) for p in experts.parameters() if p.dim() >= 3), 0),
                (RULES.get(name) or _experts_arguments).__doc__ or "",
            )
            experts.register_forward_pre_hook(_KeepArguments(self, site), with_kwargs=True)
            if router is not None:
                router.register_forward_hook(_KeepOutput(self, site), with_kwargs=True)
            yield site


class _KeepArguments:
    def __init__(self, truth: Truth, site: TrueSite) -> None:
        self.truth, self.site = truth, site

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.truth._label:
            kept = [_copy(item) for item in (*args, *kwargs.values())]
            self.truth._seen.append((self.site, "experts", module, kept))


class _KeepOutput(_KeepArguments):
    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if self.truth._label:
            kept = ([_copy(item) for item in (*args, *kwargs.values())], _copy(output))
            self.truth._seen.append((self.site, "router", module, kept))


def _is_router(module: nn.Module, parts: tuple[str, ...]) -> bool:
    name = type(module).__name__
    return name in parts and bool(re.search(r"Router|Gat(e|ing)", name)) and "MLP" not in name


def _copy(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.detach().clone()
    if isinstance(item, tuple | list):
        return type(item)(_copy(inner) for inner in item)
    return item


def describe(item: Any) -> str:
    """Types and shapes in one line: ``(f32[24, 8], f32[24, 2], i64[24, 2])``."""
    if isinstance(item, Tensor):
        kind = str(item.dtype).removeprefix("torch.").replace("float", "f").replace("int", "i")
        return f"{kind}[{', '.join(map(str, item.shape))}]"
    if isinstance(item, list) and item and all(isinstance(inner, int) for inner in item):
        return f"list of {len(item)} int"
    if isinstance(item, tuple | list):
        return f"({', '.join(describe(inner) for inner in item)})"
    return "None" if item is None else type(item).__name__


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "probabilities": lambda x: x,
    "softmax": lambda x: x.softmax(-1),
    "sigmoid": lambda x: x.sigmoid(),
    "sqrt(softplus)": lambda x: softplus(x).sqrt(),
}
"""What may turn a router's logits into its scores; the first that explains the weights wins."""

SCORINGS = {"PhimoeTopKRouter": "softmax"}
"""Scores that the weights do not show: Phimoe's are of a softmax over the near-highest logits."""


def scoring_by_weights(logits_TE: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> str:
    """Which scores explain the weights: the ratios of a token's weights are those of its scores.

    Normalising over the chosen and scaling leave those ratios alone. With one expert per token the
    weight itself has to be the score, up to one factor for all tokens.
    """
    logits, weights = logits_TE.double(), weights_TK.double()
    chosen = (ids_TK >= 0) & (weights > 0)
    for name, score in SCORES.items():
        if name == "probabilities" and not torch.allclose(logits.sum(-1), logits.new_ones(())):
            continue
        log_scores = score(logits).clamp_min(1e-300).log().gather(1, ids_TK.clamp_min(0))
        rest = torch.where(chosen, weights.clamp_min(1e-300).log() - log_scores, torch.nan)
        middle = rest.nanmean(1, keepdim=True) if ids_TK.shape[1] > 1 else rest.nanmean()
        if (rest - middle).abs().nan_to_num(0.0).max() < 1e-3:
            return name
    return ""


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _floats(output: Any) -> list[Tensor]:
    items = output if isinstance(output, tuple | list) else (output,)
    return [_flat(t) for t in items if isinstance(t, Tensor) and t.is_floating_point()]


def _experts_arguments(arguments: list[Any], given: Any, output: Any, router: Any) -> Call:
    """ids and weights that the experts were called with"""
    tensors = [item for item in arguments if isinstance(item, Tensor) and item.dim() >= 2]
    pairs = [
        (ids, weights)
        for ids in tensors
        for weights in tensors
        if not ids.is_floating_point()
        and weights.is_floating_point()
        and ids.shape == weights.shape
    ]
    if not pairs:
        seen = describe(arguments)
        raise LookupError(f"found no ids and weights where experts are called with {seen}")
    ids, weights = pairs[0]
    ids, weights = _flat(ids).long(), _flat(weights)
    ids = torch.where(weights == 0, -1, ids)
    wide = [t for t in _floats(output) if t.shape[-1] > ids.shape[1] and len(t) == len(ids)]
    if not wide:
        return Call(ids, weights)
    scoring = SCORINGS.get(type(router).__name__) or scoring_by_weights(wide[0], ids, weights)
    return Call(ids, weights, wide[0], scoring)


def _llama4(arguments: list[Any], given: Any, output: Any, router: Any) -> Call:
    """rows that the experts were called with and that are not all zero"""
    logits = _floats(output)[-1]
    experts = logits.shape[1]
    routed_TE = arguments[0].reshape(experts, len(logits), -1).abs().sum(-1).T > 0
    ids = torch.where(routed_TE, torch.arange(experts), -1)
    return Call(ids, None, logits, "sigmoid")


def _switch(arguments: list[Any], given: Any, output: Any, router: Any) -> Call:
    """one-hot rows that the experts were called with; the highest score of a row of zeros"""
    one_hot_TE, logits = _flat(arguments[1]), _floats(output)[-1]
    kept_T = one_hot_TE.sum(1) > 0
    ids = torch.where(kept_T, one_hot_TE.argmax(1), logits.argmax(1))[:, None]
    return Call(ids, None, logits, "softmax", (~kept_T).long())


def _nllb(arguments: list[Any], given: Any, output: Any, router: Any) -> Call:
    """the router's rule: the two highest of its scores, computed again"""
    logits = linear(_flat(given[0]), router.classifier.weight.detach())
    ids, combine_TE = logits.topk(2, dim=1).indices, _floats(output)[0]
    return Call(ids, None, logits, "softmax", (combine_TE.gather(1, ids) == 0).sum(1))


def _jetmoe(arguments: list[Any], given: Any, output: Any, router: Any) -> Call:
    """the router's rule: the highest K of its scores, computed again; sizes checked"""
    logits = linear(_flat(given[0]), router.layer.weight.detach())
    ids = logits.topk(router.top_k, dim=1).indices
    sizes = torch.bincount(ids.reshape(-1), minlength=logits.shape[1]).tolist()
    assert sizes == arguments[1], f"computed {sizes}, the experts were given {arguments[1]}"
    return Call(ids, None, logits, "softmax")


def _doge(arguments: list[Any], given: Any, output: Any, router: Any) -> Call:
    """ids that the experts' embedding is looked up with"""
    return Call(_flat(arguments[0]).long())


def _vitpose(arguments: list[Any], given: Any, output: Any, router: Any) -> Call:
    """no router: the caller names one expert per image"""
    hidden, index = arguments
    return Call(index.long().expand(*hidden.shape[:2], 1).reshape(-1, 1))


RULES: dict[str, Callable[..., Call]] = {
    "Llama4TextExperts": _llama4,
    "SwitchTransformersExperts": _switch,
    "NllbMoeExperts": _nllb,
    "JetMoeParallelExperts": _jetmoe,
    "DogeCDMoE": _doge,
    "VitPoseNaiveMoe": _vitpose,
}
"""Where the truth is taken from for the experts that are not called with ids and weights."""
