"""What tracing costs on a GPU. Every check returns what it found; `gpu.py` runs them."""

import gc
import time
from typing import Any

import torch
from _gpu_exact import Bench, Found, Steps, added
from _harness import Arm, Quartiles, interleave, ratios
from overhead import Hooks, present

import moetrace
from moetrace.layout import AccumulatorLayout
from moetrace.ops.fused import add_fused
from moetrace.routing import Routing
from moetrace.sinks import MemorySink

GOAL_BANDWIDTH = 0.70
GOAL_STEP = 1.002
LAUNCHES = 20
ARMS = ("untraced", "untraced again (A/A)", "moetrace, every=10")


def bandwidth(bench: Bench) -> Found:
    """Bytes the kernel reads per second, over those of a device copy, at T=65,536 and K=8."""
    if not bench.real:
        routing = inputs(bench, 64, 8, 2)
        added(bench, routing, None, 8, 0)
        return Found(None, f"needs a GPU; its inputs hold {size(routing)} bytes in the dry run")
    copied = copy_speed(bench)
    numbers: dict[str, Any] = {"copy_GBps": round(copied / 1e9), "us": {}, "share_of_copy": {}}
    for num_experts in (64, 128, 256):
        for tokens in (4096, 16384, 65536):
            seconds, read = kernel_time(bench, tokens, num_experts, 8)
            name = f"T={tokens} E={num_experts}"
            numbers["us"][name] = round(seconds * 1e6, 1)
            if tokens == 65536:
                numbers["share_of_copy"][f"E={num_experts}"] = round(read / seconds / copied, 3)
    shares = numbers["share_of_copy"]
    return Found(
        min(shares.values()) >= GOAL_BANDWIDTH,
        f"{shares} of a copy at {copied / 1e12:.2f} TB/s (goal {GOAL_BANDWIDTH}); {numbers['us']}",
        numbers,
    )


def inputs(bench: Bench, tokens: int, num_experts: int, top_k: int) -> Routing:
    logits = torch.randn(tokens, num_experts, device=bench.device, dtype=torch.bfloat16)
    weights, ids = logits.softmax(-1).topk(top_k)
    return Routing(ids, logits, weights)


def size(routing: Routing) -> int:
    return sum(part.numel() * part.element_size() for part in routing if part is not None)


def copy_speed(bench: Bench) -> float:
    """Bytes read and written per second by a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = device_seconds(lambda: target.copy_(source), repeats=20)
    return 2 * source.numel() / seconds


def kernel_time(bench: Bench, tokens: int, num_experts: int, top_k: int) -> tuple[float, int]:
    """Seconds and bytes read of one launch; the inputs take turns and outgrow any cache."""
    one = inputs(bench, tokens, num_experts, top_k)
    copies = max(2, min(LAUNCHES, (256 << 20) // size(one)))
    turns = [one, *(inputs(bench, tokens, num_experts, top_k) for _ in range(copies - 1))]
    width = AccumulatorLayout(num_experts).width
    row = torch.zeros(width, dtype=torch.int64, device=bench.device)

    def launches() -> None:
        for launch in range(LAUNCHES):
            if not add_fused(row, turns[launch % copies], None, num_experts, 0):
                raise RuntimeError("not by the kernel")

    launches()
    graph = torch.cuda.CUDAGraph()  # without it the host would be what is measured
    with torch.cuda.graph(graph):
        launches()
    return device_seconds(graph.replay, repeats=10) / LAUNCHES, size(one)


def device_seconds(call, *, repeats: int) -> float:
    """Seconds of one call on the device, the least of ``repeats`` after a warm-up."""
    call()
    least = float("inf")
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        least = min(least, start.elapsed_time(end) / 1e3)
    return least


def host_cost(bench: Bench) -> Found:
    """Microseconds of host time of one router call and of one step end."""
    steps = Steps(bench, every=1000)
    steps.one()
    bench.wait()
    block, hidden = steps.model.blocks[0], steps.hidden.detach()
    gate = block.gate
    traced = host_us(bench, lambda: gate(hidden))
    ends = host_us(bench, steps.tracer.on_step_end)
    steps.tracer.close()
    bare = host_us(bench, lambda: gate(hidden))
    numbers = {"router_call_us": round(traced - bare, 1), "step_end_us": round(ends, 1)}
    return Found(None, f"{numbers}", numbers)


def host_us(bench: Bench, call) -> float:
    least = float("inf")
    for _ in range(20):
        bench.wait()
        start = time.perf_counter()
        for _ in range(50):
            call()
        least = min(least, (time.perf_counter() - start) / 50)
    return least * 1e6


def commit(bench: Bench) -> Found:
    """Device operations of one step end, and of one that closes a window."""
    from torch.profiler import ProfilerActivity, profile

    numbers: dict[str, Any] = {}
    for name, every in (("commit", 1000), ("commit and flush", 1)):
        steps = Steps(bench, every=every)
        for _ in range(2):
            steps.one()
        steps.tracer.on_step_begin()
        steps.work()
        bench.wait()
        kinds = [ProfilerActivity.CUDA] if bench.real else [ProfilerActivity.CPU]
        with profile(activities=kinds) as seen:
            steps.tracer.on_step_end()
            bench.wait()
        numbers[name] = sum(event.count for event in seen.key_averages() if on_device(event, bench))
        steps.tracer.close()
    return Found(None, f"operations: {numbers}", numbers)


def on_device(event: Any, bench: Bench) -> bool:
    return not bench.real or getattr(event, "self_device_time_total", 0) > 0


def memory(bench: Bench) -> Found:
    """Peak allocation with tracing, over that without: the accumulators and little else."""
    if not bench.real:
        return Found(None, "needs a GPU")
    peaks = {}
    for traced in (False, True):
        steps = Steps(bench, every=5)
        tables = steps.tracer._recording._accumulators.tensors
        published = sum(table.numel() * table.element_size() for table in tables)
        del tables
        if not traced:
            steps.tracer.close()
        for _ in range(3):
            steps.one()
        bench.wait()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(10):
            steps.one()
        bench.wait()
        peaks[traced] = torch.cuda.max_memory_allocated()
        steps.tracer.close()
        del steps
        gc.collect()
    extra = peaks[True] - peaks[False]
    numbers = {"extra_bytes": extra, "accumulator_bytes": published}
    # Windows, masks and what is on its way to the host come to less than the accumulators again.
    limit = 2 * published + (1 << 20)
    return Found(extra <= limit, f"{extra} bytes more, accumulators hold {published}", numbers)


def step_overhead(bench: Bench, *, compiled: bool, checkpointing: bool, seconds: float) -> Found:
    """A traced over an untraced training step of a Qwen3-MoE, A/A beside A/B, one instance."""
    model, optimizer, ids = qwen(bench, compiled=compiled, checkpointing=checkpointing)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    mask = torch.ones_like(ids)

    def step() -> None:
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    step()
    bare = present(model)
    sink = MemorySink()
    tracer = moetrace.attach(model, every=10, sinks=[sink])
    hooks = Hooks(model, bare)

    def traced() -> None:
        tracer.on_step_begin()
        step()
        tracer.on_step_end()

    def group(one) -> Any:
        def steps() -> None:
            for _ in range(5 if bench.real else 1):
                one()
            bench.wait()

        return steps

    arms = [
        Arm(ARMS[0], group(step)),
        Arm(ARMS[1], group(step)),
        Arm(ARMS[2], group(traced), hooks.put_on, hooks.take_off),
    ]
    for arm in arms:
        for _ in range(2):
            arm.put_on()
            arm.step()
            arm.take_off()
    costs = interleave(arms, steps=1, seconds=seconds, least_rounds=4, seed=0)
    expected = (len(costs[ARMS[2]]) + 2) * (5 if bench.real else 1) * ids.numel()
    tracer.flush()
    tracer.close()
    counted = sum(snapshot.routing[0].tokens for snapshot in sink.snapshots)
    step_ms = 1e3 * min(cost.wall for cost in costs[ARMS[0]]) / (5 if bench.real else 1)
    same, ours = (ratios(costs, arm, ARMS[0], "wall") for arm in ARMS[1:])
    if counted != expected:
        return Found(False, f"{counted} tokens were counted where {expected} ran")
    ok = within(ours, same)
    numbers = {
        "parameters": parameters,
        "tokens": ids.numel(),
        "step_ms": round(step_ms, 2),
        "A/A": same.to_dict(),
        "A/B": ours.to_dict(),
    }
    figure = f"{ours} against A/A {same}; {step_ms:.1f} ms, {parameters / 1e9:.2f}e9 parameters"
    return Found(ok if bench.real else None, figure, numbers)


def within(ours: Quartiles, same: Quartiles) -> bool:
    """At most 0.2 %, and no further from 1 than an untraced step is from an untraced one."""
    spread = max(abs(same.low - 1), abs(same.high - 1))
    return ours.median <= GOAL_STEP and abs(ours.median - 1) <= max(spread, GOAL_STEP - 1)


def qwen(bench: Bench, *, compiled: bool, checkpointing: bool) -> tuple[Any, Any, torch.Tensor]:
    import transformers

    size = {
        "vocab_size": 32768,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "moe_intermediate_size": 384,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "max_position_embeddings": 4096,
    }
    rows, length = 4, 4096
    if not bench.real:
        size |= {"vocab_size": 64, "hidden_size": 32, "moe_intermediate_size": 32, "head_dim": 8}
        size |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_experts": 8}
        size |= {"num_experts_per_tok": 2, "intermediate_size": 32}
        rows, length = 2, 16
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(**size, use_cache=False)
    with torch.device(bench.device):
        model: Any = transformers.Qwen3MoeForCausalLM(config)
    model = model.to(torch.bfloat16).train()
    if bench.real:
        model.set_experts_implementation("grouped_mm")  # the loop over experts waits for the host
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if compiled:
        torch._dynamo.config.skip_nnmodule_hook_guards = False  # hooks come and go between arms
        for layer in model.model.layers:
            layer.compile()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return model, optimizer, torch.randint(2, size["vocab_size"], (rows, length)).to(bench.device)
