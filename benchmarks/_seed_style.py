"""The callback that people write for themselves, as the thing to compare with.

It follows the public recipe for MoE monitoring: a forward hook keeps what each router gave; at the
end of every step, layer by layer, probabilities by a softmax, usage by ``bincount``, and each
figure read back with ``.item()``. No padding, no recomputation, no windows: the last forward wins.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class SeedStyleCallback:
    """Hooks on routers that return logits, weights and ids; figures of the last forward per step.

    Args:
        routers: The routers by name.
        num_experts: E.
    """

    def __init__(self, routers: Mapping[str, nn.Module], num_experts: int) -> None:
        self.num_experts = num_experts
        self.outputs: dict[str, tuple[Tensor, Tensor]] = {}
        self.usage: dict[str, Tensor] = {}
        self.log: dict[str, dict[str, float]] = {}
        self._handles = [self._hook(name, router) for name, router in routers.items()]

    def on_step_end(self) -> None:
        """Compute and read back every figure of every layer."""
        self.log = {name: self.figures(name, *kept) for name, kept in self.outputs.items()}
        self.outputs.clear()

    def figures(self, name: str, probs_TE: Tensor, ids_TK: Tensor) -> dict[str, float]:
        """The recipe's figures of one layer."""
        usage = torch.bincount(ids_TK.flatten(), minlength=self.num_experts)
        self.usage[name] = usage.cpu()
        counts = usage.float()
        entropy_T = -torch.sum(probs_TE * torch.log(probs_TE + 1e-10), dim=-1)
        fractions = counts / (counts.sum() + 1e-8)
        balance = self.num_experts * torch.sum(fractions * probs_TE.mean(dim=0))
        return {
            "expert_cv": (counts.std() / (counts.mean() + 1e-8)).item(),
            "max_usage_ratio": (counts.max() / (counts.mean() + 1e-8)).item(),
            "unused_experts": (counts == 0).sum().item(),
            "active_experts": (counts > 0).sum().item(),
            "routing_entropy": entropy_T.mean().item(),
            "load_balancing_loss": balance.item(),
        }

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str, router: nn.Module) -> RemovableHandle:
        def keep(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            logits_TE, _, ids_TK = output
            self.outputs[name] = torch.softmax(logits_TE.detach().float(), dim=-1), ids_TK

        return router.register_forward_hook(keep)
