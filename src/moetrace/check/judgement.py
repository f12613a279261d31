# pyright: strict
"""What became of a rule over all windows of a run."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from moetrace.check.figures import figures_of, why_withheld
from moetrace.check.rule import Rule
from moetrace.run import Run
from moetrace.snapshot import Snapshot

__all__ = ["Judgement", "Sighting", "check_run"]


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where a rule was broken.

    Attributes:
        layer: The layer; where layers were put together, the one that is furthest off.
        first_step: First step of the window.
        last_step: Its last step.
        value: The figure, of the layer or of all of them together.
    """

    layer: str
    first_step: int
    last_step: int
    value: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """A rule held against every window of a run.

    A rule for which there was nothing to judge does not hold: a check that looks at nothing would
    pass for ever.

    Attributes:
        rule: The rule.
        windows: Windows in which there was a figure to judge.
        judged: Figures that were judged.
        broken: How many of them break the rule.
        withheld: Figures that have no value, by the reason.
        first: Where it was broken first.
        worst: Where it was broken most.
    """

    rule: Rule
    windows: int
    judged: int
    broken: int
    withheld: dict[str, int]
    first: Sighting | None
    worst: Sighting | None

    @property
    def holds(self) -> bool:
        """Whether there was something to judge and all of it was as it has to be."""
        return self.judged > 0 and not self.broken

    def to_dict(self) -> dict[str, Any]:
        """The judgement as plain numbers, strings, lists and dicts."""
        return {
            "name": self.rule.name,
            "rule": self.rule.text,
            "holds": self.holds,
            **{name: getattr(self, name) for name in ("windows", "judged", "broken", "withheld")},
            "first": None if self.first is None else asdict(self.first),
            "worst": None if self.worst is None else asdict(self.worst),
        }


def check_run(run: Run, rules: Iterable[Rule]) -> list[Judgement]:
    """Hold rules against a run; one window is in memory at a time.

    Args:
        run: The run, live or finished.
        rules: What has to hold.

    Returns:
        A judgement per rule, in their order.

    Raises:
        ValueError: There is no rule.
    """
    tallies = [_Tally(rule) for rule in rules]
    if not tallies:
        raise ValueError("found no rule to check; give one such as 'load_cv < 1.0'")
    for phase in dict.fromkeys(tally.rule.phase for tally in tallies):
        of_phase = [tally for tally in tallies if tally.rule.phase == phase]
        for window in run.windows(phase=phase) if phase in run.phases else ():
            figures = figures_of(window)
            for tally in of_phase:
                tally.add(window, figures)
    return [tally.judgement() for tally in tallies]


@dataclass(slots=True)
class _Tally:
    """The windows of one rule so far."""

    rule: Rule
    windows: int = 0
    judged: int = 0
    broken: int = 0
    withheld: Counter[str] = field(default_factory=Counter[str])
    first: Sighting | None = None
    worst: Sighting | None = None

    def add(
        self, window: Snapshot, figures: Sequence[tuple[str, Mapping[str, float | None]]]
    ) -> None:
        rule = self.rule
        if window.first_step <= rule.after:
            return
        values: dict[str, float] = {}
        for layer, own in figures:
            if rule.figure in own and fnmatchcase(layer, rule.layers):
                value = own[rule.figure]
                if value is None:
                    self.withheld[why_withheld(window, layer, rule.figure)] += 1
                else:
                    values[layer] = value
        self.windows += bool(values)
        if rule.reduction is None:
            for layer, value in values.items():
                self._judge(window, layer, value)
        elif values:
            furthest = max(values, key=lambda layer: rule.beyond(values[layer]))
            self._judge(window, furthest, rule.reduced(list(values.values())))

    def judgement(self) -> Judgement:
        return Judgement(
            rule=self.rule,
            windows=self.windows,
            judged=self.judged,
            broken=self.broken,
            withheld=dict(self.withheld),
            first=self.first,
            worst=self.worst,
        )

    def _judge(self, window: Snapshot, layer: str, value: float) -> None:
        self.judged += 1
        if self.rule.holds(value):
            return
        self.broken += 1
        sighting = Sighting(layer, window.first_step, window.last_step, value)
        if self.first is None:
            self.first = sighting
        if self.worst is None or self.rule.beyond(value) > self.rule.beyond(self.worst.value):
            self.worst = sighting
