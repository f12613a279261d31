"""What the tests of this recipe share: one quantised model and one text."""

from pathlib import Path

import pytest

from tests.recipes.precision_router import made


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.quantized(tmp_path_factory.mktemp("quantized"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(made.TEXT, encoding="utf-8")
    return path
