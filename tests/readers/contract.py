"""What every reader has to do, whatever router it reads."""

import torch


def check_reader(reader, module, args, kwargs, output, *, ids, num_experts):
    """A reader matches its router, reads these ids, and answers None to what is no routing.

    Args:
        reader: The reader under test.
        module: A router that it has to match.
        args: What the router was called with.
        kwargs: The same by name.
        output: What it returned.
        ids: The experts that were chosen, nested lists, one row per token.
        num_experts: E.
    """
    assert reader.matches(module) is True
    routing = reader.read(module, args, kwargs, output)
    K = routing.topk_expert_ids_TK.shape[-1]
    assert routing.topk_expert_ids_TK.reshape(-1, K).tolist() == ids
    if routing.logits_TE is not None:
        assert routing.logits_TE.shape[-1] == num_experts
        assert routing.logits_TE.dtype.is_floating_point
    if routing.topk_weights_TK is not None:
        assert routing.topk_weights_TK.shape == routing.topk_expert_ids_TK.shape
    for other in (None, 3, "logits", [], {}, (), torch.zeros(2, 2), (torch.zeros(2),), (None,) * 3):
        assert reader.read(module, (), {}, other) is None
