"""One forward of a model that leaves no trace in its tensors, its attributes, the random state.

What it cannot undo is what a forward does outside the model: a cache among the inputs that it
fills, a file that it writes.
"""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moetrace.host_copy import is_capturing

__all__ = ["bare_model", "refusal", "run_once", "untouched"]

_REPLICAS = ("DistributedDataParallel", "DataParallel")
_SHARDED = ("FSDPModule", "FullyShardedDataParallel")


def refusal(model: nn.Module) -> str:
    """Why a forward on this rank alone must not be run; empty where it may.

    The forward of a model whose weights are spread over ranks is a collective: it would wait for
    the others forever.
    """
    for module in model.modules():
        if any(base.__name__ in _SHARDED for base in type(module).__mro__):
            return "its weights are sharded over ranks (FSDP), and a forward gathers them"
    for parameter in model.parameters():
        if any(base.__name__ == "DTensor" for base in type(parameter).__mro__):
            return "its weights are spread over ranks (DTensor), and a forward talks to them"
    if is_capturing():
        return "a CUDA graph is being captured"
    return ""


def bare_model(model: nn.Module) -> nn.Module:
    """The model without the wrapper of data parallelism, whose forward is a collective."""
    while any(base.__name__ in _REPLICAS for base in type(model).__mro__):
        model = model.get_submodule("module")
    return model


def run_once(model: nn.Module, inputs: Any) -> None:
    """One forward without gradients, uncompiled.

    Args:
        model: The model.
        inputs: Keyword arguments as a mapping, positional ones as a tuple or list, or one tensor.
    """
    with torch.no_grad(), _uncompiled():
        if isinstance(inputs, Mapping):
            model(**inputs)
        elif isinstance(inputs, tuple | list):
            model(*inputs)
        else:
            model(inputs)


@contextmanager
def untouched(model: nn.Module, *, training: bool | None = None) -> Iterator[None]:
    """Put everything back that a forward of the model changes on it, and all random states.

    Buffers by value and by identity; attributes of the modules (a counter, a loss that is kept for
    later, a list that grows) by identity; ``training`` flags with them. Cost: a copy of the
    buffers.

    Args:
        model: The model.
        training: Train or eval mode inside; None leaves every module as it is.
    """
    kept = [_Kept(module) for module in model.modules()]
    try:
        with _same_chance(model):
            if training is not None:
                model.train(training)
            yield
    finally:
        with torch.no_grad():
            for module in kept:
                module.put_back()


class _Kept:
    """One module as it was."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        self.lists = {
            name: list(value) for name, value in self.attributes.items() if type(value) is list
        }
        self.buffers = dict(module._buffers)
        self.values = {
            name: buffer.detach().clone()
            for name, buffer in self.buffers.items()
            if buffer is not None and not buffer.is_meta
        }

    def put_back(self) -> None:
        now = vars(self.module)
        for name in now.keys() - self.attributes.keys():
            del now[name]
        for name, value in self.attributes.items():
            if now.get(name) is not value:
                now[name] = value
        for name, items in self.lists.items():
            self.attributes[name][:] = items
        buffers = self.module._buffers
        for name in buffers.keys() - self.buffers.keys():
            del buffers[name]
        for name, buffer in self.buffers.items():
            buffers[name] = buffer
        for name, value in self.values.items():
            buffer = self.buffers[name]
            # Only what has changed: a write would spoil a backward that waits for the buffer.
            if buffer is not None and not _same(buffer, value):
                buffer.copy_(value)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())


@contextmanager
def _same_chance(model: nn.Module) -> Iterator[None]:
    tensors = (*model.parameters(), *model.buffers())
    devices = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    own, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)


def _uncompiled() -> Any:
    # Without dynamo nothing was compiled, and importing it takes seconds.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
