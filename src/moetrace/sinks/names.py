# pyright: strict
"""Names that every tracker takes: one spelling of a key, whatever stands in a layer's name.

Trackers differ in what they refuse (MLflow a bracket, TensorBoard a space), and some replace it,
so that two layers become one curve. This spelling uses only what all of them keep.
"""

import hashlib
import re

__all__ = ["tracker_name"]

LONGEST = 200
"""Characters of a name; MLflow takes 250, and its images add a suffix."""

_PLAIN = re.compile(r"[A-Za-z0-9_./]*")
_STRANGE = re.compile(r"[^A-Za-z0-9_.]")


def tracker_name(name: str) -> str:
    """The name with every character that some tracker refuses spelled as its number.

    Injective: two names never become one. Letters, digits, ``_``, ``.`` and single slashes stay, so
    that ordinary layer names and all keys of ours are themselves. Another character is its number
    in hexadecimal between two dashes, an empty part of a path is ``--``, and dots that begin a part
    are spelled too, since ``..`` names a folder. A name above 200 characters ends with its hash.

    Args:
        name: Any text.

    >>> tracker_name("moe/model.layers.0.mlp/expert_cv")
    'moe/model.layers.0.mlp/expert_cv'
    >>> tracker_name("layers[0]"), tracker_name("../a//b")
    ('layers-5b-0-5d-', '-2e--2e-/a/--/b')
    """
    plain = _PLAIN.fullmatch(name) is not None
    spelled = name if plain and _no_folder(name) else "/".join(map(_part, name.split("/")))
    if len(spelled) <= LONGEST:
        return spelled
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{spelled[: LONGEST - 20].rstrip('/')}-h{digest}-"


def _no_folder(name: str) -> bool:
    return all(part and part[0] != "." for part in name.split("/"))


def _part(part: str) -> str:
    if not part:
        return "--"
    rest = part.lstrip(".")
    dots = "-2e-" * (len(part) - len(rest))
    return dots + _STRANGE.sub(lambda found: f"-{ord(found.group()):x}-", rest)
