"""``tracer.doctor(inputs)``: what routers decided beside what their experts got, on real models."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import moetrace
from tests.coverage.architectures import model_classes, tiny_model
from tests.coverage.inputs import inputs_of
from tests.coverage.scan import scan
from tests.tiny import batch, family


def built(folder, **changes):
    """The tiny model of a transformers folder, in train mode, and inputs with padding."""
    (suspect,) = scan(only=folder)
    model = tiny_model(model_classes(suspect)[0], **changes).train()
    return model, inputs_of(model, 0)[0]


def examined(model, inputs, **options):
    """What the doctor says of a model that was attached and never stepped."""
    torch.manual_seed(0)
    with moetrace.attach(model, every=1) as tracer:
        return tracer.doctor(inputs, **options)


def found(diagnosis, kind):
    """The one finding of a kind."""
    (finding,) = [finding for finding in diagnosis.findings if finding.kind == kind]
    return finding


def kinds(diagnosis):
    """Kinds of all findings but that no step has run yet."""
    return {finding.kind for finding in diagnosis.findings} - {"nothing-yet"}


class TestRealModels:
    def test_experts_that_follow_their_router_are_said_to(self) -> None:
        """Qwen3-MoE's experts are called with the ids that its router returned."""
        diagnosis = examined(*built("qwen3_moe"))
        assert (diagnosis.ok, kinds(diagnosis)) == (True, set())
        for site in diagnosis.sites:
            assert site.received == site.decided
            assert sum(site.decided) == 2 * 24  # padding included, as the experts get it too
            assert site.seen_by == "ids that the experts were called with"
        assert "trial: the experts of 3 sites received what was decided" in str(diagnosis)

    def test_nllb_runs_two_experts_whatever_its_router_says(self) -> None:
        """transformers 5.23: every site's router spreads tokens, experts 0 and 1 get all rows."""
        diagnosis = examined(*built("nllb_moe"), training=False)
        finding = found(diagnosis, "not-run-as-decided")
        assert not diagnosis.ok
        assert finding.severity == "error"
        assert len(finding.sites) == len(diagnosis.sites) == 6
        assert "of 8 experts and only experts 0, 1 ran: decided [" in finding.found
        assert "NLLB-MoE" in finding.advice
        for site in diagnosis.sites:
            assert site.received[2:] == (0,) * 6
            assert sum(count > 0 for count in site.decided) > 2

    def test_nllb_does_not_read_the_weights_of_the_other_six(self) -> None:
        """The finding is true: NaN in experts 2 to 7 leaves the output bit for bit as it was."""
        model, inputs = built("nllb_moe")
        model.eval()
        with torch.no_grad():
            before = model(**inputs).logits
            for path, parameter in model.named_parameters():
                if any(f"expert_{number}." in path for number in range(2, 8)):
                    parameter.fill_(torch.nan)
            assert torch.equal(model(**inputs).logits, before)

    def test_a_capacity_limit_is_told_from_disobedience(self) -> None:
        """Switch with room for two tokens drops others: fewer rows than decided, never more."""
        diagnosis = examined(*built("switch_transformers", expert_capacity=2))
        finding = found(diagnosis, "dropped")
        assert finding.severity == "warning"
        decided = sum(sum(site.decided) for site in diagnosis.sites)
        received = sum(sum(site.received) for site in diagnosis.sites)
        assert (decided, received < decided) == (6 * 24, True)
        lost = decided - received
        assert finding.found.startswith(f"{lost} of 144 assignments ({lost / 144:.1%}) reached no")
        assert "not-run-as-decided" not in kinds(diagnosis)

    def test_a_few_drops_are_a_note(self) -> None:
        """Below a tenth a capacity limit is at work as it should be."""
        diagnosis = examined(*built("switch_transformers", expert_capacity=7))
        assert found(diagnosis, "dropped").severity == "note"
        assert diagnosis.ok

    def test_identity_experts_are_told_apart(self) -> None:
        """LongCat's experts 8 and 9 have no weights: routed to, never computed."""
        diagnosis = examined(*built("longcat_flash"))
        finding = found(diagnosis, "experts-without-weights")
        amount = sum(sum(site.decided[8:]) for site in diagnosis.sites)
        assert amount > 0
        assert finding.found == (
            f"{amount} of 144 assignments went to identity experts without weights (8, 9)"
        )
        assert diagnosis.ok

    def test_a_skip_class_is_told_apart(self) -> None:
        """Zaya's class 8 comes to the experts as id 0 with a weight of 0, and is not expert 0."""
        diagnosis = examined(*built("zaya"))
        finding = found(diagnosis, "experts-without-weights")
        assert finding.found.endswith("went to identity experts without weights (8)")
        for site in diagnosis.sites:
            assert (len(site.decided), site.received) == (9, site.decided[:8])
        assert kinds(diagnosis) == {"experts-without-weights"}

    def test_experts_that_all_run_are_said_to(self) -> None:
        """Llama 4 computes every expert on every token: its rows cannot tell, and nothing is."""
        diagnosis = examined(*built("llama4"))
        finding = found(diagnosis, "all-experts-run")
        assert finding.found.startswith("every expert computes every token")
        assert [site.received for site in diagnosis.sites] == [None] * 3
        assert "received not visible (every expert computes every token" in str(diagnosis)

    @pytest.mark.parametrize("folder", ["dbrx", "jetmoe", "doge", "gemma4", "ernie4_5_vl_moe"])
    def test_other_ways_to_call_experts_are_seen(self, folder) -> None:
        """Experts a module deeper, sizes per expert, embedding tables, two blocks in one."""
        diagnosis = examined(*built(folder))
        assert diagnosis.ok
        for site in diagnosis.sites:
            assert site.received == site.decided

    def test_a_part_that_these_inputs_do_not_need_is_a_note(self) -> None:
        """Only the encoder was run: the decoder's sites are told apart from broken ones."""
        model, inputs = built("switch_transformers")
        only = nn.Sequential(model.encoder)
        only.decoder = model.decoder
        only.forward = lambda **given: model.encoder(**given)
        diagnosis = examined(only, {name: inputs[name] for name in ("input_ids", "attention_mask")})
        finding = found(diagnosis, "not-run")
        assert finding.severity == "note"
        assert [name.split(".")[0] for name in finding.sites] == ["decoder"] * 3


class TestTheTraining:
    def test_goes_on_bit_for_bit(self) -> None:
        """Losses, gradients, weights and random states are those of a twin that never asked."""
        model = family("Qwen3Moe", attention_dropout=0.3)
        model.register_buffer("seen", torch.zeros(3))
        model.kept = []
        model.register_forward_hook(_touches_everything)
        twin = copy.deepcopy(model)
        outcomes = [_train(model, asks=True), _train(twin, asks=False)]
        for asked, never in zip(*outcomes, strict=True):
            assert _equal(asked, never)

    def test_counts_nothing_of_the_trial(self) -> None:
        """A window holds what the steps ran, in whatever phase the doctor was asked."""
        model = family("Qwen3Moe")
        ids, mask = batch(0)
        with moetrace.attach(model, every=2) as tracer:
            tracer.on_step_begin()
            model(input_ids=ids, attention_mask=mask)
            assert tracer.doctor({"input_ids": ids}).ok
            with tracer.phase("rollout"):
                tracer.doctor((ids, mask))
            tracer.on_step_end()
            (snapshot,) = [tracer.flush()]
        assert [stats.calls for stats in snapshot] == [1, 1]
        assert [stats.tokens for stats in snapshot] == [19, 19]
        assert snapshot.phase == "train"

    def test_keeps_a_mask_that_the_user_gave(self) -> None:
        """``tracer.tokens(mask=...)`` holds during the trial and after it."""
        model = family("Qwen3Moe")
        ids, mask = batch(0)
        with moetrace.attach(model, every=1) as tracer:
            tracer.tokens(mask=mask)
            tracer.doctor({"input_ids": ids})
            tracer.on_step_begin()
            model(input_ids=ids)
            tracer.on_step_end()
            assert [stats.masked for stats in tracer.flush()] == [5, 5]

    def test_keeps_the_mask_of_the_forward_before(self) -> None:
        """A backward that recomputes a checkpoint still finds the mask of its own forward."""
        model = family("Qwen3Moe")
        ids, mask = batch(0)
        with moetrace.attach(model, every=1) as tracer:
            model(input_ids=ids, attention_mask=mask)
            held = tracer._recording._state.mask_T
            tracer.doctor({"input_ids": ids, "attention_mask": mask.flip(0)})
            assert tracer._recording._state.mask_T is held
            assert held.tolist() == (mask.reshape(-1) != 0).tolist()

    def test_keeps_gradients_under_autocast(self) -> None:
        """A cast that the trial made without gradients does not serve the training's forward."""
        model, inputs = nn.Sequential(nn.Linear(4, 4), _Block()), torch.ones(3, 4)
        with (
            moetrace.attach(model, every=1) as tracer,
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            tracer.doctor(inputs)
            model(inputs).sum().backward()
        assert all(parameter.grad is not None for parameter in model[0].parameters())

    def test_compiled_code_stays(self) -> None:
        """The trial runs eager, and the compiled model neither recompiles nor miscounts."""
        torch.compiler.reset()
        compiles = []

        def backend(graph, example):
            compiles.append(graph)
            return graph.forward

        model, inputs = _Block(), torch.ones(3, 4)
        compiled = torch.compile(model, backend=backend)
        with moetrace.attach(compiled, every=1) as tracer:
            for step in range(3):
                tracer.on_step_begin()
                compiled(inputs).sum().backward()
                tracer.on_step_end()
                if step == 0:
                    before = len(compiles)
                assert tracer.doctor(inputs).sites[0].received == (3, 3, 0, 0)
            snapshot = tracer.flush()
        assert (len(compiles), before > 0) == (before, True)
        assert snapshot.routing[0].calls == 1
        torch.compiler.reset()

    def test_takes_its_hooks_off(self) -> None:
        """A trial that fails midway leaves no hook, no pause and no changed flag behind."""
        model = _Block()
        with moetrace.attach(model, every=1) as tracer:
            hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
            diagnosis = tracer.doctor({"nonsense": 1}, training=False)
            assert found(diagnosis, "trial-failed").found.startswith(
                "the trial forward raised TypeError: "
            )
            after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
            assert (after, model.training) == (hooks, True)
            tracer.on_step_begin()
            model(torch.ones(3, 4))
            tracer.on_step_end()
            assert tracer.flush().routing[0].tokens == 3


class TestModes:
    @pytest.mark.parametrize(("training", "expected"), [(None, True), (False, False)])
    def test_runs_in_the_mode_that_is_asked_for(self, training, expected) -> None:
        """``training=False`` is eval mode for the trial alone; None leaves each module as it is."""
        model, modes = _Block(), []

        def look(module, args):
            modes.append((module.training, torch.is_grad_enabled()))

        model.register_forward_pre_hook(look)
        with moetrace.attach(model, every=1) as tracer:
            tracer.doctor(torch.ones(3, 4), training=training)
        assert (modes, model.training) == ([(expected, False)], True)

    def test_a_model_over_ranks_is_not_run(self) -> None:
        """The forward of a sharded model is a collective; it is refused, not waited for."""

        class FSDPModule:
            pass

        class FSDPBlock(FSDPModule, _Block):
            def forward(self, hidden):
                raise AssertionError("it was run")

        diagnosis = examined(FSDPBlock(), torch.ones(3, 4))
        assert found(diagnosis, "trial-refused").found == (
            "no trial forward was run: its weights are sharded over ranks (FSDP), and a forward "
            "gathers them"
        )

    def test_a_replica_is_run_without_its_wrapper(self) -> None:
        """DDP synchronises buffers in its forward; the module inside does not."""

        class DistributedDataParallel(nn.Module):
            def __init__(self, module):
                super().__init__()
                self.module = module

            def forward(self, hidden):
                raise AssertionError("the wrapper was run")

        diagnosis = examined(DistributedDataParallel(_Block()), torch.ones(3, 4))
        assert diagnosis.sites[0].received == (3, 3, 0, 0)


class _Router(nn.Module):
    """Sends every token to experts 0 and 1; the standard triple."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, hidden):
        logits = hidden @ self.weight.T
        weights = logits.softmax(-1)[:, :2]
        return logits, weights, torch.tensor([[0, 1]]).expand(len(hidden), 2)


class _Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4, 4))

    def forward(self, hidden, ids, weights):
        return hidden + (self.weight[ids] * weights[..., None, None]).sum() * 0


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = _Router(), _Experts()

    def forward(self, hidden):
        _, weights, ids = self.gate(hidden)
        return self.experts(hidden, ids, weights)


def _touches_everything(module, args, output):
    """What a forward may change on a model: a buffer, attributes, a list, random states."""
    module.seen += 1
    module.forwards = getattr(module, "forwards", 0) + 1
    module.kept.append(float(module.seen[0]))
    module.newest = module.kept[-1:]
    module.kept.append(random.random() + np.random.random() + float(torch.rand(())))


def _train(model, *, asks):
    """Three steps; what must be the same with and without the doctor."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, gradients = [], []
    with moetrace.attach(model, every=1) as tracer:
        for step in range(3):
            ids, mask = batch(step)
            tracer.on_step_begin()
            loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
            if asks:  # between forward and backward too
                tracer.doctor({"input_ids": ids, "attention_mask": mask})
            loss.backward()
            losses.append(loss.detach())
            gradients += [p.grad.clone() for p in model.parameters() if p.grad is not None]
            optimizer.step()
            optimizer.zero_grad()
            tracer.on_step_end()
            if asks:
                tracer.doctor({"input_ids": ids, "attention_mask": mask}, training=False)
    chance = [torch.get_rng_state(), torch.rand(2), random.random(), np.random.random()]
    state = [*model.parameters(), model.seen, model.forwards, model.kept, model.training]
    return [losses, gradients, chance, state]


def _equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other
