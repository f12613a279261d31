"""The hooks on a table of experts: ids on their way in, scores beside them; nothing is changed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moetrace.ops.indices import (
    IndexState,
    add_scores,
    hold_keys,
    look_up,
    note_keys,
    note_lookup,
    note_scores,
)
from moetrace.probes.copies import Uncopied
from moetrace.probes.execution import dispatch_modes, is_abstract, is_exported
from moetrace.probes.frames import never_a_frame
from moetrace.probes.tables import IndexProbe

__all__ = ["ScoreProbe", "TableProbe"]


class TableProbe(Uncopied):
    """A pre-hook on a table: one operator, nothing else; it keeps neither model nor tracer alive.

    Args:
        sums: The table's sums.
        key: Says which table it is, to the operator.
        num_experts: E.
        rule: Where its scores come from.
        state: Shared by all tables of the tracer.
        request: What the user asked for.
    """

    def __init__(
        self,
        sums: Tensor,
        key: Tensor,
        num_experts: int,
        rule: int,
        state: IndexState,
        request: IndexProbe,
    ) -> None:
        self.sums, self.key = sums, key
        self.num_experts = num_experts
        self.rule = rule
        self.tracer = state.tracer
        self.indices_from = request.indices_from
        self.handle = state.handle

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Cost: see `moetrace.ops.indices.note_lookup`; returns None on every path."""
        if is_exported():
            return
        try:
            ids = self._ids(module, args, kwargs)
        except Exception:
            return  # shows as a table that never counted; a user's function must not end a training
        if not isinstance(ids, Tensor) or ids.dtype.is_floating_point or ids.dim() == 0:
            return
        traced = torch.compiler.is_compiling()
        plain = not traced and dispatch_modes() == 0
        if not plain and not traced and is_abstract(ids):
            return
        note = note_lookup if plain else look_up
        note(
            self.sums,
            self.key,
            ids,
            self.tracer.mask_T,
            torch.is_grad_enabled(),
            module.training,
            self.num_experts,
            self.rule,
            self.handle,
        )

    def _ids(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self.indices_from is not None:
            return self.indices_from(module, args, kwargs)
        return args[0] if args else next(iter(kwargs.values()), None)


class ScoreProbe(Uncopied):
    """A forward hook on what returns scores: of the draws afterwards, or of all sub-keys before.

    Args:
        table: The hook on the table.
        before: Whether it is called before the look-up, with the scores of all sub-keys.
    """

    def __init__(self, table: TableProbe, *, before: bool) -> None:
        self.table = table
        self.before = before

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Cost: see `moetrace.ops.indices.note_scores`; returns None on every path."""
        if is_exported() or not isinstance(output, Tensor):
            return
        traced = torch.compiler.is_compiling()
        plain = not traced and dispatch_modes() == 0
        if not plain and not traced and is_abstract(output):
            return
        table, scores = self.table, output.detach()
        if self.before:
            hold = note_keys if plain else hold_keys
            hold(table.sums, table.key, scores, table.handle)
            return
        add = note_scores if plain else add_scores
        add(table.sums, table.key, scores, table.num_experts, table.handle)


never_a_frame(TableProbe.__call__)
never_a_frame(ScoreProbe.__call__)
