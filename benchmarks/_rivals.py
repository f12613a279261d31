"""Other ways of knowing what routers did, as the things to compare with.

Each is what its users write: the flag of transformers with statistics after the forward, metrics of
torchmetrics fed by a hook, and a hook that counts outside the compiled graph.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn

__all__ = ["AfterTheForward", "DisabledCounter", "TorchmetricsHooks"]


class AfterTheForward:
    """What moetrace keeps of each layer, computed from ``output.router_logits`` by plain torch."""

    def __init__(self, top_k: int, every: int) -> None:
        self.top_k = top_k
        self.every = every
        self.steps = 0
        self.sums: list[dict[str, Tensor]] = []
        self.windows: list[list[dict[str, Tensor]]] = []

    def add(self, layers: tuple[Tensor, ...], mask: Tensor) -> None:
        with torch.no_grad():
            found = [self._layer(logits.detach(), mask.view(-1) != 0) for logits in layers]
        if not self.sums:
            self.sums = found
        else:
            for sums, new in zip(self.sums, found, strict=True):
                for name, value in new.items():
                    sums[name] += value
        self.steps += 1
        if self.steps % self.every == 0:
            self.windows.append([{n: s.cpu() for n, s in sums.items()} for sums in self.sums])
            self.sums = []

    def _layer(self, logits_TE: Tensor, real_T: Tensor) -> dict[str, Tensor]:
        logp_TE = logits_TE.float().log_softmax(-1)
        probs_TE = logp_TE.exp() * real_T[:, None]
        ranked_TK = logp_TE.topk(self.top_k + 1)
        weights_TK = ranked_TK.values[:, : self.top_k].softmax(-1) * real_T[:, None]
        ids = ranked_TK.indices[:, : self.top_k].reshape(-1)
        experts = logits_TE.shape[-1]
        lse_T = logits_TE.float().logsumexp(-1) * real_T
        margin_T = ranked_TK.values[:, self.top_k - 1] - ranked_TK.values[:, self.top_k]
        real = real_T[:, None].expand(-1, self.top_k).reshape(-1)
        return {
            "tokens": real_T.sum(),
            "counts": torch.zeros(experts).scatter_add_(0, ids, real.float()),
            "gates": torch.zeros(experts).scatter_add_(0, ids, weights_TK.reshape(-1)),
            "probs": probs_TE.sum(0),
            "entropy": -(probs_TE * logp_TE).sum(),
            "confidence": probs_TE.amax(-1).sum(),
            "margin": (margin_T * real_T).sum(),
            "lse": lse_T.sum(),
            "lse_sq": lse_T.square().sum(),
        }


class TorchmetricsHooks:
    """A metric per layer and figure, updated by a forward hook, read every so many steps.

    Usage is a vector that sums, entropy and confidence are means: what its users have at hand. No
    padding, no recomputation.
    """

    def __init__(self, routers: Mapping[str, nn.Module], num_experts: int, every: int) -> None:
        self.every = every
        self.steps = 0
        self.log: dict[str, dict[str, Any]] = {}
        self.metrics = {
            name: {
                "usage": _Usage(num_experts),
                "entropy": torchmetrics.MeanMetric(nan_strategy="ignore"),
                "confidence": torchmetrics.MeanMetric(nan_strategy="ignore"),
            }
            for name in routers
        }
        for name, router in routers.items():
            router.register_forward_hook(self._update(self.metrics[name]))

    def on_step_end(self) -> None:
        """Read every metric back at the end of a window, and reset it."""
        self.steps += 1
        if self.steps % self.every:
            return
        for name, metrics in self.metrics.items():
            self.log[name] = {key: metric.compute().tolist() for key, metric in metrics.items()}
            for metric in metrics.values():
                metric.reset()

    @staticmethod
    def _update(metrics: dict[str, Any]) -> Any:
        def update(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            logits_TE, _, ids_TK = output
            with torch.no_grad():
                probs_TE = logits_TE.detach().float().softmax(-1)
                metrics["usage"].update(ids_TK)
                metrics["entropy"].update(-(probs_TE * probs_TE.clamp_min(1e-10).log()).sum(-1))
                metrics["confidence"].update(probs_TE.amax(-1))

        return update


class _Usage(torchmetrics.Metric):
    """Assignments per expert."""

    full_state_update = False

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(num_experts, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, ids_TK: Tensor) -> None:
        self.counts += torch.bincount(ids_TK.flatten(), minlength=len(self.counts))

    def compute(self) -> Tensor:
        return self.counts


class DisabledCounter:
    """A hook that counts and nothing else, kept out of compiled graphs: the nearest peer's design.

    ``torch.compiler.disable`` costs a graph break at every router; ``fullgraph=True`` refuses it.
    """

    def __init__(self, routers: Mapping[str, nn.Module], num_experts: int) -> None:
        self.counts = {name: torch.zeros(num_experts, dtype=torch.long) for name in routers}
        for name, router in routers.items():
            router.register_forward_hook(self._count(self.counts[name]))

    @staticmethod
    def _count(counts: Tensor) -> Any:
        @torch.compiler.disable
        def count(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ids = output[2].flatten()
            counts.scatter_add_(0, ids, torch.ones_like(ids))

        return count
