"""A run folder on disk: made, joined by further processes, or refused because it is not ours."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from moetrace.errors import RunFolderError
from moetrace.store import files
from moetrace.store.manifest import (
    found_manifest,
    probe_folder,
    read_manifest,
    replace_manifest,
    run_id_of_segments,
)
from moetrace.store.names import (
    CLAIM,
    MANIFEST,
    SEGMENTS,
    TEMPORARY,
    UNFINISHED,
    SegmentName,
    claim,
)
from moetrace.store.schema import FORMAT
from moetrace.store.segment_writer import SegmentWriter

__all__ = ["RunFolder"]


class RunFolder:
    """A folder that processes of one run write their segments into.

    Attributes:
        path: Absolute path.
        run_id: Name of the run, the same for every process that joins.
    """

    def __init__(self, path: str, run_id: str) -> None:
        self.path, self.run_id = path, run_id

    @classmethod
    def prepare(cls, path: str | os.PathLike[str]) -> Self:
        """Create the folder with its parents, or join the run that is in it.

        Raises:
            RunFolderError: It cannot be written, or holds something that is no run.
        """
        absolute = _absolute(path)
        try:
            files.make_folder(absolute)
            return cls(absolute, _run_id(absolute))
        except RunFolderError:
            raise
        except (OSError, ValueError) as error:
            raise _unusable(absolute, error) from error

    def open_segment(self, *, rank: int, header: Mapping[str, Any]) -> SegmentWriter:
        """Open a fresh segment for this process.

        The attempt is one more than the largest of this rank on disk, and 0 at first. No two
        processes get the same one.

        Args:
            rank: Rank of this process.
            header: What the segment says about the run: model, sites, versions and so on.

        Raises:
            RunFolderError: It cannot be written.
            ValueError: The rank is negative, or the header uses a key of the store's own.
            TypeError: The header holds something that cannot be stored.
        """
        if rank < 0:
            raise ValueError(f"found rank {rank}; ranks count from 0")
        try:
            attempt = self._claim(rank)
            writer = SegmentWriter(
                root=self.path, run_id=self.run_id, rank=rank, attempt=attempt, header=header
            )
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            if rank == 0:
                replace_manifest(self.path, {"run_id": self.run_id, **writer.header})
        except OSError as error:
            with contextlib.suppress(OSError):
                writer.close()
            raise _unusable(self.path, error) from error
        return writer

    def _claim(self, rank: int) -> int:
        segments = os.path.join(self.path, SEGMENTS)
        files.make_folder(segments)
        attempt = 1 + max(_attempts(files.list_names(segments), rank), default=-1)
        while True:
            try:
                files.close(files.open_append(os.path.join(segments, claim(attempt, rank))))
            except FileExistsError:
                attempt += 1
            else:
                return attempt


def _absolute(path: str | os.PathLike[str]) -> str:
    text = os.fsdecode(path)
    if not text:
        raise RunFolderError("the path of the run folder is empty; pass a path such as 'runs/exp1'")
    return os.path.abspath(os.path.expanduser(text))


def _unusable(path: str, error: Exception) -> RunFolderError:
    reason = getattr(error, "strerror", None) or error
    return RunFolderError(
        f"cannot write the run folder {path!r}: {reason}; pass a folder that this process may "
        "create or write in"
    )


def _run_id(path: str) -> str:
    names = files.list_names(path)
    manifest = read_manifest(path) if MANIFEST in names else None
    if manifest is not None:
        if manifest["format"] != FORMAT:
            raise RunFolderError(
                f"{path!r} holds a run of format {manifest['format']}, this version writes "
                f"{FORMAT}; pass another folder, or use the moetrace that wrote it"
            )
        probe_folder(path)
        return str(manifest["run_id"])
    run_id = run_id_of_segments(path)
    foreign = [name for name in names if name != SEGMENTS and not TEMPORARY.fullmatch(name)]
    if run_id is None and SEGMENTS in names:
        inside = files.list_names(os.path.join(path, SEGMENTS))
        ours = (CLAIM, UNFINISHED)
        foreign += [name for name in inside if not any(kind.fullmatch(name) for kind in ours)]
    if run_id is None and foreign:
        raise RunFolderError(
            f"{path!r} is not empty and holds no run of moetrace (found {foreign[0]!r}); "
            "pass a folder that is empty or does not exist"
        )
    return found_manifest(path, known=run_id)


def _attempts(names: Sequence[str], rank: int) -> list[int]:
    claimed = [(int(match[1]), int(match[2])) for name in names if (match := CLAIM.fullmatch(name))]
    opened = [(name.attempt, name.rank) for name in map(SegmentName.parse, names) if name]
    return [attempt for attempt, owner in claimed + opened if owner == rank]
