"""Small models whose routing a test can know: a scripted router, and the transformers families."""

import functools

import torch
from torch import nn


class ScriptedRouter(nn.Module):
    """Routes as it is told: ``script`` holds the experts of each token, in order.

    Returns the triple of the standard contract; the logits are 1 for the chosen and 0 elsewhere.
    """

    def __init__(self, script, num_experts):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts, 4))
        self.script = script
        self.top_k = len(script[0])

    def forward(self, hidden):
        ids = torch.tensor(self.script)
        logits = torch.zeros(len(ids), self.weight.shape[0]) + hidden.sum() * 0
        logits = logits.scatter(1, ids.clamp(0, self.weight.shape[0] - 1), 1.0)
        return logits, torch.full(ids.shape, 1.0 / self.top_k), ids


class StackedExperts(nn.Module):
    def __init__(self, num_experts):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_experts, 4, 4))

    def forward(self, hidden):
        return hidden * self.weight.mean()


class ScriptedBlock(nn.Module):
    def __init__(self, script, num_experts):
        super().__init__()
        self.gate = ScriptedRouter(script, num_experts)
        self.experts = StackedExperts(num_experts)

    def forward(self, hidden):
        self.gate(hidden)
        return self.experts(hidden)


class ScriptedModel(nn.Module):
    """Blocks one after the other, each with a script; takes an ``attention_mask`` as models do."""

    def __init__(self, *scripts, num_experts):
        super().__init__()
        self.blocks = nn.ModuleList(ScriptedBlock(script, num_experts) for script in scripts)

    def forward(self, hidden, attention_mask=None):
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "use_cache": False,  # transformers warns about it under checkpointing, which breaks fullgraph
}

LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}

FAMILIES = {
    "Mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "Qwen2Moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "Qwen3Moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 8,
    },
    "Olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "DeepseekV3": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_hidden_layers": 3,
        **LATENT,
    },
    "GptOss": {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8},
    "Glm4Moe": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_group": 2,
        "topk_group": 1,
        "head_dim": 8,
        "first_k_dense_replace": 1,
        "num_hidden_layers": 3,
    },
}


def family(name, **changes):
    """A tiny random causal language model of a transformers family, in train mode.

    A correction bias is made non-zero, as in every trained model: at zero it hides a reader that
    chooses by the logits.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **FAMILIES[name], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape) * 0.3)
    return model.train()


def batch(seed, rows=2, length=12, padding=5):
    """Token ids 2..63 and an attention mask with ``padding`` masked tokens in the first row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 64, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return ids, mask


@functools.cache
def seeded(name):
    """The model of `family`, built once a session; take a deepcopy of it."""
    return family(name)
