from typing import Any

import pytest

from moetrace.alerts import Alert
from moetrace.report.alarms import alarms
from tests.report.made import MadeRun


def event(
    state: str, first_step: int, step: int, *, layer: str = "mlp", rank: int = 0, message: str = ""
) -> dict[str, Any]:
    """The event of an alert as a run tells it."""
    alert = Alert(
        kind="hot_experts",
        state="ended" if state == "ended" else "started",
        layer=layer,
        phase="train",
        first_step=first_step,
        step=step,
        value=6.0,
        threshold=5.0,
        floor=0.0,
        message=message or f"{layer}: 1 hot expert",
    )
    return {**alert.to_event(), "kind": "alert", "rank": rank, "attempt": 0}


def spans(*said: dict[str, Any]) -> list[tuple[str, int, int | None, tuple[int, ...]]]:
    """Layer, first and last step and ranks of each alarm."""
    found = alarms(MadeRun({}, said=said))  # type: ignore[arg-type]
    return [(item.layer, item.first_step, item.last_step, item.ranks) for item in found]


class TestAlarms:
    def test_what_still_holds_comes_first(self) -> None:
        """One over at step 40, one that began later and goes on."""
        said = (
            event("started", 1, 20, layer="a"),
            event("ended", 1, 40, layer="a"),
            event("started", 31, 50, layer="b"),
        )
        assert spans(*said) == [("b", 31, None, (0,)), ("a", 1, 40, (0,))]

    def test_a_condition_that_comes_back_is_two_alarms(self) -> None:
        """Steps 1 to 40, and again from 61 on."""
        said = (event("started", 1, 20), event("ended", 1, 40), event("started", 61, 80))
        assert spans(*said) == [("mlp", 61, None, (0,)), ("mlp", 1, 40, (0,))]

    def test_what_several_ranks_say_at_once_is_one_alarm(self) -> None:
        """Rank 0 says 11 to 30, rank 1 21 to 50: 11 to 50, of both."""
        said = (
            event("started", 11, 20),
            event("started", 21, 30, rank=1),
            event("ended", 11, 30),
            event("ended", 21, 50, rank=1),
        )
        assert spans(*said) == [("mlp", 11, 50, (0, 1))]

    def test_a_resumed_run_does_not_begin_it_again(self) -> None:
        """An attempt that says once more what holds adds nothing."""
        assert spans(event("started", 1, 20), event("started", 1, 60)) == [("mlp", 1, None, (0,))]

    @pytest.mark.parametrize(
        "changed",
        [
            {"kind": "resumed"},
            {"alert": "made up"},
            {"first_step": "1"},
            {"layer": None},
            {"message": 7},
            {"phase": ["train"]},
        ],
    )
    def test_an_event_of_another_shape_is_left_out(self, changed: dict[str, Any]) -> None:
        """Reading trusts no type."""
        assert spans({**event("started", 1, 20), **changed}) == []

    def test_hostile_text_is_made_visible(self) -> None:
        """J1, J5: a message passes through the printer of names."""
        said = event("started", 1, 2, message="mlp\u202e: hot")
        (found,) = alarms(MadeRun({}, said=[said]))  # type: ignore[arg-type]
        assert found.text == "mlp\\u202e: hot"
