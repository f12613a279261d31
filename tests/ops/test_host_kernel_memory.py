"""The kernel for a CPU under the address and undefined-behaviour sanitizers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moetrace.ops.host_form import has_host_kernel

ROOT = Path(__file__).parents[2]
SANITIZED = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

sys.path.insert(0, ".")
from hatch_build import build_host_kernel

name, folder = "moetrace.ops._host_kernel", Path(sys.argv[1])
# The form for any CPU: that for this machine's own is what all other tests run.
flags = ("-DFOR_EACH_CPU=", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
library = build_host_kernel(Path(), folder, folder / "objects", *flags)
spec = spec_from_file_location(name, library)
sys.modules[name] = module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
tests = ["tests/ops/test_host_form.py", "-k", "any_forward or worked"]
sys.exit(pytest.main(["-qxs", "-p", "no:cacheprovider", *tests]))
"""


def runtime_of(sanitizer):
    """Where the compiler keeps the library that has to be loaded before everything else."""
    asked = ["gcc", f"-print-file-name=lib{sanitizer}.so"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no gcc")
    path = Path(done.stdout.strip())
    if not path.is_absolute():
        pytest.skip(f"gcc comes without lib{sanitizer}")
    return path


def ran(command, environment):
    """Whether a command can be run, and succeeds."""
    try:
        return subprocess.run(command, env=environment, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not has_host_kernel(), reason="built without a C compiler")
@pytest.mark.skipif(not (ROOT / "hatch_build.py").exists(), reason="needs the source tree")
def test_reads_and_writes_only_what_it_was_given(tmp_path):
    """No byte outside the tensors is touched and no operation is undefined, on any forward."""
    runtimes = [str(runtime_of("asan")), str(runtime_of("ubsan"))]
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # of Python itself
        "OMP_NUM_THREADS": "1",
    }
    # Laid out at random, what a process loads may lie where the sanitizer keeps its own.
    fixed = ["setarch", "-R"] if ran(["setarch", "-R", "true"], None) else []
    if not ran([*fixed, sys.executable, "-c", ""], environment):
        pytest.skip("a process does not start under the sanitizers here")
    command = [*fixed, sys.executable, "-c", SANITIZED, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
