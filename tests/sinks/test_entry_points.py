import importlib
import inspect
import tomllib
from pathlib import Path

import pytest

NAMES = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]["entry-points"]["moetrace.sinks"]


class TestEntryPoints:
    @pytest.mark.parametrize("name", NAMES)
    def test_each_name_is_a_sink_that_needs_no_arguments(self, name: str) -> None:
        """``--to NAME`` on a command line finds a class, and can make it."""
        module, _, attribute = NAMES[name].partition(":")
        sink = getattr(importlib.import_module(module), attribute)
        assert callable(sink.write)
        assert callable(sink.close)
        assert callable(sink.alert)
        inspect.signature(sink).bind()

    def test_every_tracker_has_a_name(self) -> None:
        """All sinks that need no function of the user's can be named."""
        assert set(NAMES) == {
            "console",
            "memory",
            "tensorboard",
            "wandb",
            "mlflow",
            "trackio",
            "prometheus",
        }
