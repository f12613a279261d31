import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from moetrace.sinks import (
    CallableSink,
    MemorySink,
    MlflowSink,
    TensorBoardSink,
    TrackioSink,
    WandbSink,
)
from moetrace.sinks.recognised import recognised


class Logger:
    """An object with ``log``."""

    def log(self, row: dict[str, Any]) -> None:
        """Take a row."""


class Writer:
    """An object with ``add_scalar``, and with the ``close`` that every writer has."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Take a scalar."""

    def close(self) -> None:
        """Close."""


class TestRecognised:
    def test_a_sink_is_what_it_is(self) -> None:
        """S1-17: any sink of moetrace, or of your own, is taken as it is."""
        sink = MemorySink()
        assert recognised(sink) is sink
        assert isinstance(recognised(CallableSink(print)), CallableSink)

    def test_the_wandb_module_is_a_sink_for_its_run(self) -> None:
        """S1-17: ``logger=wandb``, as the seeds write it."""
        assert isinstance(recognised(pytest.importorskip("wandb")), WandbSink)

    def test_a_wandb_run_is_taken(self) -> None:
        """S1-17: a run, by the package that its class comes from."""
        pytest.importorskip("wandb")
        from wandb.sdk.wandb_run import Run

        assert isinstance(recognised(object.__new__(Run)), WandbSink)

    def test_a_summary_writer_is_taken(self, tmp_path: Path) -> None:
        """S1-17: TensorBoard's own writer."""
        tensorboard = pytest.importorskip("torch.utils.tensorboard")
        with tensorboard.SummaryWriter(str(tmp_path)) as writer:
            assert isinstance(recognised(writer), TensorBoardSink)

    def test_an_mlflow_run_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run, by the package that its class comes from."""
        mlflow = pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(tmp_path.as_uri())
        info = mlflow.entities.RunInfo("a" * 32, "0", "me", "RUNNING", 0, None, "active")
        run = mlflow.entities.Run(info, mlflow.entities.RunData())
        sink = recognised(run)
        mlflow.set_tracking_uri("")
        assert isinstance(sink, MlflowSink)
        assert sink.run_id == "a" * 32

    def test_a_trackio_run_is_taken(self) -> None:
        """A run, by the package that its class comes from."""
        pytest.importorskip("trackio")
        from trackio.run import Run

        assert isinstance(recognised(object.__new__(Run)), TrackioSink)

    def test_anything_else_by_what_it_can_do(self) -> None:
        """S1-17: ``add_scalar`` is a writer of TensorBoard's kind, ``log`` is a run of W&B's."""
        assert isinstance(recognised(Writer()), TensorBoardSink)
        assert isinstance(recognised(Logger()), WandbSink)

    def test_a_fake_module_is_taken_too(self) -> None:
        """S1-17: a stand-in for the wandb module needs its name and ``log``."""
        fake = ModuleType("wandb")
        fake.run = Logger()  # type: ignore[attr-defined]
        assert isinstance(recognised(fake), WandbSink)

    @pytest.mark.parametrize("thing", [3, "wandb", object(), None])
    def test_says_what_is_taken(self, thing: object) -> None:
        """What is no logger is refused where it was passed, with what to do."""
        with pytest.raises(TypeError, match="a sink has write"):
            recognised(thing)

    def test_a_function_is_told_of_its_wrapper(self) -> None:
        """A function may be meant in more than one way; ``CallableSink`` says which."""
        with pytest.raises(TypeError, match="wrap the function in CallableSink"):
            recognised(print)

    def test_imports_no_tracker_to_find_out(self) -> None:
        """Whoever passes a W&B run has imported wandb; nobody else pays for it."""
        code = (
            "import sys; from moetrace.sinks import MemorySink;"
            "from moetrace.sinks.recognised import recognised; recognised(MemorySink());"
            "print([n for n in ('wandb', 'mlflow', 'trackio', 'tensorboard', 'torch')"
            " if n in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.strip() == "[]"
