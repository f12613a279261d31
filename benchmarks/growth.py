"""How does the cost of tracing grow with experts, tokens and layers?

Three sweeps, each of one size alone: microseconds of process CPU time of one router call over the
number of experts and of tokens, and of the hooks and the step end of a model over its number of
layers. What they have to show: linear in tokens x experts beyond a fixed cost per call, and flat in
everything else. Beside a call stands a copy of the same logits: what memory alone costs.
"""

from typing import Any

import torch
from _harness import least_cpu_us, like_a_training_process, options, publish
from torch import Tensor, nn

import moetrace
from moetrace.layout import AccumulatorLayout
from moetrace.ops import Bin, TracerState, count, register

TOP_K = 8
EXPERTS = (8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (1024, 4096, 16_384, 65_536)
LAYERS = (4, 12, 24, 48, 96)


class Router(nn.Module):
    """Returns the same triple at each call, so that what is timed is tracing."""

    def __init__(self, experts: int, tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, 4))
        self.top_k = TOP_K
        self.chosen = triple(experts, tokens)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.chosen  # by such a name discovery knows that it is no bare gate


class Block(nn.Module):
    def __init__(self, experts: int, tokens: int) -> None:
        super().__init__()
        self.gate = Router(experts, tokens)
        self.experts = nn.ModuleList(nn.Identity() for _ in range(experts))

    def forward(self, hidden: Tensor) -> Tensor:
        self.gate(hidden)
        return hidden


def triple(experts: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, weights and ids of one router call."""
    logits_TE = torch.randn(tokens, experts)
    top = logits_TE.softmax(-1).topk(min(TOP_K, experts))
    return logits_TE, top.values, top.indices


def one_call(experts: int, tokens: int, *, repeats: int) -> dict[str, Any]:
    """Microseconds of one router call, and of a copy of its logits."""
    state = TracerState()
    register(state)
    accumulator = torch.zeros(len(Bin), AccumulatorLayout(experts).width, dtype=torch.int64)
    logits_TE, weights_TK, ids_TK = triple(experts, tokens)
    target = torch.empty_like(logits_TE)

    def call() -> None:
        count(accumulator, logits_TE, ids_TK, weights_TK, None, None, True, True, 0, state.handle)

    least = least_cpu_us({"call": call, "copy": lambda: target.copy_(logits_TE)}, repeats=repeats)
    return {
        "experts": experts,
        "tokens": tokens,
        "call_us": round(least["call"], 1),
        "copy_us": round(least["copy"], 1),
        "ns_per_logit": round(1000 * least["call"] / (tokens * experts), 3),
    }


def one_model(layers: int, *, repeats: int) -> dict[str, Any]:
    """Microseconds per layer of a traced forward over an untraced one, and of a step end."""
    tokens, experts = 256, 64
    model = nn.Sequential(*(Block(experts, tokens) for _ in range(layers)))
    hidden = torch.zeros(1, 4)
    bare = least_cpu_us({"bare": lambda: model(hidden)}, repeats=repeats)["bare"]
    with moetrace.attach(model, every=1_000_000, alerts=None) as tracer:
        least = least_cpu_us(
            {"forward": lambda: model(hidden), "step": lambda: step(tracer)}, repeats=repeats
        )
    return {
        "layers": layers,
        "hook_us_per_layer": round((least["forward"] - bare) / layers, 1),
        "step_us": round(least["step"], 1),
    }


def step(tracer: moetrace.Tracer) -> None:
    """An optimizer step without a forward."""
    tracer.on_step_begin()
    tracer.on_step_end()


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows of one shape."""
    names = list(rows[0])
    print("  ".join(f"{name:>18}" for name in names))
    for row in rows:
        print("  ".join(f"{row[name]:>18}" for name in names))
    print()


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    given = parser.parse_args()
    repeats = 5 if given.quick else 40
    torch.set_num_threads(1)
    like_a_training_process()
    found = {
        "experts": [one_call(experts, 4096, repeats=repeats) for experts in EXPERTS],
        "tokens": [one_call(128, tokens, repeats=repeats) for tokens in TOKENS],
        "layers": [one_model(layers, repeats=repeats) for layers in LAYERS],
    }
    for rows in found.values():
        table(rows)
    publish("growth", found, save=given.save)


if __name__ == "__main__":
    main()
