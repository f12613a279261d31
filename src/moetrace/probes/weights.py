"""Statistics of router weights, taken when a window closes.

Reductions run on the device in float64 accumulators over the weights as they are stored; what comes
to the host is a row of numbers per tensor, in the one copy of the flush.
"""

import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moetrace.readers.wrapping import user_name
from moetrace.weight_stats import WeightStats

__all__ = ["WeightMeter", "WeightProbe", "stats_of", "weights_of"]

_log = logging.getLogger("moetrace")

_SUMS = ("nonfinite", "sum", "m2", "min", "max")
_CHANGES = ("diff_sum", "diff_m2", "diff_max", "prev_sq", "unchanged")
_DRIFT = ("drift_sq", "init_sq")
_ROWS = ("row_sum", "row_sq", "row_min", "row_max")
_ANGLES = ("cos_abs", "cos_max", "orthogonality", "sigma_max")
_COLUMNS = (*_SUMS, *_CHANGES, *_DRIFT, *_ROWS, *_ANGLES)
_COUNTED = frozenset(("nonfinite", "unchanged"))
_SQUARINGS = 6


@dataclass(frozen=True, slots=True)
class WeightProbe:
    """Asks `moetrace.attach` for statistics of router weights: ``probes=[WeightProbe()]``.

    Attributes:
        targets: Modules to follow, by the name that their records shall have; None follows the
            routers that are traced.
        angles: Cosines between the rows of each matrix and its largest singular value, every so
            many windows; 0 for never. They cost a product of all rows with all rows.
        max_bytes: What may be kept on the device: one copy of each tensor from the window before
            and one from the beginning. What does not fit is left out, and said.
    """

    targets: Mapping[str, nn.Module] | None = None
    angles: int = 0
    max_bytes: int = 1 << 30


@dataclass(slots=True)
class _Followed:
    """One tensor: who holds it, and what it was."""

    module: "weakref.ref[nn.Module]"
    layer: str
    name: str
    first: Tensor
    before: Tensor | None = None
    step: int = 0


class WeightMeter:
    """Follows the weights of some modules.

    Args:
        targets: Modules by the name that their records shall have; not kept alive.
        request: What the user asked for.

    Cost: two copies of the followed tensors on their device; at the end of a window some twenty
    reductions per tensor, nothing in between.
    """

    def __init__(self, targets: Iterable[tuple[str, nn.Module]], request: WeightProbe) -> None:
        self._request = request
        self._windows = 0
        self._followed: list[_Followed] = []
        left = request.max_bytes
        skipped = []
        for layer, module in targets:
            for name, tensor in weights_of(module):
                size = 2 * tensor.numel() * tensor.element_size()
                if size > left:
                    skipped.append(f"{layer}.{name}")
                    continue
                left -= size
                kept = _Followed(weakref.ref(module), layer, name, tensor.detach().clone())
                self._followed.append(kept)
        if skipped:
            _log.warning(
                "%d router weights are not followed (%s%s): two copies of each would take more "
                "than %d MiB; raise max_bytes of WeightProbe",
                len(skipped),
                ", ".join(skipped[:3]),
                ", ..." if len(skipped) > 3 else "",
                request.max_bytes >> 20,
            )

    @property
    def bytes(self) -> int:
        """Bytes of the copies that are kept."""
        copies = (
            copy
            for item in self._followed
            for copy in (item.first, item.before)
            if copy is not None
        )
        return sum(copy.numel() * copy.element_size() for copy in copies)

    def end_step(self) -> None:
        """Nothing is measured at the end of a step."""

    def drop_step(self) -> None:
        """Nothing is measured within a step."""

    def window(self, step: int) -> "list[tuple[WeightWindow, Tensor]]":
        """What the tensors are now, one part per device.

        Args:
            step: Optimizer steps completed.
        """
        angles = self._request.angles > 0 and self._windows % self._request.angles == 0
        self._windows += 1
        parts: dict[torch.device, tuple[list[WeightStats], list[Tensor]]] = {}
        current: dict[int, dict[str, tuple[Tensor, bool, bool, tuple[int, ...]]]] = {}
        for followed in self._followed:
            module = followed.module()
            if module is None:
                continue
            if id(module) not in current:
                current[id(module)] = {name: _here(tensor) for name, tensor in weights_of(module)}
            if followed.name not in current[id(module)]:
                continue
            tensor, trainable, sharded, shape = current[id(module)][followed.name]
            if tensor.shape != followed.first.shape or tensor.device != followed.first.device:
                followed.first, followed.before = tensor.detach().clone(), None
            with torch.no_grad():
                row = _row(
                    tensor.detach(),
                    followed.first,
                    followed.before,
                    angles=angles and not sharded,
                )
            record = WeightStats(
                layer=followed.layer,
                name=followed.name,
                shape=shape,
                dtype=str(tensor.dtype).removeprefix("torch."),
                trainable=trainable,
                sharded=sharded,
                numel=tensor.numel(),
                steps=step - followed.step if followed.before is not None else 0,
                rows=tensor.shape[0] if tensor.dim() == 2 else 0,
            )
            followed.before, followed.step = tensor.detach().clone(), step
            records, rows = parts.setdefault(tensor.device, ([], []))
            records.append(record)
            rows.append(row)
        return [
            (WeightWindow(tuple(records)), torch.cat(rows).view(torch.int64))
            for records, rows in parts.values()
        ]

    def close(self) -> None:
        """Let go of the copies."""
        self._followed = []


@dataclass(frozen=True, slots=True)
class WeightWindow:
    """The tensors of a closed window, still without their numbers."""

    records: tuple[WeightStats, ...]

    @property
    def field(self) -> str:
        """Field of the snapshot that the records go to."""
        return "weights"

    def stats(self, bits: NDArray[np.int64]) -> list[WeightStats]:
        """The records, from numbers that have arrived on the host."""
        table = bits.view(np.float64).reshape(len(self.records), len(_COLUMNS))
        return [_filled(record, row) for record, row in zip(self.records, table, strict=True)]


def stats_of(layer: str, tensors: Mapping[str, Tensor]) -> list[WeightStats]:
    """Statistics of tensors as they are now, of which nothing is known from before.

    Args:
        layer: Name of the site in the records.
        tensors: Tensors of real numbers by name; of a sharded one, what is held here.

    Cost: waits for the device, once per tensor.
    """
    records: list[WeightStats] = []
    for name, tensor in tensors.items():
        w, trainable, sharded, shape = _here(tensor)
        w = w.detach() if w.is_floating_point() else w.detach().double()
        record = WeightStats(
            layer=layer,
            name=name,
            shape=shape,
            dtype=str(tensor.dtype).removeprefix("torch."),
            trainable=trainable,
            sharded=sharded,
            numel=w.numel(),
            steps=0,
            rows=w.shape[0] if w.dim() == 2 else 0,
        )
        with torch.no_grad():
            row = _row(w, None, None, angles=False)
        records.append(_filled(record, row.cpu().numpy()))
    return records


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a router as they take part in its forward, by dotted name.

    Of a module that an adapter keeps beside the original, the active copy; of a linear layer with
    a low-rank adapter, the effective weight. Names are those of the module without the adapter.
    """
    adapted = {
        path: layer
        for path, layer in module.named_modules()
        if callable(getattr(layer, "get_delta_weight", None)) and hasattr(layer, "base_layer")
    }
    for path, parameter in module.named_parameters():
        parts = path.split(".")
        if "original_module" in parts or not parameter.is_floating_point():
            continue
        owner = next(
            (item for item in adapted if path.startswith(f"{item}." if item else "")), None
        )
        if owner is not None:
            if parts[-2:] != ["base_layer", "weight"] and parts[-2:] != ["base_layer", "bias"]:
                continue  # a factor of the adapter
            if parts[-1] == "weight":
                layer = adapted[owner]
                yield _plain_name(path), _effective(layer, parameter)
                continue
        yield _plain_name(path), parameter


def _effective(layer: Any, base: Tensor) -> Tensor:
    if getattr(layer, "merged", False) or getattr(layer, "disable_adapters", False):
        return base
    total = base
    for adapter in getattr(layer, "active_adapters", ()):
        if adapter in getattr(layer, "lora_A", {}):
            total = total + layer.get_delta_weight(adapter).to(base.dtype)
    return total.detach().requires_grad_(True) if total is not base else base


def _plain_name(path: str) -> str:
    parts = user_name(path).split(".")
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        del parts[at : at + 2]
    return ".".join(part for part in parts if part != "base_layer")


def _here(tensor: Tensor) -> tuple[Tensor, bool, bool, tuple[int, ...]]:
    placements = getattr(tensor, "placements", ())
    to_local = getattr(tensor, "to_local", None)
    local = tensor if to_local is None else to_local()
    sharded = any(item.is_shard() for item in placements)
    return local, tensor.requires_grad, sharded, tuple(int(size) for size in tensor.shape)


def _row(w: Tensor, first: Tensor | None, before: Tensor | None, *, angles: bool) -> Tensor:
    """The numbers of one tensor in the order of the columns; NaN where there is nothing to tell."""
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=w.device)
    values = dict.fromkeys(_COLUMNS, nothing)
    values["nonfinite"] = (~torch.isfinite(w)).sum().double()
    if w.numel():
        values |= _moments(w, "sum", "m2")
        values["min"], values["max"] = w.min().double(), w.max().double()
        if first is not None:
            delta = w.float() - first.float()
            values["drift_sq"], values["init_sq"] = _square(delta), _square(first)
        if before is not None:
            delta = w.float() - before.float()
            values |= _moments(delta, "diff_sum", "diff_m2")
            values["diff_max"] = delta.abs().max().double()
            values["prev_sq"] = _square(before)
            values["unchanged"] = (w == before).sum().double()
        if w.dim() == 2:
            norm_E = torch.linalg.vector_norm(w, dim=1, dtype=torch.float64)
            values["row_sum"], values["row_sq"] = norm_E.sum(), norm_E.square().sum()
            values["row_min"], values["row_max"] = norm_E.min(), norm_E.max()
            if angles and w.shape[0] >= 2:
                values |= _angles(w, norm_E)
    return torch.stack([values[name] for name in _COLUMNS])


def _moments(tensor: Tensor, total: str, spread: str) -> dict[str, Tensor]:
    summed = tensor.sum(dtype=torch.float64)
    mean = summed / tensor.numel()
    return {total: summed, spread: (tensor.double() - mean).square().sum()}


def _square(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm.square()


def _angles(w: Tensor, norm_E: Tensor) -> dict[str, Tensor]:
    """Cosines between rows, and the largest singular value by power iteration."""
    E = w.shape[0]
    # A product under the user's autocast would be in half precision; float64 is left alone by it.
    rows = w.double() / norm_E.clamp_min(1e-300).unsqueeze(1)
    gram_EE = rows @ rows.T
    off = gram_EE - torch.diag(gram_EE.diagonal())
    hidden = torch.eye(E, dtype=torch.bool, device=w.device)
    scaled = gram_EE * norm_E.unsqueeze(1) * norm_E
    # Eigenvalues would wait for the device; squaring six times is 64 steps of power iteration.
    power = scaled
    for _ in range(_SQUARINGS):
        power = power / power.diagonal().sum().clamp_min(1e-300)
        power = power @ power
    vector = power @ torch.ones(E, dtype=torch.float64, device=w.device)
    vector = vector / torch.linalg.vector_norm(vector).clamp_min(1e-300)
    return {
        "cos_abs": off.abs().sum() / (E * (E - 1)),
        "cos_max": gram_EE.masked_fill(hidden, -torch.inf).max(),
        "orthogonality": torch.linalg.vector_norm(off) / (E * (E - 1)) ** 0.5,
        "sigma_max": torch.dot(vector, scaled @ vector).clamp_min(0).sqrt(),
    }


def _filled(record: WeightStats, row: NDArray[np.float64]) -> WeightStats:
    values: dict[str, Any] = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(_COLUMNS, row, strict=True)
    }
    values["nonfinite"] = int(values["nonfinite"])
    if values["unchanged"] is not None:
        values["unchanged"] = int(values["unchanged"])
    if values["nonfinite"]:
        values = {"nonfinite": values["nonfinite"], "unchanged": values["unchanged"]}
    fixed = {
        name: getattr(record, name)
        for name in ("layer", "name", "shape", "dtype", "trainable", "sharded", "numel", "steps")
    }
    return WeightStats(**fixed, rows=record.rows, **values)
