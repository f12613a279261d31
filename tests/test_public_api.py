"""What may be imported, what an import costs, and what the command says about itself."""

import argparse
import ast
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import moetrace
import moetrace.cli
from tests.report.made import recorded, stats, window

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "numpy", "rich", "transformers", "safetensors", "orjson", "matplotlib")

COMMANDS = (
    *("check", "compare", "demo", "doctor", "export", "inspect", "plot", "report", "serve", "show"),
    *("sync", "watch"),
)


def imported_by(code: str, names: tuple[str, ...] = HEAVY) -> set[str]:
    """Those of ``names`` that a fresh interpreter has imported after running ``code``."""
    look = f"import sys, json; print(json.dumps([n for n in {names!r} if n in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{look}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


class TestExports:
    def test_all_is_the_lazy_table(self) -> None:
        """Every public name has a home, and nothing else has one."""
        assert sorted(moetrace._HOMES) == sorted(moetrace.__all__)

    def test_all_is_what_type_checkers_see(self) -> None:
        """The names imported for type checkers are the public ones."""
        tree = ast.parse(Path(moetrace.__file__).read_text())
        (checked,) = (node for node in tree.body if isinstance(node, ast.If))
        imports = (node for node in checked.body if isinstance(node, ast.ImportFrom))
        homes = {name.name: node.module for node in imports for name in node.names}
        assert homes == moetrace._HOMES

    @pytest.mark.parametrize("name", moetrace.__all__)
    def test_every_name_resolves(self, name: str) -> None:
        """A public name can be had from the package, and ``dir`` shows it."""
        assert getattr(moetrace, name) is not None
        assert name in dir(moetrace)

    @pytest.mark.parametrize("name", moetrace.__all__)
    def test_every_name_is_public_where_it_lives(self, name: str) -> None:
        """Its home lists it, so that there is no second, private spelling of it."""
        home = sys.modules[moetrace._HOMES[name]] if getattr(moetrace, name) else None
        assert home is not None
        assert name in home.__all__

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        """A mistyped name says so, as with any module."""
        with pytest.raises(AttributeError, match="module 'moetrace' has no attribute 'atach'"):
            moetrace.atach  # noqa: B018 - the access is the test

    def test_adapters_is_no_package(self) -> None:
        """``adapters/`` has no ``__init__.py``: it would shadow the PyPI package of that name."""
        assert not (ROOT / "adapters" / "__init__.py").exists()


class TestImportCost:
    def test_import_moetrace_imports_nothing_heavy(self) -> None:
        """``import moetrace`` brings neither torch nor any other dependency."""
        assert imported_by("import moetrace") == set()

    def test_the_check_can_fail(self) -> None:
        """Touching ``attach`` does bring torch and numpy, so the look sees what it looks for."""
        assert imported_by("import moetrace; moetrace.attach") >= {"torch", "numpy"}

    @pytest.mark.parametrize("command", ["check", "compare", "export", "inspect", "show", "report"])
    @pytest.mark.parametrize("form", ["text", "json"])
    def test_reading_a_run_imports_no_torch(self, command: str, form: str, tmp_path: Path) -> None:
        """The commands that read a run work on a machine that has no torch to speak of."""
        recorded(tmp_path / "run", window(1, 10, stats("mlp", [3, 1])))
        arguments = [command, str(tmp_path / "run"), *(["--json"] if form == "json" else [])]
        arguments += ["--rule", "load_cv < 9"] if command == "check" else []
        arguments += ["--format", "csv"] if command == "export" else []
        arguments[1:1] = [str(tmp_path / "run")] if command == "compare" else []
        code = f"from moetrace.cli import main; assert main({arguments!r}) == 0"
        assert imported_by(code, ("torch", "transformers")) == set()
        assert imported_by(code, ("numpy",)) == {"numpy"}

    def test_help_imports_nothing_heavy(self) -> None:
        """``moetrace --help`` needs argparse and nothing else."""
        code = (
            "import contextlib\nfrom moetrace.cli import main\n"
            "with contextlib.suppress(SystemExit): main(['--help'])"
        )
        assert imported_by(code) == set()

    def test_help_takes_less_than_a_third_of_a_second(self) -> None:
        """``moetrace --help`` answers in under 0.3 s of CPU time (the best of three)."""

        def cpu_seconds() -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-m", "moetrace", "--help"],
                check=True,
                capture_output=True,
                timeout=60,
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        assert min(cpu_seconds() for _ in range(3)) < 0.3


class TestCommands:
    def test_are_these(self) -> None:
        """A command that is added here is added to the README as well."""
        assert sorted(subcommands()) == sorted(COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_has_help_and_json(self, command: str) -> None:
        """Each says what it does, explains every option, and takes ``--json``."""
        parser = subcommands()[command]
        assert parser.description
        assert all(action.help for action in parser._actions)
        assert "--json" in parser._option_string_actions

    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_is_in_the_readme(self, command: str) -> None:
        """The README's table names it, with the options that are its own."""
        row = next(
            line
            for line in (ROOT / "README.md").read_text().splitlines()
            if line.startswith("|") and f"`moetrace {command}" in line
        )
        assert len(row.split("|")[2].strip()) > 10


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command by its name."""
    (group,) = (
        action
        for action in moetrace.cli.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return group.choices
