"""Which rank this process is. Asking for one's own rank is no collective."""

import os

import torch.distributed as dist

__all__ = ["own_rank", "world_size"]


def own_rank() -> int:
    """Rank of this process: of the default group where there is one, else ``RANK``, else 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return _from_environment("RANK", 0)


def world_size() -> int:
    """Number of processes: of the default group where there is one, else ``WORLD_SIZE``, else 1."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return _from_environment("WORLD_SIZE", 1)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default
