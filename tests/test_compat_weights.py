"""Programs that were written for a router weight tracker run with their import line changed."""

import copy
import gc
import inspect
import json
import logging
import math
import os
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import moetrace
from moetrace.compat import (
    RouterWeightTracker,
    compute_weight_statistics,
    extract_router_weights,
    load_snapshot,
)
from moetrace.sinks import MemorySink
from tests.spectra import SpectraModel, moved
from tests.tiny import ScriptedModel, seeded

GRU_NAMES = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
MEAN = "load_balancer.weight_ih_mean"


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """The folder of logs of a program that runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "router_weight_logs"


def files(folder):
    """Names of the files in a folder, without the run folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def strict_json(path):
    """What a file holds that is JSON to the letter."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


class TestExtractRouterWeights:
    @pytest.mark.parametrize("cell", [False, True])
    def test_components_and_names(self, cell):
        """S0-02: a GRU and a GRU cell have the same four names in ``load_balancer``."""
        found = extract_router_weights(SpectraModel(cell=cell))
        assert list(found) == ["layer_0", "layer_1"]
        assert list(found["layer_0"]) == ["load_balancer", "expression_projector"]
        assert list(found["layer_0"]["load_balancer"]) == GRU_NAMES

    def test_what_is_not_there_has_no_name(self):
        """S0-03: a projector without a bias has a weight alone, and so has a GRU without one."""
        found = extract_router_weights(SpectraModel(bias=False))["layer_1"]
        assert list(found["expression_projector"]) == ["weight"]
        assert list(found["load_balancer"]) == ["weight_ih", "weight_hh"]

    def test_further_layers_of_a_gru_keep_their_number(self):
        """S0-02: two layers of a GRU do not overwrite one another."""
        names = list(extract_router_weights(SpectraModel(layers=2))["layer_0"]["load_balancer"])
        assert names == GRU_NAMES + [f"{name}_l1" for name in GRU_NAMES]

    def test_copies_do_not_follow_the_model(self):
        """S0-05: what was extracted is detached and stays what it was."""
        model = SpectraModel()
        before = model.layers[0].router.load_balancer.weight_ih_l0.detach().clone()
        weight = extract_router_weights(model)["layer_0"]["load_balancer"]["weight_ih"]
        moved(model)
        assert torch.equal(weight, before)
        assert not weight.requires_grad

    def test_a_shared_router_is_there_once(self):
        """S0-05: a router that all layers share is one layer."""
        assert list(extract_router_weights(SpectraModel(shared=True))) == ["layer_0"]

    def test_any_router_that_is_traced(self):
        """S0-05: the router of a model of transformers is the component ``router``."""
        found = extract_router_weights(seeded("Qwen3Moe"))
        assert list(found) == ["layer_0", "layer_1"]
        assert list(found["layer_1"]) == ["router"]
        assert found["layer_1"]["router"]["weight"].shape[0] == 8

    def test_targets_by_name(self):
        """S0-24: a glob over dotted names says which modules to take."""
        found = extract_router_weights(SpectraModel(), targets="*.1.router.expression_projector")
        assert list(found) == ["layer_1"]
        assert list(found["layer_1"]["router"]) == ["weight"]

    def test_targets_by_key(self):
        """S0-24: modules are taken under the names that the caller gives them."""
        model = SpectraModel()
        found = extract_router_weights(model, targets={"mine": model.layers[1].router})
        assert list(found) == ["mine"]
        assert list(found["mine"]) == ["load_balancer", "expression_projector"]

    def test_no_router(self):
        """S0-24: a model without a router is refused with what came near and what to do."""
        model = nn.Sequential()
        model.add_module("my_router", nn.Linear(4, 4))
        with pytest.raises(moetrace.NoRouterFound) as caught:
            extract_router_weights(model)
        assert "my_router (Linear)" in str(caught.value)
        assert "targets=" in str(caught.value)

    def test_no_match(self):
        """S0-24: a glob that matches nothing is refused."""
        with pytest.raises(moetrace.NoRouterFound, match=r"matches '\*.nothing'"):
            extract_router_weights(SpectraModel(), targets="*.nothing")

    def test_the_active_copy_of_an_adapter(self):
        """S0-27: of a router in modules_to_save the trained copy counts, under the plain names."""
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(target_modules=["lm_head"], modules_to_save=["router"])
        adapted = peft.get_peft_model(SpectraModel(), config)
        live = adapted.base_model.model.layers[0].router.modules_to_save["default"]
        moved(live)
        found = extract_router_weights(adapted)
        assert list(found) == ["layer_0", "layer_1"]
        assert list(found["layer_0"]["load_balancer"]) == GRU_NAMES
        weight = found["layer_0"]["load_balancer"]["weight_ih"]
        assert torch.equal(weight, live.load_balancer.weight_ih_l0)

    def test_an_adapted_projector(self):
        """S0-27: of a projector with a low-rank adapter the effective weight counts."""
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["expression_projector"])
        adapted = peft.get_peft_model(SpectraModel(), config)
        layer = adapted.base_model.model.layers[0].router.expression_projector
        with torch.no_grad():
            layer.lora_B["default"].weight += 1.0
        found = extract_router_weights(adapted)["layer_0"]["expression_projector"]
        assert list(found) == ["weight"]
        expected = layer.base_layer.weight + layer.get_delta_weight("default")
        assert torch.allclose(found["weight"], expected)


class TestComputeWeightStatistics:
    def test_values_are_those_of_torch_in_float64(self):
        """S0-06, S0-07: six entries per tensor, within 1e-6 of float64."""
        weights = extract_router_weights(SpectraModel())["layer_0"]["load_balancer"]
        found = compute_weight_statistics(weights)
        assert len(found) == 6 * len(GRU_NAMES)
        for name in GRU_NAMES:
            w = weights[name].double()
            expected = (w.mean(), w.std(), w.min(), w.max(), w.norm())
            for item, value in zip(("mean", "std", "min", "max", "norm"), expected, strict=True):
                assert found[f"{name}_{item}"] == pytest.approx(value.item(), abs=1e-6)
            assert found[f"{name}_shape"] == list(w.shape)

    def test_one_number_and_half_precision(self):
        """S0-07: one number has spread 0; bfloat16 is summed in float64."""
        weights = {"bias": torch.tensor([3.0]), "weight": torch.full((1000,), 1.0).bfloat16()}
        found = compute_weight_statistics(weights)
        assert (found["bias_mean"], found["bias_std"], found["bias_norm"]) == (3.0, 0.0, 3.0)
        assert found["weight_norm"] == pytest.approx(math.sqrt(1000), rel=1e-12)

    def test_nan_is_null(self):
        """S0-07: over a NaN there is no number, and no 0 either; the shape is there."""
        found = compute_weight_statistics({"weight": torch.tensor([1.0, torch.nan])})
        assert found["weight_mean"] is None
        assert found["weight_shape"] == [2]


class TestRecord:
    def test_signature(self):
        """S0-09: the parameters of the tracker, with their defaults."""
        parameters = list(inspect.signature(RouterWeightTracker).parameters.values())
        assert [(item.name, item.default) for item in parameters[:4]] == [
            ("save_dir", "./router_weight_logs"),
            ("save_every_n_steps", 100),
            ("save_full_weights", False),
            ("max_history", 1000),
        ]

    def test_keys(self, logs):
        """S0-10: step, global step, and layers with components and, from the second, changes."""
        model = SpectraModel()
        tracker = RouterWeightTracker(save_dir=logs)
        first = tracker.track_step(model, step=100, global_step=100)
        second = tracker.track_step(model, step=5, global_step=200)
        assert list(first) == ["step", "global_step", "layers"]
        assert list(first["layers"]["layer_0"]) == ["load_balancer", "expression_projector"]
        assert (second["step"], second["global_step"]) == (5, 200)
        layer = second["layers"]["layer_1"]
        assert list(layer)[2:] == ["load_balancer_changes", "expression_projector_changes"]
        stats = [f"weight_{item}" for item in ("mean", "std", "min", "max", "norm", "shape")]
        assert list(layer["expression_projector"]) == stats
        changes = [f"weight_{item}" for item in ("diff_norm", "diff_mean", "diff_max", "diff_std")]
        assert list(layer["expression_projector_changes"]) == changes

    def test_the_global_step_is_the_step_where_none_is_given(self, logs):
        """S0-10: without a global step the step stands for it."""
        record = RouterWeightTracker(logs).track_step(SpectraModel(), step=7)
        assert (record["step"], record["global_step"]) == (7, 7)

    def test_numbers_are_those_of_the_statistics(self, logs):
        """S0-10: a record holds what `compute_weight_statistics` says of the same weights."""
        model = SpectraModel()
        record = RouterWeightTracker(logs).track_step(model, step=1)
        for key, parts in extract_router_weights(model).items():
            for component, weights in parts.items():
                assert record["layers"][key][component] == compute_weight_statistics(weights)

    def test_a_step_of_known_size(self, logs):
        """S0-08: 0.5 more in each of 32 numbers is a change of 0.5 sqrt(32)."""
        model = SpectraModel()
        tracker = RouterWeightTracker(logs)
        tracker.track_step(model, step=0)
        moved(model, by=0.5)
        layer = tracker.track_step(model, step=100)["layers"]["layer_0"]
        found = layer["expression_projector_changes"]
        assert found["weight_diff_norm"] == pytest.approx(0.5 * math.sqrt(32), rel=1e-6)
        assert found["weight_diff_mean"] == pytest.approx(0.5, rel=1e-6)
        assert found["weight_diff_max"] == pytest.approx(0.5, rel=1e-6)
        assert found["weight_diff_std"] == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize("step", [-1, 1.5, True, "3", None])
    def test_a_step_is_a_number(self, logs, step):
        """S0-10: what is no integer of at least 0 is refused, and nothing is written."""
        with pytest.raises(ValueError, match="found step="):
            RouterWeightTracker(logs).track_step(SpectraModel(), step=step)
        assert not logs.exists()

    def test_the_model_is_not_touched(self, logs):
        """S0-31: weights, hooks and random state are what they were, bit for bit."""
        model = SpectraModel()
        before = copy.deepcopy(model.state_dict())
        state = torch.get_rng_state()
        RouterWeightTracker(logs, save_full_weights=True).track_step(model, step=0)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks for module in model.modules())


class TestTrajectory:
    def test_bounds_are_inclusive(self, logs):
        """S0-11: of steps 0, 100, 200, 300 those from 100 to 200 are two, with their steps."""
        model = SpectraModel()
        tracker = RouterWeightTracker(logs)
        means = []
        for step in range(0, 400, 100):
            record = tracker.track_step(model, step=step)
            means.append(record["layers"]["layer_0"]["load_balancer"]["weight_ih_mean"])
            moved(model, by=0.1)
        found = tracker.get_weight_trajectory("layer_0", MEAN, start_step=100, end_step=200)
        assert found == means[1:3]
        assert found.steps == [100, 200]
        changes = "load_balancer_changes.weight_ih_diff_norm"
        assert tracker.get_weight_trajectory("layer_0", changes).steps == [100, 200, 300]

    def test_unknown_names(self, logs):
        """S0-11: a layer or a weight that no record has is refused with those that are there."""
        tracker = RouterWeightTracker(logs)
        assert tracker.get_weight_trajectory("layer_0", MEAN) == []
        tracker.track_step(SpectraModel(), step=0)
        with pytest.raises(KeyError, match="the layers are layer_0, layer_1"):
            tracker.get_weight_trajectory("layer_7", MEAN)
        with pytest.raises(KeyError, match=r"load_balancer\.weight_ih_mean"):
            tracker.get_weight_trajectory("layer_0", "load_balancer.weight_mean")
        changes = "load_balancer_changes.weight_ih_diff_norm"
        assert tracker.get_weight_trajectory("layer_0", changes) == []

    def test_a_fresh_tracker_reads_an_old_folder(self, logs):
        """S0-12: whatever is still in memory, the whole history is on disk."""
        model = SpectraModel()
        old = RouterWeightTracker(logs, max_history=2)
        for step in range(5):
            old.track_step(model, step=step)
        assert len(old.history) == 2
        fresh = RouterWeightTracker(save_dir=logs)
        assert fresh.get_weight_trajectory("layer_0", MEAN).steps == [0, 1, 2, 3, 4]

    def test_a_step_that_is_tracked_again(self, logs):
        """S0-12: a training that resumes at 200 replaces what was recorded from there on."""
        model = SpectraModel()
        for steps in ([100, 200, 300], [200, 250]):
            tracker = RouterWeightTracker(logs)
            for step in steps:
                tracker.track_step(model, step=step)
            tracker.close()
        assert tracker.get_weight_trajectory("layer_0", MEAN).steps == [100, 200, 250]

    def test_one_tracker_that_goes_back(self, logs):
        """S0-12: the same tracker may begin again; the first record then has no changes."""
        model, tracker = SpectraModel(), RouterWeightTracker(logs)
        for step in (100, 200, 300):
            tracker.track_step(model, step=step)
        record = tracker.track_step(model, step=200)
        assert "load_balancer_changes" not in record["layers"]["layer_0"]
        assert tracker.get_weight_trajectory("layer_0", MEAN).steps == [100, 200]


class TestFiles:
    def test_one_every_so_many_steps(self, logs):
        """S0-14, S0-23: at steps 0 and 100 of 0, 50, 100; nothing but these and ``run``."""
        model, tracker = SpectraModel(), RouterWeightTracker(logs)
        for step in (0, 50, 100):
            tracker.track_step(model, step=step)
        tracker.save_summary("router_weight_summary.json")
        assert sorted(os.listdir(logs)) == [
            "router_weight_stats_step_0.json",
            "router_weight_stats_step_100.json",
            "router_weight_summary.json",
            "run",
        ]

    def test_flat_record_and_history(self, logs):
        """S0-14: a file holds the record, and the same record as the last of its history."""
        model, tracker = SpectraModel(), RouterWeightTracker(logs)
        tracker.track_step(model, step=0)
        record = tracker.track_step(model, step=100)
        found = strict_json(logs / "router_weight_stats_step_100.json")
        assert found.pop("history") == [record]
        assert found == record

    def test_a_nan_is_null(self, logs):
        """S0-14: a file is JSON to the letter, whatever the weights are."""
        model = SpectraModel()
        moved(model, by=torch.inf)
        RouterWeightTracker(logs).track_step(model, step=0)
        layer = strict_json(logs / "router_weight_stats_step_0.json")["layers"]["layer_0"]
        assert layer["load_balancer"]["weight_ih_mean"] is None

    def test_no_snapshot_by_default(self, logs):
        """S0-15, S0-31: without save_full_weights no file holds a tensor."""
        model, tracker = SpectraModel(), RouterWeightTracker(logs)
        for step in (0, 100):
            tracker.track_step(model, step=step)
        assert files(logs) == [f"router_weight_stats_step_{step}.json" for step in (0, 100)]
        assert not [path for path in logs.rglob("*") if path.suffix in (".pt", ".safetensors")]

    @pytest.mark.parametrize("form", ["safetensors", "pt"])
    def test_both_formats_come_back(self, logs, form):
        """S0-15: a snapshot holds every weight bit for bit, in either format."""
        model = SpectraModel().bfloat16()
        tracker = RouterWeightTracker(logs, save_full_weights=True, snapshot_format=form)
        tracker.track_step(model, step=1000)
        path = logs / f"router_weight_snapshot_step_1000.{form}"
        found = load_snapshot(path)
        for key, parts in extract_router_weights(model).items():
            for component, weights in parts.items():
                assert found[key][component].keys() == weights.keys()
                for name, weight in weights.items():
                    assert torch.equal(found[key][component][name], weight)

    def test_safetensors_is_the_default(self, logs):
        """S0-15: keys are dotted, and the metadata says which step it was."""
        safetensors = pytest.importorskip("safetensors")
        RouterWeightTracker(logs, save_full_weights=True).track_step(SpectraModel(), step=100)
        path = logs / "router_weight_snapshot_step_100.safetensors"
        with safetensors.safe_open(path, framework="pt") as file:
            assert "layer_0.load_balancer.weight_ih" in list(file.keys())
            assert file.metadata()["step"] == "100"

    def test_formats_that_are_none(self, logs):
        """S0-15: another format is refused, in writing and in reading."""
        with pytest.raises(ValueError, match="'safetensors' or 'pt'"):
            RouterWeightTracker(logs, snapshot_format="pickle")
        with pytest.raises(ValueError, match="snapshot ends in"):
            load_snapshot(logs / "weights.bin")

    def test_totals_are_those_of_the_folder(self, logs):
        """S0-13: five steps are five, though memory holds one of them."""
        model, tracker = SpectraModel(), RouterWeightTracker(logs, max_history=1)
        for step in range(0, 500, 100):
            tracker.track_step(model, step=step)
        RouterWeightTracker(logs).save_summary("router_weight_summary.json")
        assert strict_json(logs / "router_weight_summary.json") == {
            "total_steps": 5,
            "first_step": 0,
            "last_step": 400,
            "layers_tracked": ["layer_0", "layer_1"],
        }

    def test_a_path_with_a_folder_is_taken_as_it_is(self, logs, tmp_path):
        """S0-13: only a bare name stands for a file in save_dir; before any record it is empty."""
        RouterWeightTracker(logs).save_summary(tmp_path / "elsewhere" / "summary.json")
        found = strict_json(tmp_path / "elsewhere" / "summary.json")
        assert (found["total_steps"], found["first_step"]) == (0, None)

    def test_no_half_file(self, logs, monkeypatch):
        """S0-14: a write that fails leaves the file of before, and no temporary one."""
        model, tracker = SpectraModel(), RouterWeightTracker(logs)
        tracker.track_step(model, step=0)
        before = (logs / "router_weight_stats_step_0.json").read_bytes()

        def full(self, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        tracker.track_step(model, step=0)
        assert (logs / "router_weight_stats_step_0.json").read_bytes() == before
        assert sorted(os.listdir(logs)) == ["router_weight_stats_step_0.json", "run"]

    def test_a_full_disk_is_said_once(self, logs, monkeypatch, caplog):
        """S0-10: a record that cannot be written is returned all the same."""
        model, tracker = SpectraModel(), RouterWeightTracker(logs)

        def full(self, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with caplog.at_level(logging.WARNING, "moetrace"):
            records = [tracker.track_step(model, step=step) for step in (0, 100)]
        assert [record["step"] for record in records] == [0, 100]
        assert caplog.text.count("router weights cannot be written") == 1

    def test_the_run_folder_is_one_of_moetrace(self, logs):
        """S0-23: `open_run` reads it, with what was followed and where it hangs."""
        tracker = RouterWeightTracker(logs)
        tracker.track_step(SpectraModel(shared=True), step=100)
        tracker.close()
        run = moetrace.open_run(logs / "run")
        assert run.finished
        assert not run.faults
        paths = ["layers.0.router", "layers.1.router"]
        assert run.manifest["routers"] == {"layer_0": paths}
        (window,) = run.snapshots()
        assert window.weights[0].key == ("layer_0", "load_balancer.weight_ih_l0")


class TestMemory:
    def test_retained_bytes_are_two_copies(self, logs):
        """S0-20: beside the weights their last and their first state are kept, and are let go."""
        model, tracker = SpectraModel(), RouterWeightTracker(logs)
        for step in range(3):
            tracker.track_step(model, step=step)
        routers = [layer.router.parameters() for layer in model.layers]
        held = sum(p.numel() * p.element_size() for own in routers for p in own)
        assert tracker.retained_bytes == 2 * held
        tracker.close()
        assert tracker.retained_bytes == 0

    def test_the_history_is_bounded(self, logs):
        """S0-25: the last max_history records are in memory, the others on disk."""
        model, tracker = SpectraModel(), RouterWeightTracker(logs, max_history=2)
        for step in range(4):
            tracker.track_step(model, step=step)
        assert [record["step"] for record in tracker.history] == [2, 3]

    @pytest.mark.parametrize("name", ["save_every_n_steps", "max_history"])
    def test_bounds_are_numbers(self, logs, name):
        """S0-09: 0 records or steps are refused."""
        with pytest.raises(ValueError, match=f"found {name}=0"):
            RouterWeightTracker(logs, **{name: 0})

    def test_another_model(self, logs):
        """S0-10: a model in the place of the first is followed, which may go."""
        tracker = RouterWeightTracker(logs)
        tracker.track_step(SpectraModel(), step=0)
        gc.collect()
        record = tracker.track_step(ScriptedModel([[0]], num_experts=4), step=1)
        assert list(record["layers"]) == ["layer_0"]
        assert list(record["layers"]["layer_0"]) == ["router"]


class _Run:
    """Keeps rows, as a run of W&B does."""

    def __init__(self):
        self.rows = []

    def log(self, row):
        """Take a row, and no step."""
        self.rows.append(row)


class TestCurves:
    def test_keys(self, logs):
        """S0-17: statistics and changes have the tracker's keys, and the step is in the row."""
        run, model = _Run(), SpectraModel()
        tracker = RouterWeightTracker(logs, logger=run)
        for step in (100, 200):
            tracker.track_step(model, step=step)
        tracker.close()
        parts = {"load_balancer": GRU_NAMES, "expression_projector": ["weight"]}
        stats = ("mean", "std", "min", "max", "norm")
        changes = ("diff_norm", "diff_mean", "diff_max", "diff_std")
        head = [f"router_weight/layer_{layer}" for layer in (0, 1)]
        steps = ["moe/step", "train/global_step"]
        first = steps + [
            f"{layer}/{part}/{name}_{item}"
            for layer in head
            for part, names in parts.items()
            for name in names
            for item in stats
        ]
        more = [
            f"{layer}/{part}_change/{name}_{item}"
            for layer in head
            for part, names in parts.items()
            for name in names
            for item in changes
        ]
        assert [sorted(row) for row in run.rows] == [sorted(first), sorted(first + more)]
        assert [row["train/global_step"] for row in run.rows] == [100, 200]

    def test_any_sink(self, logs):
        """S0-17: a sink of the user's gets the records of the weights themselves."""
        sink = MemorySink()
        tracker = RouterWeightTracker(logs, logger=sink)
        tracker.track_step(SpectraModel(), step=100)
        tracker.close()
        (window,) = sink.snapshots
        assert len(window.weights) == 10
        assert window.metrics()[f"router_weight/layer_0/{MEAN.replace('.', '/')}"] == pytest.approx(
            window.weights[0].mean
        )


def example(text):
    """Run a documented example as a program of its own would run it, in the working folder."""
    names = {"model": SpectraModel(), "torch": torch}
    exec(compile(textwrap.dedent(text), "example", "exec"), names)
    return names


MANUAL = """
    from moetrace.compat import extract_router_weights, compute_weight_statistics

    router_weights = extract_router_weights(model)
    for layer_key, layer_weights in router_weights.items():
        stats = compute_weight_statistics(layer_weights['load_balancer'])
        print(f"{layer_key} - Load Balancer Stats: {stats}")
"""

TRACKING = """
    from moetrace.compat import RouterWeightTracker

    tracker = RouterWeightTracker(save_dir="./router_weight_logs")
    lengths = []
    for step in range(0, 1000, 100):
        step_stats = tracker.track_step(model, step=step, global_step=step)
        trajectory = tracker.get_weight_trajectory(
            layer_key='layer_0',
            weight_name='load_balancer.weight_ih_mean',
            start_step=0,
            end_step=step,
        )
        lengths.append(len(trajectory))
"""

PLOT = """
    import matplotlib.pyplot as plt
    from moetrace.compat import RouterWeightTracker

    tracker = RouterWeightTracker(save_dir="./router_weight_logs")
    trajectory = tracker.get_weight_trajectory(
        layer_key='layer_0',
        weight_name='load_balancer.weight_ih_mean',
    )
    plt.plot(trajectory)
    plt.xlabel('Step')
    plt.ylabel('Weight Mean')
    plt.title('Load Balancer Weight Mean Over Time')
    plt.show()
    drawn = plt.gca().lines[0].get_ydata()
"""

DISTRIBUTION = """
    import json
    import numpy as np

    with open("router_weight_logs/router_weight_stats_step_900.json", 'r') as f:
        data = json.load(f)
    weight_means = []
    for layer_key, layer_data in data['history'][-1]['layers'].items():
        if 'load_balancer' in layer_data:
            weight_means.append(layer_data['load_balancer']['weight_ih_mean'])
    print(f"Average weight mean across layers: {np.mean(weight_means)}")
    print(f"Std of weight mean across layers: {np.std(weight_means)}")
"""

SNAPSHOT = """
    snapshot = torch.load("router_weight_logs/router_weight_snapshot_step_1000.pt")
    layer_0_weights = snapshot['layer_0']['load_balancer']['weight_ih']
"""


class TestExamples:
    def test_manual_extraction(self, logs, capsys):
        """S0-01, S0-28: one line per layer is printed."""
        example(MANUAL)
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(" - ")[0] for line in lines] == ["layer_0", "layer_1"]
        assert "'weight_ih_shape': [24, 8]" in lines[0]

    def test_manual_tracking_and_what_is_made_of_it(self, logs, capsys, monkeypatch):
        """S0-18, S0-19, S0-29: lengths 1 to 10, a plot of ten points, mean and std over layers."""
        pytest.importorskip("matplotlib").use("Agg")
        assert example(TRACKING)["lengths"] == list(range(1, 11))
        drawn = example(PLOT)["drawn"]
        assert len(drawn) == 10
        means = example(DISTRIBUTION)["weight_means"]
        assert means[0] == pytest.approx(drawn[-1])
        assert f"Average weight mean across layers: {np.mean(means)}" in capsys.readouterr().out
        __import__("matplotlib.pyplot").pyplot.close("all")

    def test_loading_a_snapshot(self, logs):
        """S0-15: a snapshot of torch.save is loaded by the plain call, which runs no code."""
        model = SpectraModel()
        tracker = RouterWeightTracker(save_full_weights=True, snapshot_format="pt")
        tracker.track_step(model, step=1000)
        found = example(SNAPSHOT)["layer_0_weights"]
        assert torch.equal(found, model.layers[0].router.load_balancer.weight_ih_l0)
