"""The manifest of a run, which may be anybody's: what is not as it should be is left out."""

from collections.abc import Mapping
from typing import Any

__all__ = ["listed"]


def listed(manifest: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The records of a list in a manifest; what is none is left out.

    >>> listed({"sites": [{"name": "mlp"}, 3]}, "sites")
    [{'name': 'mlp'}]
    """
    found = manifest.get(name)
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []
