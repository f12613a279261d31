"""A mixture of experts whose routing is written down, so that its counts are known beforehand.

The logits of every router are a table, one row per token of the batch, and do not depend on what
flows through the model: neither a compiler nor another precision can turn a choice round. It uses
nothing that synchronises and nothing that a CUDA graph refuses.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Router(nn.Module):
    """Returns logits, weights and ids, as the routers of transformers do."""

    def __init__(self, logits_TE: Tensor, hidden: int, top_k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(logits_TE.shape[1], hidden) * 0.02)
        self.register_buffer("logits_TE", logits_TE)
        self.top_k = top_k

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        used = nn.functional.linear(hidden, self.weight)
        logits = self.logits_TE + used * 0
        weights, ids = logits.float().softmax(-1).topk(self.top_k)
        return logits, weights, ids


class Experts(nn.Module):
    """Stands for the experts: every token passes a mean of them, weighted by the router."""

    def __init__(self, num_experts: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_experts, hidden, hidden) * 0.02)

    def forward(self, hidden: Tensor, weights_TK: Tensor) -> Tensor:
        return hidden + (hidden @ self.weight.mean(0)) * weights_TK.sum(-1, keepdim=True)


class Block(nn.Module):
    def __init__(self, logits_TE: Tensor, hidden: int, top_k: int) -> None:
        super().__init__()
        self.gate = Router(logits_TE, hidden, top_k)
        self.experts = Experts(logits_TE.shape[1], hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        _, weights_TK, _ = self.gate(hidden)
        return self.experts(hidden, weights_TK)


class ScriptedMoE(nn.Module):
    """Blocks one after the other.

    Args:
        blocks: How many.
        tokens: T of every forward.
        num_experts: E.
        top_k: K.
        hidden: Width of what flows through.
        checkpointing: None, ``"reentrant"`` or ``"non-reentrant"``.
    """

    def __init__(
        self,
        *,
        blocks: int,
        tokens: int,
        num_experts: int,
        top_k: int,
        hidden: int,
        checkpointing: str | None = None,
    ) -> None:
        super().__init__()
        made = torch.Generator().manual_seed(0)
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(
            Block(torch.randn(tokens, num_experts, generator=made), hidden, top_k)
            for _ in range(blocks)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            if self.checkpointing is None:
                hidden = block(hidden)
            else:
                reentrant = self.checkpointing == "reentrant"
                hidden = checkpoint(
                    block, hidden, use_reentrant=reentrant, preserve_rng_state=False
                )
        return hidden

    def truth(self) -> list[np.ndarray]:
        """Tokens per expert of one forward, block by block: sorted in numpy, counted in numpy."""
        return [
            np.bincount(
                np.argsort(-table, axis=1, kind="stable")[:, : block.gate.top_k].ravel(),
                minlength=table.shape[1],
            )
            for block in self.blocks
            for table in [block.gate.logits_TE.float().cpu().numpy()]
        ]


def wrong(snapshots, truth: list[np.ndarray], forwards: int) -> int:
    """Assignments, over all blocks and experts, that differ from ``forwards`` times the truth."""
    windows = [snapshot for snapshot in snapshots if snapshot.phase == "train"]
    difference = 0
    for index, expected in enumerate(truth):
        counted = sum(snapshot.routing[index].tokens_per_expert for snapshot in windows)
        difference += int(np.abs(counted - forwards * expected).sum())
    return difference
