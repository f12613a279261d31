"""Every adapter is told what attach is told."""

import inspect

import pytest

from moetrace import attach
from moetrace.settings import load
from moetrace_adapters.accelerate import AcceleratedTrace
from moetrace_adapters.lightning import MoETraceCallback as LightningCallback
from moetrace_adapters.transformers import MoETraceCallback as TransformersCallback

OWN = {
    TransformersCallback: {"on_missing"},
    LightningCallback: {"on_missing", "log"},
    AcceleratedTrace: {"on_missing", "log", "accelerator", "model"},
}
"""What each adapter has beside it."""


class TestArguments:
    @pytest.mark.parametrize("adapter", OWN, ids=lambda adapter: adapter.__module__)
    def test_are_those_of_attach(self, adapter):
        """The same names, with the same defaults."""
        expected = {
            name: item.default
            for name, item in inspect.signature(attach).parameters.items()
            if name != "model"
        }
        given = inspect.signature(adapter).parameters
        assert OWN[adapter] <= given.keys()
        assert {n: p.default for n, p in given.items() if n not in OWN[adapter]} == expected

    @pytest.mark.parametrize("adapter", [TransformersCallback, LightningCallback])
    def test_come_from_settings(self, adapter):
        """The settings of a file or the environment are its keyword arguments."""
        settings = load(
            {"every": 7, "usage_threshold": 2.0}, environment={"MOETRACE_RUN": "runs/a"}
        )
        callback = adapter(**settings.attach_arguments())
        assert callback._session.settings.every == 7
        assert callback._session.settings.run == "runs/a"
        assert callback._session.settings.alerts == settings.alerts
