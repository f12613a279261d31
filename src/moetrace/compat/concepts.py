"""Three quantities of one batch, for whoever computes them by hand beside a training.

A tracer has the same three of every router and window without a line of code:
``tokens_per_expert``, ``routing_entropy`` and ``load_balancing_loss``. Letters: T tokens, K chosen
per token, E experts.
"""

import torch
from torch import Tensor

__all__ = ["calculate_load_balancing_loss", "calculate_routing_entropy", "track_expert_usage"]

_TINY = 1e-10


def track_expert_usage(expert_assignments: Tensor, num_experts: int) -> Tensor:
    """Assignments per expert, shape ``(E,)``; a token with K experts counts K times.

    Args:
        expert_assignments: Expert ids in ``[0, E)``, of any shape.
        num_experts: E.

    >>> track_expert_usage(torch.tensor([[0, 2], [2, 3]]), 4).tolist()
    [1, 0, 2, 1]
    """
    return torch.bincount(expert_assignments.reshape(-1), minlength=num_experts)


def calculate_routing_entropy(routing_probs: Tensor) -> float:
    """Mean over the tokens of the entropy of their probabilities, nats; 0 to ln E.

    Args:
        routing_probs: Shape ``(T, E)``, rows that add up to 1.

    Source: entropy ``-sum_e p_e ln(p_e + 1e-10)`` of each row, averaged.

    >>> round(calculate_routing_entropy(torch.full((4, 8), 1 / 8)), 4)
    2.0794
    """
    entropy_T = -(routing_probs * (routing_probs + _TINY).log()).sum(dim=-1)
    return float(entropy_T.mean())


def calculate_load_balancing_loss(
    routing_probs: Tensor, expert_assignments: Tensor, num_experts: int
) -> Tensor:
    """``E * sum_e f_e * P_e``, a scalar: 1 for a uniform router, E where one expert takes all.

    Args:
        routing_probs: Shape ``(T, E)``; P_e is the mean of a column.
        expert_assignments: Expert ids of any shape; f_e is the share of expert e.
        num_experts: E.

    Source: Switch Transformers (arXiv 2101.03961), equations 4 to 6, without their coefficient.

    >>> all_on_one = torch.zeros(3, 8).index_fill_(1, torch.tensor(5), 1.0)
    >>> calculate_load_balancing_loss(all_on_one, torch.tensor([5, 5, 5]), 8)
    tensor(8.)
    """
    usage_E = track_expert_usage(expert_assignments, num_experts).to(routing_probs.dtype)
    share_E = usage_E / (usage_E.sum() + 1e-8)
    return num_experts * (share_E * routing_probs.mean(dim=0)).sum()
