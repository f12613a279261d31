"""Two small operators: what a rule says that experts get, and the rows that they did get.

They are tallied apart from what is counted, every first execution once, in whatever phase; the
writer compares them when a window closes. See `moetrace.probes.receipts`.
"""

import torch
from torch import Tensor

from moetrace.ops.library import counts_now

__all__ = ["expect", "note_expected", "note_received", "receive"]


def note_expected(expected_E: Tensor, topk_expert_ids_TK: Tensor, handle: int) -> None:
    """Body of the operator: add the choices per expert, padding included, to ``expected_E``.

    Never raises an ``Exception`` and never synchronises.

    Args:
        expected_E: Choices per expert so far, int64; the only thing written.
        topk_expert_ids_TK: Chosen experts, all within ``[0, E)``.
        handle: Number of the tracer.

    Cost: two small operations; none in a recomputation.
    """
    if not counts_now(handle) or topk_expert_ids_TK.is_meta:
        return
    with torch.no_grad():
        ids = topk_expert_ids_TK.reshape(-1).to(expected_E.device)
        expected_E.scatter_add_(0, ids, ids.new_ones(()).expand_as(ids))


def note_received(rows: Tensor, hidden: Tensor, handle: int) -> None:
    """Body of the operator: add the rows that one expert was called with to ``rows``.

    Args:
        rows: Rows so far, one int64 on the host; the only thing written.
        hidden: What the expert was called with, shape ``(..., D)``; only its shape is looked at.
        handle: Number of the tracer.

    Cost: one addition on the host, nothing on the device; none in a recomputation.
    """
    if counts_now(handle) and hidden.dim() > 0:
        rows += hidden.shape[:-1].numel()


def _define() -> torch.library.Library:
    library = torch.library.Library("moetrace", "FRAGMENT")
    tags = (torch.Tag.pt2_compliant_tag,)
    for name, body, schema in (
        ("expect", note_expected, "Tensor(a!) expected_E, Tensor topk_expert_ids_TK, int handle"),
        ("receive", note_received, "Tensor(a!) rows, Tensor hidden, int handle"),
    ):
        library.define(f"{name}({schema}) -> ()", tags=tags)
        library.impl(name, body, "CompositeExplicitAutograd")
        torch.library.register_fake(f"moetrace::{name}", lambda *args: None, lib=library)
    return library


_library = _define()
expect = torch.ops.moetrace.expect.default
"""`note_expected` behind the dispatcher."""
receive = torch.ops.moetrace.receive.default
"""`note_received` behind the dispatcher."""
