"""The texts of the LoRA recipe: files, groups, prompts, tokens, and where they are looked for."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.config import DatasetType, ExperimentConfig
from src.base_model import tiny_tokenizer
from src.corpus import made_examples
from src.data_source import prompts_of, samples_of
from src.encoding import IGNORED, encoded, left_padded, prompt_ids, together
from src.errors import ExperimentError
from src.examples import Example, Prompt, divided, grouped, read_file, sampled
from tests.recipes.lora_sensitivity.made import cache_the_data

E2E, SAMSUM = DatasetType


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte: 1 begins, 2 ends."""
    return tiny_tokenizer()


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "text", "dataset"),
        [
            ("a.csv", 'mr,ref\n"name[A], food[B]",A has B.\n', E2E),
            ("a.tsv", "meaning_representation\thuman_reference\nname[A], food[B]\tA has B.\n", E2E),
            ("a.jsonl", '{"mr": "name[A], food[B]", "ref": "A has B."}\n\n', E2E),
            ("a.json", '[{"dialogue": "name[A], food[B]", "summary": "A has B."}]', SAMSUM),
        ],
    )
    def test_each_form_is_read(self, tmp_path, name, text, dataset):
        """S3-23: CSV, TSV, JSONL and JSON give the same samples, by either name of the columns."""
        (tmp_path / name).write_text(text)
        found = read_file(str(tmp_path / name), dataset)
        assert found == [Example("name[A], food[B]", "A has B.")]

    @pytest.mark.parametrize(
        ("name", "text", "says"),
        [
            ("a.csv", "x,y\n1,2\n", r"columns \['x', 'y'\]; e2e_nlg needs meaning_representation"),
            ("a.csv", "mr,ref\n,\n", "found no sample"),
            ("a.jsonl", "{", "Expecting"),
            ("a.parquet", "", "ending '.parquet'"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_named_with_its_option(self, tmp_path, name, text, says):
        """S3-60: the message names the option, the file and what is wrong with it."""
        (tmp_path / name).write_text(text)
        with pytest.raises(ExperimentError, match=rf"(?s)--data_file.*{name}.*{says}"):
            read_file(str(tmp_path / name), E2E)

    def test_a_file_that_is_not_there(self):
        """S3-60: so does the one for a file that is not there."""
        with pytest.raises(ExperimentError, match=r"cannot read --data_file 'gone\.csv'"):
            read_file("gone.csv", E2E)


class TestGroups:
    def test_a_source_is_one_prompt_with_all_its_references(self):
        """Multi-reference: equal texts count once, and the order is that of the samples."""
        rows = [Example("m", "x"), Example("n", "y"), Example("m", "x"), Example("m", "z")]
        assert grouped(rows) == [Prompt("m", ("x", "z")), Prompt("n", ("y",))]

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1), st.integers(0, 3))
    def test_no_source_is_learnt_and_held_out(self, pairs, seed):
        """A division loses nothing, and no source stands on both sides."""
        rows = [Example(str(source), str(target)) for source, target in pairs]
        learnt, held = divided(rows, 0.2, seed)
        assert sorted(map(repr, learnt + held)) == sorted(map(repr, rows))
        assert {row.source for row in learnt}.isdisjoint(row.source for row in held)
        assert learnt
        if len({row.source for row in rows}) > 1:
            assert held

    def test_zero_samples_are_all_of_them(self):
        """S3-02, S3-57: --num_samples 0 takes everything; another number that many."""
        rows = [Example(str(at), "x") for at in range(9)]
        assert sorted(map(repr, sampled(rows, 0, 1))) == sorted(map(repr, rows))
        assert len(sampled(rows, 4, 1)) == 4

    def test_the_seed_decides_which(self):
        """S3-13: the same seed takes the same samples in the same order."""
        rows = made_examples(E2E, 50, seed=0)
        assert sampled(rows, 10, 42) == sampled(rows, 10, 42) != sampled(rows, 10, 43)


class TestTokens:
    def test_the_loss_is_on_the_answer_and_on_its_end(self, tokenizer):
        """The prompt is in no loss; the end of the text is, so that the model learns to stop."""
        found = encoded(tokenizer, E2E, Example("a", "b"), 64)
        prompt = len(tokenizer("a\nText:")["input_ids"])
        assert found.labels[:prompt] == (IGNORED,) * prompt
        assert tokenizer.decode(found.labels[prompt:]) == " b</s>"
        assert found.input_ids[prompt:] == found.labels[prompt:]

    def test_a_prompt_is_the_same_in_training_and_evaluation(self, tokenizer):
        """Also where it is cut: what was learnt is what is asked."""
        sample = Example("x" * 200, "y" * 200)
        asked = prompt_ids(tokenizer, SAMSUM, sample.source, 64)
        learnt = encoded(tokenizer, SAMSUM, sample, 64)
        assert list(learnt.input_ids[: len(asked)]) == asked
        assert set(learnt.labels[: len(asked)]) == {IGNORED}
        assert len(learnt.input_ids) == 64
        assert learnt.cut

    def test_a_long_prompt_keeps_its_last_line(self, tokenizer):
        """S3-03: three quarters of --max_length, the beginning token and the end of the prompt."""
        ids = prompt_ids(tokenizer, SAMSUM, "x" * 200, 64)
        assert len(ids) == 48
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids).endswith("x\nSummary:")

    def test_padding_is_in_no_loss_and_the_end_is(self):
        """With padding that has the id of the end, only the padding is left out."""
        rows = [{"input_ids": (5, 2), "labels": (5, 2)}, {"input_ids": (6,), "labels": (6,)}]
        batch = together(rows, pad=2)
        assert batch["labels"].tolist() == [[5, 2], [6, IGNORED]]
        assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]

    def test_prompts_are_padded_on_the_left(self):
        """Every prompt ends where its answer begins."""
        ids, mask = left_padded([[5], [6, 7]], pad=2)
        assert ids.tolist() == [[2, 5], [6, 7]]
        assert mask.tolist() == [[0, 1], [1, 1]]


class TestSources:
    def config(self, **data):
        """Settings with some of their data's changed."""
        config = ExperimentConfig()
        for name, value in data.items():
            setattr(config.data, name, value)
        return config

    def test_a_file_comes_first_and_lends_its_held_out_part_to_the_scores(self, tmp_path):
        """S3-23: with --data_file nothing else is looked for; what is held out is scored."""
        rows = [{"mr": f"name[{at}]", "ref": f"{at}."} for at in range(10)]
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        found = samples_of(self.config(data_file=str(path)))
        assert (len(found.train), len(found.validation), len(found.test)) == (8, 2, 2)
        assert {item.source for item in found.test} == {item.source for item in found.validation}
        assert (found.source, found.tested_on) == (
            "file rows.jsonl",
            "the samples that are held out",
        )

    def test_the_local_cache_comes_before_the_hub(self, tmp_path, monkeypatch):
        """What `datasets` has prepared before is read without a network, references together."""
        cache_the_data(tmp_path)
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
        found = samples_of(self.config(num_samples=0))
        assert len(found.train) + len(found.validation) == 40
        assert found.source == "tuetschek/e2e_nlg (train), from the local cache"
        assert {len(prompt.references) for prompt in found.test} == {2}

    @pytest.mark.parametrize(("dataset", "branch"), [(E2E, "refs/convert/parquet"), (SAMSUM, None)])
    def test_a_hub_out_of_reach_ends_in_advice(self, tmp_path, monkeypatch, dataset, branch):
        """S3-60: the message names the data set, --data_file, and the cache to clear."""
        import datasets

        asked = []

        def unreachable(name, split, revision):
            asked.append((name, split, revision))
            raise ConnectionError("no network")

        monkeypatch.setattr(datasets, "load_dataset", unreachable)
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
        with pytest.raises(ExperimentError, match=r"no network\n.*--data_file") as caught:
            samples_of(self.config(dataset_type=dataset))
        assert str(tmp_path / asked[0][0].replace("/", "___")) in str(caught.value)
        assert asked[0][1:] == ("train", branch)

    def test_tiny_random_needs_nothing(self):
        """S3-14: texts are made; no text that is scored was learnt."""
        config = self.config(num_samples=0)
        config.model.model_id = "tiny-random"
        found = samples_of(config)
        assert len(found.train) + len(found.validation) == 600
        assert found.test
        learnt = {item.source for item in found.train}
        assert learnt.isdisjoint(item.source for item in found.test)

    def test_a_number_of_prompts_is_a_number_of_different_ones(self, tmp_path):
        """S3-18: --eval_samples counts prompts, and each comes with all its references."""
        path = tmp_path / "rows.csv"
        path.write_text("mr,ref\n" + "".join(f"m{at // 3},r{at}\n" for at in range(12)))
        config = self.config(test_file=str(path))
        config.evaluation.num_samples = 2
        found, tested_on = prompts_of(config)
        assert [len(prompt.references) for prompt in found] == [3, 3]
        assert tested_on == "file rows.csv"
