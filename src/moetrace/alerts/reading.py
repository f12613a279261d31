# pyright: strict
"""What one layer's window says about one condition: met, clear of it, or in between."""

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Reading", "above", "below"]

_SLACK = 1e-3
"""A figure exactly at an inclusive threshold stays there when a floor of nearly 0 is subtracted."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A figure held against a threshold.

    Between ``met`` and ``clear`` lies the hysteresis: what holds goes on, what does not waits.

    Attributes:
        kind: The condition.
        value: The figure.
        threshold: Where the condition begins.
        floor: What chance shows, in the same unit.
        met: Whether the figure is beyond the threshold.
        clear: Whether it is back beyond the leave level.
        text: What is wrong, without the layer's name.
        lasting: Whether it has to last before it starts; the figure is no history of its own.
        early: Whether it can be met before there are enough tokens to judge everything: chance is
            ruled out by other means.
    """

    kind: str
    value: float
    threshold: float
    floor: float
    met: bool
    clear: bool
    text: str
    lasting: bool = True
    early: bool = False


def above(
    kind: str,
    value: float,
    threshold: float,
    text: str,
    *,
    even: float = 0.0,
    leave: float = 1.0,
    floor: Callable[[], float] | None = None,
    sure: Callable[[], bool] | None = None,
    inclusive: bool = False,
    lasting: bool = True,
) -> Reading:
    """A condition that begins above its threshold.

    Args:
        kind: The condition.
        value: The figure.
        threshold: Where it begins.
        text: What is wrong.
        even: The figure of a perfect router; the leave level is measured from here.
        leave: Share of the way from ``even`` to the threshold at which the condition ends.
        floor: What chance shows; what it is over ``even`` is subtracted before judging. Asked only
            where it matters, since it may cost a millisecond.
        sure: Whether chance is ruled out; asked only where the figure is beyond the threshold. Such
            a condition can be met early.
        inclusive: Whether the threshold itself counts as beyond.
        lasting: As in `Reading`.

    >>> above("dropped_tokens", 0.06, 0.05, "6.0% of assignments dropped").met
    True
    """
    back = even + leave * (threshold - even)
    chance = even
    if floor is not None and value > min(back, threshold):
        chance = max(even, floor())
    judged = value - (chance - even)
    if inclusive and chance > even:
        judged += _SLACK
    beyond = judged >= threshold if inclusive else judged > threshold
    met = beyond and (sure is None or sure())
    clear = judged < back if inclusive else judged <= back
    return Reading(
        kind, value, threshold, chance, met, clear and not met, text, lasting, sure is not None
    )


def below(
    kind: str,
    value: float,
    threshold: float,
    text: str,
    *,
    leave: float = 1.0,
    early: bool = False,
) -> Reading:
    """A condition that begins below its threshold and ends at the threshold over ``leave``.

    >>> below("low_entropy", 0.1, 0.1, "Low routing entropy (0.1000)").met
    False
    """
    met = value < threshold
    clear = value >= threshold / leave and not math.isnan(value)
    return Reading(kind, value, threshold, 0.0, met, clear, text, early=early)
