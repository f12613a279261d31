"""What one router decided in a trial forward, and what its experts received.

Letters: T tokens, E experts, K chosen per token. Values are read off the device: a trial is no
training step.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.diagnosis.holders import Holder, holders_of
from moetrace.readers import Reader, Site
from moetrace.routing import Routing

__all__ = ["Decision", "Receipt", "Witness"]


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
            zero_TK = _rows(weights).cpu() == 0
            self.weightless += int(zero_TK.sum())
            self.ignored += int(zero_TK[real_T].sum())
        if routing.logits_TE is None or routing.logits_TE.numel() == 0:
            return
        logits = _rows(routing.logits_TE).detach().double().cpu()
        self.looks_like = _looks_like(logits)
        if ids is not None and weights is not None and ids.shape == weights.shape:
            self.explained_by = _explaining(
                logits, _rows(ids).long().cpu(), _rows(weights).detach().double().cpu()
            )


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


class Witness:
    """Hooks of one trial on one site: its block, its router, its experts.

    Args:
        model: The model that is run.
        site: The site.
        router: The module that is hooked.
        reader: Reads its routing.

    Attributes:
        blocks_ran: Forwards of the block.
        routers_ran: Forwards of the router.
        read: Forwards that the reader could read.
        unread: Why not, of the last one that it could not.
        decision: What the router decided.
        receipts: What each holder of experts received.
        holders: The modules of the block that hold experts.
        tables: Experts whose weights are all there; E where the block holds none to count.
    """

    def __init__(self, model: nn.Module, site: Site, router: nn.Module, reader: Reader) -> None:
        self.site, self._router, self._reader = site, router, reader
        self.blocks_ran = self.routers_ran = self.read = 0
        self.unread = ""
        self.decision = Decision([0] * site.num_experts)
        block_path = site.path.rpartition(".")[0]
        self._block = model.get_submodule(block_path) if site.path else None
        self.holders = holders_of(self._block, router, site.num_experts)
        self.receipts = [Receipt() for _ in self.holders]
        self.tables = max((holder.experts for holder in self.holders), default=site.num_experts)

    @contextmanager
    def watching(self, mask_of: Any) -> Iterator[None]:
        """Hooks on the modules, gone when left.

        Args:
            mask_of: Returns the padding mask of the running forward, or None.
        """
        with ExitStack() as hooks:
            if self._block is not None:
                hooks.callback(self._block.register_forward_pre_hook(self._on_block).remove)

            def on_router(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                self._on_router(module, args, kwargs, output, mask_of())

            handle = self._router.register_forward_hook(on_router, with_kwargs=True)
            hooks.callback(handle.remove)
            for holder, receipt in zip(self.holders, self.receipts, strict=True):
                for hooked in _hooks_on(holder, receipt):
                    hooks.callback(hooked.remove)
            yield

    def receipt(self) -> Receipt:
        """What says the most about what the experts received."""
        if isinstance(self._router, nn.Embedding):
            return Receipt("used", self.decision.counts, self.decision.counts)
        order = ("rows", "ids", "sizes")
        seen = [receipt for receipt in self.receipts if receipt.kind]
        if seen:
            return min(seen, key=lambda receipt: order.index(receipt.kind))
        if not self.receipts:
            return Receipt(why_not="no module of its block holds the experts")
        return self.receipts[0]

    def _on_block(self, module: nn.Module, args: Any) -> None:
        self.blocks_ran += 1

    def _on_router(
        self, module: nn.Module, args: Any, kwargs: Any, output: Any, mask_T: Tensor | None
    ) -> None:
        self.routers_ran += 1
        try:
            routing = self._reader.read(module, args, kwargs, output)
        except Exception as error:
            self.unread = f"its reader raised {type(error).__name__}: {error}"
            return
        if routing is None:
            self.unread = f"its reader reads nothing from an output of {_described(output)}"
            return
        try:
            self.decision.add(routing, mask_T)
            self.read += 1
        except Exception as error:
            self.unread = f"its routing cannot be counted: {type(error).__name__}: {error}"


def _hooks_on(holder: Holder, receipt: Receipt) -> Iterator[Any]:
    def on_call(module: nn.Module, args: Any, kwargs: Any) -> None:
        arguments = [*args, *kwargs.values()]
        try:
            found = _in_call(arguments, holder.experts)
        except Exception as error:
            receipt.why_not = f"the experts' call cannot be read: {type(error).__name__}: {error}"
            return
        if found is None:
            receipt.why_not = "its experts are called with neither ids and weights nor sizes"
            receipt.rows += _rows_of(arguments)
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
            flat = _rows(ids).long().cpu()
            if _distinct(flat):
                kept = _rows(weights).cpu() != 0
                return "ids", _counted(flat, experts), _counted(flat[kept], experts)
    total = _rows_of(arguments)
    for item in arguments:
        sizes = _sizes(item, experts, total)
        if sizes is not None:
            return "sizes", sizes, sizes
    return None


def _rows_of(arguments: Sequence[Any]) -> int:
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


def _chosen(routing: Routing, num_experts: int) -> tuple[Tensor, int]:
    """How often each token chose each expert, ``(T, E)`` on the host, and K; 0 of a map."""
    ids = routing.topk_expert_ids_TK
    if ids is not None:
        ids_TK = _rows(ids).long().cpu()
        inside = (ids_TK >= 0) & (ids_TK < num_experts)
        chosen_TE = torch.zeros(len(ids_TK), num_experts, dtype=torch.int64)
        chosen_TE.scatter_add_(1, ids_TK.clamp(0, num_experts - 1), inside.long())
        return chosen_TE, int(ids_TK.shape[1])
    if routing.routing_map_TE is None:
        raise ValueError("it holds neither expert ids nor a map")
    return (_rows(routing.routing_map_TE).cpu() != 0).long(), 0


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


def _counted(ids: Tensor, experts: int) -> list[int]:
    inside = ids[(ids >= 0)].reshape(-1)
    return [int(n) for n in torch.bincount(inside, minlength=experts).tolist()]


def _distinct(ids_TK: Tensor) -> bool:
    ordered = ids_TK.sort(1).values
    return bool((ordered[:, 1:] != ordered[:, :-1]).all())


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.reshape(1, 1)


def _sum(one: Sequence[int], other: Sequence[int], width: int) -> list[int]:
    pad = [[*item, *[0] * (width - len(item))] for item in (one, other)]
    return [a + b for a, b in zip(*pad, strict=True)]


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        kind = str(output.dtype).removeprefix("torch.")
        return f"{kind}[{', '.join(map(str, output.shape))}]"
    if isinstance(output, dict):
        return "{" + ", ".join(f"{key}: {_described(v)}" for key, v in output.items()) + "}"
    if isinstance(output, tuple | list):
        return f"({', '.join(map(_described, output))})"
    return type(output).__name__
