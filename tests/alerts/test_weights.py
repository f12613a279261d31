"""Alerts about router weights: judged on records made by hand, and on a training that resumes."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import moetrace
from moetrace import Alert, AlertRules, Snapshot
from moetrace.alerts import AlertJudge
from moetrace.sinks import MemorySink
from moetrace.weight_stats import WeightStats
from tests.alerts.made import only


def weight(**changes: Any) -> WeightStats:
    """A weight of ten numbers with norm 5, of which all changed, or as told."""
    usual: dict[str, Any] = {
        "layer": "layers.0.mlp",
        "name": "weight",
        "shape": (2, 5),
        "dtype": "float32",
        "trainable": True,
        "sharded": False,
        "numel": 10,
        "steps": 10,
        "sum": 0.0,
        "m2": 25.0,
        "unchanged": 0,
        "init_sq": 25.0,
    }
    return WeightStats(**{**usual, **changes})


def told(*windows: tuple[WeightStats, ...], judge: AlertJudge | None = None) -> list[list[Alert]]:
    """The alerts of windows that end with steps 10, 20 and so on, per window."""
    taken = judge or AlertJudge(AlertRules())
    return [
        list(
            taken.judge(
                Snapshot("made", 0, 0, 0, "train", 10 * n - 9, 10 * n, 0.0, (), weights=records)
            )
        )
        for n, records in enumerate(windows, 1)
    ]


class TestUnchangedWeights:
    def test_two_windows_without_a_changed_number(self) -> None:
        """S0-26: a router that nobody updates is named, and so is the end of it."""
        still, moved = (weight(unchanged=10),), (weight(unchanged=9),)
        found = told(still, still, still, moved, moved)
        assert only("unchanged_weights", found) == [("started", 20), ("ended", 50)]
        assert found[1][0].message == (
            "layers.0.mlp: Router weights unchanged in 10 steps "
            "(is it in the optimizer, does it get a gradient?)"
        )

    def test_narrow_types_are_told_apart(self) -> None:
        """S0-26: in bfloat16 the updates may be too small to show."""
        still = (weight(unchanged=10, dtype="bfloat16"),)
        assert "updates that bfloat16 cannot show" in told(still, still)[1][0].message

    @pytest.mark.parametrize(
        "records",
        [
            (weight(unchanged=10, trainable=False),),
            (weight(unchanged=10), weight(name="bias", unchanged=3)),
            (weight(unchanged=10, steps=0),),
            (weight(unchanged=None),),
            (),
        ],
        ids=["frozen on purpose", "one of two", "no step", "first window", "nothing followed"],
    )
    def test_silent(self, records: tuple[WeightStats, ...]) -> None:
        """What may stand still, or is not known, is no alert."""
        assert told(records, records, records) == [[], [], []]


class TestNonfiniteAndGrowth:
    def test_a_weight_that_is_no_number(self) -> None:
        """S0-26: NaN in a weight is said at once."""
        found = told((weight(nonfinite=1, sum=None, m2=None, init_sq=None),))
        assert only("nonfinite_weights", found) == [("started", 10)]

    def test_a_norm_that_explodes(self) -> None:
        """S0-26: eleven times the norm at attach, for two windows."""
        grown = (weight(m2=25.0 * 11**2),)
        found = told(grown, grown)
        assert only("weight_growth", found) == [("started", 20)]
        assert "weight grown to 11.0 times" in found[1][0].message


class Router(nn.Module):
    """A softmax router of four experts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 8))
        self.num_experts, self.top_k = 4, 2

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits, weights, ids."""
        logits = hidden @ self.weight.T
        weights, ids = logits.softmax(-1).topk(2)
        return logits, weights, ids


class Block(nn.Module):
    """A router and its experts."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.gate, self.experts = Router(), nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.gate.weight, generator=generator)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Every expert, weighed."""
        _, weights, ids = self.gate(hidden)
        mixed = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            share = (weights * (ids == number)).sum(-1, keepdim=True)
            mixed = mixed + share * expert(hidden)
        return mixed


def trained(
    folder: Path,
    *,
    first: int = 1,
    seed: int = 0,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    updated: bool = True,
) -> tuple[list[Alert], dict[str, Any]]:
    """Four steps from ``first`` on; a state loaded before attach, or after it."""
    torch.manual_seed(0)
    model, sink = nn.Sequential(Block(seed)), MemorySink()
    if before is not None:
        model.load_state_dict(before)
    parameters = model.parameters() if updated else model[0].experts.parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    probes = [moetrace.WeightProbe()]
    rules = AlertRules(duration=1)
    with moetrace.attach(
        model, folder, every=2, probes=probes, sinks=[sink], alerts=rules
    ) as tracer:
        if after is not None:
            model.load_state_dict(after)
        for step in range(first, first + 4):
            tracer.on_step_begin(step)
            model(torch.randn(64, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            tracer.on_step_end(step)
    found = [alert for alert in sink.alerts if alert.kind.endswith("_weights")]
    return found, {name: value.clone() for name, value in model.state_dict().items()}


class TestOfARun:
    def test_a_router_that_is_in_no_optimizer(self, tmp_path: Path) -> None:
        """S0-26: a training whose optimizer does not know the router says so in its run."""
        found, _ = trained(tmp_path / "run", updated=False)
        assert [alert.kind for alert in found] == ["unchanged_weights"]
        events = moetrace.open_run(tmp_path / "run").events()
        assert [e["alert"] for e in events if e["kind"] == "alert"] == ["unchanged_weights"]

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_resume_with_its_weights_is_silent(
        self, tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A checkpoint that was loaded, before attach or after it, is no alert."""
        _, state = trained(tmp_path / "run")
        loaded: dict[str, Any] = {when: state}
        with caplog.at_level(logging.WARNING, "moetrace"):
            found, _ = trained(tmp_path / "run", first=5, seed=1, **loaded)
        assert found == []
        assert "failed" not in caplog.text

    def test_a_resume_with_a_fresh_router(self, tmp_path: Path) -> None:
        """A router that came back at fresh values is named, with both norms."""
        trained(tmp_path / "run")
        found, _ = trained(tmp_path / "run", first=5, seed=1)
        assert [alert.kind for alert in found] == ["reset_weights"]
        assert found[0].layer == "0"
        assert "was it loaded from the checkpoint?" in found[0].message

    def test_another_step_than_the_recorded_one_is_not_compared(self, tmp_path: Path) -> None:
        """Where no window of the earlier attempt ends at the resumed step, nothing is said."""
        trained(tmp_path / "run")
        found, _ = trained(tmp_path / "run", first=4, seed=1)
        assert found == []
