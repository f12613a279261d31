"""What is installed: metadata, files and entry points, from the tree or from the wheel.

`.ci/test-wheel` runs this file on an installed wheel, where the source tree does not exist.
"""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution, entry_points, version
from importlib.resources import files
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

import moetrace
from moetrace.ops.fused import operator_form
from moetrace.sinks import ConsoleSink, MemorySink
from tests.tiny import ScriptedModel

ROOT = Path(__file__).parents[1]
WHEEL = os.environ.get("MOETRACE_TESTS_OF_WHEEL")


class TestInstalled:
    def test_version_is_that_of_the_metadata(self) -> None:
        """``moetrace.__version__``, the metadata and ``moetrace --version`` agree."""
        assert moetrace.__version__ == version("moetrace")
        done = subprocess.run(
            [sys.executable, "-m", "moetrace", "--version"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout == f"moetrace {moetrace.__version__}\n"

    @pytest.mark.parametrize(
        ("package", "file"),
        [
            ("moetrace", "py.typed"),
            ("moetrace_adapters", "py.typed"),
            ("moetrace.compare", "page.css"),
            ("moetrace.report", "page.html"),
            ("moetrace.report", "page.css"),
            ("moetrace.report", "page.js"),
            ("moetrace.report", "vendor/uPlot.iife.min.js"),
            ("moetrace.report", "vendor/LICENSE.uPlot"),
        ],
    )
    def test_files_that_are_no_code_are_there(self, package: str, file: str) -> None:
        """Types are seen by dependents, and the page's parts lie beside its code."""
        assert files(package).joinpath(*file.split("/")).is_file()

    @pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
    def test_the_kernel_for_a_cpu_is_there(self) -> None:
        """Where there is a compiler, what is installed counts on a CPU by the kernel."""
        assert operator_form(torch.device("cpu")) == "host kernel"

    def test_the_command_is_an_entry_point(self) -> None:
        """``moetrace`` on the command line is `moetrace.cli.main`."""
        (script,) = entry_points(group="console_scripts", name="moetrace")
        assert script.value == "moetrace.cli:main"

    def test_sinks_have_names(self) -> None:
        """A sink of ours can be named by a string, and the name leads to it."""
        found = {point.name: point.load() for point in entry_points(group="moetrace.sinks")}
        assert found["console"] is ConsoleSink

    def test_needs_only_four_packages(self) -> None:
        """Everything beyond torch, numpy, safetensors and orjson is an extra."""
        needs = [need for need in distribution("moetrace").requires or () if "extra ==" not in need]
        names = {need.split(">=")[0].strip() for need in needs}
        assert names == {"torch", "numpy", "safetensors", "orjson"}

    def test_licences_travel_along(self) -> None:
        """Our licence and that of what we carry are part of what is installed."""
        licences = distribution("moetrace").metadata.get_all("License-File")
        assert licences == ["LICENSE", "src/moetrace/report/vendor/LICENSE.uPlot"]

    def test_traces_a_model_into_a_run_that_can_be_read(self, tmp_path: Path) -> None:
        """Attach, a step, a run folder, its report: the main job works where this is installed."""
        model, sink = ScriptedModel([[0, 1], [0, 2], [0, 3]], num_experts=4), MemorySink()
        with moetrace.attach(model, tmp_path / "run", every=1, sinks=[sink]) as tracer:
            tracer.on_step_begin()
            model(torch.zeros(3, 4))
            tracer.on_step_end()
        run = moetrace.open_run(tmp_path / "run")
        assert run.counts().tolist() == [[[3, 1, 1, 1]]]
        assert sink.snapshots[0].routing[0].tokens_per_expert.tolist() == [3, 1, 1, 1]
        assert moetrace_report(tmp_path / "run").is_file()


def moetrace_report(run: Path) -> Path:
    """The page that the command writes."""
    done = subprocess.run(
        [sys.executable, "-m", "moetrace", "report", run],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return Path(done.stdout.strip())


@pytest.mark.skipif(WHEEL is not None, reason="needs the source tree")
class TestBuiltWithoutACompiler:
    def test_is_whole_but_for_the_kernel(self, tmp_path: Path) -> None:
        """A compiler that fails costs the kernel alone; the wheel says that it runs anywhere."""
        build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path]
        done = subprocess.run(
            [*map(str, build), str(ROOT)],
            env={**os.environ, "CC": "false"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "the kernel for a CPU was not built: " in done.stdout + done.stderr
        (wheel,) = tmp_path.iterdir()
        assert wheel.name == f"moetrace-{moetrace.__version__}-py3-none-any.whl"
        names = ZipFile(wheel).namelist()
        assert "moetrace/ops/host_arrays.py" in names
        assert not [name for name in names if name.endswith(".so")]


@pytest.mark.skipif(WHEEL is None, reason="only .ci/test-wheel installs a wheel to look at")
class TestWheel:
    def test_is_what_is_imported(self) -> None:
        """The package under test comes out of the wheel, and there is no source tree."""
        assert WHEEL is not None
        assert Path(moetrace.__file__).is_relative_to(WHEEL)
        assert Path(str(files("moetrace_adapters"))).is_relative_to(WHEEL)
        assert not (ROOT / "src").exists()
        assert not (ROOT / "adapters").exists()

    def test_holds_the_two_packages_and_nothing_else(self) -> None:
        """No test, benchmark or recipe is installed into anybody's site-packages."""
        recorded = distribution("moetrace").files or []
        tops = {path.parts[0] for path in recorded if path.parts[0] != ".."}
        assert {top for top in tops if not top.endswith(".dist-info")} == {
            "moetrace",
            "moetrace_adapters",
        }
