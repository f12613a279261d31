"""The callback in the real Trainer of transformers, and in TRL's."""

import copy
import gc
import json
import logging

import pytest
import torch
import transformers
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

import moetrace
from moetrace.sinks import CallableSink, MemorySink
from moetrace.tracer import Tracer
from moetrace_adapters.transformers import MoETraceCallback
from tests.adapters.truth import LAYERS, counted, found, rows, spans, watched
from tests.tiny import SHAPE, seeded

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:.*lr_scheduler.step:UserWarning"
)

FAMILY = "Qwen3Moe"


def trainer(net, folder, *, callbacks=(), model_init=None, **options):
    """A Trainer of four steps of two rows each, where the options do not say otherwise."""
    usual = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    args = TrainingArguments(output_dir=str(folder), **{**usual, **options})
    made = transformers.Trainer(
        model=net,
        model_init=model_init,
        args=args,
        train_dataset=rows(16),
        eval_dataset=rows(3),
        callbacks=list(callbacks),
    )
    made.remove_callback(transformers.PrinterCallback)
    return made


class Closing(MemorySink):
    """Keeps snapshots, and how many there were when it was closed."""

    def __init__(self):
        super().__init__()
        self.closed_after = []

    def close(self):
        """Note it."""
        self.closed_after.append(len(self.snapshots))


def model():
    """A small Qwen3-MoE."""
    return copy.deepcopy(seeded(FAMILY))


def left(trained):
    """What a training leaves: its losses, its weights, the random state."""
    losses = [
        row[name]
        for row in trained.state.log_history
        for name in ("loss", "eval_loss")
        if name in row
    ]
    return [*map(torch.tensor, losses), *trained.model.state_dict().values(), torch.get_rng_state()]


def same(one, other):
    """Whether two trainings left the same, bit for bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def untraced(folder, **options):
    """What a plain training leaves, and what the oracle counts in it."""
    plain = model()
    oracle = watched(plain)
    trained = trainer(plain, folder, **options)
    trained.train()
    return left(trained), found(oracle)


CHECKPOINTED = {
    kind: {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": flag},
    }
    for kind, flag in (("reentrant", True), ("non-reentrant", False))
}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


class TestCounting:
    @pytest.mark.parametrize(
        ("plain", "options", "windows"),
        [
            ({}, {}, [(1, 2), (3, 4)]),
            ({"gradient_accumulation_steps": 2}, {}, [(1, 2), (3, 4)]),
            ({"gradient_accumulation_steps": 3, "max_steps": 3}, {}, [(1, 2), (3, 3)]),
            ({}, CHECKPOINTED["reentrant"], [(1, 2), (3, 4)]),
            ({}, CHECKPOINTED["non-reentrant"], [(1, 2), (3, 4)]),
            (EVALUATED, CHECKPOINTED["reentrant"], [(1, 2), (3, 4)]),
            (EVALUATED, COMPILED, [(1, 2), (3, 4)]),
            (
                {"gradient_accumulation_steps": 2},
                {**COMPILED, **CHECKPOINTED["non-reentrant"]},
                [(1, 2), (3, 4)],
            ),
        ],
        ids=[
            "plain",
            "accumulation",
            "accumulation with a short last step",
            "reentrant checkpointing",
            "non-reentrant checkpointing",
            "evaluation under checkpointing",
            "compiled, with evaluation",
            "compiled, checkpointed and accumulated",
        ],
    )
    def test_every_token_once(self, tmp_path, plain, options, windows):
        """S1-15, S1-16, S1-36: counts equal the oracle, and no bit of the training is another."""
        before, truth = untraced(tmp_path, **plain)
        sink = MemorySink()
        trained = trainer(
            model(),
            tmp_path,
            callbacks=[MoETraceCallback(every=2, sinks=[sink])],
            **plain,
            **options,
        )
        trained.train()
        assert counted(sink.snapshots, "train") == truth["train"]
        assert counted(sink.snapshots, "eval") == truth.get("eval", {})
        assert spans(sink.snapshots, "train") == windows
        assert {snapshot.phase for snapshot in sink.snapshots} == set(truth)
        assert same(left(trained), before)

    def test_evaluation_is_a_window_of_its_own_where_it_ran(self, tmp_path):
        """Evaluation before step 1 and after steps 2 and 4 lies at steps 0, 2 and 4."""
        sink = MemorySink()
        callback = MoETraceCallback(every=2, sinks=[sink])
        trainer(model(), tmp_path, callbacks=[callback], **EVALUATED).train()
        assert spans(sink.snapshots, "eval") == [(0, 0), (2, 2), (4, 4)]
        # Three rows of 12 tokens, five of them padding, two experts each.
        sums = [s[LAYERS[0]].tokens_per_expert.sum() for s in sink.snapshots if s.phase == "eval"]
        assert sums == [62, 62, 62]

    def test_prediction_within_a_training_is_evaluation(self, tmp_path):
        """What a callback predicts between two steps is phase eval, beside the training."""

        class Predicts(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 1:
                    self.trainer.predict(rows(4))

        def run(callbacks, watch):
            plain = model()
            oracle = watched(plain) if watch else None
            predicts = Predicts()
            trained = trainer(plain, tmp_path, callbacks=[*callbacks, predicts])
            predicts.trainer = trained
            trained.train()
            return left(trained), found(oracle) if watch else None

        before, truth = run([], True)
        sink = MemorySink()
        after, _ = run([MoETraceCallback(every=2, sinks=[sink])], False)
        assert counted(sink.snapshots, "eval") == truth["eval"]
        assert counted(sink.snapshots, "train") == truth["train"]
        assert same(after, before)

    def test_named_as_the_user_knows_them(self, tmp_path):
        """Under compile and checkpointing the layers keep the names of the plain model."""
        sink = MemorySink()
        options = {**COMPILED, **CHECKPOINTED["non-reentrant"], "max_steps": 1}
        trainer(model(), tmp_path, callbacks=[MoETraceCallback(sinks=[sink])], **options).train()
        assert sink.snapshots[0].layers == LAYERS

    def test_named_as_the_user_knows_them_under_peft(self, tmp_path):
        """An adapter of PEFT around the model changes no name."""
        import peft

        sink = MemorySink()
        config = peft.LoraConfig(r=2, target_modules=["q_proj"])
        wrapped = peft.get_peft_model(model(), config)
        callback = MoETraceCallback(sinks=[sink])
        trainer(wrapped, tmp_path, callbacks=[callback], max_steps=1).train()
        assert sink.snapshots[0].layers == LAYERS
        assert sink.snapshots[0][LAYERS[0]].tokens > 0


class TestResume:
    def test_a_resumed_run_reads_as_one(self, tmp_path):
        """Windows end at a checkpoint; what follows it is counted by the attempt that resumed."""
        options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}

        class Stops(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == 5

        def run(folder, callbacks):
            first = trainer(model(), folder, callbacks=[*callbacks(), Stops()], **options)
            first.train()
            again = model()
            oracle = watched(again)
            second = trainer(again, folder, callbacks=callbacks(), **options)
            second.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
            return left(second), found(oracle)["train"]

        _, before = untraced(tmp_path / "three", max_steps=3)
        expected, after = run(tmp_path / "untraced", list)

        folder = tmp_path / "run"
        resumed, _ = run(tmp_path / "traced", lambda: [MoETraceCallback(folder, every=2)])
        run_read = moetrace.open_run(folder)
        assert run_read.steps().tolist() == [[1, 2], [3, 3], [4, 4], [5, 6]]
        assert run_read.attempts == (0, 1)
        total = run_read.counts().sum(axis=0)
        for row, layer in enumerate(LAYERS):
            truth = [a + b for a, b in zip(before["train"][layer], after[layer], strict=True)]
            assert total[row].tolist() == truth
        assert same(resumed, expected)

    def test_evaluation_on_resume_lies_at_the_step_of_the_checkpoint(self, tmp_path):
        """Forwards between a resume and its first step are at the step that was resumed."""
        options = {"save_strategy": "steps", "save_steps": 2}
        trainer(model(), tmp_path, max_steps=2, **options).train()
        sink = MemorySink()
        resumed = trainer(
            model(),
            tmp_path,
            callbacks=[MoETraceCallback(sinks=[sink])],
            max_steps=3,
            eval_on_start=True,
            **options,
        )
        resumed.train(resume_from_checkpoint=True)
        assert spans(sink.snapshots, "eval") == [(2, 2)]
        assert spans(sink.snapshots, "train") == [(3, 3)]

    def test_a_checkpoint_points_to_the_run(self, tmp_path):
        """A checkpoint says which run it belongs to, which attempt of it, and at which step."""
        folder = tmp_path / "run"
        options = {"save_strategy": "steps", "save_steps": 3}
        trainer(model(), tmp_path / "out", callbacks=[MoETraceCallback(folder)], **options).train()
        pointer = json.loads((tmp_path / "out/checkpoint-3/moetrace.json").read_text())
        run_id = moetrace.open_run(folder).run_id
        assert pointer == {"run": str(folder), "run_id": run_id, "attempt": 0, "step": 3}

    def test_only_the_first_rank_writes_the_pointer(self, tmp_path):
        """On any other rank a save closes the windows and writes no file."""
        (tmp_path / "checkpoint-1").mkdir()
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        callback = MoETraceCallback(tmp_path / "run")
        net = model()
        state = TrainerState(is_world_process_zero=False)
        callback.on_train_begin(args, state, None, model=net)
        callback.on_step_begin(args, state, None)
        net(**{name: tensor[None] for name, tensor in rows(1)[0].items()})
        state.global_step = 1
        callback.on_step_end(args, state, None)
        callback.on_save(args, state, None)
        assert callback.tracer.latest.last_step == 1
        assert not (tmp_path / "checkpoint-1/moetrace.json").exists()
        state.is_world_process_zero = True
        callback.on_save(args, state, None)
        assert (tmp_path / "checkpoint-1/moetrace.json").exists()
        callback.on_train_end(args, state, None)

    def test_its_state_is_the_run_folder(self):
        """It is a plain callback: the Trainer neither saves it nor builds another in its place."""
        assert not isinstance(MoETraceCallback(), ExportableState)


class TestBeginningAgain:
    def test_a_smaller_batch_after_running_out_of_memory(self, tmp_path):
        """auto_find_batch_size: the try that fitted counts, and the sinks live through the rest."""

        def out_of_memory(norm, args):
            if norm.training and len(args[0]) > 2:
                raise RuntimeError("CUDA out of memory.")

        def run(callbacks):
            tight = model()
            tight.model.norm.register_forward_pre_hook(out_of_memory)
            options = {"auto_find_batch_size": True, "per_device_train_batch_size": 4}
            trained = trainer(tight, tmp_path, callbacks=callbacks, max_steps=3, **options)
            trained.train()
            return left(trained)

        sink, folder = Closing(), tmp_path / "run"
        _, truth = untraced(tmp_path, max_steps=3)
        after = run([MoETraceCallback(folder, every=2, sinks=[sink])])
        assert same(after, run([]))
        assert counted(sink.snapshots, "train") == truth["train"]
        assert spans(sink.snapshots, "train") == [(1, 2), (3, 3)]
        # With four rows, and with three.
        assert [s.phase for s in sink.snapshots].count("aborted") == 2
        assert moetrace.open_run(folder).steps().tolist() == [[1, 2], [3, 3]]
        assert sink.closed_after == [len(sink.snapshots)]

    def test_a_folder_for_each_trial(self, tmp_path, monkeypatch):
        """Each trial of a search is a run of its own, named by hp_name or counted."""
        import wandb
        from transformers.trainer_utils import HPSearchBackend

        monkeypatch.setattr(wandb, "run", type("Run", (), {"id": "sweep"}))
        sink, folder = Closing(), tmp_path / "run"
        callback = MoETraceCallback(folder, every=2, sinks=[sink])
        options = {"save_strategy": "steps", "save_steps": 4}
        search = trainer(None, tmp_path, callbacks=[callback], model_init=model, **options)
        search.hp_search_backend = HPSearchBackend.WANDB
        for rate in (0.1, 0.2):
            search.train(trial={"learning_rate": rate})
        search.hp_name = lambda trial: f"rate-{trial['learning_rate']}"
        search.train(trial={"learning_rate": 0.3})
        assert sorted(path.name for path in folder.iterdir()) == ["rate-0.3", "trial-0", "trial-1"]
        for trial in folder.iterdir():
            run = moetrace.open_run(trial)
            assert run.steps().tolist() == [[1, 2], [3, 4]]
            assert run.finished
        assert spans(sink.snapshots, "train") == [(1, 2), (3, 4)] * 3
        pointer = json.loads((tmp_path / "rate-0.3/checkpoint-4/moetrace.json").read_text())
        assert pointer["run"] == str(folder / "rate-0.3")
        # A sink of the caller's serves all trials, and is closed with the callback.
        assert sink.closed_after == []
        del callback, search
        gc.collect()
        assert sink.closed_after == [6]

    def test_the_trainer_once_more(self, tmp_path):
        """A second train() is a second attempt, and nothing of the first is on the model."""
        callback = MoETraceCallback(tmp_path / "run", every=2)
        twice = trainer(model(), tmp_path, callbacks=[callback])
        twice.train()
        assert not any(module._forward_hooks for module in twice.model.modules())
        twice.train()
        assert moetrace.open_run(tmp_path / "run").attempts == (0, 1)


class TestTheEnd:
    def test_the_last_window_arrives_while_the_trackers_are_open(self, tmp_path):
        """Where only the last evaluation says stop, a sink has it before TensorBoard closes."""
        open_at = []
        sink = CallableSink(
            lambda snapshot: open_at.append((snapshot.last_step, board.tb_writer is not None))
        )
        callbacks = [EarlyStoppingCallback(1, 10.0), MoETraceCallback(every=4, sinks=[sink])]
        stopped = trainer(
            model(),
            tmp_path,
            callbacks=callbacks,
            report_to="tensorboard",
            eval_strategy="steps",
            eval_steps=1,
            metric_for_best_model="eval_loss",
            max_steps=8,
        )
        (board,) = (
            callback
            for callback in stopped.callback_handler.callbacks
            if type(callback).__name__ == "TensorBoardCallback"
        )
        stopped.train()
        assert stopped.state.global_step == 2
        assert board.tb_writer is None
        assert [step for step, _ in open_at if step == 2] != []
        assert all(was_open for _, was_open in open_at)

    def test_a_pruned_trial_goes_straight_to_its_end(self, tmp_path):
        """Without a last log the end of the training writes the open window."""
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        callback = MoETraceCallback(tmp_path / "run")
        net, state = model(), TrainerState()
        callback.on_train_begin(args, state, None, model=net)
        callback.on_step_begin(args, state, None)
        net(**{name: tensor[None] for name, tensor in rows(1)[0].items()})
        state.global_step = 1
        callback.on_step_end(args, state, None)
        callback.on_train_end(args, state, None)
        assert moetrace.open_run(tmp_path / "run").finished
        assert moetrace.open_run(tmp_path / "run").steps().tolist() == [[1, 1]]


def broken(*args, **kwargs):
    """What a tracer does that has a fault in it."""
    raise RuntimeError("a fault of ours")


class TestBarrier:
    @pytest.mark.parametrize("method", ["on_step_begin", "on_step_end", "flush", "close"])
    def test_a_broken_tracer_changes_no_bit_of_the_training(
        self, tmp_path, monkeypatch, caplog, method
    ):
        """A fault of ours is a line in the log, once."""
        options = {"save_strategy": "steps", "save_steps": 2}
        before, _ = untraced(tmp_path / "untraced", **options)
        whole = getattr(Tracer, method)
        monkeypatch.setattr(Tracer, method, broken)
        callback = MoETraceCallback(every=2)
        trained = trainer(model(), tmp_path / "traced", callbacks=[callback], **options)
        with caplog.at_level(logging.WARNING, "moetrace"):
            trained.train()
        assert same(left(trained), before)
        said = [record.getMessage() for record in caplog.records if "a fault" in record.message]
        assert said == ["moetrace failed and training goes on: RuntimeError: a fault of ours"]
        monkeypatch.setattr(Tracer, method, whole)
        callback.tracer.close()

    def test_a_fault_in_attach_trains_untraced(self, tmp_path, monkeypatch, caplog):
        """What is no mistake of use does not stop a training that begins."""
        monkeypatch.setattr("moetrace_adapters.session.attach", broken)
        before, _ = untraced(tmp_path)
        callback = MoETraceCallback()
        trained = trainer(model(), tmp_path, callbacks=[callback])
        trained.train()
        assert same(left(trained), before)
        assert callback.tracer is None
        assert "a fault of ours" in caplog.text

    def test_strict_lets_it_through(self, tmp_path, monkeypatch):
        """In tests and CI a fault of ours stops the training."""
        monkeypatch.setattr(Tracer, "on_step_end", broken)
        callback = MoETraceCallback(strict=True)
        with pytest.raises(RuntimeError, match="a fault of ours"):
            trainer(model(), tmp_path, callbacks=[callback]).train()
        callback.tracer.close()

    def test_no_router_is_an_error_of_use(self, tmp_path):
        """A model without a router is refused when training begins, with what came near."""
        config = transformers.LlamaConfig(**dense())
        plain = transformers.LlamaForCausalLM(config)
        plain.router = nn.Linear(4, 3)
        with pytest.raises(moetrace.NoRouterFound, match=r"router \(Linear\)"):
            trainer(plain, tmp_path, callbacks=[MoETraceCallback()]).train()

    def test_no_router_may_be_let_pass(self, tmp_path, caplog):
        """One script for models with and without experts: on_missing="warn" trains untraced."""
        plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**dense()))
        callback = MoETraceCallback(on_missing="warn")
        trainer(plain, tmp_path, callbacks=[callback]).train()
        assert callback.tracer is None
        assert "training goes on untraced: found no router in LlamaForCausalLM" in caplog.text

    def test_on_missing_is_one_of_two(self):
        """Any other word is refused at once."""
        with pytest.raises(ValueError, match="found on_missing='ignore'; it is 'raise' or 'warn'"):
            MoETraceCallback(on_missing="ignore")


def dense():
    """The shape of a small model without experts."""
    return {name: value for name, value in SHAPE.items() if name != "eos_token_id"}


class TestTRL:
    @pytest.mark.parametrize("packing", [False, True])
    def test_supervised_fine_tuning(self, tmp_path, packing):
        """In TRL's SFTTrainer, packed or padded, counts equal the oracle and no bit changes."""
        import datasets
        import trl

        words = [
            " ".join(f"w{(7 * i + 3 * j) % 60 + 3}" for j in range(5 + i % 4)) for i in range(16)
        ]

        def run(net, callbacks, **options):
            args = trl.SFTConfig(
                output_dir=str(tmp_path),
                per_device_train_batch_size=2,
                max_steps=3,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                bf16=False,
                packing=packing,
                max_length=12,
                **options,
            )
            trained = trl.SFTTrainer(
                model=net,
                args=args,
                train_dataset=datasets.Dataset.from_dict({"text": words}),
                processing_class=tokenizer(),
                callbacks=callbacks,
            )
            trained.train()
            return left(trained)

        plain = model()
        oracle = watched(plain)
        before = run(plain, [], gradient_checkpointing=False)
        sink = MemorySink()
        after = run(model(), [MoETraceCallback(every=2, sinks=[sink])], gradient_checkpointing=True)
        assert counted(sink.snapshots, "train") == found(oracle)["train"]
        assert spans(sink.snapshots, "train") == [(1, 2), (3, 3)]
        assert same(after, before)


def tokenizer():
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<s>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, 64)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<s>", unk_token="<unk>"
    )
