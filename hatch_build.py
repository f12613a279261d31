"""Builds the kernel for a CPU along with the package, where there is a C compiler.

Without one the package is complete all the same: `moetrace.ops.host_form` counts by numpy instead,
exactly but slower. ``CC=false pip install .`` leaves the kernel out on purpose.
"""

import sysconfig
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension

PLACE = Path("moetrace", "ops")


class HostKernelHook(BuildHookInterface[Any]):
    """Puts ``_host_kernel.abi3.so`` beside its source, or into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it gathers the files of a wheel."""
        self._folders = ExitStack()
        editable = version == "editable"
        folder = Path(self.root, "src") if editable else self._temporary()
        try:
            library = build_host_kernel(Path(self.root), folder, self._temporary())
        except (Exception, SystemExit) as error:
            self.app.display_warning(f"the kernel for a CPU was not built: {error}")
            return
        if not editable:
            build_data["force_include"][str(library)] = str(PLACE / library.name)
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"cp311-abi3-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling once the wheel is written."""
        self._folders.close()

    def _temporary(self) -> Path:
        return Path(self._folders.enter_context(TemporaryDirectory()))


def build_host_kernel(root: Path, folder: Path, objects: Path, *flags: str) -> Path:
    """Compile the kernel into a tree of packages below ``folder``; the path of what was built."""
    extension = Extension(
        "moetrace.ops._host_kernel",
        [str(root / "src" / PLACE / "_host_kernel.c")],
        depends=[str(root / "src" / PLACE / "_host_lanes.h")],
        extra_compile_args=["-O3", "-g0", "-fno-math-errno", "-Wno-psabi", *flags],
        extra_link_args=[*flags],
        py_limited_api=True,
    )
    command = Distribution({"ext_modules": [extension]}).get_command_obj("build_ext")
    command.build_lib = str(folder)  # type: ignore[attr-defined]
    command.build_temp = str(objects)  # type: ignore[attr-defined]
    command.ensure_finalized()
    command.run()
    (library,) = (folder / PLACE).glob("_host_kernel*.so")
    return library
