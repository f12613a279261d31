"""Blocks that people write: counted exactly with no word said, or named with what to do."""

import logging

import pytest
import torch
from torch import nn

import moetrace
from moetrace.show.doctor import diagnose_run
from tests.readers import hand_written, hand_written_routers
from tests.readers.hand_written import D, E, K
from tests.readers.tracing import counts, entropy, traced

BY_RULE = {
    "OldMixtral": "the highest 2 of the gate's logits, softmax in float32",
    "NanoMoE": "the highest 2 of the gate's logits",
    "BiasedSigmoid": "the highest 2 of the gate's logits, sigmoid, + expert_bias",
    "Top1": "the highest 1 of the gate's logits, / temperature, softmax",
    "Chunked": "the highest 2 of the gate's logits",
    "LoraExperts": "the highest 2 of the gate's logits, softmax",
    "PrecisionLayer": "the highest 1 of the gate's logits",
}
BY_CALL = ("Called", "NoisyTopK", "BareParameter", "HashRouting")
ROUTERS = (
    "WeightsIdsLogits",
    "ProbsIdsWeights",
    "IdsWeights",
    "InADict",
    "InANamedTuple",
    "Flat",
    "Sparse",
    "TopP",
    "Relu",
    "Limited",
    "ByExperts",
)


def made(name):
    """Two blocks of that class, one after the other."""
    return nn.Sequential(*(getattr(hand_written, name)() for _ in range(2)))


def routed(name):
    """A block with a router of that class."""
    router = getattr(hand_written_routers, name)()
    return nn.Sequential(hand_written_routers.Block(router))


class TestChoiceInTheBlock:
    @pytest.mark.parametrize("name", [*BY_RULE, *BY_CALL])
    def test_counts_what_was_chosen(self, name):
        """Counts, tokens and mean entropy are those that the blocks noted, in train and eval."""
        model = made(name)
        snapshots = traced(model, evaluate=True)
        assert [snapshot.phase for snapshot in snapshots] == ["train", "train", "eval"]
        for index, block in enumerate(model):
            assert counts(snapshots, str(index)) == block.counts
            assert {snapshot[str(index)].dropped for snapshot in snapshots} == {0}
            if block.entropies:
                mean = sum(block.entropies) / len(block.entropies)
                assert entropy(snapshots, str(index)) == pytest.approx(mean, abs=1e-5)

    @pytest.mark.parametrize("name", BY_RULE)
    def test_says_the_rule(self, name):
        """A choice that is computed again is named in words, with K."""
        site = moetrace.discover(made(name))[0]
        assert (site.rule, site.reader) == (BY_RULE[name], "BareGateReader")
        assert site.top_k == (1 if name in ("Top1", "PrecisionLayer") else K)

    @pytest.mark.parametrize("name", BY_CALL)
    def test_reads_the_call(self, name):
        """Where experts are called with the choice, nothing is computed again."""
        site = moetrace.discover(made(name))[0]
        assert (site.rule, site.reader, site.path) == ("", "ExpertsCallReader", "0.experts")

    def test_padding_is_left_out(self):
        """A rule computes the choice of every token, so that padding can be told apart."""
        model = made("NanoMoE")
        with moetrace.attach(model) as tracer, tracer.tokens(torch.tensor([1] * 7 + [0] * 3)):
            model(torch.randn(2, 5, D))
            stats = tracer.flush()["0"]
        assert (stats.tokens, stats.masked, stats.tokens_per_expert.sum()) == (7, 3, 7 * K)

    def test_what_is_done_after_the_gate_is_not_read(self):
        """The logits of a gate are those it returned, though the block goes on to change them."""

        class Masking(hand_written.Called):
            def forward(self, x):
                logits = self.gate(x.reshape(-1, D))
                probs = logits.softmax(-1)
                logits.zero_()
                weights, ids = probs.topk(K)
                self.note(ids, probs)
                return self.experts(x.reshape(-1, D), ids, weights).reshape(x.shape)

        model = nn.Sequential(Masking())
        with torch.no_grad():
            model.eval()
            with moetrace.attach(model) as tracer:
                model(torch.randn(2, 5, D))
                stats = tracer.flush()["0"]
        (block,) = model
        assert stats.tokens_per_expert.tolist() == block.counts
        assert stats.mean("entropy_sum") == pytest.approx(sum(block.entropies) / 10, abs=1e-5)


class TestRouters:
    @pytest.mark.parametrize("name", ROUTERS)
    def test_counts_what_was_chosen(self, name):
        """Whatever a router returns, in whatever order, counts are those of its block."""
        model = routed(name)
        snapshots = traced(model)
        (block,) = model
        assert counts(snapshots, "0") == block.counts
        assert sum(snapshot["0"].dropped for snapshot in snapshots) == block.dropped
        if block.entropies:
            mean = sum(block.entropies) / len(block.entropies)
            assert entropy(snapshots, "0") == pytest.approx(mean, abs=1e-5)

    def test_sigmoid_scores_in_a_dataclass(self):
        """Scores that a sigmoid has made are normalised, and no softmax is put on top."""
        model = routed("InADataclass")
        hidden = torch.randn(2, 5, D)
        with moetrace.attach(model) as tracer:
            model(hidden)
            stats = tracer.flush()["0"]
        (block,) = model
        scores = block.router.layer(hidden.reshape(-1, D)).sigmoid().double()
        probs = scores / scores.sum(-1, keepdim=True)
        true = float(-(probs * probs.log()).sum(-1).mean())
        assert stats.tokens_per_expert.tolist() == block.counts
        assert stats.mean("entropy_sum") == pytest.approx(true, abs=1e-5)

    def test_a_module_that_only_scores(self):
        """A router of one's own that leaves the choice to its block is a gate like any other."""
        model = nn.Sequential(hand_written_routers.BlockOfLogits(hand_written_routers.Logits()))
        snapshots = traced(model)
        assert counts(snapshots, "0") == model[0].counts
        assert moetrace.discover(model)[0].rule == "the highest 2 of the gate's logits, softmax"

    @pytest.mark.parametrize("name", ["TopP", "Relu", "ByExperts"])
    def test_a_varying_number_has_no_k(self, name):
        """Where tokens go to different numbers of experts K is 0, and nothing counts as dropped."""
        stats = traced(routed(name), steps=1)[0]["0"]
        assert (stats.top_k, stats.dropped) == (0, 0)
        assert stats.metrics()["load_cv"] is not None
        assert "varies" in stats.withheld()["max_vio_floor"]

    def test_all_experts_computed(self):
        """Gates with zeros are read, though every expert runs on every token."""
        model = nn.Sequential(hand_written_routers.AllComputed(hand_written_routers.Sparse()))
        assert counts(traced(model), "0") == model[0].counts

    def test_a_recurrent_router_for_all_layers(self):
        """A router that several layers share is one site with their names, and all are counted."""
        model = hand_written_routers.SharedRouter()
        snapshots = traced(model)
        (site,) = moetrace.discover(model)
        assert (site.name, site.aliases) == ("layers.0", ("layers.1",))
        both = [sum(pair) for pair in zip(*(layer.counts for layer in model.layers), strict=True)]
        assert counts(snapshots, "layers.0") == both
        assert snapshots[0]["layers.0"].calls == 2


class AllComputedInline(hand_written.NanoMoE):
    """Every expert on every token, zeros for the others, top-k in the block."""

    def forward(self, x):
        """Compiles without a graph break, and shows nothing."""
        flat = x.reshape(-1, D)
        probs = self.gate(flat).softmax(-1)
        weights, ids = probs.topk(K, dim=-1)
        dense = torch.zeros_like(probs).scatter(1, ids, weights)
        return sum(one(flat) * dense[:, i : i + 1] for i, one in enumerate(self.experts)).view_as(x)


class Crowded(hand_written.NanoMoE):
    """Choices beyond the fourth of an expert are dropped in the block."""

    def forward(self, x):
        """As most hand-written capacity limits."""
        flat = x.reshape(-1, D)
        top, ids = self.gate(flat).topk(K, dim=-1)
        one_hot = nn.functional.one_hot(ids, E)
        place = one_hot.reshape(-1, E).cumsum(0).reshape_as(one_hot)
        kept = ((place <= 4) & (one_hot == 1)).any(-1)
        ids = torch.where(kept, ids, E)
        return hand_written.mixed(self.experts, flat, ids, top.softmax(-1)).reshape(x.shape)


class LateNoise(hand_written.NanoMoE):
    """A gate whose noise is added by its own parametrisation: its source shows nothing of it."""

    noise = 0.0

    def forward(self, x):
        """The rule holds as long as there is no noise."""
        flat = x.reshape(-1, D)
        logits = self.gate(flat)
        top, ids = logits.topk(K, dim=-1)
        if self.noise:
            ids = (ids + torch.randint(E, ids.shape)) % E
        return hand_written.mixed(self.experts, flat, ids, top.softmax(-1)).reshape(x.shape)


class TestRuleIsHeldAgainstRows:
    @pytest.mark.parametrize("block", [AllComputedInline, Crowded])
    def test_a_wrong_rule_is_withheld_and_said_once(self, block, caplog):
        """No number of a rule that the experts contradict is written, and one line says why."""
        model = nn.Sequential(block(), block())
        with caplog.at_level(logging.WARNING, logger="moetrace"):
            snapshots = traced(model)
        assert [stats.tokens for snapshot in snapshots for stats in snapshot] == [0, 0, 0, 0]
        assert snapshots[0].health["withheld"] == "0, 1"
        (line,) = [line for line in caplog.messages if "withheld" in line]
        assert "the highest 2 of the gate's logits" in line
        assert "and the experts got" in line
        assert "docs/readers.md" in line

    def test_the_doctor_says_so(self, tmp_path):
        """It names the site and why, live and of the run; a site that is withheld is not silent."""
        model = nn.Sequential(Crowded())
        with moetrace.attach(model, tmp_path / "run", every=1) as tracer:
            tracer.on_step_begin()
            model(torch.randn(2, 5, D)).sum().backward()
            tracer.on_step_end()
            findings = tracer.doctor().findings
        assert [(item.kind, item.severity, item.sites) for item in findings] == [
            ("withheld", "error", ("0",))
        ]
        assert "its numbers are withheld: its block seems to take" in findings[0].found
        of_run = diagnose_run(moetrace.open_run(tmp_path / "run")).findings
        told = {item.kind: item.found for item in of_run}
        assert "what was read of 0 cannot be right" in told["withheld"]
        assert "silent" not in told

    def test_from_the_window_on_in_which_it_fails(self):
        """What was right stays; the first window that is contradicted and all later ones do not."""
        model = nn.Sequential(LateNoise())
        sink = moetrace.sinks.MemorySink()
        with moetrace.attach(model, every=1, sinks=[sink]) as tracer:
            for step in range(3):
                model[0].noise = float(step == 1)
                tracer.on_step_begin()
                model(torch.randn(2, 5, D)).sum().backward()
                tracer.on_step_end()
        assert [snapshot["0"].tokens for snapshot in sink.snapshots] == [10, 0, 0]

    def test_a_forward_that_raises_contradicts_nothing(self):
        """A step that failed between its choice and its experts does not end the counting."""
        model = made("NanoMoE")
        sink = moetrace.sinks.MemorySink()
        with moetrace.attach(model, every=2, sinks=[sink]) as tracer:
            for step in range(2):
                if step == 1:
                    tracer.on_step_begin()
                    failing = model[0].experts[0].register_forward_hook(_raise)
                    with pytest.raises(MemoryError):
                        model(torch.randn(2, 50, D))
                    failing.remove()
                tracer.on_step_begin()
                model(torch.randn(2, 5, D)).sum().backward()
                tracer.on_step_end()
        train = next(snapshot for snapshot in sink.snapshots if snapshot.phase == "train")
        assert "withheld" not in train.health
        assert train["0"].tokens == 20


def _raise(*args):
    raise MemoryError


class TestNotReadable:
    def test_soft_mixture(self, caplog):
        """Where every token goes to every expert there are no counts, and one line says so."""

        class Soft(hand_written_routers.Scoring):
            def forward(self, x):
                probs = self.layer(x).softmax(-1)
                return probs / probs.sum(-1, keepdim=True)

        class Mixture(hand_written_routers.Block):
            def forward(self, x):
                gates = self.router(x)
                return sum(one(x) * gates[..., i : i + 1] for i, one in enumerate(self.experts))

        model = nn.Sequential(Mixture(Soft()))
        with pytest.raises(moetrace.NoRouterFound, match="takes no top-k of them"):
            moetrace.attach(model)

    @pytest.mark.parametrize(
        ("forward", "reason"),
        [
            ("logits.topk(K) if self.training else logits.topk(1)", "more than one top-k"),
            ("(logits + torch.randn_like(logits)).topk(K)", "is no step that is known"),
            ("logits.softmax(0).topk(K)", "is not taken over the experts"),
            ("logits.t().topk(4)", "logits.t() is no step that is known"),
            ("torch.multinomial(logits.softmax(-1), K), 0", "takes no top-k of them"),
        ],
    )
    def test_says_where_the_rule_ends(self, forward, reason, tmp_path):
        """A choice that cannot be followed is a near miss with the place where it ends."""
        block = _block(f"        weights, ids = {forward}", tmp_path)
        (site,) = moetrace.discover(nn.Sequential(block))
        assert not site.taken
        assert reason in site.reason


def _block(line, folder):
    """A block whose forward has this line, from a file of its own so that it has a source."""
    import importlib.util

    path = folder / "block.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        f"D, E, K = {D}, {E}, {K}\n"
        "class Block(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.gate = nn.Linear(D, E)\n"
        "        self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(E))\n"
        "    def forward(self, x):\n"
        "        logits = self.gate(x.reshape(-1, D))\n"
        f"{line}\n"
        "        return x\n"
    )
    spec = importlib.util.spec_from_file_location("block", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Block()
