"""What the files of a run are called. No name ever comes from the content of a run.

```
run.json                          the manifest
segments/00001-00003.claim        empty; whoever created it owns attempt 1 of rank 3
segments/00001-00003-9f86d081.new/    a segment that nobody reads yet
segments/00001-00003-9f86d081/    one segment: attempt 1, rank 3, and a nonce
    log.jsonl                     the line log
    g0-00000.safetensors          array rows of the first group of layers; g0-00001 when it is full
    x00000.safetensors            counts per expert of the tables of one window
```
"""

import re
from dataclasses import dataclass
from typing import Self

__all__ = [
    "ARRAY_FILE",
    "CLAIM",
    "DENSE_FILE",
    "LOG",
    "MANIFEST",
    "RUN_ID",
    "SEGMENTS",
    "TEMPORARY",
    "UNFINISHED",
    "SegmentName",
    "array_file",
    "claim",
    "dense_file",
    "unfinished",
]

MANIFEST = "run.json"
SEGMENTS = "segments"
LOG = "log.jsonl"

ARRAY_FILE = re.compile(r"g[0-9]{1,4}-[0-9]{5,7}\.safetensors", re.ASCII)
DENSE_FILE = re.compile(r"x[0-9]{5,7}\.safetensors", re.ASCII)
CLAIM = re.compile(r"([0-9]{5,9})-([0-9]{5,9})\.claim", re.ASCII)
TEMPORARY = re.compile(r"run\.json\.[0-9a-f]{16}", re.ASCII)
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
UNFINISHED = re.compile(r"[0-9]{5,9}-[0-9]{5,9}-[0-9a-f]{8}\.new", re.ASCII)
_SEGMENT = re.compile(r"([0-9]{5,9})-([0-9]{5,9})-([0-9a-f]{8})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """The name of a segment's folder, taken apart.

    >>> str(SegmentName(attempt=1, rank=3, nonce="9f86d081"))
    '00001-00003-9f86d081'
    """

    attempt: int
    rank: int
    nonce: str

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The parts of a folder's name, or None where it is not a segment's.

        >>> SegmentName.parse("../etc") is None
        True
        """
        match = _SEGMENT.fullmatch(name)
        return cls(int(match[1]), int(match[2]), match[3]) if match else None

    def __str__(self) -> str:
        return f"{self.attempt:05d}-{self.rank:05d}-{self.nonce}"


def claim(attempt: int, rank: int) -> str:
    """Name of the file that gives an attempt of a rank to one process.

    >>> claim(1, 3)
    '00001-00003.claim'
    """
    return f"{attempt:05d}-{rank:05d}.claim"


def array_file(group: int, number: int) -> str:
    """Name of the ``number``-th array file of a group of layers.

    >>> array_file(0, 1)
    'g0-00001.safetensors'
    """
    return f"g{group}-{number:05d}.safetensors"


def dense_file(number: int) -> str:
    """Name of a segment's ``number``-th file with the counts per expert of tables.

    >>> dense_file(1)
    'x00001.safetensors'
    """
    return f"x{number:05d}.safetensors"


def unfinished(segment: str) -> str:
    """Name of a segment's folder until it holds all that another one is void for.

    >>> unfinished("00001-00003-9f86d081")
    '00001-00003-9f86d081.new'
    """
    return f"{segment}.new"
