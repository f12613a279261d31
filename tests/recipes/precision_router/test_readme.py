"""The pages of the recipe, run as they stand, on less, on a local text and in other paths."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest
import train_layerwise_router
from layerwise import options as command_lines
from layerwise.tiny_model import tiny_llama

from moetrace.cli import main as moetrace_command
from tests.recipes.precision_router import made

RECIPE = Path(train_layerwise_router.__file__).parent
SIZES = ["--seq_len", "72", "--num_examples", "2", "--batch_size", "2"]
SMALLER = {
    "quantize.py": [],
    "train_layerwise_router.py": [*SIZES, "--num_epochs", "1"],
    "example_train_router.py": [*SIZES, "--num_epochs", "1"],
    "sweep_router.py": [*SIZES, "--num_epochs", "1"],
    "evaluate_router_vs_quantized.py": [*SIZES, "--swaps", "1"],
    "demo_router.py": shlex.split(
        "--teach_steps 1 --num_examples 2 --num_epochs 1 --test_examples 1 --swaps 1"
    ),
}


def blocks(page, language):
    """The fenced blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (RECIPE / page).read_text(), re.DOTALL)


def commands(page):
    """The command lines of a page, as words."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def run(words, text):
    """One command, in this process; on less, and on a local text."""
    if words[0] == "moetrace":
        return moetrace_command(words[1:])
    python, program, *rest = words
    assert python == "python"
    path = RECIPE / Path(program).name
    assert program == f"recipes/precision_router/{path.name}"
    data = ["--dataset", str(text)] if "--seq_len" in SMALLER[path.name] else []
    module = importlib.import_module(path.stem)
    return module.main([*rest, *SMALLER[path.name], *data])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, with the model that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    tiny_llama(width=16, layers=2).save_pretrained(tmp_path / "model")
    return tmp_path


def placed(value, place):
    """A word or a block with the paths of this place."""
    value = value.replace("/path/to/quantized/model", str(place / "quantized"))
    return value.replace("/path/to/model", str(place / "model"))


def test_the_first_command_needs_no_network(tmp_path, monkeypatch, capsys):
    """S4-23: README.md starts with one command, which makes model, routers and read-out."""
    monkeypatch.chdir(tmp_path)
    first = commands("README.md")[0]
    assert first == ["python", "recipes/precision_router/demo_router.py"]
    assert run(first, None) == 0
    assert "static bits per layer" in capsys.readouterr().out
    assert (tmp_path / "router_demo" / "readout" / "frontier.png").exists()


def test_every_command_and_example_of_the_readme_runs(place, text):
    """S4-11, S4-20, S4-24: in their order, each with what the one before has made."""
    for words in commands("README.md")[1:]:
        assert run([placed(word, place) for word in words], text) == 0
    (example,) = blocks("README.md", "python")
    exec(compile(placed(example, place), "README.md", "exec"), {"input_ids": made.tokens(2, 70)})


def test_every_command_and_example_of_the_training_page_runs(place, text):
    """S4-01, S4-05, S4-13: both trainings, and loading what they leave, as documented."""
    made.quantized(place / "quantized")
    for words in commands("README_router_training.md"):
        assert run([placed(word, place) for word in words], text) == 0
    (example,) = blocks("README_router_training.md", "python")
    ids = made.tokens(2, 70)
    names = {"input_ids": ids, "attention_mask": ids * 0 + 1}
    exec(compile(placed(example, place), "README_router_training.md", "exec"), names)
    assert names["output"].bits_BL.shape == (2, 2)


def test_every_option_is_explained():
    """S4-26, S4-27: each option of the training stands in its page, and so does the advice."""
    page = (RECIPE / "README_router_training.md").read_text()
    actions = command_lines.training_parser()._actions
    options = [name for action in actions for name in action.option_strings if len(name) > 2]
    assert [name for name in options if f"`{name}`" not in page and name != "--help"] == []
    for advice in ("Start small", "smaller `--batch_size`", "the two weights", "1e-4 is a careful"):
        assert advice in page
    assert "Look at `training_history.json`" in page
    assert "No speed-up is claimed" in (RECIPE / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((RECIPE / "layerwise").glob("*.py")), ids=lambda p: p.stem)
def test_every_worked_number_is_right(path):
    """S4-07: the examples in the docstrings say what the code does."""
    name = "layerwise" if path.stem == "__init__" else f"layerwise.{path.stem}"
    assert doctest.testmod(importlib.import_module(name)).failed == 0
