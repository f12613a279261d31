import json
import sys
from types import SimpleNamespace

import pytest
import torch
from layerwise.errors import RecipeError
from layerwise.text_data import HUB, byte_ids, draw_pieces, texts_of, token_reader


def draw(texts, **changes):
    """Pieces of 4 bytes, two to train on and one to validate with."""
    usual = {"length": 4, "train": 2, "validation": 1, "seed": 0, "long_texts": True}
    return draw_pieces(texts, byte_ids, **{**usual, **changes})


def words(ids):
    """The bytes of pieces as text."""
    return [bytes(row).decode() for row in ids.tolist()]


class TestTexts:
    def test_a_file_is_one_text(self, tmp_path):
        """S4-01: a local file works in place of the name of a data set."""
        (tmp_path / "a.txt").write_text("one two")
        assert texts_of(str(tmp_path / "a.txt")) == (["one two"], True)

    def test_a_folder_is_its_files_and_lines_of_json(self, tmp_path):
        """S4-01: a folder is read whole; .jsonl has a text in each line."""
        (tmp_path / "a.txt").write_text("one")
        (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": "three"}\n')
        assert texts_of(str(tmp_path)) == (["one", "two", "three"], True)

    def test_another_name_is_refused(self):
        """S4-17: the four names are listed."""
        with pytest.raises(RecipeError, match="one of c4, wikitext2, ptb, pileval, or a file"):
            texts_of("c5")

    def test_a_line_without_text_is_refused(self, tmp_path):
        """S4-17: a file that is no text says what is expected of it."""
        path = tmp_path / "a.jsonl"
        path.write_text('{"words": 1}\n')
        with pytest.raises(RecipeError, match="with a 'text' in each line"):
            texts_of(str(path))

    @pytest.mark.parametrize("name", sorted(HUB))
    def test_the_four_names_are_asked_of_the_hub(self, name, monkeypatch):
        """S4-01: c4, wikitext2, ptb and pileval; short lines are joined, documents are not."""
        asked = []

        def load_dataset(*arguments, **options):
            asked.append((arguments, options))
            return {HUB[name].column: ["first", "second"]}

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        texts, long_texts = texts_of(name)
        expected = ["first\nsecond"] if name in ("wikitext2", "ptb") else ["first", "second"]
        assert (texts, long_texts) == (expected, name in ("wikitext2", "ptb"))
        assert asked == [(HUB[name].arguments, dict(HUB[name].options))]
        assert "trust_remote_code" not in asked[0][1]

    def test_a_hub_that_is_down_is_said_plainly(self, monkeypatch):
        """S4-17: a data set that cannot be reached names the option and another way."""

        def load_dataset(*arguments, **options):
            raise ConnectionError("no route to host\nand more")

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        expected = "data set c4 cannot be reached .*no route to host.*local file.*--dataset"
        with pytest.raises(RecipeError, match=expected):
            texts_of("c4")


class TestDrawPieces:
    def test_a_long_text_is_cut_without_overlap(self):
        """S4-10: pieces of a long text follow each other; none is drawn twice."""
        pieces = draw(["aaaabbbbccccdd"])
        assert sorted(words(pieces.train) + words(pieces.validation)) == ["aaaa", "bbbb", "cccc"]

    def test_a_short_text_is_left_out_and_a_long_one_cut_off(self):
        """S4-10: of documents the first tokens of each that is long enough."""
        pieces = draw(["aaaa", "bbb", "ccccc", "ddddee"], long_texts=False)
        assert sorted(words(pieces.train) + words(pieces.validation)) == ["aaaa", "cccc", "dddd"]

    def test_the_same_seed_draws_the_same(self):
        """S4-10: deterministic with its seed, another with another."""
        text = ["".join(chr(97 + number % 26) * 4 for number in range(20))]
        one, again, other = draw(text), draw(text), draw(text, seed=1)
        assert one.train.equal(again.train)
        assert one.validation.equal(again.validation)
        assert not one.train.equal(other.train)

    def test_what_was_trained_on_can_be_left_out(self):
        """S4-20: with skip, what another program drew with the same seed is not drawn again."""
        text = ["aaaabbbbccccddddeeeeffff"]
        first, then = draw(text), draw(text, skip=3)
        parts = (first.train, first.validation, then.train, then.validation)
        assert sorted(words(torch.cat(parts))) == ["aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff"]

    def test_too_little_text_is_taken_as_far_as_it_goes(self, caplog):
        """S4-17: fewer pieces than asked for are a warning, and validation keeps its part."""
        pieces = draw(["aaaabbbbcccc"], train=8, validation=4)
        assert (len(pieces.train), len(pieces.validation)) == (2, 1)
        assert "found 3 pieces of 4 tokens, fewer than 12" in caplog.text

    def test_no_text_is_refused(self):
        """S4-17: nothing long enough names --seq_len."""
        with pytest.raises(RecipeError, match=r"found 0 pieces of 4 tokens.*smaller --seq_len"):
            draw(["abc"])


class TestTokenReader:
    def test_a_model_without_a_tokenizer_reads_bytes(self, tmp_path):
        """S4-23: 256 tokens and no tokenizer: text is read as UTF-8."""
        assert token_reader(str(tmp_path), 256)("a\u00e9") == [97, 195, 169]

    def test_a_tokenizer_is_used_where_there_is_one(self, tmp_path):
        """S4-10: the folder's own tokenizer, without special tokens."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        made = Tokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
        )
        assert list(token_reader(str(tmp_path), 3)("two one")) == [1, 0]

    def test_neither_is_refused(self, tmp_path):
        """S4-17: a small vocabulary cannot be bytes."""
        with pytest.raises(RecipeError, match=r"found no tokenizer in .*64 tokens are too few"):
            token_reader(str(tmp_path), 64)


def test_pieces_are_of_long_integers():
    """S4-10: ids are what an embedding takes."""
    assert draw(["aaaabbbbcccc"]).train.dtype == torch.long
