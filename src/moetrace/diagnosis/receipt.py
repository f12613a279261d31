"""What a holder of experts received in a trial forward, summed over its calls.

Letters: E experts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.diagnosis.decision import rows_of
from moetrace.diagnosis.holders import Holder

__all__ = ["Receipt", "hooks_on"]


@dataclass(slots=True)
class Receipt:
    """What a holder of experts received, summed over the calls of one forward.

    Attributes:
        kind: ``"rows"`` of listed experts, ``"ids"`` or ``"sizes"`` in the call, ``"used"`` where
            the choice itself was read off a table's look-up, ``""`` where none is visible.
        counts: Assignments per expert; of ids those with a weight of exactly 0 included.
        effective: The same without rows of zeros, or ids with a weight of exactly 0.
        why_not: Why nothing is visible.
        rows: Rows of its first argument where nothing else is visible.
    """

    kind: str = ""
    counts: list[int] = field(default_factory=list)
    effective: list[int] = field(default_factory=list)
    why_not: str = "its experts were not called as a module"
    rows: int = 0

    def add(self, kind: str, counts: Sequence[int], effective: Sequence[int]) -> None:
        """Add one call."""
        width = max(len(self.counts), len(counts))
        self.kind = kind
        self.counts = _sum(self.counts, counts, width)
        self.effective = _sum(self.effective, effective, width)


def hooks_on(holder: Holder, receipt: Receipt) -> Iterator[Any]:
    """Hooks on a holder and its listed experts that fill the receipt; their handles."""

    def on_call(module: nn.Module, args: Any, kwargs: Any) -> None:
        arguments = [*args, *kwargs.values()]
        try:
            found = _in_call(arguments, holder.experts)
        except Exception as error:
            receipt.why_not = f"the experts' call cannot be read: {type(error).__name__}: {error}"
            return
        if found is None:
            receipt.why_not = "its experts are called with neither ids and weights nor sizes"
            receipt.rows += _rows_in(arguments)
        elif receipt.kind != "rows":
            receipt.add(*found)

    def on_expert(position: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            rows = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            if rows is None or rows.dim() < 2:
                return
            rows = rows.reshape(-1, rows.shape[-1])
            if receipt.kind not in ("", "rows"):
                receipt.counts, receipt.effective = [], []
            counts, effective = [0] * holder.experts, [0] * holder.experts
            counts[position] = len(rows)
            effective[position] = int((rows != 0).any(1).sum())
            receipt.add("rows", counts, effective)

        return hook

    for position, expert in enumerate(holder.children):
        yield expert.register_forward_pre_hook(on_expert(position), with_kwargs=True)
    yield holder.module.register_forward_pre_hook(on_call, with_kwargs=True)


def _in_call(arguments: Sequence[Any], experts: int) -> tuple[str, list[int], list[int]] | None:
    """Kind, counts and effective counts that the arguments of the experts' call show, or None.

    Integer ids beside float weights of one shape, the ids of a token distinct; or sizes per expert
    that add up to the rows of the first argument.
    """
    tensors = [item for item in arguments if isinstance(item, Tensor)]
    for ids in (t for t in tensors if _is_integer(t) and t.dim() >= 1):
        for weights in (t for t in tensors if t.is_floating_point() and t.shape == ids.shape):
            flat = rows_of(ids).long().cpu()
            if _distinct(flat):
                kept = rows_of(weights).cpu() != 0
                return "ids", _counted(flat, experts), _counted(flat[kept], experts)
    total = _rows_in(arguments)
    for item in arguments:
        sizes = _sizes(item, experts, total)
        if sizes is not None:
            return "sizes", sizes, sizes
    return None


def _rows_in(arguments: Sequence[Any]) -> int:
    """Rows of the first float tensor ``(..., width)``; 0 where there is none."""
    for item in arguments:
        if isinstance(item, Tensor) and item.is_floating_point() and item.dim() >= 2:
            return item.numel() // max(1, item.shape[-1])
    return 0


def _sizes(item: Any, experts: int, total: int) -> list[int] | None:
    if isinstance(item, Tensor) and item.dim() == 1 and _is_integer(item):
        item = item.tolist()
    if not isinstance(item, list | tuple) or len(item) != experts:
        return None
    sizes = [value for value in item if isinstance(value, int)]
    return sizes if len(sizes) == experts and total and sum(sizes) == total else None


def _counted(ids: Tensor, experts: int) -> list[int]:
    inside = ids[(ids >= 0)].reshape(-1)
    return [int(n) for n in torch.bincount(inside, minlength=experts).tolist()]


def _distinct(ids_TK: Tensor) -> bool:
    ordered = ids_TK.sort(1).values
    return bool((ordered[:, 1:] != ordered[:, :-1]).all())


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _sum(one: Sequence[int], other: Sequence[int], width: int) -> list[int]:
    pad = [[*item, *[0] * (width - len(item))] for item in (one, other)]
    return [a + b for a, b in zip(*pad, strict=True)]
