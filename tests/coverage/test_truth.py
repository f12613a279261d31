import pytest
import torch
from torch import nn

from tests.coverage.truth import Call, Truth, describe, scoring_by_weights


class Experts(nn.Module):
    def forward(self, hidden, ids, weights):
        """Do nothing: only what it is called with matters."""
        return hidden


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()

    def forward(self, hidden, ids, weights):
        """Call the experts as told."""
        return self.experts(hidden, ids, weights)


def told(ids, weights):
    """The one site of a block whose experts were called with these ids and weights."""
    block = nn.ModuleDict({"mlp": Block()})
    truth = Truth(block, ("Experts",))
    with truth.says("train"):
        block["mlp"](torch.ones(len(ids), 4), torch.tensor(ids), torch.tensor(weights))
    return truth.sites[0]


class TestTrueSite:
    def test_counts(self):
        """Every id that the experts were called with counts once."""
        assert told([[0, 1], [0, 2]], [[0.5, 0.5], [0.5, 0.5]]).counts("train", {}) == [2, 1, 1]

    def test_padding(self):
        """A token whose mask is 0 does not count."""
        site = told([[0, 1], [0, 2]], [[0.5, 0.5], [0.5, 0.5]])
        masks = {"": torch.tensor([[0, 1]])}
        assert (site.counts("train", masks), site.tokens("train", masks)) == ([1, 0, 1], 1)

    def test_weight_of_zero(self):
        """An id whose weight is exactly 0 is not routed."""
        assert told([[0], [1]], [[0.0], [1.0]]).counts("train", {}) == [0, 1]

    def test_skipped(self):
        """A choice whose weight is exactly 0 is a skip, unless its token is padding."""
        site = told([[0], [1], [0]], [[0.0], [1.0], [0.0]])
        assert site.skipped("train", {"": torch.tensor([[1, 1, 0]])}) == 1

    def test_dropped(self):
        """A choice that a capacity limit threw away counts, and counts as dropped."""
        site = told([[0], [1]], [[1.0], [1.0]])
        site.calls["train"] = [Call(torch.tensor([[0], [1]]), dropped_T=torch.tensor([1, 0]))]
        assert (site.counts("train", {}), site.dropped("train", {})) == ([1, 1], 1)

    def test_mask_of_a_part(self):
        """A mask that is given for a module holds for the sites below it, and for no other."""
        site = told([[0], [1]], [[1.0], [1.0]])
        assert site.tokens("train", {"mlp": torch.tensor([1, 0])}) == 1
        assert site.tokens("train", {"encoder": torch.tensor([1, 0])}) == 2

    def test_no_ids(self):
        """Experts that are called with no ids, by no rule that is known, have no truth."""
        with pytest.raises(LookupError, match=r"called with \(f32\[1, 4\], f32\[1, 1\], f32"):
            told([[0.5]], [[1.0]])

    def test_name(self):
        """A site is named after the block that holds the experts."""
        assert told([[0]], [[1.0]]).name == "mlp"


class TestScoringByWeights:
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, -1.0, 0.5]])
    ids = torch.tensor([[2, 1], [0, 2]])

    def weights(self, scores):
        """Weights of the chosen, normalised over them and scaled."""
        chosen = scores.gather(1, self.ids)
        return 2.5 * chosen / chosen.sum(1, keepdim=True)

    def test_softmax(self):
        """Weights of a softmax are told, however normalised and scaled."""
        weights = self.weights(self.logits.softmax(1))
        assert scoring_by_weights(self.logits, self.ids, weights) == "softmax"

    def test_sigmoid(self):
        """Weights of a sigmoid are told from those of a softmax."""
        weights = self.weights(self.logits.sigmoid())
        assert scoring_by_weights(self.logits, self.ids, weights) == "sigmoid"

    def test_probabilities(self):
        """Scores that are probabilities already are taken as they are."""
        probs = self.logits.softmax(1)
        assert scoring_by_weights(probs, self.ids, self.weights(probs)) == "probabilities"

    def test_unknown(self):
        """Weights that no scoring explains have none."""
        weights = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        assert scoring_by_weights(self.logits, self.ids, weights) == ""


class TestDescribe:
    def test_tuple(self):
        """Types and shapes stand in one line."""
        output = (torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64), [3, 1], None)
        assert describe(output) == "(f32[2, 8], i64[2], list of 2 int, None)"
