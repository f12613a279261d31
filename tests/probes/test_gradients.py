"""Gradient norms, against gradients read one by one in float64, in the loops that train."""

import copy
import math
import weakref

import pytest
import torch
from torch import nn

import moetrace
from moetrace.gradient_stats import norm_of
from moetrace.probes import GradientMeter
from tests.tiny import batch, seeded


def by_hand(model: nn.Module, *chosen: str) -> float:
    """Norm of the gradients whose parameter name holds one of ``chosen``, or of all."""
    squares = [
        p.grad.double().square().sum().item()
        for name, p in model.named_parameters()
        if p.grad is not None and (not chosen or any(part in name for part in chosen))
    ]
    return math.sqrt(math.fsum(squares))


def backward(model: nn.Module, seed: int) -> None:
    """Run one micro-batch forward and backward."""
    ids, mask = batch(seed)
    model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()


def trained(tmp_path, *, steps=2, **attach):
    """The records of a run of ``steps`` steps in one window, and each step's norm by hand."""
    model = copy.deepcopy(seeded("Qwen3Moe"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    expected = []
    attach = {"probes": [moetrace.GradientProbe()], **attach}
    with moetrace.attach(model, tmp_path / "run", every=steps, **attach) as tracer:
        for step in range(steps):
            tracer.on_step_begin()
            for micro_batch in range(2):
                backward(model, 10 * step + micro_batch)
            expected.append(by_hand(model))
            tracer.on_gradients()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
            tracer.on_step_end()
    (snapshot,) = moetrace.open_run(tmp_path / "run").snapshots()
    return snapshot.gradients, expected


class TestGradientProbe:
    def test_is_before_clipping_and_after_the_last_micro_batch(self, tmp_path):
        """S3: the norm of a window is the root mean square of its steps' norms, not clipped."""
        records, expected = trained(tmp_path)
        assert norm_of(records) == pytest.approx(
            math.sqrt(sum(norm**2 for norm in expected) / 2), rel=1e-6
        )
        assert norm_of(records, last=True) == pytest.approx(expected[-1], rel=1e-6)
        assert {record.measured for record in records} == {"pre_clip"}

    def test_squares_of_groups_add_up_to_the_total(self, tmp_path):
        """S3-32: groups and the rest hold every gradient once, to 1e-6 of the square."""
        records, expected = trained(tmp_path, steps=1)
        groups = {record.group for record in records}
        assert groups == {"embed", "attention", "router", "experts", "lm_head", "other"}
        total = sum(norm_of([r for r in records if r.group == g]) ** 2 for g in groups)
        assert total == pytest.approx(expected[0] ** 2, rel=1e-6)

    def test_layers_of_a_group_add_up_to_the_group(self, tmp_path):
        """S3-33: each block's attention is its own, and together they are the group."""
        records, _ = trained(tmp_path, steps=1)
        attention = [record for record in records if record.group == "attention"]
        assert [record.layer for record in attention] == ["model.layers.0", "model.layers.1"]
        assert sum(record.sum_sq for record in attention) == pytest.approx(
            norm_of(attention) ** 2, rel=1e-12
        )

    def test_a_classifier_of_ones_own_decides_first(self, tmp_path):
        """classify= puts a parameter into the group that it names, and leaves the rest alone."""
        probe = moetrace.GradientProbe(
            classify=lambda name: "mlp" if name.endswith("norm.weight") else None
        )
        records, _ = trained(tmp_path, steps=1, probes=[probe])
        assert {"mlp", "attention", "experts"} <= {record.group for record in records}

    def test_an_optimizer_is_measured_as_it_steps(self):
        """Without on_gradients the optimizer's gradients are taken, and the record says so."""
        model = copy.deepcopy(seeded("Qwen3Moe"))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with moetrace.attach(model, probes=[moetrace.GradientProbe(optimizer)]) as tracer:
            tracer.on_step_begin()
            backward(model, 0)
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            tracer.on_step_end()
            snapshot = tracer.flush()
        assert {record.measured for record in snapshot.gradients} == {"at_step"}
        assert norm_of(snapshot.gradients) == pytest.approx(1e-3, rel=1e-3)

    def test_the_factor_of_a_scaler_is_taken_out(self):
        """Gradients of a scaled loss are divided by the factor that is given, number or tensor."""
        model = copy.deepcopy(seeded("Qwen3Moe"))
        backward(model, 0)
        plain = by_hand(model)
        for p in model.parameters():
            p.grad.mul_(1024)
        for scale in (1024.0, torch.tensor(1024.0)):
            meter = GradientMeter(model, (), moetrace.GradientProbe())
            meter.measure(scale=scale)
            ((window, bits),) = meter.window(1)
            assert norm_of(window.stats(bits.numpy())) == pytest.approx(plain, rel=1e-6)

    def test_a_step_with_infinite_gradients_is_counted_and_left_out(self, tmp_path):
        """A NaN never reaches a norm: the step is in ``nonfinite`` and in no sum."""
        model = copy.deepcopy(seeded("Qwen3Moe"))
        meter = GradientMeter(model, (), moetrace.GradientProbe())
        backward(model, 0)
        meter.measure()
        meter.end_step()
        expected = by_hand(model)
        model.lm_head.weight.grad[0, 0] = float("inf")
        meter.measure()
        ((window, bits),) = meter.window(1)
        records = window.stats(bits.numpy())
        assert {(record.steps, record.nonfinite) for record in records} == {(2, 1)}
        assert norm_of(records) == pytest.approx(expected, rel=1e-6)

    def test_training_is_bit_identical(self):
        """Weights after measured steps are those of steps without it, bit for bit."""
        weights = []
        for probes in ((), (moetrace.GradientProbe(),)):
            model = copy.deepcopy(seeded("Qwen3Moe"))
            optimizer = torch.optim.AdamW(model.parameters())
            with moetrace.attach(model, probes=probes) as tracer:
                for step in range(3):
                    tracer.on_step_begin()
                    backward(model, step)
                    tracer.on_gradients()
                    optimizer.step()
                    optimizer.zero_grad()
                    tracer.on_step_end()
            weights.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        assert torch.equal(*weights)

    def test_parameters_that_sharding_replaces_are_found_again(self):
        """A parameter that took another's place after attach is measured under its name."""
        model = copy.deepcopy(seeded("Qwen3Moe"))
        meter = GradientMeter(model, (), moetrace.GradientProbe())
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        backward(model, 0)
        meter.measure()
        ((window, bits),) = meter.window(1)
        assert norm_of(window.stats(bits.numpy())) == pytest.approx(by_hand(model), rel=1e-6)

    def test_the_model_is_not_kept_alive(self):
        """A model that its owner has dropped is gone, meter or no meter."""
        model = copy.deepcopy(seeded("Qwen3Moe"))
        meter = GradientMeter(model, (), moetrace.GradientProbe())
        gone = weakref.ref(model)
        del model
        assert gone() is None
        meter.measure()
        assert meter.window(1) == []


class TestLowRankAdapters:
    @pytest.fixture
    def adapted(self):
        """A LoRA of the attention, at rank and alpha of the caller's choice."""
        peft = pytest.importorskip("peft")

        def build(r, alpha):
            torch.manual_seed(0)
            config = peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=["q_proj", "v_proj"])
            return peft.get_peft_model(copy.deepcopy(seeded("Qwen3Moe")), config)

        return build

    def measured(self, model):
        """The records of one measured backward."""
        meter = GradientMeter(model, (), moetrace.GradientProbe())
        backward(model, 0)
        meter.measure()
        ((window, bits),) = meter.window(1)
        return window.stats(bits.numpy())

    def test_the_two_factors_stand_apart(self, adapted):
        """S3: at step 0 the gradient of A is exactly 0, since B is; that of B is not."""
        records = self.measured(adapted(8, 32))
        norms = {p: norm_of([r for r in records if r.part == p]) for p in ("lora_A", "lora_B")}
        assert norms["lora_A"] == 0.0
        assert norms["lora_B"] > 0.0
        assert {record.group for record in records} == {"attention"}
        assert {record.layer for record in records} == {"model.layers.0", "model.layers.1"}

    def test_the_scale_free_norm_does_not_follow_alpha(self, adapted):
        """S3: alpha 8 to 32 quadruples the raw norm and leaves the scale-free one."""
        low, high = (self.measured(adapted(8, alpha)) for alpha in (8, 32))
        assert norm_of(high) == pytest.approx(4 * norm_of(low), rel=1e-5)
        assert norm_of(high, scale_free=True) == pytest.approx(
            norm_of(low, scale_free=True), rel=1e-5
        )


class TestBadInput:
    def test_a_probe_that_is_none(self):
        """attach says what it found among the probes and what to give."""
        with pytest.raises(
            TypeError, match=r"found str among the probes; give GradientProbe\(\), IndexProbe\(\)"
        ):
            moetrace.attach(copy.deepcopy(seeded("Qwen3Moe")), probes=["gradients"])
