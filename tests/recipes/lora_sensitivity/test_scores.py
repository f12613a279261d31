"""The scores of the LoRA recipe against figures worked by hand."""

import math
import sys

import pytest

from src.scores import METRICS, scored


class TestScores:
    def test_the_answer_that_somebody_wrote_has_every_score_at_its_top(self):
        """S3-39: with a reference repeated word by word BLEU and ROUGE are 1 and METEOR nearly."""
        found = scored(["the cat sat on the mat"], [["a cat", "the cat sat on the mat"]])
        assert [found[name] for name in METRICS[:4]] == pytest.approx([1.0] * 4)
        # one chunk of six matches: 1 - 0.5 * (1/6)**3
        assert found["meteor"] == pytest.approx(1 - 0.5 / 216)
        assert found["num_samples"] == 1

    def test_nothing_in_common_is_zero(self):
        """S3-39: scores begin at 0."""
        found = scored(["zzz"], [["the cat sat"]])
        assert [found[name] for name in METRICS] == [0.0] * 5

    def test_rouge_by_hand(self):
        """S3-39, S3-61: F1 of words, pairs and longest subsequence, with the best reference."""
        found = scored(["the cat sat"], [["the cat lay down", "zzz"]])
        assert found["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
        assert found["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
        assert found["rougeL"] == found["rouge1"]

    def test_bleu_by_hand(self):
        """S3-39: geometric mean of the precisions of 1 to 4 words, and the penalty for brevity."""
        found = scored(["a b c d e f"], [["a b c d e g h i"]])
        precisions = (5 / 6) * (4 / 5) * (3 / 4) * (2 / 3)
        assert found["bleu"] == pytest.approx(precisions**0.25 * math.exp(1 - 8 / 6))

    def test_meteor_by_hand_where_there_is_no_wordnet(self, monkeypatch):
        """S3-61: equal stems match, synonyms do not, and the variant says so."""
        monkeypatch.setattr("src.scores._dictionary", lambda: (NoSynonyms(), "exact+stem"))
        found = scored(["cats house"], [["cat home"]])
        # one match of two words: F = 0.5, one chunk of one match costs 0.5 * 1**3
        assert found["meteor"] == pytest.approx(0.5 * (1 - 0.5))
        assert found["variants"]["meteor_variant"] == "exact+stem"

    def test_references_may_be_more_for_one_prompt_than_for_another(self):
        """Multi-reference: a prompt with one reference beside one with three."""
        found = scored(["a b c d", "e f g h"], [["a b c d"], ["x", "e f g h", "y"]])
        assert found["bleu"] == pytest.approx(1.0)
        assert found["rougeL"] == pytest.approx(1.0)

    def test_each_variant_is_written_beside_its_score(self):
        """S3-61: tokenizer, F1 and the variant of METEOR stand in the file."""
        variants = scored(["a"], [["a"]])["variants"]
        assert "tok:13a" in variants["bleu"]
        assert "F1" in variants["rouge"]
        assert variants["meteor_variant"] in ("wordnet", "exact+stem")

    def test_a_missing_package_leaves_its_score_null_and_says_why(self, monkeypatch):
        """S3-39: every score is optional; the others are there."""
        monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
        found = scored(["a"], [["a"]])
        assert found["bleu"] is None
        assert found["rouge1"] == 1.0
        assert found["missing"]["sacrebleu"].startswith("pip install sacrebleu")


class NoSynonyms:
    def synsets(self, word):
        """No word has a synonym."""
        return []
