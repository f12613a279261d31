"""The router: from the first tokens of a sequence to a precision for one layer.

Letters: B sequences of a batch, S positions, D width of the model, H of the router, P precisions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.errors import RecipeError
from layerwise.pooling import Pool

__all__ = ["PrecisionRouter"]

_PRIOR = 2.0


class PrecisionRouter(nn.Module):
    """A small network ``D -> 128 -> 128 -> P`` in float32 on the mean of the pooled tokens.

    It returns logits, the weight and the index of the choice, as a router of experts does, and says
    how many there are to choose from: moetrace reads it without being told. Its last layer starts
    at 0 with a prior for one precision, so that a new router chooses that one everywhere.

    Args:
        width: D.
        precisions: Bits to choose from, ascending.
        pool: Which tokens it looks at.
        start: The precision that it starts at.
        hidden: H.
        dropout: Share of the hidden units that are left out in train mode.
    """

    def __init__(
        self,
        width: int,
        precisions: Sequence[int],
        *,
        pool: Pool,
        start: int,
        hidden: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.precisions, self.pool = tuple(precisions), pool
        self.num_experts, self.top_k = len(self.precisions), 1
        self.body = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.weight = nn.Parameter(torch.zeros(self.num_experts, hidden))
        self.bias = nn.Parameter(torch.zeros(self.num_experts))
        with torch.no_grad():
            self.bias[self.precisions.index(start)] = _PRIOR

    def forward(self, hidden_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose for each sequence.

        Args:
            hidden_BSD: What the layer is about to get.
            mask_BS: 1 where a token is real.

        Returns:
            Logits ``(B, P)``, probability of the choice ``(B, 1)``, its index ``(B, 1)``.
        """
        seen_BS1 = self.pool.seen(mask_BS).unsqueeze(-1)
        total_BD = (hidden_BSD.float() * seen_BS1).sum(1)
        pooled_BD = total_BD / seen_BS1.sum(1).clamp(min=1)
        logits_BP = nn.functional.linear(self.body(pooled_BD), self.weight, self.bias)
        weights_B1, ids_B1 = logits_BP.softmax(-1).topk(1, dim=-1)
        return logits_BP, weights_B1, ids_B1

    def get_extra_state(self) -> dict[str, Any]:
        """What the weights mean; it is saved with them."""
        return {"precisions": list(self.precisions), "pool": str(self.pool)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over the pooling that the weights were trained with.

        Raises:
            RecipeError: They choose among other precisions.
        """
        if list(state["precisions"]) != list(self.precisions):
            raise RecipeError(
                f"found a router for precisions {list(state['precisions'])}, and a model with "
                f"{list(self.precisions)}; give the first list as --precisions"
            )
        self.pool = Pool.parse(str(state["pool"]))
