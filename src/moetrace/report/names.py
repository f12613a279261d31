"""Text that came from a run, made fit for a page: visible, short, unable to act.

A run folder may come from anyone, so a layer's name is a stranger's text. It passes through
`shown` before it reaches the page, then through the escape of its medium: `html.escape` in markup,
`json_island` in the data.
"""

import json
from collections.abc import Sequence
from typing import Any

from moetrace.printable import printable

__all__ = ["json_island", "short_names", "shown"]


def shown(text: object) -> str:
    r"""The text as it can safely be seen, by `printable`; what is no string as its JSON or ``str``.

    >>> shown("mlp\u202etac\x1b")
    'mlp\\u202etac\\x1b'
    """
    return printable(text if isinstance(text, str) else _spelled(text))


def short_names(names: Sequence[str]) -> list[str]:
    """What tells each dotted name from the others: common first and last parts are left out.

    >>> short_names(["model.layers.0.mlp", "model.layers.11.mlp"])
    ['0', '11']
    >>> short_names(["encoder.moe", "decoder.moe"])
    ['encoder', 'decoder']
    >>> short_names(["model.mlp"])
    ['model.mlp']
    """
    if len(set(names)) < 2 or len(set(names)) < len(names):
        return list(names)
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts))
    head = _common(parts, shortest)
    tail = _common([part[::-1] for part in parts], shortest - head)
    short = [".".join(part[head : len(part) - tail]) for part in parts]
    return short if all(short) else list(names)


def json_island(value: Any) -> str:
    r"""JSON that may stand inside a ``script`` element: nothing in it can end the element.

    Raises:
        ValueError: A number is NaN or infinite, which JSON cannot say.

    >>> json_island({"name": "</script>&'"})
    '{"name":"\\u003c/script\\u003e\\u0026\\u0027"}'
    """
    # ensure_ascii writes U+2028 and U+2029 as escapes already
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&'":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _spelled(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _common(parts: Sequence[Sequence[str]], most: int) -> int:
    """How many leading entries all sequences share, at most ``most - 1``."""
    for index in range(most - 1):
        if len({part[index] for part in parts}) > 1:
            return index
    return max(0, most - 1)
