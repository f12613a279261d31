"""The model stays the user's: copies, pickles, state and random numbers know nothing of us."""

import copy
import pickle

import pytest
import torch

import moetrace
from moetrace.sinks import MemorySink
from tests.tiny import ScriptedModel, batch, seeded


@pytest.fixture
def model():
    """A scripted model; two tokens to experts 0, 1 and 0, 2."""
    return ScriptedModel([[0, 1], [0, 2]], num_experts=4)


@pytest.fixture
def tracer(model):
    """A tracer on it."""
    with moetrace.attach(model) as tracer:
        yield tracer


def run(model):
    """One forward."""
    return model(torch.ones(2, 4), attention_mask=torch.ones(1, 2))


class TestCopies:
    def test_deepcopy_is_silent(self, model, tracer):
        """A copy of the model (EMA, SWA) runs and adds nothing to the original's counts."""
        twin = copy.deepcopy(model)
        run(twin)
        assert tracer.flush() is None
        run(model)
        assert tracer.flush()["blocks.0"].tokens == 2

    def test_deepcopy_after_steps(self, model, tracer):
        """A copy made in the middle of a training is silent too."""
        tracer.on_step_begin()
        run(model)
        tracer.on_step_end()
        run(copy.deepcopy(model))
        assert tracer.flush()["blocks.0"].tokens == 2

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickle(self, model, tracer, protocol):
        """Every pickle protocol works; what comes back runs and is silent."""
        loaded = pickle.loads(pickle.dumps(model, protocol))
        run(loaded)
        assert tracer.flush() is None

    def test_pickle_grows_by_little(self, model, tracer):
        """The traced model's pickle is at most 1 KiB larger than the untraced one's."""
        traced = len(pickle.dumps(model))
        tracer.close()
        assert traced - len(pickle.dumps(model)) <= 1024


class TestState:
    def test_state_dict_is_unchanged(self, model):
        """Keys, order and values of the state are those of the untraced model."""
        before = {key: value.clone() for key, value in model.state_dict().items()}
        names = [name for name, _ in model.named_buffers()]
        with moetrace.attach(model):
            run(model)
            assert list(model.state_dict()) == list(before)
            assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
            assert [name for name, _ in model.named_buffers()] == names
            model.load_state_dict(before, strict=True)

    def test_accumulators_keep_their_type(self, model, tracer):
        """A model that is cast to half precision counts on in integers."""
        model.half()
        model(torch.ones(2, 4).half())
        assert tracer.flush()["blocks.0"].tokens_per_expert.tolist() == [2, 1, 1, 0]

    def test_attached_under_inference_mode(self, model):
        """Evaluation under inference mode first, training after: both are counted."""
        with torch.inference_mode():
            tracer = moetrace.attach(model, every=1)
            run(model.eval())
        tracer.on_step_begin()
        run(model.train())
        tracer.on_step_end()
        assert tracer.flush()["blocks.0"].tokens == 2
        tracer.close()

    def test_attached_on_the_meta_device(self):
        """A model without data is attached, filled later, and counted."""
        with torch.device("meta"):
            model = ScriptedModel([[0, 1], [0, 2]], num_experts=4)
            tracer = moetrace.attach(model)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        run(model)
        assert tracer.flush()["blocks.0"].tokens == 2
        tracer.close()


class TestTraining:
    def test_two_hundred_steps_are_bit_identical(self):
        """Dropout, AdamW and bfloat16 autocast: not one bit differs from the untraced twin."""
        assert digest(traced=True) == digest()

    def test_the_check_can_fail(self):
        """A hook that draws one random number is seen by the same check."""
        assert digest(meddle=True, steps=20) != digest(steps=20)

    def test_memory_stays_flat(self, model):
        """A thousand steps with a window each leave no tensor behind."""
        import gc

        with moetrace.attach(model, every=1, sinks=[]) as tracer:
            counts = []
            for step in range(1000):
                tracer.on_step_begin()
                run(model).sum().backward()
                tracer.on_step_end()
                if step in (100, 999):
                    tracer.flush()
                    gc.collect()
                    counts.append(sum(type(o) is torch.Tensor for o in gc.get_objects()))
        assert counts[1] <= counts[0]


def digest(*, traced=False, meddle=False, steps=200):
    """Losses, weights and random state after so many steps, as one list of bytes."""
    model = copy.deepcopy(seeded("Qwen3Moe"))
    model.config.attention_dropout = 0.1
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    if meddle:
        model.register_forward_hook(lambda *_: torch.rand(1) and None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tracer = moetrace.attach(model, every=7, sinks=[MemorySink()]) if traced else None
    torch.manual_seed(0)
    found = []
    for step in range(steps):
        ids, mask = batch(step)
        if tracer:
            tracer.on_step_begin()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if tracer:
            tracer.on_step_end()
        found.append(loss.detach().numpy().tobytes())
    if tracer:
        tracer.close()
    found += [parameter.detach().numpy().tobytes() for parameter in model.parameters()]
    return [*found, torch.get_rng_state().numpy().tobytes()]
