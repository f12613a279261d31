"""Which rank this process is, of which launch. Asking for one's own rank is no collective."""

import os
import zlib

import torch.distributed as dist

__all__ = ["launch", "own_rank", "world_size"]

_LAUNCHERS = (
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""What launchers tell all processes of one launch alike, and mostly other ones of the next."""


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


def launch() -> str:
    """A word that all processes of one launch have in common, ``""`` where no launcher is known.

    Different words are different launches; equal ones may be, since a port can be the default. It
    is a checksum, so that no name of a machine gets into a run folder.
    """
    told = [f"{name}={os.environ[name]}" for name in _LAUNCHERS if os.environ.get(name)]
    return f"{zlib.crc32(' '.join(told).encode('utf-8', 'surrogateescape')):08x}" if told else ""


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default
