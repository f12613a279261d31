"""What has to be exact on a GPU. Every check returns what it found; `gpu.py` runs them."""

import os
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from _scripted import ScriptedMoE, wrong

import moetrace
from moetrace.layout import FRACTION_BITS, SCALARS, SCORINGS, AccumulatorLayout
from moetrace.ops.fused import add_fused, operator_form
from moetrace.ops.reference import routing_delta
from moetrace.routing import Routing
from moetrace.sinks import MemorySink

HOSTILE = (-1, None, 1 << 33, -(1 << 62))  # None: the number of experts


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found.

    Attributes:
        ok: Whether it holds; None where there is nothing to judge.
        figure: In words and numbers, for the table.
        numbers: For the JSON line.
    """

    ok: bool | None
    figure: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the checks run.

    Attributes:
        device: A CUDA device, or the CPU for a dry run.
    """

    device: torch.device

    @property
    def real(self) -> bool:
        """Whether there is a GPU; without one only the logic of a check is run."""
        return self.device.type == "cuda"

    def model(self, checkpointing: str | None = None) -> ScriptedMoE:
        size = {"blocks": 4, "tokens": 4096, "num_experts": 64, "top_k": 8, "hidden": 256}
        if not self.real:
            size = {"blocks": 2, "tokens": 32, "num_experts": 8, "top_k": 2, "hidden": 16}
        torch.manual_seed(0)
        return ScriptedMoE(**size, checkpointing=checkpointing).to(self.device).train()

    def hidden(self, model: ScriptedMoE) -> torch.Tensor:
        table = model.blocks[0].gate.logits_TE
        width = model.blocks[0].gate.weight.shape[1]
        return torch.randn(table.shape[0], width, device=self.device, requires_grad=True)

    def wait(self) -> None:
        if self.real:
            torch.cuda.synchronize(self.device)


class Steps:
    """A scripted model under a tracer, and how many steps it has done."""

    def __init__(self, bench: Bench, *, every: int, checkpointing: str | None = None) -> None:
        self.model = bench.model(checkpointing)
        self.hidden = bench.hidden(self.model)
        self.truth = self.model.truth()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.sink = MemorySink()
        self.tracer = moetrace.attach(self.model, every=every, sinks=[self.sink])
        self.forward: Callable[..., torch.Tensor] = self.model
        self.done = 0

    def work(self) -> None:
        """Forward and backward, no step of the tracer's."""
        self.forward(self.hidden).sum().backward()

    def one(self, work: Callable[[], Any] | None = None) -> None:
        """One optimizer step."""
        self.tracer.on_step_begin()
        (work or self.work)()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.tracer.on_step_end()
        self.done += 1

    def wrong(self, forwards: int | None = None) -> int:
        """Wrong assignments in all that was counted; closes the tracer."""
        self.tracer.flush()
        self.tracer.close()
        return wrong(self.sink.snapshots, self.truth, forwards or self.done)


def no_sync(bench: Bench) -> Found:
    """20 steps with flushes, where any synchronisation raises."""
    numbers: dict[str, Any] = {}
    for mode, checkpointing, compiled in (
        ("eager", None, False),
        ("checkpointed", "non-reentrant", False),
        ("reentrant", "reentrant", False),
        ("compiled", None, True),
    ):
        torch._dynamo.reset()
        steps = Steps(bench, every=5, checkpointing=checkpointing)
        if compiled:
            steps.forward = torch.compile(steps.model, fullgraph=True)
        for _ in range(5):
            steps.one()
        steps.tracer.flush()
        bench.wait()
        with syncs_raise() if bench.real else nullcontext():
            for _ in range(20):
                steps.one()
        numbers[mode] = steps.wrong()
    ok = not any(numbers.values())
    return Found(ok, f"no sync in 4 x 20 steps; wrong counts: {numbers}", numbers)


@contextmanager
def syncs_raise():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(bench: Bench) -> Found:
    """Forward and backward in one CUDA graph, 50 replays, a flush every 3.

    The third warm-up closes a window, so that its copy may be under way during the capture.
    """
    steps = Steps(bench, every=3)
    work: Callable[[], Any] = steps.work
    if bench.real:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                steps.one()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            steps.work()
        work = graph.replay
    for _ in range(50):
        steps.one(work)
    bad = steps.wrong()
    return Found(bad == 0, f"{bad} wrong assignments in {steps.done} steps", {"wrong": bad})


def graph_trees(bench: Bench) -> Found:
    """``torch.compile(mode="reduce-overhead")``: graphs are recorded, not skipped; counts exact."""
    if not bench.real:
        return Found(None, "needs a GPU")
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    steps = Steps(bench, every=10)
    steps.forward = torch.compile(steps.model, mode="reduce-overhead", fullgraph=True)

    def work() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        steps.work()

    for _ in range(30):
        steps.one(work)
    skips = counters["inductor"]["cudagraph_skips"]
    bad = steps.wrong()
    figure = f"{skips} graphs skipped, {bad} wrong assignments in 30 steps"
    return Found(skips == 0 and bad == 0, figure, {"skips": skips, "wrong": bad})


def kernel(bench: Bench) -> Found:
    """The kernel against the composition on the CPU, with bad values and hostile ids."""
    if bench.real and operator_form(bench.device) != "fused kernel":
        return Found(False, operator_form(bench.device))
    worst, cases, failures = 0.0, 0, []
    sizes = (8, 60, 64, 128, 160, 256, 384, 512, 1024) if bench.real else (8, 60)
    for num_experts in sizes:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for scoring in ("softmax", "sigmoid"):
                for masked in (False, True):
                    case = forward(num_experts, 777 if bench.real else 20, dtype, masked)
                    error = compare(bench, *case, num_experts, SCORINGS.index(scoring))
                    cases += 1
                    if error is None:
                        failures.append(f"E={num_experts} {dtype} {scoring} masked={masked}")
                    else:
                        worst = max(worst, error)
    ok = not failures and worst < 2e-5
    figure = f"{cases} cases, counts wrong in {len(failures)} {failures[:3]}; reals to {worst:.1e}"
    return Found(ok, figure, {"cases": cases, "wrong": failures, "worst_relative": worst})


def forward(num_experts, tokens, dtype, masked):
    made = torch.Generator().manual_seed(num_experts)
    top_k = min(8, num_experts // 2)
    logits = (torch.randn(tokens, num_experts, generator=made) * 3).to(dtype)
    ids = logits.float().topk(top_k).indices
    weights = torch.rand(tokens, top_k, generator=made).to(dtype)
    logits[0, 1], logits[1, 0], logits[2] = float("nan"), float("inf"), -float("inf")
    logits[3, ::2] = -float("inf")
    for row, bad in enumerate(HOSTILE):
        ids[5 + row, 0] = num_experts if bad is None else bad
    mask = torch.rand(tokens, generator=made) > 0.2 if masked else None
    return Routing(ids, logits, weights), mask


def compare(bench, routing, mask, num_experts, scoring) -> float | None:
    """The largest relative error of a sum of reals; None where a count is wrong."""
    ours = added(bench, routing, mask, num_experts, scoring).cpu().double()
    truth = routing_delta(routing, mask, num_experts, scoring).double()
    layout = AccumulatorLayout(num_experts)
    names = [name for name in SCALARS if name not in FRACTION_BITS]
    whole = [*range(layout.prob_sum), *(layout.scalar(name) for name in names)]
    if not torch.equal(ours[whole], truth[whole]):
        return None
    # A fixed-point unit for each program's rounding, and cancelling sums, are no relative error.
    error = (ours - truth).abs() - 1024
    scale = truth.abs().clamp(min=float(1 << 20))
    return max(0.0, float((error / scale).max()))


def added(bench, routing, mask, num_experts, scoring) -> torch.Tensor:
    routing = Routing(*(None if part is None else part.to(bench.device) for part in routing))
    mask = None if mask is None else mask.to(bench.device)
    row = torch.zeros(AccumulatorLayout(num_experts).width, dtype=torch.int64, device=bench.device)
    if not add_fused(row, routing, mask, num_experts, scoring):
        if bench.real:
            raise RuntimeError(f"not by the kernel: {operator_form(bench.device)}")
        row += routing_delta(routing, mask, num_experts, scoring)
    return row


def same_bits(bench: Bench) -> Found:
    """100 runs, every other one on another stream, give the same bits."""
    routing, mask = forward(128, 4096 if bench.real else 32, torch.bfloat16, True)
    routing = Routing(*(None if part is None else part.to(bench.device) for part in routing))
    mask = mask.to(bench.device)
    first = added(bench, routing, mask, 128, 0)
    bench.wait()
    other = torch.cuda.Stream() if bench.real else None
    different = 0
    for run in range(100 if bench.real else 3):
        with torch.cuda.stream(other) if other and run % 2 else nullcontext():
            again = added(bench, routing, mask, 128, 0)
            bench.wait()
            different += int(not torch.equal(first, again))
    return Found(different == 0, f"{different} of 100 runs differ", {"different": different})


def deterministic(bench: Bench) -> Found:
    """Kernel, composition, commit and flush raise and warn nothing in deterministic mode."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the model's own need
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            steps = Steps(bench, every=2)
            for _ in range(4):
                steps.one()
            bad = steps.wrong()
            routing, mask = forward(64, 64, torch.float32, True)
            routing = Routing(*(None if p is None else p.to(bench.device) for p in routing))
            routing_delta(routing, mask.to(bench.device), 64, 0)
    finally:
        torch.use_deterministic_algorithms(False)
    return Found(bad == 0, f"no error, no warning, {bad} wrong assignments", {"wrong": bad})


def streams(bench: Bench) -> Found:
    """Micro-batches on two streams at once, into the same accumulators."""
    steps = Steps(bench, every=5)
    pair = [torch.cuda.Stream(), torch.cuda.Stream()] if bench.real else []

    def work() -> None:
        if not pair:
            steps.work()
            steps.work()
            return
        here = torch.cuda.current_stream()
        for stream in pair:
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                steps.forward(steps.hidden)
        for stream in pair:
            here.wait_stream(stream)

    for _ in range(20):
        steps.one(work)
    bad = steps.wrong(forwards=2 * steps.done)
    return Found(bad == 0, f"{bad} wrong assignments in {steps.done} steps", {"wrong": bad})


def devices(bench: Bench) -> Found:
    """A model over two GPUs, one packed copy from each."""
    if not bench.real or torch.cuda.device_count() < 2:
        return Found(None, "needs two GPUs")
    steps = Steps(bench, every=5)
    steps.tracer.close()
    second = torch.device("cuda", 1)
    steps.model.blocks[-1].to(second)
    steps.tracer = moetrace.attach(steps.model, every=5, sinks=[steps.sink])
    first, last = steps.model.blocks[:-1], steps.model.blocks[-1]

    def forward_over_two(hidden: torch.Tensor) -> torch.Tensor:
        for block in first:
            hidden = block(hidden)
        return last(hidden.to(second))

    steps.forward = forward_over_two
    for _ in range(20):
        steps.one()
    bad = steps.wrong()
    return Found(bad == 0, f"{bad} wrong assignments in {steps.done} steps", {"wrong": bad})
