"""Identity and zero experts: chosen, never computed, counted in a column of their own."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import moetrace
from moetrace.cli import main
from moetrace.diagnosis.windows import check_windows
from moetrace.reduction.agreement import Agreement, Layer, Offer
from moetrace.routing_stats import RoutingStats, merge_stats, shown_columns
from moetrace.snapshot import Snapshot
from moetrace.store.records import columns, parse_snapshot
from tests.readers.hand_written import D, Noting, expert, mixed
from tests.readers.tracing import traced

REAL, IDLE, K = 4, 2, 2


class Skip(nn.Module):
    """An expert that gives nothing."""

    def forward(self, x):
        """Zeros."""
        return torch.zeros_like(x)


class Chooses(nn.Module):
    """A router of six columns, of which four are experts."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, REAL + IDLE, bias=False)

    def forward(self, x):
        """Weights, ids and logits."""
        logits = self.layer(x)
        weights, ids = logits.softmax(-1).topk(K, dim=-1)
        return weights, ids, logits


class Listed(Noting):
    """Experts in a list that ends in an identity and in a zero expert."""

    def __init__(self):
        super().__init__()
        self.router = Chooses()
        self.experts = nn.ModuleList([*(expert() for _ in range(REAL)), nn.Identity(), Skip()])

    def forward(self, x):
        """Route and mix."""
        flat = x.reshape(-1, D)
        weights, ids, _ = self.router(flat)
        self.note(ids)
        return mixed(self.experts, flat, ids, weights).reshape(x.shape)


class Inline(Listed):
    """The same with a bare gate and the top-k in the block."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(D, REAL + IDLE, bias=False)

    def forward(self, x):
        """The highest two."""
        flat = x.reshape(-1, D)
        weights, ids = self.router(flat).softmax(-1).topk(K, dim=-1)
        self.note(ids)
        return mixed(self.experts, flat, ids, weights).reshape(x.shape)


class StackedExperts(nn.Module):
    """Four experts in one parameter, which are told of the two that are none."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(REAL, D, D) * 0.1)
        self.num_zero_experts = IDLE

    def forward(self, hidden, ids, weights):
        """An id from four on is the token itself."""
        computed = torch.einsum("td,tkdf->tkf", hidden, self.weight[ids.clamp(max=REAL - 1)])
        kept = torch.where((ids < REAL).unsqueeze(-1), computed, hidden.unsqueeze(1))
        return (kept * weights.unsqueeze(-1)).sum(1)


class Stated(Noting):
    """Stacked experts with weights, and a number that says how many have none."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(D, REAL + IDLE, bias=False), StackedExperts()

    def forward(self, x):
        """The highest two."""
        flat = x.reshape(-1, D)
        weights, ids = self.gate(flat).softmax(-1).topk(K, dim=-1)
        self.note(ids)
        return self.experts(flat, ids, weights).reshape(x.shape)


class Dense(nn.Module):
    """A list that ends in an identity, and chooses nothing."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(D, 3)
        self.stages = nn.ModuleList([nn.Linear(D, D), nn.Linear(D, D), nn.Identity()])

    def forward(self, x):
        """One after the other."""
        for stage in self.stages:
            x = stage(x)
        return self.gate(x)


@pytest.mark.parametrize("block", [Listed, Inline, Stated])
class TestHandWritten:
    def test_counts_are_apart(self, block):
        """Experts have a count each, and identity experts one together, of what the block noted."""
        model = nn.Sequential(block())
        (window,) = traced(model, steps=1)
        stats, true = window["0"], [model[0].chosen[column] for column in range(REAL + IDLE)]
        assert stats.tokens_per_expert.tolist() == true[:REAL]
        assert (stats.identity, stats.identity_experts) == (sum(true[REAL:]), IDLE)
        assert (stats.tokens, stats.top_k, stats.dropped) == (10, K, 0)
        assert stats.identity > 0
        assert "withheld" not in window.health

    def test_is_said(self, block):
        """The site has the number of experts that compute, and says how many do not."""
        (site,) = moetrace.discover(nn.Sequential(block()))
        assert (site.num_experts, site.identity_experts, site.columns) == (REAL, IDLE, REAL + IDLE)
        assert "the last 2 of its 6 columns are of identity experts" in site.reason


def test_experts_without_any_weights_are_experts():
    """Where no expert has a weight, as in a stand-in of a model, none is told from the others."""
    block = Listed()
    block.experts = nn.ModuleList(nn.Identity() for _ in range(REAL + IDLE))
    (site,) = moetrace.discover(nn.Sequential(block))
    assert (site.num_experts, site.identity_experts) == (REAL + IDLE, 0)


def test_an_identity_in_a_dense_list_is_none():
    """A list of layers that ends in an identity is no mixture of experts."""
    with pytest.raises(moetrace.NoRouterFound):
        moetrace.attach(nn.Sequential(Dense()))


class TestTransformers:
    @pytest.mark.parametrize(
        ("name", "identity", "line"),
        [
            ("longcat_flash", 2, "8 experts + 2 identity, top-2"),
            ("zaya", 1, "8 experts + 1 identity, top-1"),
        ],
    )
    def test_counts_what_the_experts_are_called_with(self, name, identity, line):
        """Real draws by expert and identity draws together are what the experts' module received.

        LongCat's ids from 8 on are zero experts; Zaya's skips have id 0 and a weight of exactly 0.
        """
        pytest.importorskip("transformers")
        from tests.coverage.architectures import model_classes, tiny_model
        from tests.coverage.scan import scan

        (suspect,) = scan(only=name)
        model = tiny_model(model_classes(suspect)[0]).train()
        called = {}

        def note(module, args, kwargs, layer):
            ids, weights = (*args, *kwargs.values())[1:3]
            column = torch.where((weights == 0) | (ids >= 8), 8, ids)
            called[layer] = torch.bincount(column.flatten(), minlength=9).tolist()

        inputs = torch.randint(1, 60, (2, 12))
        handles = [
            layer.mlp.experts.register_forward_pre_hook(
                lambda module, args, kwargs, at=index: note(module, args, kwargs, at),
                with_kwargs=True,
            )
            for index, layer in enumerate(model.model.layers)
        ]
        with moetrace.attach(model, every=1) as tracer:
            tracer.on_step_begin()
            model(input_ids=inputs).logits.sum().backward()
            tracer.on_step_end()
            window = tracer.flush()
            for handle in handles:
                handle.remove()
            diagnosis = tracer.doctor({"input_ids": inputs})
        assert len(called) == len(window.routing) == 3
        for index, true in called.items():
            stats = window[f"model.layers.{index}.mlp"]
            assert [*stats.tokens_per_expert.tolist(), stats.identity] == true
            assert (stats.num_experts, stats.identity_experts) == (8, identity)
            metrics, reasons = stats.metrics(), stats.withheld()
            assert metrics["dead_experts"] == true[:8].count(0)
            assert metrics["load_cv"] == pytest.approx(np.std(true[:8]) / np.mean(true[:8]))
            assert metrics["max_vio"] == pytest.approx(8 * max(true[:8]) / sum(true[:8]) - 1)
            assert metrics["routing_entropy"] is not None
            assert f"among {identity} identity experts too" in reasons["load_cv_floor"]
            assert f"among {identity} identity experts too" in reasons["load_balancing_loss"]
        assert sum(stats.identity for stats in window) > 0
        assert diagnosis.ok
        assert line in str(diagnosis)
        assert "went to identity experts without weights" in str(diagnosis)


def stats_of(counts=(3, 1), identity=4, tokens=4, **changes):
    """Four tokens, two choices each, of which half went to identity experts."""
    counts = np.array(counts)
    probs = np.full(2, int(0.2 * tokens * (1 << 30)))
    given = {"identity": identity, "identity_experts": 3, "entropy_sum": tokens << 26} | changes
    return RoutingStats("mlp", 2, 2, "softmax", counts, probs, counts * 0, tokens=tokens, **given)


class TestNumbers:
    def test_whole_counts(self):
        """Experts, identity experts and bad ids together are tokens times K; else it is said."""
        assert stats_of().metrics()["load_cv"] == 0.5
        missing = stats_of(identity=3).withheld()["load_cv"]
        assert missing == "found 7 assignments where tokens * top_k is 8"
        windows = [[_snapshot(stats_of(identity=draws))] for draws in (4, 3)]
        kinds = [{item.kind for item in check_windows(item, {})} for item in windows]
        assert kinds == [set(), {"counts-contradict"}]

    def test_probabilities_left_over(self):
        """The probability that experts do not have is that of identity experts: no contradiction.

        The normalised entropy is over all columns; more than one per token is wrong still.
        """
        found = stats_of().metrics()
        assert found["routing_entropy"] == 1.0
        assert found["routing_entropy_normalized"] == pytest.approx(1.0 / np.log(5))
        assert "add up to 0.4" in stats_of(identity_experts=0).withheld()["routing_entropy"]
        too_much = RoutingStats(
            *("mlp", 2, 2, "softmax", np.array([3, 1]), np.full(2, 4 << 30), np.zeros(2)),
            tokens=4,
            identity=4,
            identity_experts=3,
        )
        assert "add up to 2.0" in too_much.withheld()["routing_entropy"]

    def test_the_columns_of_the_log_say_the_same(self):
        """What the log shows beside the counts is what the metrics are."""
        both = [stats_of(), stats_of(identity_experts=0)]
        shown = shown_columns(both)
        for name, values in shown.items():
            assert values == [stats.metrics()[name] for stats in both]
        assert shown["routing_entropy"] == [1.0, None]

    def test_windows_and_ranks_add(self):
        """Identity draws add over windows and over ranks, as all counts do."""
        assert merge_stats([stats_of(), stats_of()]).identity == 8
        assert merge_stats([stats_of(), stats_of()]).identity_experts == 3
        layer = Layer("mlp", 2, 2, "softmax", 3)
        agreement = Agreement.of([Offer.from_bytes(Offer("run", 1, (layer,)).to_bytes())])
        sums = agreement.packed(_snapshot(stats_of())) * 2
        (stats,) = agreement.unpacked(sums)
        assert (stats.identity, stats.identity_experts, stats.top_k) == (8, 3, 2)
        assert stats.metrics()["load_cv"] == 0.5


class TestStore:
    def test_round_trip(self, tmp_path):
        """A run on disk has identity draws in a column, and opens with the same numbers."""
        model = nn.Sequential(Listed())
        with moetrace.attach(model, tmp_path / "run", every=1) as tracer:
            tracer.on_step_begin()
            model(torch.randn(2, 5, D)).sum().backward()
            tracer.on_step_end()
            live = tracer.flush()["0"]
        run = moetrace.open_run(tmp_path / "run")
        (snapshot,) = run.snapshots()
        assert snapshot["0"].to_dict() == live.to_dict()
        assert live.identity > 0
        assert run.counts().shape == (1, 1, REAL)
        assert run.counts().sum() == 10 * K - live.identity
        assert snapshot.metrics()["moe/identity_assignments"] == live.identity

    def test_the_command_line_says_it(self, tmp_path, capsys):
        """Inspect has the number beside that of the experts, show how many choices they took."""
        model = nn.Sequential(Listed())
        with moetrace.attach(model, tmp_path / "run", every=1) as tracer:
            tracer.on_step_begin()
            model(torch.randn(2, 5, D)).sum().backward()
            tracer.on_step_end()
            draws = tracer.flush()["0"].identity
        assert main(["inspect", str(tmp_path / "run")]) == 0
        assert "Chooses, 4 experts + 2 identity, top-" in capsys.readouterr().out
        assert main(["show", str(tmp_path / "run")]) == 0
        assert f"{draws} assignments went to identity experts" in capsys.readouterr().out
        assert main(["doctor", str(tmp_path / "run")]) == 0
        assert "4 experts + 2 identity" in capsys.readouterr().out

    def test_without_any_the_log_is_as_before(self):
        """Where no layer has identity experts no column is written, and an older log is read so."""
        plain = stats_of(counts=(5, 3), identity=0, identity_experts=0)
        assert {"identity", "identity_experts"}.isdisjoint(columns(_snapshot(plain)))
        record = columns(_snapshot(stats_of()))
        assert (record["identity"], record["identity_experts"]) == ([4], [3])
        rows = {
            "file": "g0-00000.safetensors",
            "row": 0,
            "shape": [1, 1, 2],
            "dtypes": ["I32", "I64", "I64"],
            "data": 8,
            "header_crc32": 0,
            "crc32": [0, 0, 0],
        }
        for kept in (plain, stats_of()):
            line = json.loads(json.dumps({**columns(_snapshot(kept)), "arrays": [rows]}))
            table = parse_snapshot(line).columns
            assert table["identity"] == [kept.identity]
            assert table["identity_experts"] == [kept.identity_experts]


def _snapshot(stats):
    return Snapshot("run", 0, 0, 0, "train", 1, 1, 0.0, (stats,))
