"""Statistics of router weights, against the same numbers computed plainly in float64."""

import copy
import dataclasses
import logging
import math
import weakref

import pytest
import torch
from torch import nn

import moetrace
from moetrace.probes.weights import WeightMeter, WeightProbe, weights_of
from tests.readers import hand_written
from tests.tiny import batch, seeded


def record(meter: WeightMeter, step: int, name: str = "weight"):
    """The record of one tensor at this step."""
    return next(
        item
        for window, bits in meter.window(step)
        for item in window.stats(bits.numpy())
        if item.name == name
    )


@pytest.fixture
def router():
    """A linear router of 4 experts over 8 numbers."""
    return nn.Linear(8, 4)


class TestWeightMeter:
    def test_moments_are_those_of_float64(self, router):
        """S0-07: mean, std (n - 1), min, max and norm of the tensor now."""
        w = router.weight.detach().double()
        found = record(WeightMeter([("mlp", router)], WeightProbe()), 1)
        assert found.mean == pytest.approx(w.mean().item(), abs=1e-12)
        assert found.std == pytest.approx(w.std().item(), rel=1e-9)
        assert (found.min, found.max) == (w.min().item(), w.max().item())
        assert found.norm == pytest.approx(w.norm().item(), rel=1e-9)
        assert (found.shape, found.numel, found.dtype) == ((4, 8), 32, "float32")

    def test_a_single_number_has_no_spread(self):
        """S0-07: the standard deviation of one number is 0, not NaN."""
        module = nn.Linear(1, 1, bias=False)
        assert record(WeightMeter([("mlp", module)], WeightProbe()), 1).std == 0.0

    def test_the_first_window_has_no_change(self, router):
        """S0-08: nothing is known of what came before the first window."""
        found = record(WeightMeter([("mlp", router)], WeightProbe()), 1)
        assert (found.diff_norm, found.update_ratio, found.unchanged_fraction) == (None,) * 3

    def test_a_step_of_known_size_is_the_change(self, router):
        """S0-08: adding 0.5 to all 32 numbers in 4 steps moves the tensor by 0.5 sqrt(32)."""
        meter = WeightMeter([("mlp", router)], WeightProbe())
        before = record(meter, 1).norm
        with torch.no_grad():
            router.weight += 0.5
        found = record(meter, 5)
        assert found.diff_norm == pytest.approx(0.5 * math.sqrt(32), rel=1e-6)
        assert found.diff_mean == pytest.approx(0.5, rel=1e-6)
        assert found.diff_std == pytest.approx(0.0, abs=1e-6)
        assert found.diff_max == pytest.approx(0.5, rel=1e-6)
        assert found.update_ratio == pytest.approx(found.diff_norm / before / 4, rel=1e-9)
        assert found.drift == pytest.approx(found.diff_norm / before, rel=1e-9)

    def test_a_small_turn_shows_in_the_cosine(self):
        """1 - cos of 1.25e-5 comes out within 1e-9; a float32 dot product misses it by 2e-6."""
        torch.manual_seed(0)
        module = nn.Linear(2048, 128, bias=False)
        meter = WeightMeter([("mlp", module)], WeightProbe())
        before = module.weight.detach().double()
        with torch.no_grad():
            module.weight += torch.randn_like(module.weight) * module.weight.std() * 0.005
        now = module.weight.detach().double()
        true = 1 - (now * before).sum().item() / (now.norm() * before.norm()).item()
        assert 1 - record(meter, 1).cosine_to_init == pytest.approx(true, abs=1e-9)
        assert true == pytest.approx(1.25e-5, rel=0.05)

    def test_updates_that_bfloat16_swallows_are_unchanged_numbers(self):
        """A relative update of 0.05 % leaves every number of a bfloat16 tensor as it was."""
        module = nn.Linear(64, 8, bias=False).bfloat16()
        meter = WeightMeter([("mlp", module)], WeightProbe())
        record(meter, 1)
        with torch.no_grad():
            module.weight *= 1.0005
        found = record(meter, 2)
        assert (found.unchanged_fraction, found.dtype) == (1.0, "bfloat16")

    def test_rows_are_one_per_expert(self):
        """Norms of rows 3, 4 and 5 have mean 4 and spread sqrt(2/3) / 4."""
        module = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 4.0]]))
        found = record(WeightMeter([("mlp", module)], WeightProbe()), 1)
        assert (found.rows, found.row_min, found.row_max) == (3, 3.0, 5.0)
        assert found.row_norm_mean == pytest.approx(4.0)
        assert found.row_norm_cv == pytest.approx(math.sqrt(2 / 3) / 4)

    def test_angles_are_those_of_numpy(self):
        """Cosines, orthogonality and the stable rank agree with a full decomposition."""
        torch.manual_seed(0)
        module = nn.Linear(64, 6, bias=False)
        found = record(WeightMeter([("mlp", module)], WeightProbe(angles=1)), 1)
        w = module.weight.detach().double()
        cos = nn.functional.normalize(w) @ nn.functional.normalize(w).T
        off = cos[~torch.eye(6, dtype=torch.bool)]
        assert found.cos_abs == pytest.approx(off.abs().mean().item(), rel=1e-9)
        assert found.cos_max == pytest.approx(off.max().item(), rel=1e-9)
        assert found.orthogonality == pytest.approx(off.norm().item() / math.sqrt(30), rel=1e-9)
        exact = (w.norm() / torch.linalg.svdvals(w)[0]).item() ** 2
        assert found.stable_rank == pytest.approx(exact, rel=1e-3)

    def test_angles_are_taken_as_often_as_asked_for(self, router):
        """angles=2 takes them in every second window; by default in none."""
        meter = WeightMeter([("mlp", router)], WeightProbe(angles=2))
        assert [record(meter, step).cos_abs is None for step in (1, 2, 3)] == [False, True, False]
        assert record(WeightMeter([("mlp", router)], WeightProbe()), 1).cos_abs is None

    def test_a_tensor_with_nan_has_no_sums(self, router):
        """One NaN is counted, and no mean is published over it."""
        with torch.no_grad():
            router.weight[0, 0] = torch.nan
        found = record(WeightMeter([("mlp", router)], WeightProbe()), 1)
        assert (found.nonfinite, found.mean, found.norm) == (1, None, None)

    def test_what_does_not_fit_is_left_out_and_said(self, router, caplog):
        """A tensor whose two copies exceed max_bytes is named in the log, and not followed."""
        with caplog.at_level(logging.WARNING, "moetrace"):
            meter = WeightMeter([("mlp", router)], WeightProbe(max_bytes=100))
        assert "1 router weights are not followed (mlp.weight)" in caplog.text
        assert [r.name for w, bits in meter.window(1) for r in w.stats(bits.numpy())] == ["bias"]

    def test_the_module_is_not_kept_alive(self):
        """A router that its owner has dropped is gone, and has no record any more."""
        module = nn.Linear(8, 4)
        meter = WeightMeter([("mlp", module)], WeightProbe())
        gone = weakref.ref(module)
        del module
        assert gone() is None
        assert meter.window(1) == []


class TestShards:
    def test_the_shards_of_a_tensor_add_up_to_it(self):
        """Records of two shards, joined, are the record of the whole tensor."""
        torch.manual_seed(0)
        whole = nn.Linear(16, 8, bias=False)
        halves = [nn.Linear(16, 4, bias=False) for _ in range(2)]
        meters = [WeightMeter([("mlp", half)], WeightProbe()) for half in [whole, *halves]]
        for turn in range(2):
            with torch.no_grad():
                whole.weight += torch.randn(8, 16)
                halves[0].weight.copy_(whole.weight[:4])
                halves[1].weight.copy_(whole.weight[4:])
            one, left, right = (record(meter, turn) for meter in meters)
        joined = dataclasses.replace(left, sharded=True).beside(right)
        for name in ("mean", "std", "norm", "row_norm_cv"):
            assert getattr(joined, name) == pytest.approx(getattr(one, name), rel=1e-9)
        for name in ("diff_norm", "diff_std", "diff_max", "unchanged_fraction", "relative_change"):
            assert getattr(joined, name) == pytest.approx(getattr(one, name), rel=1e-6)

    def test_replicas_count_once(self, router):
        """The record of a rank that holds the same tensor changes nothing."""
        found = record(WeightMeter([("mlp", router)], WeightProbe()), 1)
        assert found.beside(found) is found


class TestWeightsOf:
    def test_gru_cells_and_projectors_go_by_the_names_of_torch(self):
        """S0-02, S0-03: every tensor has its dotted name, and none that it has not."""
        module = nn.ModuleDict(
            {"load_balancer": nn.GRUCell(4, 3), "projector": nn.Linear(4, 2, bias=False)}
        )
        assert [name for name, _ in weights_of(module)] == [
            "load_balancer.weight_ih",
            "load_balancer.weight_hh",
            "load_balancer.bias_ih",
            "load_balancer.bias_hh",
            "projector.weight",
        ]

    def test_an_adapter_that_keeps_a_copy_shows_the_active_one(self):
        """S0-27: of modules_to_save the trained copy is followed, not the original."""
        peft = pytest.importorskip("peft")
        model = copy.deepcopy(seeded("Qwen3Moe"))
        config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["gate"])
        adapted = peft.get_peft_model(model, config)
        gate = adapted.base_model.model.model.layers[0].mlp.gate
        with torch.no_grad():
            gate.modules_to_save["default"].weight += 1.0
        ((name, tensor),) = weights_of(gate)
        assert name == "weight"
        assert torch.equal(tensor, gate.modules_to_save["default"].weight)

    def test_a_low_rank_adapter_shows_the_effective_weight(self):
        """S0-27: base plus the product of the two factors, under the name of the base."""
        peft = pytest.importorskip("peft")
        module = nn.Sequential(nn.Linear(8, 4, bias=False))
        adapted = peft.get_peft_model(module, peft.LoraConfig(r=2, target_modules=["0"]))
        layer = adapted.base_model.model[0]
        with torch.no_grad():
            layer.lora_B["default"].weight += 1.0
        ((name, tensor),) = weights_of(layer)
        delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        expected = layer.base_layer.weight + delta * layer.scaling["default"]
        assert name == "weight"
        assert torch.allclose(tensor, expected)


class TestInARun:
    def test_weights_stand_in_the_run_folder(self, tmp_path):
        """Each window of a run has a record per router weight, with the change since the last."""
        model = copy.deepcopy(seeded("Qwen3Moe"))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        probes = [moetrace.WeightProbe(), moetrace.GradientProbe()]
        with moetrace.attach(model, tmp_path / "run", every=2, probes=probes) as tracer:
            for step in range(4):
                tracer.on_step_begin()
                ids, mask = batch(step)
                model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
                tracer.on_gradients()
                optimizer.step()
                optimizer.zero_grad()
                tracer.on_step_end()
        first, second = moetrace.open_run(tmp_path / "run").snapshots()
        assert [item.key for item in second.weights] == [
            ("model.layers.0.mlp", "weight"),
            ("model.layers.1.mlp", "weight"),
        ]
        assert first.weights[0].diff_norm is None
        assert second.weights[0].steps == 2
        assert second.weights[0].diff_norm > 0
        assert second.gradients

    def test_a_gate_that_is_read_off_its_experts_is_followed_itself(self):
        """Where the experts' call shows the choice, the weights are those of the gate."""
        model = nn.Sequential(hand_written.Called())
        with moetrace.attach(model, every=1, probes=[moetrace.WeightProbe()]) as tracer:
            tracer.on_step_begin()
            model(torch.randn(2, 5, hand_written.D))
            tracer.on_step_end()
            snapshot = tracer.flush()
        (block,) = model
        assert [item.shape for item in snapshot.weights] == [tuple(block.gate.weight.shape)]

    def test_training_is_bit_identical(self):
        """Weights after followed steps are those of steps without it, bit for bit."""
        weights = []
        for probes in ((), (moetrace.WeightProbe(angles=1),)):
            model = copy.deepcopy(seeded("Qwen3Moe"))
            optimizer = torch.optim.AdamW(model.parameters())
            with moetrace.attach(model, every=1, probes=probes) as tracer:
                for step in range(3):
                    tracer.on_step_begin()
                    ids, mask = batch(step)
                    model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    tracer.on_step_end()
            weights.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        assert torch.equal(*weights)
