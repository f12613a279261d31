# pyright: strict
"""What is worth an alert: thresholds, and how long something has to last."""

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["AlertRules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRules:
    """Thresholds of all alerts. None switches an alert off.

    By default a figure is judged by what exceeds the noise floor, windows too short to tell are
    added up first, and a condition has to last. ``AlertRules(above_floor=False, duration=1)`` is
    the plain rule: every window for itself, its figure against the threshold.

    Attributes:
        alert_threshold_imbalance: Heaviest expert over the mean load, ``max(c) / mean(c)``; alert
            above it.
        unused_expert_threshold: Share of a layer's experts without a token in the window; alert
            from it on.
        entropy_threshold: Mean token routing entropy, nats; alert below it.
        usage_threshold: Load over the mean load from which an expert is hot; alert above it. A
            top-K router cannot load an expert beyond ``E / K`` times the mean.
        persistence_threshold: Share of the last five judged windows in which the same expert was
            hot; alert from it on.
        collapse_threshold: How far the load has gone from even (0) to the same K experts for every
            token (1), by the share of the K busiest; alert from it on.
        load_balancing_loss_threshold: Switch load-balancing loss of the window, 1 for a uniform
            router; alert above it, or above half the way to ``E / K`` where that is less.
        load_balancing_loss_zero: The same loss, gone below this; it cannot while load follows
            probability.
        dropped_threshold: Share of the assignments that a capacity limit dropped; alert above it.
        frozen_windows: Windows in a row with identical counts and identical sums of scores.
        nonfinite: Tokens with NaN or infinite logits, or a router weight; alert at the first one.
        silent: A router that is not called while others are.
        unchanged_weights: Trainable router weights of which no number changes from window to
            window. This and the next two need ``probes=[WeightProbe()]``.
        weight_growth_threshold: Norm of a router weight over its norm at attach; alert above it.
        reset_threshold: Where an attempt goes on from a step that an earlier one has recorded: how
            far the norm of a router weight may be from the recorded one, relative to it.
        unreachable: A table of experts of which a part cannot be reached, by the first window. This
            and the next two are of layers whose look-ups are counted, ``probes=[IndexProbe()]``.
        dead_sub_keys_threshold: Share of the sub-keys of one half that nobody drew, beyond what
            chance leaves; alert from it on.
        coverage_threshold: Experts drawn over those that a uniform draw would reach; alert below.
        above_floor: Judge what exceeds the noise floor, and only what chance cannot explain.
        duration: Judged windows in a row that have to meet a condition before it starts, and that
            have to be clear of it before it ends. Non-finite logits start at once.
        leave: A condition ends when its figure is back beyond this share of its distance to the
            threshold, in ``(0, 1]``; 1 is no hysteresis.
        least_load: With ``above_floor``, windows are added up until an expert's mean load is this
            many assignments, or until chance is ruled out without.
        phases: Phases that are judged.

    Raises:
        ValueError: A threshold is not a positive number, or a count below 1.

    >>> AlertRules(alert_threshold_imbalance=2.5).usage_threshold
    5.0
    """

    alert_threshold_imbalance: float | None = 4.0
    unused_expert_threshold: float | None = 0.25
    entropy_threshold: float | None = 0.1
    usage_threshold: float | None = 5.0
    persistence_threshold: float | None = 0.8
    collapse_threshold: float | None = 0.9
    load_balancing_loss_threshold: float | None = 2.0
    load_balancing_loss_zero: float | None = 0.1
    dropped_threshold: float | None = 0.05
    frozen_windows: int | None = 5
    nonfinite: bool = True
    silent: bool = True
    unchanged_weights: bool = True
    weight_growth_threshold: float | None = 10.0
    reset_threshold: float | None = 0.01
    unreachable: bool = True
    dead_sub_keys_threshold: float | None = 0.1
    coverage_threshold: float | None = 0.5
    above_floor: bool = True
    duration: int = 2
    leave: float = 0.8
    least_load: float = 16.0
    phases: tuple[str, ...] = ("train",)

    def __post_init__(self) -> None:
        for name in _THRESHOLDS:
            _check(name, getattr(self, name), optional=True)
        _check("least_load", self.least_load)
        if self.frozen_windows is not None:
            _check_windows("frozen_windows", self.frozen_windows)
        _check_windows("duration", self.duration)
        _check("leave", self.leave)
        if self.leave > 1:
            raise ValueError(f"found leave={self.leave!r}; it lies in (0, 1]")
        object.__setattr__(self, "phases", _names(self.phases))


_THRESHOLDS = (
    "alert_threshold_imbalance",
    "unused_expert_threshold",
    "entropy_threshold",
    "usage_threshold",
    "persistence_threshold",
    "collapse_threshold",
    "load_balancing_loss_threshold",
    "load_balancing_loss_zero",
    "dropped_threshold",
    "weight_growth_threshold",
    "reset_threshold",
    "dead_sub_keys_threshold",
    "coverage_threshold",
)


def _check(name: str, value: Any, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and number > 0:
            return
    raise ValueError(f"found {name}={value!r}; a threshold is a positive number")


def _check_windows(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"found {name}={value!r}; it counts windows, 1 or more")


def _names(phases: Any) -> tuple[str, ...]:
    names = (phases,) if isinstance(phases, str) else tuple(phases)
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"found phases={phases!r}; give names such as 'train'")
    return names
