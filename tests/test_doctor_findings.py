"""Every finding of ``tracer.doctor()`` once, with its literal text and where it comes from."""

import gc
import sys
import time
import types

import pytest
import torch
from torch import nn

import moetrace
from moetrace.routing import Routing
from tests.tiny import ScriptedBlock, ScriptedModel, ScriptedRouter

TWO_TOKENS = [[0, 1], [0, 2]]


def hidden(tokens=2):
    """Something for a scripted model to run on."""
    return torch.ones(tokens, 4)


def line(diagnosis, kind):
    """The one line of a finding, without the padding after its severity."""
    lines = [text.split() for text in str(diagnosis).splitlines()]
    (words,) = [words for words in lines if words[1:2] == [f"{kind}:"]]
    return " ".join(words)


def stepped(tracer, *forwards):
    """One step of these forwards."""
    tracer.on_step_begin()
    for forward in forwards:
        forward()
    tracer.on_step_end()
    return tracer.doctor()


@pytest.fixture
def model():
    """Two blocks of four experts; each forward sends two tokens to experts 0, 1 and 0, 2."""
    return ScriptedModel(TWO_TOKENS, TWO_TOKENS, num_experts=4).train()


class TestCounted:
    def test_a_healthy_tracing(self, model) -> None:
        """Nothing to say but the sites, how each is read, and that they counted."""
        with moetrace.attach(model, every=1) as tracer:
            diagnosis = stepped(tracer, lambda: model(hidden()))
        assert str(diagnosis) == (
            "ScriptedModel: 2 of 2 sites counted; healthy\n"
            "\n"
            "2 x ScriptedRouter, 4 experts, top-2, softmax (by the functions its forward names), "
            "read by RouterReader\n"
            "  counted: blocks.0, blocks.1"
        )
        assert [(site.calls, site.tokens) for site in diagnosis.sites] == [(1, 2), (1, 2)]
        assert diagnosis.to_dict()["ok"] is True

    def test_counts_that_no_window_holds_yet_are_seen(self, model) -> None:
        """In the middle of a step and of a window the doctor sees what was counted so far."""
        with moetrace.attach(model, every=100) as tracer:
            stepped(tracer, lambda: model(hidden()))
            tracer.on_step_begin()
            model(hidden())
            diagnosis = tracer.doctor()
            with torch.no_grad():
                model.eval()(hidden())
            assert [site.calls for site in tracer.doctor().sites] == [3, 3]
        assert [site.calls for site in diagnosis.sites] == [2, 2]

    def test_nothing_yet(self, model) -> None:
        """Before the first forward there is nothing to judge, and that is no fault."""
        with moetrace.attach(model) as tracer:
            diagnosis = tracer.doctor()
        assert diagnosis.ok
        assert line(diagnosis, "nothing-yet") == (
            "note nothing-yet: no forward was counted yet -> run a step between on_step_begin() "
            "and on_step_end(), then ask again"
        )

    def test_steps_without_a_count_are_an_error(self, model) -> None:
        """Steps that ended and counted nothing at all mean that the hooks do not fire."""
        with moetrace.attach(model, every=1) as tracer:
            stepped(tracer)
            diagnosis = stepped(tracer)
        assert line(diagnosis, "silent").startswith(
            "error silent: blocks.0, blocks.1: no site counted anything in 2 steps -> their "
            "forward did not run, was replaced by a kernel library or compiled elsewhere, or their "
        )

    def test_one_silent_router_is_told_from_a_part(self) -> None:
        """A layer among others that counted is alone; a part holds no site that counted."""
        model = nn.ModuleDict(
            {
                "encoder": ScriptedModel(TWO_TOKENS, TWO_TOKENS, num_experts=4),
                "decoder": ScriptedModel(TWO_TOKENS, TWO_TOKENS, num_experts=4),
            }
        )
        with moetrace.attach(model, every=1) as tracer:
            diagnosis = stepped(tracer, lambda: model["decoder"].blocks[0](hidden()))
        assert line(diagnosis, "part-silent").startswith(
            "warning part-silent: encoder.blocks.0, encoder.blocks.1: no site below encoder "
            "counted anything, and others did: this part of the model was not run, or all of it "
        )
        assert line(diagnosis, "silent").startswith(
            "warning silent: decoder.blocks.1: counted nothing, though their neighbours did -> "
        )

    def test_nan_logits(self, model) -> None:
        """Tokens whose logits are not finite are counted apart, and are an error."""
        with moetrace.attach(model, every=1) as tracer:
            diagnosis = stepped(tracer, lambda: model(hidden() * torch.nan))
        assert line(diagnosis, "nan-logits").startswith(
            "error nan-logits: blocks.0, blocks.1: 4 of 4 tokens had NaN or infinite logits -> "
            "the model is diverging or was loaded wrong: stop it"
        )

    def test_out_of_range(self) -> None:
        """An expert id that does not exist goes to a bin of its own."""
        model = ScriptedModel([[0, 7], [1, 2]], num_experts=4)
        with moetrace.attach(model, every=1) as tracer:
            diagnosis = stepped(tracer, lambda: model(hidden()))
        assert line(diagnosis, "out-of-range").startswith(
            "error out-of-range: blocks.0: 1 of 4 assignments went to experts that do not exist -> "
        )

    def test_all_masked(self, model) -> None:
        """A mask of zeros leaves no token."""
        with moetrace.attach(model, every=1) as tracer, tracer.tokens(mask=torch.zeros(2)):
            diagnosis = stepped(tracer, lambda: model(hidden()))
        assert line(diagnosis, "all-masked").startswith(
            "error all-masked: blocks.0, blocks.1: all 4 tokens were masked as padding, so nothing "
            "was counted -> look at the attention_mask"
        )

    def test_other_top_k(self, model) -> None:
        """The router says top-2 and three experts a token were counted."""
        model.blocks[0].gate.script = [[0, 1, 2], [0, 2, 3]]
        with moetrace.attach(model, every=1) as tracer:
            diagnosis = stepped(tracer, lambda: model(hidden()))
        assert line(diagnosis, "other-top-k").startswith(
            "warning other-top-k: blocks.0: tokens went to another number of experts than the "
            "router states -> "
        )

    def test_dropped(self) -> None:
        """A router that shows a map after dropping: tokens with fewer experts than K."""

        class Capped(ScriptedRouter):
            def forward(self, hidden):
                logits, _, ids = super().forward(hidden)
                chosen = torch.zeros_like(logits).scatter(1, ids, 1.0)
                chosen[0] = 0
                return chosen.bool(), logits

        class Reads:
            def matches(self, module):
                return isinstance(module, Capped)

            def read(self, module, args, kwargs, output):
                return Routing(routing_map_TE=output[0], logits_TE=output[1])

        model = ScriptedModel(TWO_TOKENS, num_experts=4)
        model.blocks[0].gate = Capped([[0, 1], [0, 2], [1, 2]], 4)
        with moetrace.attach(model, every=1, readers=[Reads()]) as tracer:
            diagnosis = stepped(tracer, lambda: model(hidden(3)))
            trial = tracer.doctor(hidden(3))
        assert line(diagnosis, "dropped") == (
            "warning dropped: blocks.0: 2 of 6 assignments (33.3%) were dropped by a capacity "
            "limit -> these tokens skip their experts: raise the capacity factor, or balance the "
            "load"
        )
        assert "dropped: blocks.0: 2 of 6 assignments" in str(trial)


class _Scores(ScriptedRouter):
    """Shows what it is told as its first output, and weights of the softmax of its logits."""

    def __init__(self, scores, **attributes):
        super().__init__([[0, 1]] * 32, 4)
        self.scores = scores
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, hidden):
        generator = torch.Generator().manual_seed(0)
        logits = 2 * torch.randn(32, 4, generator=generator)
        ids = logits.topk(2).indices
        return self.scores(logits), logits.softmax(-1).gather(1, ids), ids


class TestScores:
    def examined(self, scores, **attributes):
        """What the doctor says after a step, and after a trial."""
        model = ScriptedModel(TWO_TOKENS, num_experts=4)
        model.blocks[0].gate = _Scores(scores, **attributes)
        with moetrace.attach(model, every=1) as tracer:
            return stepped(tracer, lambda: model(hidden(32))), tracer.doctor(hidden(32))

    def test_logits_are_logits(self) -> None:
        """Logits read as logits: nothing to say, and the mixing weights prove it."""
        counted, trial = self.examined(lambda logits: logits)
        assert (counted.ok, trial.ok) == (True, True)
        assert trial.sites[0].scored_by == "the mixing weights say so"

    def test_logits_that_look_like_probabilities_on_average(self) -> None:
        """A mean log-sum-exp between ln 4 + 1/4 and ln (3 + e) is chance; its spread tells."""
        counted, _ = self.examined(lambda logits: logits - logits.logsumexp(-1).mean() + 1.69)
        assert counted.ok

    def test_probabilities_read_as_logits(self) -> None:
        """A second softmax shows in the sums alone, and in the values of a trial."""
        counted, trial = self.examined(lambda logits: logits.softmax(-1))
        assert line(counted, "logits-are-probabilities") == (
            "note logits-are-probabilities: blocks.0: what is read as logits may be probabilities, "
            "and entropies of a second softmax -> ask tracer.doctor(inputs), or again after 3 "
            "windows"
        )
        assert line(trial, "logits-are-probabilities").startswith("error ")
        assert not trial.ok

    def test_logits_read_as_probabilities(self) -> None:
        """The other way round."""
        counted, trial = self.examined(lambda logits: logits.exp(), scoring="probabilities")
        assert line(counted, "not-probabilities").startswith(
            "error not-probabilities: blocks.0: what is read as probabilities does not add up to 1 "
            "per token -> "
        )
        assert not trial.ok

    def test_probabilities_read_as_such(self) -> None:
        """Probabilities that are declared are what they are said to be."""
        counted, trial = self.examined(lambda logits: logits.softmax(-1), scoring="probabilities")
        assert (counted.ok, trial.ok) == (True, True)

    def test_another_scoring_than_the_weights_show(self) -> None:
        """A router that says sigmoid and mixes by a softmax: only a trial can see it."""
        counted, trial = self.examined(lambda logits: logits, scoring="sigmoid")
        assert counted.ok
        assert line(trial, "other-scoring").startswith(
            "warning other-scoring: blocks.0: the mixing weights are of softmax, and the logits "
            "are read as sigmoid -> "
        )
        assert trial.sites[0].scored_by == "its attribute scoring says so"


class TestTheModel:
    def test_a_replaced_router(self, model) -> None:
        """A router put in another's place is not hooked: both are named."""
        with moetrace.attach(model, every=1) as tracer:
            model.blocks[0].gate = ScriptedRouter(TWO_TOKENS, 4)
            gc.collect()
            diagnosis = stepped(tracer, lambda: model(hidden()))
        assert line(diagnosis, "router-replaced") == (
            "error router-replaced: blocks.0: the router that was hooked is no longer in the model "
            "-> close() this tracer and attach again: what replaced it is not counted"
        )
        assert line(diagnosis, "some-not-traced").startswith(
            "warning some-not-traced: 1 modules of the class of a traced router are not traced "
            "(blocks.0.gate) -> "
        )

    def test_blocks_that_came_later(self, model) -> None:
        """Only some instances of a class are hooked."""
        with moetrace.attach(model, every=1) as tracer:
            model.blocks.append(ScriptedBlock(TWO_TOKENS, 4))
            diagnosis = stepped(tracer, lambda: model(hidden()))
        assert "1 modules of the class of a traced router are not traced (blocks.2.gate)" in str(
            diagnosis
        )

    def test_a_hook_that_was_cleared(self, model) -> None:
        """Something took all hooks off a module."""
        with moetrace.attach(model, every=1) as tracer:
            model.blocks[1].gate._forward_hooks.clear()
            diagnosis = stepped(tracer, lambda: model(hidden()))
        assert line(diagnosis, "hook-gone").startswith(
            "error hook-gone: blocks.1: the hook of moetrace is gone from the router -> "
        )

    def test_a_replaced_forward(self, model) -> None:
        """Kernel libraries put a forward on the block, which then never calls its router."""

        def fused_forward(hidden):
            return hidden

        fused_forward.__module__ = "kernels.megablocks"
        with moetrace.attach(model, every=1) as tracer:
            model.blocks[1].forward = fused_forward
            diagnosis = stepped(tracer, lambda: model(hidden()))
            trial = tracer.doctor(hidden())
        why = (
            "the forward of blocks.1 was replaced by "
            "TestTheModel.test_a_replaced_forward.<locals>.fused_forward of kernels.megablocks"
        )
        assert line(diagnosis, "forward-replaced").startswith(
            f"warning forward-replaced: blocks.1: {why} -> "
        )
        assert line(trial, "router-not-called").startswith(
            f"error router-not-called: blocks.1: its block ran and its router did not: {why} -> "
        )
        assert "forward-replaced" not in str(trial)

    def test_a_reader_that_reads_nothing(self, model) -> None:
        """The trial says what the router returned instead."""

        class Blind:
            def matches(self, module):
                return isinstance(module, ScriptedRouter)

            def read(self, module, args, kwargs, output):
                return None

        with moetrace.attach(model, every=1, readers=[Blind()]) as tracer:
            trial = tracer.doctor(hidden())
        assert line(trial, "not-read").startswith(
            "error not-read: blocks.0, blocks.1: its router ran and nothing was read: its reader "
            "reads nothing from an output of (float32[2, 4], float32[2, 2], int64[2, 2]) -> "
        )

    def test_near_misses(self) -> None:
        """A module that looks like a router, and why it was left."""
        model = ScriptedModel(TWO_TOKENS, num_experts=4)
        model.gate = nn.Linear(4, 8)
        with moetrace.attach(model, every=1) as tracer:
            diagnosis = stepped(tracer, lambda: model(hidden()))
        assert diagnosis.ok
        assert line(diagnosis, "near-miss").startswith(
            "note near-miss: gate: 1 x Linear not traced: "
        )

    def test_cuda_graphs(self, model, monkeypatch) -> None:
        """Recorded graphs replay kernels and no Python."""
        trees = types.SimpleNamespace(
            local=types.SimpleNamespace(tree_manager_containers={0: object()})
        )
        monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", trees)
        with moetrace.attach(model) as tracer:
            assert line(tracer.doctor(), "cuda-graphs").startswith(
                "note cuda-graphs: CUDA graphs were recorded in this process; a replay runs "
                "kernels and no Python -> "
            )

    def test_code_compiled_before_attach(self, model) -> None:
        """Code of before was dropped at attach, and the doctor says that it compiles again."""
        torch.compile(lambda x: x + 1, backend="eager")(hidden())
        with moetrace.attach(model) as tracer:
            assert line(tracer.doctor(), "compiled-before").startswith(
                "note compiled-before: code had been compiled in this process before attach; it "
                "was dropped -> "
            )
        torch.compiler.reset()


class TestTheTrial:
    def block(self, experts, router=None):
        """A block whose experts are called by ``experts(module, hidden, ids, weights)``."""

        class Block(ScriptedBlock):
            def forward(self, hidden):
                _, weights, ids = self.gate(hidden)
                experts(self, hidden, ids, weights)
                return hidden

        block = Block(TWO_TOKENS, 4)
        block.gate = router or block.gate
        return block

    def trial(self, block, inputs=None):
        """What the doctor says after one trial."""
        with moetrace.attach(block, every=1) as tracer:
            return tracer.doctor(hidden() if inputs is None else inputs)

    def test_what_is_not_visible(self) -> None:
        """Experts that are no module receive what nobody sees."""
        diagnosis = self.trial(self.block(lambda block, hidden, ids, weights: None))
        assert line(diagnosis, "not-visible") == (
            "note not-visible: gate: what the experts received is not visible: its experts were "
            "not called as a module -> trust the router, or check by hand: fill an unchosen expert "
            "with NaN and run"
        )
        assert "received not visible (its experts were not called as a module)" in str(diagnosis)

    def test_a_one_hot_mask_is_no_list_of_ids(self) -> None:
        """Integers beside weights of one shape are ids only where those of a token are distinct."""

        def called(block, hidden, ids, weights):
            one_hot = torch.zeros(2, 4, dtype=torch.int64).scatter(1, ids, 1)
            block.experts(hidden, one_hot, one_hot.float())

        block = self.block(called)
        block.experts.forward = lambda hidden, mask, weights: hidden
        site = self.trial(block).sites[0]
        assert site.received is None
        assert site.seen_by == "its experts are called with neither ids and weights nor sizes"

    def test_choices_that_a_block_drops(self) -> None:
        """Fewer rows than decided: dropped behind the router."""

        def first_token_only(block, hidden, ids, weights):
            for expert in ids[0].tolist():
                block.listed[expert](hidden[:1])

        block = self.block(first_token_only)
        block.experts = block.listed = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        diagnosis = self.trial(block)
        assert diagnosis.sites[0].decided == (2, 1, 1, 0)
        assert diagnosis.sites[0].received == (1, 1, 0, 0)
        assert line(diagnosis, "dropped").startswith(
            "warning dropped: gate: 2 of 4 assignments (50.0%) reached no expert: capacity drops"
        )

    def test_experts_that_others_were_chosen_for(self) -> None:
        """An expert that got more than was decided is no capacity limit: the choice is not kept."""

        def shifted(block, hidden, ids, weights):
            for token, row in enumerate(ids.tolist()):
                for expert in row:
                    block.listed[(expert + 1) % 4](hidden[token : token + 1])

        block = self.block(shifted)
        block.experts = block.listed = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        diagnosis = self.trial(block)
        assert line(diagnosis, "not-run-as-decided").startswith(
            "error not-run-as-decided: gate: the router chose 3 of 4 experts and others ran: "
            "decided [2, 1, 1, 0], received [0, 2, 1, 1] -> the experts do not follow the router"
        )

    def test_listed_experts_that_all_run(self) -> None:
        """Every expert gets every token, and a mask does the rest: rows say nothing."""

        def everything(block, hidden, ids, weights):
            for expert in block.listed:
                expert(hidden)

        block = self.block(everything)
        block.experts = block.listed = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        diagnosis = self.trial(block)
        assert (diagnosis.ok, diagnosis.sites[0].received) == (True, None)
        assert line(diagnosis, "all-experts-run").startswith(
            "note all-experts-run: gate: every expert computes every token, and the choice is "
            "applied as a mask -> "
        )

    def test_rows_of_zeros_tell_masked_experts(self) -> None:
        """Experts that get zeros for the tokens of others have not received these."""

        def masked(block, hidden, ids, weights):
            for number, expert in enumerate(block.listed):
                expert(hidden * (ids == number).any(1, keepdim=True))

        block = self.block(masked)
        block.experts = block.listed = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        assert self.trial(block).sites[0].received == (2, 1, 1, 0)

    def test_choices_without_weight(self) -> None:
        """A choice with a weight of exactly 0 is counted and has no effect."""

        class Weightless(ScriptedRouter):
            def forward(self, hidden):
                logits = hidden @ self.weight.T
                weights, _ = logits.softmax(-1).topk(2)
                weights[0, 1] = 0
                return logits, weights, torch.tensor(self.script)

        def called(block, hidden, ids, weights):
            block.experts(hidden, ids, weights)

        block = self.block(called, Weightless(TWO_TOKENS, 4))
        block.experts.forward = lambda hidden, ids, weights: hidden
        diagnosis = self.trial(block)
        assert line(diagnosis, "zero-weight").startswith(
            "note zero-weight: gate: 1 of 4 choices carry a weight of 0: counted, without effect"
        )
        assert diagnosis.sites[0].received == (2, 1, 1, 0)

    def test_experts_that_nobody_chose(self) -> None:
        """With 20 choices an expert and more, one that got none is no accident."""
        router = ScriptedRouter([[0, 1]] * 50, 4)
        diagnosis = self.trial(self.block(lambda *given: None, router), hidden(50))
        assert line(diagnosis, "unused-in-trial").startswith(
            "warning unused-in-trial: gate: 2 of 4 experts were chosen by no token -> "
        )

    def test_a_mask_that_does_not_fit(self, model) -> None:
        """The trial names the sites and both sizes."""
        mask = torch.ones(1, 3)
        with moetrace.attach(model, every=1) as tracer:
            trial = tracer.doctor({"hidden": hidden(), "attention_mask": mask})
            diagnosis = stepped(tracer, lambda: model(hidden(), attention_mask=mask))
        assert line(trial, "mask-not-applied").startswith(
            "warning mask-not-applied: blocks.0, blocks.1: a padding mask of 3 tokens does not fit "
            "the 2 it saw -> "
        )
        assert line(diagnosis, "mask-not-applied").startswith(
            "warning mask-not-applied: 2 forwards had a padding mask that does not fit the tokens "
            "of a router -> padding is counted there"
        )

    def test_ids_of_no_expert(self) -> None:
        """The trial counts ids outside the experts too."""
        router = ScriptedRouter([[0, 9], [0, 2]], 4)
        diagnosis = self.trial(self.block(lambda *given: None, router))
        assert line(diagnosis, "out-of-range").startswith(
            "error out-of-range: gate: 1 of 4 ids are of no expert that exists -> "
        )

    def test_padding_that_nobody_masks(self) -> None:
        """The ids hold the padding id, and no mask came: every padding token is counted."""
        from tests.tiny import batch, family

        model = family("Qwen3Moe")
        ids, mask = batch(0)
        padded = ids * mask
        with moetrace.attach(model, every=1) as tracer:
            trial = tracer.doctor({"input_ids": padded})
            assert "no-mask" not in str(
                tracer.doctor({"input_ids": padded, "attention_mask": mask})
            )
            diagnosis = stepped(tracer, lambda: model(input_ids=ids))
        assert line(trial, "no-mask").startswith(
            "warning no-mask: input_ids hold the padding id 0 5 times and no mask came with them: "
            "padding is counted -> pass attention_mask to the model"
        )
        assert line(diagnosis, "no-mask").startswith(
            "note no-mask: no token was masked so far, and the model has a padding id (0) -> if "
            "batches hold padding: "
        )


class _Raises:
    """A sink that cannot write."""

    def write(self, snapshot):
        raise OSError("no")

    def close(self):
        pass


class TestTheTracer:
    def test_sites_that_are_left_out(self, model) -> None:
        """``layers=`` hooks all and records some."""
        with moetrace.attach(model, every=1, layers="*.1") as tracer:
            diagnosis = stepped(tracer, lambda: model(hidden()))
        assert [site.state for site in diagnosis.sites] == ["not recorded", "counted"]
        assert line(diagnosis, "not-recorded") == (
            "note not-recorded: blocks.0: 1 of 2 sites are hooked and not recorded (layers=) -> "
            "nothing, if that was meant"
        )

    def test_sampling(self, model) -> None:
        """Numbers of a sampled run are of one step in N."""
        with moetrace.attach(model, every=1, sample=4) as tracer:
            assert line(tracer.doctor(), "sampled").startswith(
                "note sampled: one of every 4 steps was counted (sample=) -> "
            )

    def test_a_sink_that_fails(self, model) -> None:
        """The sink is named; the run folder is not touched by it."""
        with moetrace.attach(model, every=1, sinks=[_Raises()]) as tracer:
            stepped(tracer, lambda: model(hidden()))
            tracer._recording.writer.feeds[0].drain(time.monotonic() + 5)
            assert line(tracer.doctor(), "sink-failed").startswith(
                "warning sink-failed: _Raises raised while it wrote a snapshot -> "
            )

    def test_windows_that_were_merged(self, model, monkeypatch) -> None:
        """A writer that is behind costs resolution, and the doctor says so."""
        with moetrace.attach(model, every=1) as tracer:
            with monkeypatch.context() as patch:
                patch.setattr(tracer._recording.writer, "behind", lambda: True)
                stepped(tracer, lambda: model(hidden()))
            assert line(tracer.doctor(), "coalesced").startswith(
                "note coalesced: 1 windows were merged with the next, since the writer was behind"
            )

    def test_a_folder_that_cannot_be_written(self, model) -> None:
        """What the disk said is an error until it can be written again."""
        with moetrace.attach(model) as tracer:
            tracer._recording.writer.log_error = OSError(28, "No space left on device")
            assert line(tracer.doctor(), "run-not-written").startswith(
                "error run-not-written: the run folder could not be written: [Errno 28] No space "
                "left on device -> windows wait in memory"
            )
            tracer._recording.writer.log_error = None

    def test_forwards_that_could_not_be_counted(self, model) -> None:
        """A reader whose logits are of other tokens than its ids makes the counting fail."""

        class Odd:
            def matches(self, module):
                return isinstance(module, ScriptedRouter)

            def read(self, module, args, kwargs, output):
                return Routing(output[2], output[0][:1].repeat(5, 1))

        with moetrace.attach(model, every=1, readers=[Odd()]) as tracer:
            diagnosis = stepped(tracer, lambda: model(hidden()))
        assert line(diagnosis, "counting-failed").startswith(
            "error counting-failed: 2 forwards could not be counted -> the log names the exception"
        )

    def test_closed_and_gone(self, model) -> None:
        """After the end it still answers, and runs nothing."""
        tracer = moetrace.attach(model, every=1)
        tracer.close()
        assert line(tracer.doctor(hidden()), "closed") == (
            "note closed: the tracer is closed -> attach again to go on"
        )
        other = ScriptedModel(TWO_TOKENS, num_experts=4)
        with moetrace.attach(other) as tracer:
            del other
            gc.collect()
            assert str(tracer.doctor(hidden())).startswith("a model that is gone: 0 of 1 sites")
            assert line(tracer.doctor(), "model-gone").startswith("note model-gone: ")

    def test_in_a_forked_child(self, model, monkeypatch) -> None:
        """In another process than the one that attached nothing is counted; it says so."""
        with moetrace.attach(model) as tracer, monkeypatch.context() as patch:
            patch.setattr(tracer._recording, "foreign", lambda: True)
            diagnosis = tracer.doctor()
        assert line(diagnosis, "forked").startswith(
            "error forked: this is a forked child of the process that attached; nothing is counted "
        )

    def test_a_torch_that_lacks_a_name(self, model, monkeypatch) -> None:
        """Which fallback is in use is told by the name that is missing."""
        with moetrace.attach(model) as tracer:
            monkeypatch.delattr(torch._C, "_current_graph_task_id")
            assert line(tracer.doctor(), "fallback") == (
                "note fallback: this torch lacks torch._C._current_graph_task_id; a fallback is in "
                "use -> nothing; counts are the same"
            )

    def test_an_exception_of_its_own_is_a_finding(self, model, monkeypatch) -> None:
        """Whatever goes wrong in the doctor, the training gets a diagnosis and no exception."""
        monkeypatch.setattr("moetrace.tracer.diagnose", lambda *given, **options: 1 / 0)
        with moetrace.attach(model) as tracer:
            assert line(tracer.doctor(), "doctor-failed").startswith(
                "error doctor-failed: the diagnosis itself failed; the log names the exception -> "
            )
