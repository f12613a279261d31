"""What a router decided in a trial forward, summed over its calls.

Letters: T tokens, E experts, K chosen per token. Values are read off the device: a trial is no
training step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moetrace.routing import Routing

__all__ = ["Decision", "rows_of"]


@dataclass(slots=True)
class Decision:
    """What a router decided, summed over the calls of one forward.

    Attributes:
        counts: Assignments per expert, padding included.
        tokens: Tokens it saw.
        choices: Experts chosen per token, the most that one had.
        dropped: Choices that real tokens have fewer than that.
        weightless: Choices with a weight of exactly 0, of padding too.
        ignored: Those of real tokens among them.
        outside: Choices of an expert that does not exist.
        misfit: Size of a padding mask that does not fit the tokens, 0 where it does.
        masked: Whether there was a padding mask.
        looks_like: What the values of the logits are: ``"probabilities"``, ``"scores"`` (each
            between 0 and 1, not adding up to 1), ``"logits"``, or empty without logits.
        explained_by: The scorings that explain the mixing weights by the logits; empty where there
            is nothing to compare.
    """

    counts: list[int]
    tokens: int = 0
    choices: int = 0
    dropped: int = 0
    weightless: int = 0
    ignored: int = 0
    outside: int = 0
    misfit: int = 0
    masked: bool = False
    looks_like: str = ""
    explained_by: frozenset[str] = frozenset()

    def add(self, routing: Routing, mask_T: Tensor | None) -> None:
        """Add one call."""
        E = len(self.counts)
        chosen_TE, K = _chosen(routing, E)
        T = len(chosen_TE)
        per_expert = chosen_TE.sum(0).tolist()
        self.counts = [had + new for had, new in zip(self.counts, per_expert, strict=True)]
        real_T = torch.ones(T, dtype=torch.bool)
        self.masked |= mask_T is not None
        if mask_T is not None and mask_T.numel() != T:
            self.misfit = mask_T.numel()
        elif mask_T is not None:
            real_T = mask_T.detach().reshape(-1).cpu() != 0
        self.tokens += T
        per_token = chosen_TE.sum(1)
        self.choices = max(self.choices, K or int(per_token.max() if T else 0))
        self.dropped += int((self.choices - per_token).clamp_min(0)[real_T].sum())
        self._look(routing, E, real_T)

    def _look(self, routing: Routing, num_experts: int, real_T: Tensor) -> None:
        ids, weights = routing.topk_expert_ids_TK, routing.topk_weights_TK
        if ids is not None:
            self.outside += int(((ids < 0) | (ids >= num_experts)).sum())
        if ids is not None and weights is not None and ids.shape == weights.shape:
            zero_TK = rows_of(weights).cpu() == 0
            self.weightless += int(zero_TK.sum())
            self.ignored += int(zero_TK[real_T].sum())
        if routing.logits_TE is None or routing.logits_TE.numel() == 0:
            return
        logits = rows_of(routing.logits_TE).detach().double().cpu()
        self.looks_like = _looks_like(logits)
        if ids is not None and weights is not None and ids.shape == weights.shape:
            self.explained_by = _explaining(
                logits, rows_of(ids).long().cpu(), rows_of(weights).detach().double().cpu()
            )


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor with all leading dimensions as one."""
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.reshape(1, 1)


def _chosen(routing: Routing, num_experts: int) -> tuple[Tensor, int]:
    """How often each token chose each expert, ``(T, E)`` on the host, and K; 0 of a map."""
    ids = routing.topk_expert_ids_TK
    if ids is not None:
        ids_TK = rows_of(ids).long().cpu()
        inside = (ids_TK >= 0) & (ids_TK < num_experts)
        chosen_TE = torch.zeros(len(ids_TK), num_experts, dtype=torch.int64)
        chosen_TE.scatter_add_(1, ids_TK.clamp(0, num_experts - 1), inside.long())
        return chosen_TE, int(ids_TK.shape[1])
    if routing.routing_map_TE is None:
        raise ValueError("it holds neither expert ids nor a map")
    return (rows_of(routing.routing_map_TE).cpu() != 0).long(), 0


def _looks_like(logits_TE: Tensor) -> str:
    finite = logits_TE[logits_TE.isfinite().all(1)]
    if not finite.numel() or finite.min() < 0 or finite.max() > 1 + 1e-3:
        return "logits"
    return "probabilities" if (finite.sum(1) - 1).abs().max() < 1e-2 else "scores"


def _explaining(logits_TE: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> frozenset[str]:
    """Which scorings make the ratios of a token's weights those of its scores.

    Normalising over the chosen and scaling leave these ratios alone. With one expert per token
    there is no ratio, and nothing is said.
    """
    E = logits_TE.shape[1]
    chosen = (ids_TK >= 0) & (ids_TK < E) & (weights_TK > 0)
    if ids_TK.shape[1] < 2 or not chosen.all(1).any():
        return frozenset()
    logits_TK = logits_TE.gather(1, ids_TK.clamp(0, E - 1))[chosen.all(1)]
    weights = weights_TK[chosen.all(1)].log()
    log_scores = {
        "softmax": logits_TK,
        "sigmoid": torch.nn.functional.logsigmoid(logits_TK),
        "sqrtsoftplus": torch.nn.functional.softplus(logits_TK).log() / 2,
        "probabilities": logits_TK.clamp_min(1e-300).log(),
    }
    found = set()
    for name, scores in log_scores.items():
        rest = weights - scores
        if float((rest - rest.mean(1, keepdim=True)).abs().max()) < 2e-2:
            found.add(name)
    return frozenset(found)
