"""What does one router call add: operators, host synchronisations, bytes, host microseconds?

Counts do not vary, so they gate the tests (``tests/test_counted_cost.py`` runs this file with
``--counts``); microseconds inform. Three things are counted, each where it can be seen:

- what a dispatch mode sees of a router's forward with the hook on it: one operator, opaque;
- what runs inside that operator on a CPU: its body, called under the counting mode itself. What it
  computes by numpy is no operator; a look at host memory as an array is counted as ``numpy``;
- what runs inside it on a device without a kernel of ours: the same body by torch alone;
- what a step end and a flush run on the training thread.

A host synchronisation is whatever would make the host wait for a GPU: reading a value back
(``item``, ``bool``, ``tolist``, ``numpy``), a shape that depends on data (``nonzero``,
``bincount``, a boolean index), a copy to the host. On a CPU these cost nothing, but they can be
counted. Bytes are those of the tensors that an operator reads, and of the memory that it newly
allocates; views count for neither.

The clock is process CPU time with one thread of torch, the least of many blocks of calls.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from _harness import least_cpu_us, like_a_training_process, options, publish
from _seed_style import SeedStyleCallback
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import moetrace
from moetrace.host_copy import HostCopies
from moetrace.ops import count

SIZES = ((256, 64, 8), (16384, 128, 8))
"""T tokens, E experts, K per token."""

SYNCING_OPERATORS = frozenset(
    {
        "aten::_local_scalar_dense",
        "aten::is_nonzero",
        "aten::equal",
        "aten::nonzero",
        "aten::nonzero_numpy",
        "aten::argwhere",
        "aten::masked_select",
        "aten::bincount",
        "aten::_unique",
        "aten::_unique2",
        "aten::unique_consecutive",
        "aten::repeat_interleave",
    }
)
INDEXING = frozenset(
    {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
)
# These never reach the dispatcher where the tensor is on the host already.
SYNCING_METHODS = frozenset(
    {torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}
)


class Counted(TorchDispatchMode):
    """Counts the operators that are dispatched while it is on, in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.read = 0
        self.allocated = 0
        self.arguments: tuple[Any, ...] = ()
        """Those of the last operator of ours."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = operator(*args, **(kwargs or {}))
        name = operator._schema.name
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        held = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        new = [tensor for tensor in outputs if tensor.untyped_storage().data_ptr() not in held]
        if not new and not operator._schema.is_mutable and outputs:
            return output  # a view
        if name.startswith("moetrace::"):
            self.arguments = args
        self.operators[name] += 1
        self.read += sum(size(tensor) for tensor in inputs)
        self.allocated += sum(size(tensor) for tensor in new)
        if name in SYNCING_OPERATORS or (name in INDEXING and any_mask(args[1])):
            self.syncs[name] += 1
        return output

    def counts(self) -> dict[str, Any]:
        return {
            "operators": sum(self.operators.values()),
            "syncs": sum(self.syncs.values()),
            "collectives": sum(n for name, n in self.operators.items() if "c10d" in name),
            "bytes_read": self.read,
            "bytes_allocated": self.allocated,
            "by_name": dict(self.operators.most_common()),
            "syncs_by_name": dict(self.syncs),
        }


class Reads(TorchFunctionMode):
    """Adds to the counted syncs those that a tensor on the host answers without an operator."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in SYNCING_METHODS:
            self.counted.syncs[f"Tensor.{function.__name__}"] += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[Counted]:
    """Everything that torch runs in this thread."""
    counted = Counted()
    with counted, Reads(counted):
        yield counted


def size(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def any_mask(indices: Any) -> bool:
    return any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices
    )


class Router(nn.Module):
    """Returns at once what a router of this size would return: all cost is the hook's."""

    def __init__(self, T: int, E: int, K: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.zeros(E, 1))
        self.top_k = K
        self.logits = torch.randn(T, E, generator=generator)
        weights, ids = self.logits.softmax(1).topk(K)
        self.chosen = self.logits, weights, ids

    def forward(self) -> tuple[Tensor, ...]:
        return self.chosen  # by such a name discovery knows that it is no bare gate


class Block(nn.Module):
    """What discovery looks for: a router beside experts."""

    def __init__(self, T: int, E: int, K: int) -> None:
        super().__init__()
        self.gate = Router(T, E, K)
        self.experts = nn.ModuleList(nn.Identity() for _ in range(E))

    def forward(self) -> tuple[Tensor, ...]:
        return self.gate()


def model_of(T: int, E: int, K: int, layers: int = 1) -> nn.Sequential:
    return nn.Sequential(*(Block(T, E, K) for _ in range(layers)))


def count_router_call(T: int, E: int, K: int) -> dict[str, Any]:
    """What the model sees of the hook, and what runs inside the operator, in two forms."""
    model = model_of(T, E, K)
    router = model[0].gate
    with moetrace.attach(model) as tracer:
        with counting() as outside:
            router()
        with counting() as inside:
            count(*outside.arguments)
        with (
            mock.patch("moetrace.ops.library.add_on_host", return_value=False),
            counting() as composition,
        ):
            count(*outside.arguments)
        snapshot = tracer.flush()
    assert snapshot is not None
    assert snapshot.routing[0].calls == 3, "what was counted here did not count there"
    return {
        "seen_by_the_model": outside.counts(),
        "inside": inside.counts(),
        "composition": composition.counts(),
    }


def count_step_end(layers: int, every: int) -> dict[str, Any]:
    """The training thread's share of a step end, without and with a window that closes."""
    model = model_of(64, 8, 2, layers)
    with (
        tempfile.TemporaryDirectory() as folder,
        moetrace.attach(model, f"{folder}/run", every=every) as tracer,
        mock.patch.object(
            HostCopies, "_start", autospec=True, side_effect=HostCopies._start
        ) as copy,
    ):
        ends = []
        for step in range(1, 2 * every + 1):
            copy.reset_mock()
            tracer.on_step_begin()
            for block in model:
                block()
            with counting() as counted:
                tracer.on_step_end()
            ends.append({**counted.counts(), "host_copies": copy.call_count})
            assert (step % every == 0) == (copy.call_count > 0)
    return {"between_windows": ends[every + 1], "closing_a_window": ends[-1]}


def count_seed_style(T: int, E: int, K: int) -> dict[str, Any]:
    """The same for the callback that reads back its figures: one router, one step."""
    router = Router(T, E, K)
    callback = SeedStyleCallback({"layer": router}, E)
    with counting() as counted:
        router()
        callback.on_step_end()
    callback.remove()
    return counted.counts()


def counts() -> dict[str, Any]:
    """Every counted cost."""
    return {
        "router_call": {name(size): count_router_call(*size) for size in SIZES},
        "step_end": {f"{n} routers": count_step_end(n, every=3) for n in (1, 16)},
        "seed_style": {name(size): count_seed_style(*size) for size in SIZES},
    }


def microseconds(T: int, E: int, K: int, *, repeats: int) -> dict[str, float]:
    """Per forward of a router that returns at once, by what hangs on it."""
    bare, empty, seed = Router(T, E, K), Router(T, E, K), Router(T, E, K)
    empty.register_forward_hook(lambda module, args, output: None)
    callback = SeedStyleCallback({"layer": seed}, E)
    live, asleep, masked = (model_of(T, E, K) for _ in range(3))
    tracers = [moetrace.attach(model) for model in (live, asleep, masked)]
    tracers[1]._recording._state.paused = True
    tracers[2].tokens(torch.ones(T, dtype=torch.bool))

    def seed_step() -> None:
        seed()
        callback.on_step_end()

    calls: dict[str, Callable[[], object]] = {
        "no hook": bare,
        "empty hook": empty,
        "moetrace, paused": asleep[0].gate,
        "moetrace": live[0].gate,
        "moetrace, padding mask": masked[0].gate,
        "seed-style callback": seed_step,
    }
    least = least_cpu_us(calls, repeats=repeats)
    for tracer in tracers:
        tracer.close()
    return {name: round(value, 2) for name, value in least.items()}


def name(size: tuple[int, int, int]) -> str:
    return "T={} E={} K={}".format(*size)


def print_counts(found: dict[str, Any]) -> None:
    head = f"{'operators':>10} {'syncs':>6} {'MB read':>8} {'MB new':>8} {'copies':>7}"
    print(f"{'counted':44} {head}")

    def row(what: str, cost: dict[str, Any]) -> None:
        read, new = cost["bytes_read"] / 1e6, cost["bytes_allocated"] / 1e6
        numbers = f"{cost['operators']:>10} {cost['syncs']:>6} {read:>8.2f} {new:>8.2f}"
        print(f"{what:44} {numbers} {cost.get('host_copies', ''):>7}")

    for size, cost in found["router_call"].items():
        row(f"router call, {size}, seen", cost["seen_by_the_model"])
        row(f"router call, {size}, inside", cost["inside"])
        row(f"router call, {size}, composition", cost["composition"])
    for size, cost in found["seed_style"].items():
        row(f"seed style, {size}", cost)
    for routers, ends in found["step_end"].items():
        for when, cost in ends.items():
            row(f"step end, {routers}, {when.replace('_', ' ')}", cost)


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--counts", action="store_true", help="print the counts as JSON and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    like_a_training_process()
    found = counts()
    if given.counts:
        print(json.dumps(found))
        return
    print_counts(found)
    repeats = 20 if given.quick else 100
    times = {name(size): microseconds(*size, repeats=repeats) for size in SIZES}
    print(
        f"\n{'microseconds of CPU per forward of a router':44} "
        + "".join(f"{s:>22}" for s in times)
    )
    for what in next(iter(times.values())):
        print(f"{what:44} " + "".join(f"{column[what]:>22.1f}" for column in times.values()))
    print()
    publish("counted_cost", {"counts": found, "microseconds": times}, save=given.save)


if __name__ == "__main__":
    main()
