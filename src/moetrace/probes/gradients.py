"""Norms of gradients per block and group of parameters, measured once per optimizer step.

One fused pass over all gradients; squares stay on the device in float64 until the window closes.
Nothing here changes a gradient, draws a random number or reads a value back to the host.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moetrace.gradient_stats import GradientStats
from moetrace.parameter_groups import GROUPS, ParameterPlace, place_of
from moetrace.readers.wrapping import user_name

__all__ = ["GradientMeter", "GradientProbe"]


@dataclass(frozen=True, slots=True)
class GradientProbe:
    """Asks `moetrace.attach` for gradient norms: ``attach(model, probes=[GradientProbe()])``.

    They are measured where ``tracer.on_gradients()`` is called: after the last backward of a step,
    before clipping. Adapters call it. Where nobody can, give the optimizer: they are then measured
    when it steps, which is after clipping.

    Attributes:
        optimizer: Measure when this optimizer steps, unless ``on_gradients`` was called before.
        classify: Your own groups: takes the dotted name of a parameter and returns a name in
            `moetrace.parameter_groups.GROUPS`, or None to leave it to the built-in rules.
    """

    optimizer: torch.optim.Optimizer | None = None
    classify: Callable[[str], str | None] | None = None


@dataclass(frozen=True, slots=True)
class _Member:
    """One parameter: where it stands, and what a raw norm of it is divided by."""

    parameter: "weakref.ref[nn.Parameter]"
    place: ParameterPlace
    scale: float


class _Rows:
    """The parameters of one device that had gradients, and the open window of their rows."""

    def __init__(self, members: Sequence[tuple[_Member, Tensor]], device: torch.device) -> None:
        kinds = sorted({(member.place, member.scale) for member, _ in members}, key=repr)
        position = {kind: row for row, kind in enumerate(kinds)}
        rows = [position[member.place, member.scale] for member, _ in members]
        self.kinds = tuple(kinds)
        self.numel = [0] * len(kinds)
        self.sharded = [False] * len(kinds)
        for row, (_, gradient) in zip(rows, members, strict=True):
            self.numel[row] += _local(gradient).numel()
            self.sharded[row] |= _is_shard(gradient)
        # Which row each parameter adds to, as a table: an index_add_ would add in no fixed order.
        self.holds_RP = torch.tensor(rows, device=device) == torch.arange(
            len(kinds), device=device
        ).unsqueeze(1)
        self.window_R4 = torch.zeros(len(kinds), 4, dtype=torch.float64, device=device)

    def add(self, squares_P: Tensor) -> None:
        squares_R = torch.where(self.holds_RP, squares_P, 0.0).sum(1)
        finite = torch.isfinite(squares_R).all()
        squares_R = torch.where(finite, squares_R, 0.0)
        last_R = torch.where(finite, squares_R, self.window_R4[:, 3])
        one_R = torch.ones_like(squares_R)
        step_R4 = torch.stack([one_R, one_R * ~finite, squares_R, last_R], 1)
        step_R4[:, :3] += self.window_R4[:, :3]
        self.window_R4 = step_R4


class GradientMeter:
    """Measures the gradients of one model.

    Args:
        model: The model; not kept alive.
        routers: Its modules that are traced routers.
        request: What the user asked for.
    """

    def __init__(
        self, model: nn.Module, routers: Iterable[nn.Module], request: GradientProbe
    ) -> None:
        self._model = weakref.ref(model)
        self._routers = weakref.WeakSet(routers)
        self._classify = request.classify
        self._members = self._listed()
        self._rows: dict[tuple[str, torch.device, tuple[int, ...]], _Rows] = {}
        self._measured = False
        self._handle = None
        if request.optimizer is not None:
            self._handle = request.optimizer.register_step_pre_hook(_AtStep(self))

    def measure(self, *, scale: Tensor | float | None = None, measured: str = "pre_clip") -> None:
        """Take the norms of the gradients that are there now; once per step, the first one counts.

        Args:
            scale: What they are still multiplied with (the factor of a gradient scaler), a number
                or a tensor on their device; None where they are unscaled.
            measured: Where in the step this is.

        Cost: one fused norm, some ten small operations per device; no sync. When parameters get
        gradients that had none before, one small copy to the device more.
        """
        if self._measured:
            return
        if any(member.parameter() is None for member in self._members):
            self._members = self._listed()  # sharding puts other parameters in their place
        found = [
            (index, member, parameter.grad)
            for index, member in enumerate(self._members)
            if (parameter := member.parameter()) is not None
            and parameter.grad is not None
            and not parameter.grad.is_sparse
            and _local(parameter.grad).numel()
        ]
        self._measured = bool(found)
        for device in dict.fromkeys(_local(gradient).device for _, _, gradient in found):
            here = [item for item in found if _local(item[2]).device == device]
            key = (measured, device, tuple(index for index, _, _ in here))
            if key not in self._rows:
                self._rows[key] = _Rows([(member, grad) for _, member, grad in here], device)
            with torch.no_grad():
                norms = _norms([_local(gradient) for _, _, gradient in here])
                squares_P = torch.stack(norms).double().square()
                if scale is not None:
                    squares_P = squares_P / torch.as_tensor(scale, device=device).double().square()
                self._rows[key].add(squares_P)

    def end_step(self) -> None:
        """The optimizer step is over; the next one is measured anew."""
        self._measured = False

    def drop_step(self) -> None:
        """The step did not finish; the next one is measured anew."""
        self._measured = False

    def window(self, step: int) -> "list[tuple[GradientWindow, Tensor]]":
        """Close the window: what its rows are, and their sums as the bits of float64."""
        del step  # the sums hold their own number of steps
        closed = [
            (
                GradientWindow(measured, rows.kinds, tuple(rows.numel), tuple(rows.sharded)),
                rows.window_R4.reshape(-1).view(torch.int64),
            )
            for (measured, _, _), rows in self._rows.items()
        ]
        self._rows = {}
        return closed

    def close(self) -> None:
        """Take the hook off the optimizer."""
        if self._handle is not None:
            self._handle.remove()

    def _listed(self) -> list[_Member]:
        model = self._model()
        if model is None:
            return []
        in_router = {id(parameter) for router in self._routers for parameter in router.parameters()}
        scales = _adapter_scales(model)
        members = []
        for path, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            name = user_name(path)
            place = place_of(name, in_router=id(parameter) in in_router)
            chosen = None if self._classify is None else self._classify(name)
            if chosen in GROUPS:
                place = replace(place, group=chosen)
            scale = scales.get(id(parameter), 1.0)
            members.append(_Member(weakref.ref(parameter), place, scale))
        return members


@dataclass(frozen=True, slots=True)
class GradientWindow:
    """What the rows of a closed window are.

    Attributes:
        measured: Where in the step it was measured.
        kinds: Place and scale of each row.
        numel: Numbers in the gradients of each row.
        sharded: Whether this rank holds a shard of them.
    """

    measured: str
    kinds: tuple[tuple[ParameterPlace, float], ...]
    numel: tuple[int, ...]
    sharded: tuple[bool, ...]

    @property
    def field(self) -> str:
        """Field of the snapshot that the records go to."""
        return "gradients"

    def stats(self, bits: NDArray[np.int64]) -> list[GradientStats]:
        """The records of this window, from sums that have arrived on the host."""
        table = bits.view(np.float64).reshape(len(self.kinds), 4)
        return [
            GradientStats(
                layer=place.layer,
                group=place.group,
                part=place.part,
                measured=self.measured,
                numel=self.numel[row],
                sharded=self.sharded[row],
                scale=scale,
                steps=int(table[row, 0]),
                nonfinite=int(table[row, 1]),
                sum_sq=float(table[row, 2]),
                last_sq=float(table[row, 3]),
            )
            for row, (place, scale) in enumerate(self.kinds)
        ]


class _AtStep:
    """An optimizer's pre-hook; it keeps neither the meter nor the model alive."""

    def __init__(self, meter: GradientMeter) -> None:
        self._meter = weakref.ref(meter)

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        meter = self._meter()
        if meter is None:
            return
        # A fused optimizer under a gradient scaler unscales inside its step.
        try:
            meter.measure(scale=getattr(optimizer, "grad_scale", None), measured="at_step")
        except Exception:
            meter.close()  # a hook of ours must not end a step; the window lacks its gradients

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _AtStep._nothing, ()

    @staticmethod
    def _nothing() -> None:
        return None


def _adapter_scales(model: nn.Module) -> dict[int, float]:
    """``scaling * sqrt(r)`` of every parameter of a low-rank adapter that states both."""
    scales: dict[int, float] = {}
    for module in model.modules():
        scaling, rank = getattr(module, "scaling", None), getattr(module, "r", None)
        if not isinstance(scaling, dict) or not isinstance(rank, dict):
            continue
        for path, parameter in module.named_parameters():
            adapter = next((part for part in path.split(".") if part in scaling), None)
            if "lora_" in path and adapter is not None and rank.get(adapter):
                scales[id(parameter)] = float(scaling[adapter]) * math.sqrt(rank[adapter])
    return scales


def _local(gradient: Tensor) -> Tensor:
    to_local = getattr(gradient, "to_local", None)
    return gradient if to_local is None else to_local()


def _is_shard(gradient: Tensor) -> bool:
    return any(item.is_shard() for item in getattr(gradient, "placements", ()))


def _each_norm(tensors: list[Tensor], order: float, dtype: torch.dtype) -> list[Tensor]:
    return [torch.linalg.vector_norm(tensor, order, dtype=dtype) for tensor in tensors]


# One launch for all gradients of a device; a loop where the private name has gone away.
_fused_norms: Callable[[list[Tensor], float, torch.dtype], Sequence[Tensor]] = getattr(
    torch, "_foreach_norm", _each_norm
)


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    # In half precision a norm overflows at 65,504; the sum is kept in float32 without a copy.
    by_type: dict[torch.dtype, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_type.setdefault(tensor.dtype, []).append(index)
    norms: dict[int, Tensor] = {}
    for dtype, indices in by_type.items():
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        found = _fused_norms([tensors[index] for index in indices], 2.0, kept)
        norms.update({index: norm.double() for index, norm in zip(indices, found, strict=True)})
    return [norms[index] for index in range(len(tensors))]
