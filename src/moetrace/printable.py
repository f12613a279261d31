"""Text from a run, made fit for a terminal or a page: visible, short, unable to act.

A run folder may come from anyone, so a layer's name is a stranger's text: printed as it is, it
could move the cursor, set the clipboard or turn the line around.
"""

import hashlib
import unicodedata

__all__ = ["printable", "span_text"]

LONGEST = 160
"""Characters of one text that are printed; a longer one ends with its length and hash."""

UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that show nothing or act on what stands around them."""


def printable(text: str, *, longest: int = LONGEST) -> str:
    r"""The text with everything spelled out that would act instead of being seen.

    Cost: linear in ``longest``, whatever the length of the text, apart from its hash.

    Args:
        text: Any text.
        longest: Characters of it that are printed whole; paths and messages may need more.

    >>> printable("mlp\x1b[2J\u202e")
    'mlp\\x1b[2J\\u202e'
    """
    tail = ""
    if len(text) > longest:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        tail = f"... ({len(text):,} characters, sha256 {digest})"
        text = text[: longest // 2]
    return "".join(map(_seen, text)) + tail


def span_text(first_step: int, last_step: int) -> str:
    """The steps of a window in words.

    >>> span_text(11, 20), span_text(5, 5)
    ('steps 11-20', 'step 5')
    """
    return f"step {last_step}" if first_step == last_step else f"steps {first_step}-{last_step}"


def _seen(character: str) -> str:
    if unicodedata.category(character) not in UNSEEN:
        return character
    return character.encode("unicode_escape").decode("ascii")
