"""What one router decided in one forward, in the one shape that everything above reads.

Letters: T tokens (all leading dimensions flattened), E experts, K experts chosen per token.
"""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Routing"]


class Routing(NamedTuple):
    """One router's decision for one batch.

    A named tuple, since it is built inside a traced hook: dynamo folds it away. Leading dimensions
    may be anything that flattens to T; the operator flattens them.

    Either the ids or the map say which experts were chosen. Where both are given the ids do, and
    the map is what a capacity limit has left of them: the rest is counted as dropped.

    Attributes:
        topk_expert_ids_TK: Chosen experts, any integer dtype, shape ``(..., K)``.
        logits_TE: Scores before softmax or sigmoid, any float dtype, shape ``(..., E)``; None where
            the router shows none.
        topk_weights_TK: Mixing weights of the chosen, shape ``(..., K)``; None where unknown.
        routing_map_TE: Not 0 where a token goes to an expert, any dtype, shape ``(..., E)``: for
            routers that show no ids. A float map holds the mixing weights.
    """

    topk_expert_ids_TK: Tensor | None = None
    logits_TE: Tensor | None = None
    topk_weights_TK: Tensor | None = None
    routing_map_TE: Tensor | None = None
