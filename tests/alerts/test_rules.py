from typing import Any

import pytest

from moetrace import AlertRules


class TestAlertRules:
    def test_the_defaults_are_the_seeds(self) -> None:
        """S1-20, S1-21, S1-22: names and values that users of the seeds know."""
        rules = AlertRules()
        assert rules.alert_threshold_imbalance == 4.0
        assert rules.unused_expert_threshold == 0.25
        assert rules.entropy_threshold == 0.1
        assert rules.usage_threshold == 5.0

    @pytest.mark.parametrize(
        "wrong",
        [
            {"alert_threshold_imbalance": 0},
            {"entropy_threshold": -0.1},
            {"unused_expert_threshold": float("nan")},
            {"usage_threshold": "5"},
            {"dropped_threshold": True},
            {"leave": 1.5},
            {"leave": None},
            {"duration": 0},
            {"duration": 1.5},
            {"frozen_windows": 0},
            {"least_load": float("inf")},
            {"phases": [""]},
        ],
    )
    def test_a_mistake_is_named_where_it_is_made(self, wrong: dict[str, Any]) -> None:
        """What cannot be a threshold is refused with its name and value."""
        (name,) = wrong
        with pytest.raises(ValueError, match=f"found {name}="):
            AlertRules(**wrong)

    def test_none_switches_a_threshold_off(self) -> None:
        """Every threshold can be None."""
        rules = AlertRules(alert_threshold_imbalance=None, frozen_windows=None)
        assert rules.alert_threshold_imbalance is None

    def test_one_phase_may_be_given_by_its_name(self) -> None:
        """A name is taken for a tuple of one."""
        assert AlertRules(phases="eval").phases == ("eval",)  # type: ignore[arg-type]
