"""What every reader has to do, whatever router it reads; its tests are in ``test_contract.py``.

To hold a reader of yours against it, add a `Case` there. Letters: T tokens, E experts, K chosen.
"""

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moetrace.ops.reference import routing_delta
from moetrace.routing import Routing

FLOATS = (torch.float32, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
DENSE = (
    nn.Linear(16, 3),
    nn.LayerNorm(16),
    nn.GLU(),
    nn.Dropout(),
    nn.Conv1d(16, 16, 3),
    nn.MultiheadAttention(16, 2),
    nn.GRU(16, 16),
    nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)),
    nn.ModuleList(nn.Linear(16, 16) for _ in range(3)),
)
"""Modules that choose among no experts."""
STRANGERS = (
    *(None, 3, 0.5, "logits", object(), [], {}, (), (None,) * 3, [[0, 1]], {"ids": [0, 1]}),
    torch.tensor(1.0),
    torch.zeros(2, 2),
    torch.zeros(0),
    torch.zeros(2, 5, dtype=torch.complex64),
    (torch.zeros(2),),
    (torch.zeros(2, 3), torch.zeros(2, 3).to_sparse()),
    {"loss": torch.tensor(0.0), "hidden": torch.zeros(2, 7)},
)
"""Outputs in which there is no choice."""


@dataclass(frozen=True)
class Case:
    """A reader with a router that it reads.

    Attributes:
        reader: The reader under test.
        module: A router that it has to match.
        args: What the router is called with.
        chosen: The experts of each token, by hand; order does not matter.
        num_experts: E.
        kwargs: What it is called with by name.
        raises: Whether it may raise where nothing can be read, or give what does not fit E, as
            three lines do: both are told and count nothing.
        shows_scores: Whether it has to give the router's scores.
    """

    reader: Any
    module: nn.Module
    args: tuple[Any, ...]
    chosen: list[set[int]]
    num_experts: int
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    raises: bool = False
    shows_scores: bool = True

    @property
    def before(self) -> bool:
        """Whether it is put before the forward, and gets no output."""
        return bool(getattr(self.reader, "before_forward", False))

    def moved(self, to: Any) -> "Case":
        """The same on another device, or in another precision."""

        def moving(item: Any) -> Any:
            if not isinstance(item, Tensor) or not item.is_floating_point():
                return item.to(to) if isinstance(item, Tensor) and to == "meta" else item
            return item.to(to)

        module = copy.deepcopy(self.module).to(to)
        args = tuple(moving(item) for item in self.args)
        kwargs = {name: moving(item) for name, item in self.kwargs.items()}
        return Case(self.reader, module, args, self.chosen, self.num_experts, kwargs)

    def run(self) -> tuple[Any, Routing | None]:
        """The output of the router, and what is read of it."""
        output = None if self.before else self.module(*self.args, **self.kwargs)
        return output, self.reader.read(self.module, self.args, self.kwargs, output)


def check_matches(case: Case) -> None:
    """It says True or False, True of its router and False of layers that choose nothing."""
    assert case.reader.matches(case.module) is True
    assert [m for m in DENSE if case.reader.matches(m) is not False] == []


def check_choice(case: Case) -> None:
    """It gives the experts of each token, of its own tokens all and of others none."""
    _, routing = case.run()
    assert chosen_in(routing, case.num_experts) == case.chosen


def check_promises(case: Case) -> None:
    """Types and shapes of what it gives, in every precision, and on a device without values.

    There no number can be looked at: a reader that does would wait for the GPU in every forward.
    """
    T, E = len(case.chosen), case.num_experts
    cases = {dtype: case.moved(dtype) for dtype in FLOATS} | {"meta": case.moved("meta")}
    for where, moved in cases.items():
        _, routing = moved.run()
        assert isinstance(routing, Routing), where
        ids, logits, weights, routing_map = routing
        for part in (part for part in routing if part is not None):
            assert isinstance(part, Tensor)
            assert part.is_meta == (where == "meta")
            assert part.layout is torch.strided
        assert ids is not None or routing_map is not None
        if ids is not None:
            assert ids.dtype in INTEGERS
            assert 0 < ids.shape[-1] <= E
            assert ids.shape[:-1].numel() == T
        if weights is not None:
            assert ids is not None
            assert weights.shape == ids.shape
            assert weights.dtype.is_floating_point
        for part in (logits, routing_map):
            assert part is None or (part.shape[-1], part.shape[:-1].numel()) == (E, T)
        assert (logits is not None) == case.shows_scores
        assert logits is None or logits.dtype.is_floating_point


def check_strangers(case: Case) -> None:
    """In what is no choice it finds none; where it is three lines, nothing that would count."""
    for other in STRANGERS:
        calls = [((), other)] if not case.before else [((other,), None), ((other,) * 3, None)]
        for args, output in calls:
            try:
                routing = case.reader.read(case.module, args, {}, output)
            except Exception:
                if not case.raises:
                    raise
                continue
            if routing is not None and case.raises:
                with pytest.raises(ValueError, match="found"):
                    routing_delta(routing, None, case.num_experts, 0)
            else:
                assert routing is None, f"{other!r} is no routing"


def check_leaves_all_as_it_was(case: Case) -> None:
    """It changes neither output, input, module nor itself, and draws no random number."""
    output = None if case.before else case.module(*case.args, **case.kwargs)
    tensors = [*_tensors(output), *_tensors(case.args), *_tensors(dict(case.kwargs))]
    tensors += [*case.module.parameters(), *case.module.buffers()]
    before = [(tensor._version, tensor.detach().clone()) for tensor in tensors]
    own, random_states = dict(vars(case.reader)), (torch.get_rng_state(), random.getstate())
    structure = str(case.module)
    case.reader.read(case.module, case.args, case.kwargs, output)
    assert [tensor._version for tensor in tensors] == [version for version, _ in before]
    assert all(torch.equal(t, kept) for t, (_, kept) in zip(tensors, before, strict=True))
    assert dict(vars(case.reader)) == own, "one reader serves all layers, and keeps nothing"
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert random.getstate() == random_states[1]
    assert str(case.module) == structure


def check_modes(case: Case) -> None:
    """With gradients, without, and in inference mode it reads the same."""
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            _, routing = case.run()
            assert chosen_in(routing, case.num_experts) == case.chosen


def check_compiles(case: Case) -> None:
    """Traced by the compiler as part of one whole graph it reads the same."""

    def forward(*args: Any) -> tuple[Tensor | None, ...]:
        output = None if case.before else case.module(*args, **case.kwargs)
        return tuple(case.reader.read(case.module, args, case.kwargs, output))

    torch._dynamo.reset()
    traced = torch.compile(forward, backend="eager", fullgraph=True)(*case.args)
    assert chosen_in(Routing(*traced), case.num_experts) == case.chosen


CHECKS = (
    check_matches,
    check_choice,
    check_promises,
    check_strangers,
    check_leaves_all_as_it_was,
    check_modes,
    check_compiles,
)
"""All of it."""


def chosen_in(routing: Routing | None, num_experts: int) -> list[set[int]]:
    """The experts of each token in a routing."""
    assert isinstance(routing, Routing)
    ids, _, _, routing_map = routing
    if ids is not None:
        return [set(row) for row in ids.reshape(-1, ids.shape[-1]).tolist()]
    assert routing_map is not None
    return [
        {expert for expert, entry in enumerate(row) if entry}
        for row in routing_map.reshape(-1, num_experts).tolist()
    ]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, tuple | list):
        return []
    return [tensor for item in value for tensor in _tensors(item)]
