"""``run.json``: what the run is, for people, and its name until there is a segment.

No reader needs it: the first lines of the segments say the same, and it is made again from them.
It is written under a temporary name and then linked or renamed, so that nobody sees half of it.
"""

import os
from collections.abc import Mapping
from time import gmtime, strftime
from typing import Any

import orjson

from moetrace.store import files
from moetrace.store.lines import DamagedRecord, restored
from moetrace.store.names import MANIFEST
from moetrace.store.schema import FORMAT, integer, run_id
from moetrace.store.segment_reader import read_header, segment_names

__all__ = [
    "found_manifest",
    "probe_folder",
    "read_manifest",
    "replace_manifest",
    "run_id_of_segments",
]

MAX_MANIFEST = 16 << 20


def read_manifest(root: str) -> dict[str, Any] | None:
    """What ``run.json`` says, or None where there is none, or none that is a manifest."""
    try:
        descriptor = files.open_within(root, (MANIFEST,))
        try:
            data = files.pread(descriptor, min(files.size(descriptor), MAX_MANIFEST), 0)
        finally:
            files.close(descriptor)
        manifest = restored(orjson.loads(data))
        if not isinstance(manifest, dict):
            return None
        integer(manifest, "format")
        run_id(manifest)
    except (OSError, orjson.JSONDecodeError, DamagedRecord):
        return None
    return manifest


def run_id_of_segments(root: str) -> str | None:
    """The run that the first readable segment says it belongs to."""
    try:
        names, _ = segment_names(root)
    except OSError:
        return None
    headers = (read_header(root, name) for name in names)
    return next((str(header["run_id"]) for header in headers if header is not None), None)


def found_manifest(root: str, *, known: str | None) -> str:
    """Write the first manifest, or a lost one again, and return the name of the run.

    Of several processes that start a run at once, the first one names it.

    Args:
        root: Path of the run folder.
        known: The run, where its segments tell.

    Raises:
        OSError: It cannot be written.
    """
    name = known or f"{strftime('%Y%m%d-%H%M%S', gmtime(files.wall()))}-{files.token(6)}"
    temporary = _temporary(root, {"run_id": name})
    target = os.path.join(root, MANIFEST)
    if known is None:
        try:
            files.link(temporary, target)
        except FileExistsError:
            files.remove_file(temporary)
            winner = read_manifest(root)
            return name if winner is None else str(winner["run_id"])
        except OSError:
            pass  # a file system without hard links: the last one names the run
        else:
            files.remove_file(temporary)
            return name
    files.replace(temporary, target)
    return name


def replace_manifest(root: str, manifest: Mapping[str, Any]) -> None:
    """Write another manifest in the place of the one that is there.

    Raises:
        OSError: It cannot be written; the old one is untouched.
    """
    files.replace(_temporary(root, manifest), os.path.join(root, MANIFEST))


def probe_folder(root: str) -> None:
    """Find out whether files can be made in a run folder.

    Raises:
        OSError: They cannot.
    """
    files.remove_file(_temporary(root, {}))


def _temporary(root: str, manifest: Mapping[str, Any]) -> str:
    path = os.path.join(root, f"{MANIFEST}.{files.token(16)}")
    text = orjson.dumps({"format": FORMAT, **manifest}, option=orjson.OPT_INDENT_2)
    descriptor = files.open_append(path)
    try:
        files.write_all(descriptor, text + b"\n")
        files.sync(descriptor)
    except BaseException:
        files.remove_file(path)
        raise
    finally:
        files.close(descriptor)
    return path
