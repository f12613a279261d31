# pyright: strict
"""Names that every tracker takes: one spelling of a key, whatever stands in a layer's name.

Trackers differ in what they refuse (MLflow a bracket, TensorBoard a space), and some replace it,
so that two layers become one curve. This spelling uses only what all of them keep.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["aliased", "checked_alias", "tracker_name"]

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


def aliased(key: str, alias: Mapping[str, str]) -> str:
    """The key under another name, where it or a beginning of it up to a slash has one.

    The longest that is named decides, so that one key of a renamed group can go elsewhere.

    Args:
        key: A key of ours.
        alias: Other names, by key or by beginning.

    >>> names = {"expert_usage": "peer", "expert_usage/hot_experts_count": "hot"}
    >>> aliased("expert_usage/layer_0_coverage", names), aliased("moe/avg_expert_cv", names)
    ('peer/layer_0_coverage', 'moe/avg_expert_cv')
    >>> aliased("expert_usage/hot_experts_count", names)
    'hot'
    """
    start = key
    while start:
        if start in alias:
            return alias[start] + key[len(start) :]
        start = start.rpartition("/")[0]
    return key


def checked_alias(alias: Mapping[Any, Any] | None) -> dict[str, str]:
    """A copy of the aliases that somebody gave.

    Raises:
        ValueError: One is no text, or names nothing.
    """
    for key, name in (alias or {}).items():
        if not (isinstance(key, str) and key.strip("/") and isinstance(name, str) and name):
            raise ValueError(
                f"found alias {key!r}: {name!r}; give a key, or its beginning up to a slash, "
                "another name"
            )
    return {key.rstrip("/"): name.rstrip("/") or name for key, name in (alias or {}).items()}


def _no_folder(name: str) -> bool:
    return all(part and part[0] != "." for part in name.split("/"))


def _part(part: str) -> str:
    if not part:
        return "--"
    rest = part.lstrip(".")
    dots = "-2e-" * (len(part) - len(rest))
    return dots + _STRANGE.sub(lambda found: f"-{ord(found.group()):x}-", rest)
