"""One sentence of what is wrong, how urgent it is, and what to try."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["TONES", "Finding", "most_urgent_first"]

TONES = ("good", "note", "warn", "bad")
"""From the calmest to the most urgent."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence of the verdict.

    Attributes:
        tone: ``"good"``, ``"note"``, ``"warn"`` or ``"bad"``.
        text: The sentence; names in it went through `shown`.
        advice: What to try about it; empty where nothing is wrong.
    """

    tone: str
    text: str
    advice: str = ""


def most_urgent_first(findings: Iterable[Finding]) -> list[Finding]:
    """What is urgent first; the calm ones stay in their order."""
    return sorted(findings, key=lambda item: -max(TONES.index(item.tone), TONES.index("note")))
