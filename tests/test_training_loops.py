"""Loops in which a step is not simply one forward: half precision, skipped steps, retried steps."""

import copy

import pytest
import torch

import moetrace
from moetrace.sinks import MemorySink
from tests.matrix.modes import Mode, made
from tests.matrix.training import EVERY, WORK, as_lists, labelled, train
from tests.oracle import Oracle
from tests.tiny import batch, seeded

FAMILY = "Qwen3Moe"
LAYERS = ("model.layers.0.mlp", "model.layers.1.mlp")


def oracle_on(model):
    """An oracle on an untraced model."""
    return Oracle(model, [(layer, f"{layer}.gate") for layer in LAYERS])


def counted(sink, phase):
    """Counts per layer over all windows of a phase, as lists."""
    total = {}
    for snapshot in sink.snapshots:
        for stats in snapshot if snapshot.phase == phase else ():
            total[stats.layer] = total.get(stats.layer, 0) + stats.tokens_per_expert
    return {layer: row.tolist() for layer, row in total.items()}


def same(one, other):
    """Whether two runs left the same tensors, bit for bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.filterwarnings("ignore::FutureWarning")
class TestHalfPrecision:
    @pytest.mark.parametrize("checkpointed", ["none", "reentrant", "non-reentrant", "selective"])
    def test_autocast(self, checkpointed):
        """Under bfloat16 autocast counts equal the oracle and no bit of the training is another."""
        work = WORK[2]
        sink, left = MemorySink(), []
        # A cast that autocast took from its cache would be missing in the recomputation, and
        # selective checkpointing would take another tensor for it, traced or not.
        half = torch.autocast("cpu", torch.bfloat16, cache_enabled=checkpointed != "selective")
        for traced in (False, True):
            model, forward, _ = made(Mode(FAMILY, "eager", checkpointed))
            tracer = moetrace.attach(model, every=EVERY, sinks=[sink]) if traced else None
            with half:
                left.append(list(train(model, forward, work, tracer=tracer).values()))
            if tracer:
                tracer.close()
        plain = copy.deepcopy(seeded(FAMILY))
        oracle = oracle_on(plain)
        with half:
            train(plain, plain, work, oracle=oracle)
        assert labelled(sink.snapshots) == as_lists(oracle.counts)
        assert same(*left)


def scaled(*, tracer, always_ends, oracle=None):
    """Six forwards under a gradient scaler; the losses of the second and third are infinite."""
    torch.manual_seed(0)
    model = copy.deepcopy(seeded(FAMILY))
    found = oracle_on(model) if oracle is not None else None
    sink = MemorySink()
    tracing = moetrace.attach(model, every=1, sinks=[sink]) if tracer else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    left = []
    for number in range(6):
        if tracing:
            tracing.on_step_begin()
        ids, mask = batch(number)
        skipped = number in (1, 2)
        if found is None:
            loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        else:
            with found.says("skipped" if skipped else "train", mask):
                loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
        scaler.scale(loss * (float("inf") if skipped else 1.0)).backward()
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        optimizer.zero_grad()
        assert (scaler.get_scale() < before) == skipped
        if tracing and (always_ends or not skipped):
            tracing.on_step_end()
        left.append(loss.detach())
    step = tracing.step if tracing else 0
    if tracing:
        tracing.close()
    if found is not None:
        oracle.update(as_lists(found.counts))
    return [*left, *(p.detach() for p in model.parameters()), torch.get_rng_state()], sink, step


class TestGradientScaler:
    def test_a_skipped_step_has_its_own_label(self):
        """E2: a loop that ends performed steps only has four train windows; the rest is aborted."""
        truth = {}
        scaled(tracer=False, always_ends=False, oracle=truth)
        traced, sink, step = scaled(tracer=True, always_ends=False)
        assert counted(sink, "train") == truth["train"]
        assert counted(sink, "aborted") == truth["skipped"]
        assert [snapshot.phase for snapshot in sink.snapshots].count("train") == 4
        assert step == 4
        assert same(traced, scaled(tracer=False, always_ends=False)[0])

    def test_a_loop_that_ends_every_step_counts_every_forward(self):
        """E2: where the loop ends skipped steps too, each of the six is a window of its own."""
        truth = {}
        scaled(tracer=False, always_ends=True, oracle=truth)
        _, sink, step = scaled(tracer=True, always_ends=True)
        total = {
            layer: [a + b for a, b in zip(truth["train"][layer], row, strict=True)]
            for layer, row in truth["skipped"].items()
        }
        assert counted(sink, "train") == total
        assert [snapshot.phase for snapshot in sink.snapshots] == ["train"] * 6
        assert step == 6


def retried(*, tracer, oracle=None, checkpointed="none", fails_in="forward"):
    """Three steps; each runs out of memory with four rows and with three, and fits with two."""
    torch.manual_seed(0)
    model, _, _ = made(Mode(FAMILY, "eager", checkpointed))
    found = oracle_on(model) if oracle is not None else None
    sink = MemorySink()
    tracing = moetrace.attach(model, every=1, sinks=[sink]) if tracer else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def out_of_memory(layer, args):
        recomputing = torch._C._current_graph_task_id() != -1
        if len(args[0]) > 2 and recomputing == (fails_in == "backward"):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.model.layers[1].mlp.register_forward_pre_hook(out_of_memory)
    left = []
    for number in range(3):
        for rows in (4, 3, 2):
            if tracing:
                tracing.on_step_begin()
            ids, mask = batch(10 * number + rows, rows=rows)
            optimizer.zero_grad()
            try:
                if found is None:
                    loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
                else:
                    with found.says("train" if rows == 2 else "aborted", mask):
                        loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
                loss.backward()
            except torch.OutOfMemoryError:
                continue
            optimizer.step()
            left.append(loss.detach())
            if tracing:
                tracing.on_step_end()
    if tracing:
        tracing.close()
    if found is not None:
        oracle.update(as_lists(found.counts))
    return [*left, *(p.detach() for p in model.parameters()), torch.get_rng_state()], sink


@pytest.mark.filterwarnings("ignore::FutureWarning")
class TestOutOfMemory:
    def test_only_the_attempt_that_fitted_counts(self):
        """E1: a step retried with smaller batches counts its good attempt; the rest is aborted."""
        truth = {}
        retried(tracer=False, oracle=truth)
        traced, sink = retried(tracer=True)
        assert counted(sink, "train") == truth["train"]
        # The second router was never reached with more than two rows.
        assert counted(sink, "aborted") == {**truth["aborted"], LAYERS[1]: [0] * 8}
        assert same(traced, retried(tracer=False)[0])

    @pytest.mark.parametrize("checkpointed", ["reentrant", "non-reentrant"])
    def test_in_the_middle_of_a_recomputation(self, checkpointed):
        """E1: memory that runs out in a recomputation leaves nothing for the next attempt."""
        truth = {}
        retried(tracer=False, oracle=truth)
        options = {"checkpointed": checkpointed, "fails_in": "backward"}
        traced, sink = retried(tracer=True, **options)
        assert counted(sink, "train") == truth["train"]
        assert same(traced, retried(tracer=False, **options)[0])
