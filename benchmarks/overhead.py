"""How much slower is a traced training step?

Arms, on ONE model instance (copies differ by 5 % from where they lie in memory alone):

- untraced, twice: the second against the first (A/A) shows what the machine can resolve;
- moetrace, with a run folder; a window closes every tenth step and that step is timed until its
  snapshot is on the disk, so nothing it costs falls on another arm;
- the seed-style callback, which reads its figures back every step;
- a metric of torchmetrics per layer and figure, updated by a hook, read every tenth step;
- a hook that only counts, under ``torch.compiler.disable``;
- ``output_router_logits=True`` with the statistics that moetrace keeps computed after the forward,
  window sums on the device, read back every tenth step. The flag makes transformers compute
  its auxiliary loss too: that is part of its price.

What is toggled: each arm owns the hooks that came onto the model when it was set up (for the flag
those are the capturing hooks that transformers leaves on a model for good). Before a step exactly
those are put back, after it they are lifted off, both outside the timing. So the untraced arm runs
a model that nobody has touched, on the fast path of ``nn.Module`` without hooks, and the tracer
lives through all rounds as it would in a training. In eager mode hooks are read at each call, so
toggling them is the same as attaching then. Under ``--compile`` hooks are part of the compiled
code: both forms stay compiled side by side, and dynamo's guards on hooks, off by default, choose. A
change of arms then costs a failed guard, so there the arms take turns in blocks of ten steps; the
rivals break the graph, so that all arms run without ``fullgraph``.

A step is forward, backward and SGD at a rate of 0, so that every step does the same work. The model
is small and its experts are tiny, which exaggerates the share of tracing. The clock is process CPU
time of all threads of this process; wall time stands beside it.
"""

import gc
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from _harness import Arm, Cost, interleave, like_a_training_process, options, publish, ratios
from _rivals import AfterTheForward, DisabledCounter, TorchmetricsHooks
from _seed_style import SeedStyleCallback
from torch import Tensor, nn

import moetrace

CONFIG = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 2048,
}
TOKENS = (64, 256, 512)
EVERY = 10
BASE = "untraced"
AGAIN = "untraced again (A/A)"
MOETRACE = f"moetrace, every={EVERY}"
SEED = "seed-style callback"
METRICS = "torchmetrics"
DISABLED = "counts only, disabled"
FLAG = "output_router_logits"


class Hooks:
    """The hooks that came onto a model since ``before`` was taken; lifted off until put on."""

    def __init__(self, model: nn.Module, before: dict[int, set[int]]) -> None:
        self._hooks = [
            (table, {key: hook for key, hook in table.items() if key not in before[id(table)]})
            for table in tables(model)
        ]
        self._hooks = [(table, own) for table, own in self._hooks if own]
        self.take_off()

    def put_on(self) -> None:
        for table, own in self._hooks:
            table.update(own)

    def take_off(self) -> None:
        for table, own in self._hooks:
            for key in own:
                del table[key]

    def __len__(self) -> int:
        return len(self._hooks)


def tables(model: nn.Module) -> list[dict[int, Any]]:
    """Every table of forward hooks in a model."""
    return [
        table
        for module in model.modules()
        for table in (
            module._forward_pre_hooks,
            module._forward_pre_hooks_with_kwargs,
            module._forward_hooks,
            module._forward_hooks_with_kwargs,
            module._forward_hooks_always_called,
        )
    ]


def present(model: nn.Module) -> dict[int, set[int]]:
    """Which hooks are on a model now."""
    return {id(table): set(table) for table in tables(model)}


@dataclass(slots=True)
class Training:
    """One model, one batch, one optimizer; ``step`` is what all arms have in common."""

    model: Any
    forward: Any
    optimizer: torch.optim.Optimizer
    ids: Tensor
    mask: Tensor

    def step(self, **flags: bool) -> Any:
        output = self.forward(
            input_ids=self.ids, attention_mask=self.mask, labels=self.ids, **flags
        )
        output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return output


def training(tokens: int, *, compiled: bool) -> Training:
    """A fresh small Qwen3-MoE and a batch of ``tokens`` tokens in rows of at most 256."""
    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**CONFIG)).train()
    rows = max(1, tokens // 256)
    ids = torch.randint(2, CONFIG["vocab_size"], (rows, tokens // rows))
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Training(model, forward, optimizer, ids, torch.ones_like(ids))


def measure(tokens: int, *, seconds: float, compiled: bool, seed: int) -> dict[str, list[Cost]]:
    """Costs of every arm at one size."""
    work = training(tokens, compiled=compiled)
    work.step()
    bare = present(work.model)
    with tempfile.TemporaryDirectory() as folder:
        tracer = moetrace.attach(work.model, f"{folder}/run", every=EVERY)
        traced = Hooks(work.model, bare)

        def moetrace_step() -> None:
            tracer.on_step_begin()
            work.step()
            tracer.on_step_end()
            if tracer.step % EVERY == 0:
                tracer.flush()

        arms = [
            Arm(BASE, work.step),
            Arm(AGAIN, work.step),
            Arm(MOETRACE, moetrace_step, traced.put_on, traced.take_off),
        ]
        paths = [site.path for site in tracer.sites]
        arms += rivals(work, bare, paths)
        if not compiled:
            arms.append(flag(work, bare))
        for arm in arms:  # twice: the second finds everything compiled and allocated
            for _ in range(2):
                arm.put_on()
                arm.step()
                arm.take_off()
        assert present(work.model) == bare, "an arm left a hook behind"
        steps = EVERY
        if compiled:
            arms = [replace(arm, step=ten_times(arm.step)) for arm in arms]
            steps = 1
        costs = interleave(arms, steps=steps, seconds=seconds, least_rounds=3, seed=seed)
        check(tracer, tokens, len(costs[MOETRACE]) * EVERY + 2)
        tracer.close()
    return costs


def ten_times(step: Callable[[], object]) -> Callable[[], None]:
    """A window's worth of steps in one."""

    def steps() -> None:
        for _ in range(EVERY):
            step()

    return steps


def rivals(work: Training, bare: dict[int, set[int]], routers: list[str]) -> list[Arm]:
    """Callbacks on the routers: seed-style, torchmetrics, and counts alone."""
    named = {path: work.model.get_submodule(path) for path in routers}
    experts = CONFIG["num_experts"]
    callback = SeedStyleCallback(named, experts)
    seed_hooks = Hooks(work.model, bare)
    metrics = TorchmetricsHooks(named, experts, EVERY)
    metric_hooks = Hooks(work.model, bare)
    DisabledCounter(named, experts)
    count_hooks = Hooks(work.model, bare)

    def seed_step() -> None:
        work.step()
        callback.on_step_end()

    def metric_step() -> None:
        work.step()
        metrics.on_step_end()

    arms = [
        Arm(SEED, seed_step, seed_hooks.put_on, seed_hooks.take_off),
        Arm(METRICS, metric_step, metric_hooks.put_on, metric_hooks.take_off),
        Arm(DISABLED, work.step, count_hooks.put_on, count_hooks.take_off),
    ]
    for hooks in (seed_hooks, metric_hooks, count_hooks):
        assert len(hooks) == len(routers), "a callback put nothing on a router"
    return arms


def flag(work: Training, bare: dict[int, set[int]]) -> Arm:
    """The flag of transformers, with the statistics after it."""
    statistics = AfterTheForward(CONFIG["num_experts_per_tok"], EVERY)

    def step() -> None:
        output = work.step(output_router_logits=True)
        statistics.add(output.router_logits, work.mask)

    step()
    captured = Hooks(work.model, bare)
    assert len(captured), "the flag put nothing on the model"
    return Arm(FLAG, step, captured.put_on, captured.take_off)


def check(tracer: moetrace.Tracer, tokens: int, steps: int) -> None:
    """That what was timed was also counted: every token of every traced step, once."""
    tracer.flush()
    run = moetrace.open_run(tracer.run)
    for layer in run.layers:
        counted = sum(snapshot[layer].tokens for snapshot in run.snapshots())
        assert counted == tokens * steps, f"{layer}: {counted} tokens, expected {tokens * steps}"


def report(tokens: int, costs: dict[str, list[Cost]]) -> dict[str, Any]:
    """Print one size as a table; return it for the JSON line."""
    step_ms = 1000 * sum(cost.cpu for cost in costs[BASE]) / (EVERY * len(costs[BASE]))
    rounds = len(costs[BASE])
    print(f"\n{tokens} tokens; an untraced step takes {step_ms:.1f} ms of CPU; {rounds} rounds")
    print(f"  {'against untraced':24} {'CPU time':>22} {'wall time':>22}")
    arms = {}
    for name in costs:
        if name == BASE:
            continue
        cpu, wall = (ratios(costs, name, BASE, clock) for clock in ("cpu", "wall"))
        print(f"  {name:24} {cpu!s:>22} {wall!s:>22}")
        arms[name] = {"cpu": cpu.to_dict(), "wall": wall.to_dict()}
    return {"tokens": tokens, "step_ms": round(step_ms, 2), "rounds": rounds, "arms": arms}


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="torch.compile the model; CPU only")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--seconds", type=float, default=100.0, help="to spend on all sizes")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(given.threads)
    like_a_training_process()
    if given.compile:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
    sizes = TOKENS[1:2] if given.compile or given.quick else TOKENS
    seconds = (10.0 if given.quick else given.seconds) / len(sizes)
    print(f"Qwen3-MoE of transformers, {'compiled' if given.compile else 'eager'}: {CONFIG}")
    found = []
    for number, tokens in enumerate(sizes):
        costs = measure(tokens, seconds=seconds, compiled=given.compile, seed=number)
        found.append(report(tokens, costs))
        gc.collect()
    print()
    question = "overhead_compiled" if given.compile else "overhead"
    publish(question, {"model": CONFIG, "every": EVERY, "sizes": found}, save=given.save)


if __name__ == "__main__":
    main()
