"""Text from a run, made fit for a terminal.

A run folder may come from anyone, so a layer's name is a stranger's text: printed as it is, it
could move the cursor, set the clipboard or turn the line around.
"""

import unicodedata

__all__ = ["printable"]

LONGEST = 160
"""Characters of one text that are printed; of a longer one the start and the length are."""

UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that show nothing or act on what stands around them."""


def printable(text: str, *, longest: int = LONGEST) -> str:
    r"""The text with everything spelled out that would act instead of being seen.

    Cost: linear in ``longest``, whatever the length of the text.

    Args:
        text: Any text.
        longest: Characters of it that are printed whole; paths and messages may need more.

    >>> printable("mlp\x1b[2J\u202e")
    'mlp\\x1b[2J\\u202e'
    """
    tail = ""
    if len(text) > longest:
        tail = f"... ({len(text):,} characters)"
        text = text[: longest // 2]
    return "".join(map(_seen, text)) + tail


def _seen(character: str) -> str:
    if unicodedata.category(character) not in UNSEEN:
        return character
    return character.encode("unicode_escape").decode("ascii")
