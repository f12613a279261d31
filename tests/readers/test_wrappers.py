"""Routers that are wrapped, renamed, shared or replaced: named as the user knows them.

The oracle of the counts is what the innermost experts module is called with in the same forward.
"""

import copy
import functools
import warnings

import pytest
import torch
import torch.distributed as dist  # noqa: TID251 - FSDP asks for a group
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (  # noqa: TID251
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

import moetrace
from moetrace.readers.wrapping import unwrapped
from moetrace.sinks import MemorySink
from tests.tiny import ScriptedModel, batch, seeded

NAMES = ["model.layers.0.mlp", "model.layers.1.mlp"]
FAMILY = "Mixtral"


@pytest.fixture
def model():
    """A Mixtral of two layers with 8 experts."""
    return copy.deepcopy(seeded(FAMILY))


@pytest.fixture
def group():
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def count_and_compare(model, *, backward=True):
    """One traced step; the counts of each site are those that its experts were called with."""
    seen = []
    hooks = []
    for path, module in model.named_modules():
        if type(module).__name__.removeprefix("FSDP") == "MixtralExperts":

            def keep(module, args, path=path):
                if torch._C._current_graph_task_id() == -1:  # not again in a recomputation
                    ids = args[1].detach().clone()
                    seen.append((path, ids))

            hooks.append(module.register_forward_pre_hook(keep))
    sink = MemorySink()
    ids, mask = batch(0)
    with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
        tracer.on_step_begin()
        loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        if backward:
            loss.backward()
        tracer.on_step_end()
    for hook in hooks:
        hook.remove()
    (snapshot,) = sink.snapshots
    assert [site.name for site in tracer.sites] == list(snapshot.layers) == NAMES
    assert {site.router for site in tracer.sites} == {"MixtralTopKRouter"}
    real = mask.reshape(-1).bool()
    assert len(seen) == 2
    for stats, (_, chosen) in zip(snapshot, seen, strict=True):
        true = torch.bincount(chosen[real].flatten(), minlength=8)
        assert stats.tokens_per_expert.tolist() == true.tolist()
        assert (stats.tokens, stats.masked, stats.top_k) == (19, 5, 2)
        assert stats.mean("entropy_sum") > 0


def routers(model):
    """The MoE blocks of the model, with the name of their router."""
    return [(layer.mlp, "gate") for layer in model.model.layers]


class TestPeft:
    """LoRA on the attention, with the router left, trained as a whole, or adapted too."""

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"modules_to_save": ["gate"]},
            {"modules_to_save": ["mlp"]},
            {"target_parameters": ["gate.weight"]},
        ],
        ids=str,
    )
    def test_adapted(self, model, settings):
        """One site per layer, whichever copy of the router an adapter runs."""
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **settings)
        adapted = peft.get_peft_model(model, config)
        assert any(p.requires_grad for n, p in adapted.named_parameters() if "lora_A" in n)
        count_and_compare(adapted)

    def test_adapter_switched_off(self, model):
        """With adapters disabled the original runs, and is counted by the same site."""
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["gate"])
        adapted = peft.get_peft_model(model, config)
        with adapted.disable_adapter():
            count_and_compare(adapted, backward=False)

    def test_compiled_and_adapted(self, model):
        """PEFT around a model of which each block is compiled."""
        peft = pytest.importorskip("peft")
        for block, _ in routers(model):
            block.compile(backend="eager")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["gate"])
        count_and_compare(peft.get_peft_model(model, config))


class TestFsdp:
    @pytest.mark.parametrize("keeps_parameters", [False, True])
    def test_fsdp1(self, model, group, keeps_parameters):
        """Names of FSDP1 do not show, whether or not the parameters keep their shape."""
        from torch.distributed.fsdp import FullyShardedDataParallel  # noqa: TID251
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy  # noqa: TID251

        policy = ModuleWrapPolicy({type(model.model.layers[0])})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sharded = FullyShardedDataParallel(
                model,
                auto_wrap_policy=policy,
                use_orig_params=keeps_parameters,
                device_id=torch.device("cpu"),
            )
        count_and_compare(sharded)

    @pytest.mark.parametrize("what", ["block", "router"])
    def test_fsdp2(self, model, group, what):
        """A class that FSDP2 renamed is named and read as the one that the user wrote."""
        from torch.distributed.fsdp import fully_shard  # noqa: TID251

        for block, name in routers(model):
            fully_shard(block if what == "block" else block.get_submodule(name))
        fully_shard(model)
        count_and_compare(model)


class TestCompile:
    @pytest.mark.parametrize("what", ["layers", "blocks", "routers"])
    def test_wrapped(self, model, what):
        """``torch.compile`` around the layers, their blocks or their routers alone."""
        compiled = functools.partial(torch.compile, backend="eager")
        if what == "layers":
            for index, layer in enumerate(model.model.layers):
                model.model.layers[index] = compiled(layer)
        for block, name in routers(model) if what == "routers" else ():
            setattr(block, name, compiled(block.get_submodule(name)))
        for layer in model.model.layers if what == "blocks" else ():
            layer.mlp = compiled(layer.mlp)
        count_and_compare(model)

    def test_scoring_of_a_compiled_router(self):
        """A compiled sigmoid router is scored by its own code, not by that of its wrapper."""
        model = copy.deepcopy(seeded("DeepseekV3"))
        before = [site.scoring for site in moetrace.discover(model) if site.taken]
        for layer in model.model.layers[1:]:
            layer.mlp.gate = torch.compile(layer.mlp.gate, backend="eager")
        after = [site.scoring for site in moetrace.discover(model) if site.taken]
        assert before == after == ["sigmoid", "sigmoid"]


class TestCheckpoints:
    @pytest.mark.parametrize("what", ["layers", "blocks", "routers"])
    def test_wrapped(self, model, what):
        """``checkpoint_wrapper`` around layers, blocks or routers: once, under their own name."""
        if what == "layers":
            kind = type(model.model.layers[0])
            apply_activation_checkpointing(model, check_fn=lambda module: type(module) is kind)
        for block, name in routers(model) if what == "routers" else ():
            setattr(block, name, checkpoint_wrapper(block.get_submodule(name)))
        for layer in model.model.layers if what == "blocks" else ():
            layer.mlp = checkpoint_wrapper(layer.mlp)
        count_and_compare(model)


class TestNested:
    """Compiled wrappers run their module eagerly here: it is where modules hang that matters."""

    @pytest.fixture(autouse=True)
    def _eagerly(self):
        with torch.compiler.set_stance("force_eager"):
            yield

    def test_a_compiled_model(self, model):
        """``torch.compile`` around the whole."""
        count_and_compare(torch.compile(model))

    def test_compiled_around_adapted_around_checkpointed(self, model):
        """Wrappers of several kinds, one in the other."""
        peft = pytest.importorskip("peft")
        for block, name in routers(model):
            setattr(block, name, checkpoint_wrapper(block.get_submodule(name)))
        for index, layer in enumerate(model.model.layers):
            model.model.layers[index] = checkpoint_wrapper(layer)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"])
        count_and_compare(torch.compile(peft.get_peft_model(model, config)))

    def test_data_parallel_around_compiled_around_adapted(self, model, group):
        """DDP, compile and PEFT: three prefixes, of which the user knows none."""
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["gate"])
        adapted = peft.get_peft_model(model, config)
        count_and_compare(nn.parallel.DistributedDataParallel(torch.compile(adapted)))


class TestShared:
    def run(self, model, calls=1):
        """One traced step in which the model is called that often."""
        sink = MemorySink()
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            for _ in range(calls):
                model(torch.ones(2, 4))
            tracer.on_step_end()
        return tracer.sites, sink.snapshots[0]

    def test_two_names(self):
        """A router that hangs in two blocks is one site with both names; both calls count."""
        model = ScriptedModel([[0, 1]], [[0, 1]], num_experts=4)
        model.blocks[1].gate = model.blocks[0].gate
        ((site,), snapshot) = self.run(model)
        assert (site.name, site.aliases) == ("blocks.0", ("blocks.1",))
        stats = snapshot["blocks.0"]
        assert (stats.tokens_per_expert.tolist(), stats.calls) == ([2, 2, 0, 0], 2)

    def test_two_names_and_a_wrapper(self):
        """A shared router that is compiled is found through either of its names."""
        model = ScriptedModel([[0, 1]], [[0, 1]], num_experts=4)
        compiled = torch.compile(model.blocks[0].gate, backend="eager")
        model.blocks[0].gate = model.blocks[1].gate = compiled
        ((site,), snapshot) = self.run(model)
        assert (site.name, site.aliases) == ("blocks.0", ("blocks.1",))
        assert snapshot["blocks.0"].tokens_per_expert.tolist() == [2, 2, 0, 0]

    def test_several_calls_in_one_step(self):
        """A block that runs three times in a step counts three times the tokens."""
        _, snapshot = self.run(ScriptedModel([[0, 1], [0, 3]], num_experts=4), calls=3)
        stats = snapshot["blocks.0"]
        assert stats.tokens_per_expert.tolist() == [6, 3, 0, 3]
        assert (stats.tokens, stats.calls, stats.top_k) == (6, 3, 2)

    def test_two_models_at_once(self):
        """Two tracers on two models, forwards in turns: each counts its own."""
        models = [ScriptedModel([[index]], num_experts=4) for index in (1, 3)]
        sinks = [MemorySink(), MemorySink()]
        tracers = [
            moetrace.attach(model, every=1, sinks=[sink])
            for model, sink in zip(models, sinks, strict=True)
        ]
        for tracer in tracers:
            tracer.on_step_begin()
        for index in (0, 1, 1, 0, 1):
            models[index](torch.ones(1, 4))
        for tracer in tracers:
            tracer.on_step_end()
            tracer.close()
        counts = [sink.snapshots[0]["blocks.0"].tokens_per_expert.tolist() for sink in sinks]
        assert counts == [[0, 2, 0, 0], [0, 0, 0, 3]]


class TestReplaced:
    """Row A18: a router that something else took the place of after attach."""

    @pytest.fixture
    def model(self):
        """Two layers, one token each."""
        return ScriptedModel([[0, 1]], [[2, 3]], num_experts=4)

    def step(self, tracer, model):
        """One step."""
        tracer.on_step_begin()
        model(torch.ones(1, 4))
        tracer.on_step_end()

    def replace_router(self, model):
        """Another router in the second layer."""
        model.blocks[1].gate = copy.deepcopy(model.blocks[1].gate)

    def replace_block(self, model):
        """Another block in its place."""
        model.blocks[1] = copy.deepcopy(model.blocks[1])

    def remove_block(self, model):
        """One layer less."""
        del model.blocks[1]

    @pytest.mark.parametrize("how", ["replace_router", "replace_block", "remove_block"])
    def test_is_noticed_when_the_window_closes(self, model, how, tmp_path, caplog):
        """One line in the log says what to do, and the run holds an event with the layer."""
        with moetrace.attach(model, tmp_path / "run", every=1) as tracer:
            self.step(tracer, model)
            getattr(self, how)(model)
            self.step(tracer, model)
            self.step(tracer, model)
        assert caplog.text.count("1 routers were replaced after attach") == 1
        assert "(blocks.1); close() this tracer and attach again" in caplog.text
        run = moetrace.open_run(tmp_path / "run")
        lost = [event["layer"] for event in run.events() if event["kind"] == "layer_lost"]
        assert lost == ["blocks.1"]
        counts = [(stats["blocks.0"].calls, stats["blocks.1"].calls) for stats in run.snapshots()]
        assert counts == [(1, 1), (1, 0), (1, 0)]

    def test_attached_again(self, model):
        """After close the same call to attach counts what took its place."""
        tracer = moetrace.attach(model, every=1)
        self.replace_block(model)
        self.step(tracer, model)
        tracer.close()
        with moetrace.attach(model, every=1) as tracer:
            self.step(tracer, model)
        assert [stats.calls for stats in tracer.latest] == [1, 1]

    def test_an_adapter_that_copies_it(self, model, caplog):
        """An adapter that trains a copy of the router takes its place too."""
        peft = pytest.importorskip("peft")
        with moetrace.attach(model, every=1) as tracer:
            wrapper = peft.utils.other.ModulesToSaveWrapper(model.blocks[1].gate, "default")
            wrapper.set_adapter("default")
            model.blocks[1].gate = wrapper
            self.step(tracer, model)
        assert "1 routers were replaced after attach" in caplog.text
        assert tracer.latest["blocks.1"].calls == 0

    @pytest.mark.parametrize(
        "wrap", [checkpoint_wrapper, functools.partial(torch.compile, backend="eager")]
    )
    def test_wrapped_is_not_replaced(self, model, wrap, caplog):
        """A wrapper that comes after attach still calls the router that is hooked."""
        with moetrace.attach(model, every=1) as tracer:
            model.blocks[1] = wrap(model.blocks[1])
            model.blocks[0].gate = wrap(model.blocks[0].gate)
            self.step(tracer, model)
        assert "replaced" not in caplog.text
        assert [stats.calls for stats in tracer.latest] == [1, 1]


class TestUnwrapped:
    def test_a_module_called_like_a_wrapper_is_none(self):
        """A ``base_layer`` of a user's own is a module, and not what an adapter wraps."""
        module = nn.ModuleDict({"base_layer": nn.Linear(2, 2)})
        assert unwrapped(module) is module
