"""Reading a layer whose experts are the rows of embedding tables: product keys, PEER.

Letters: T tokens (any leading dimensions), E experts, K experts chosen per token.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from moetrace.readers.source import names_in
from moetrace.readers.wrapping import class_of
from moetrace.routing import Routing

__all__ = ["MOST_ROWS", "LookupReader", "looked_up_experts"]

MOST_ROWS = 4096
"""Tables with more rows are counted by the index probe: the sums of routing hold many a number per
expert."""


class LookupReader:
    """Reads the expert ids off a table's input: what is looked up is what was chosen."""

    def matches(self, module: nn.Module, /) -> bool:
        """True for an embedding table."""
        return isinstance(module, nn.Embedding)

    def read(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, /
    ) -> Routing | None:
        """The ids ``(..., K)`` that were looked up, or None where it got something else.

        Of ids ``(B, S, H, K)`` the choices of a token's H heads are put together.
        """
        ids = args[0] if args else None
        if not isinstance(ids, Tensor) or ids.dim() < 2 or ids.dtype.is_floating_point:
            return None
        return Routing(ids if ids.dim() < 4 else ids.flatten(-2))


def looked_up_experts(block: nn.Module) -> tuple[nn.Embedding, int] | None:
    """The first of a block's tables of experts and their number E, or None where it holds none.

    Two tables of one size, and in the block a matrix or a stack of keys with n or 2n rows, where n
    is the root of that size, or of a head's share of it, and a forward that takes a top-k: the
    signature of product keys. A block of position tables, or of two towers, has none.
    """
    if "topk" not in names_in(class_of(block).forward, class_of(block)):
        return None
    heads = getattr(block, "heads", 1) if getattr(block, "separate_embed_per_head", False) else 1
    tables = [child for child in block.children() if isinstance(child, nn.Embedding)]
    for index, table in enumerate(tables):
        twins = [other for other in tables[index + 1 :] if other.weight.shape == table.weight.shape]
        root = math.isqrt(table.num_embeddings // heads)
        looked_up = {id(other.weight) for other in tables}
        keys = [
            parameter
            for parameter in block.parameters()
            if id(parameter) not in looked_up
            and parameter.dim() >= 2
            and {root, 2 * root} & set(parameter.shape[:-1])
        ]
        if twins and root >= 2 and keys:
            return table, table.num_embeddings
    return None
