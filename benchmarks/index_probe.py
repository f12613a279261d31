"""What does it cost to count a million experts: per routed index, per step, per window?

N = 1,048,576 experts in 10 layers, product keys of 1,024 x 1,024, 8 heads that choose 16 each: the
scale at which PEER layers are trained. Beside the operator stand what is usually written for it: a
Python ``Counter`` over the indices, and ``bincount`` with as many bins as experts. Memory bandwidth
is that of a copy on this machine; what counting would cost if it were limited by that alone is one
read of the index, and a read and a write of the cache line of its count (136 bytes an index, or 264
with a score).

The clock is process CPU time with one thread of torch, the least of many blocks of calls.
"""

from collections import Counter

import numpy as np
import torch
from _harness import least_cpu_us, like_a_training_process, options, publish
from torch import Tensor

from moetrace.ops import TracerState
from moetrace.ops.indices import note_lookup, note_scores
from moetrace.probes import IndexMeter, IndexProbe, Table
from moetrace.probes.tables import TableShape

EXPERTS, COLUMNS, LAYERS, HEADS, TOP_K = 1 << 20, 1024, 10, 8, 16
TOKENS = (512, 4096)
_LINE = 64


class Layer(torch.nn.Module):
    """Stands for a table of experts; its rows are never read."""

    num_embeddings = EXPERTS

    def forward(self, ids: Tensor) -> Tensor:
        return ids


def meter(*, scores: bool) -> tuple[IndexMeter, list[Layer]]:
    """The probe on ten tables without weights."""
    layers = [Layer() for _ in range(LAYERS)]
    tables = [
        Table(
            TableShape(f"layers.{at}.ffn", EXPERTS, COLUMNS),
            layer,
            torch.nn.Identity() if scores else None,
        )
        for at, layer in enumerate(layers)
    ]
    return IndexMeter(tables, IndexProbe(scores=scores), TracerState()), layers


def per_index(tokens: int, *, repeats: int) -> dict[str, float]:
    """Nanoseconds per routed index of each way to count."""
    ids = torch.randint(0, EXPERTS, (1, tokens, HEADS, TOP_K))
    scores = torch.rand(1, tokens, HEADS, TOP_K).softmax(-1)
    flat, one = ids.reshape(-1), torch.ones(ids.numel(), dtype=torch.int64)
    bare, _ = meter(scores=False)
    both, _ = meter(scores=True)
    counts = torch.zeros(EXPERTS, dtype=torch.int64)
    host, counter = counts.numpy(), Counter()
    first, second = bare._followed[0].probe, both._followed[0].probe

    def look_up() -> None:
        note_lookup(first.sums, first.key, ids, None, True, True, EXPERTS, 0, first.handle)

    def scored() -> None:
        note_lookup(second.sums, second.key, ids, None, True, True, EXPERTS, 1, second.handle)
        note_scores(second.sums, second.key, scores, EXPERTS, second.handle)

    found = least_cpu_us(
        {
            "moetrace": look_up,
            "moetrace, with scores": scored,
            "scatter_add_": lambda: counts.scatter_add_(0, flat, one),
            "numpy bincount": lambda: np.add(
                host, np.bincount(flat.numpy(), minlength=EXPERTS), out=host
            ),
            "Python Counter": lambda: counter.update(flat.tolist()),
        },
        repeats=repeats,
    )
    return {name: 1e3 * us / ids.numel() for name, us in found.items()}


def bandwidth(*, repeats: int) -> float:
    """Bytes a second of a copy that fits in no cache, read and written."""
    source = torch.ones(1 << 27, dtype=torch.uint8)
    target = torch.empty_like(source)
    found = least_cpu_us({"copy": lambda: target.copy_(source)}, repeats=repeats)
    return 2 * source.numel() / (found["copy"] * 1e-6)


def whole(tokens: int, *, repeats: int) -> dict[str, float]:
    """Milliseconds of ten layers: look-ups of a step, its end, a window's close, its reductions."""
    ids = [torch.randint(0, EXPERTS, (1, tokens, HEADS, TOP_K)) for _ in range(LAYERS)]
    scores = torch.rand(1, tokens, HEADS, TOP_K).softmax(-1)
    made, _ = meter(scores=True)
    probes = [item.probe for item in made._followed]

    def look_ups() -> None:
        for probe, chosen in zip(probes, ids, strict=True):
            note_lookup(probe.sums, probe.key, chosen, None, True, True, EXPERTS, 1, probe.handle)
            note_scores(probe.sums, probe.key, scores, EXPERTS, probe.handle)

    def step() -> None:
        look_ups()
        made.end_step()

    step()
    ((window, sums),) = made.window(1)
    bits = sums.numpy()
    found = least_cpu_us(
        {
            "look-ups of a step": look_ups,
            "look-ups and the end of a step": step,
            "reductions of a window, on the writer's thread": lambda: window.stats(bits),
        },
        repeats=repeats,
    )
    return {name: us / 1e3 for name, us in found.items()}


def main() -> None:
    """Print the table and the JSON line."""
    chosen = options(__doc__.splitlines()[0])
    arguments = chosen.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    like_a_training_process()
    repeats = 3 if arguments.quick else 15
    copied = bandwidth(repeats=repeats)
    least = {
        "moetrace": (8 + 2 * _LINE) / copied * 1e9,
        "moetrace, with scores": (8 + 4 * _LINE) / copied * 1e9,
    }
    ways = {tokens: per_index(tokens, repeats=repeats) for tokens in TOKENS}
    print(f"{EXPERTS:,} experts, {HEADS} heads x {TOP_K}, ns per routed index")
    print(f"{'':26}" + "".join(f"{tokens:>9,} tokens" for tokens in TOKENS))
    for name in ways[TOKENS[0]]:
        print(f"{name:26}" + "".join(f"{ways[tokens][name]:>16.2f}" for tokens in TOKENS))
    for name, bound in least.items():
        print(f"{'memory bandwidth, ' + name.partition(', ')[2]:26}{bound:>16.2f}")
    print(f"copy: {copied / 1e9:.1f} GB/s")
    steps = whole(TOKENS[0], repeats=repeats)
    print(f"\n{LAYERS} layers, {TOKENS[0]} tokens a step, ms")
    for name, milliseconds in steps.items():
        print(f"{name:50}{milliseconds:>10.2f}")
    made, _ = meter(scores=True)
    each = made.bytes / LAYERS / EXPERTS / 2
    print(f"sums on the device: {made.bytes / 1e6:.0f} MB, {each:.1f} B per expert and statistic")
    publish(
        "index_probe",
        {
            "experts": EXPERTS,
            "layers": LAYERS,
            "draws_per_token": HEADS * TOP_K,
            "ns_per_index": {str(tokens): rounded(found) for tokens, found in ways.items()},
            "ns_per_index_at_memory_bandwidth": rounded(least),
            "copy_gb_per_s": round(copied / 1e9, 2),
            "ms_of_ten_layers": rounded(steps),
            "bytes_on_the_device": made.bytes,
        },
        save=arguments.save,
    )


def rounded(values: dict[str, float]) -> dict[str, float]:
    """For the JSON line."""
    return {name: round(value, 3) for name, value in values.items()}


if __name__ == "__main__":
    main()
