"""The ``moetrace`` command: what was asked for; the work itself is done a floor below.

Exit codes: 0 fine, 1 ``doctor`` found something worse than a note or ``check`` a rule that does not
hold, 2 wrong use, said in one line on standard error.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

# Nothing else is imported here: each command imports what it needs, so that --help costs nothing.
from moetrace import __version__
from moetrace.errors import MoETraceError

__all__ = ["main", "parser"]

DEMO_RUN = "runs/demo"

LONGEST = 8192
"""Characters of a message or a path that are printed: more than the longest path of Linux."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
        arguments: What stands behind ``moetrace``; None takes it from the process.
    """
    options = _parsed(arguments)
    try:
        code = int(options.command(options))
        # What a closed pipe cannot take shows at the flush, and should show in here.
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, has what it wanted. The exit flushes once more, into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (MoETraceError, ValueError, OSError, ImportError) as error:
        from moetrace.printable import printable

        text = " ".join(str(error).split()) or type(error).__name__
        print(f"moetrace {options.name}: {printable(text, longest=LONGEST)}", file=sys.stderr)
        return 2
    return code


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``command``, the function that runs it."""
    whole = _OneLineParser(
        prog="moetrace",
        description="Know exactly what every router of a PyTorch model did.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"moetrace {__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", dest="name", required=True)

    demo = _add(commands, "demo", "train a small MoE on real text, traced, and report", _demo)
    demo.add_argument("--run", default=DEMO_RUN, help="folder of the run (default: %(default)s)")
    demo.add_argument(
        "--steps", type=_positive, help="optimizer steps (default: about a minute of them)"
    )

    inspect = _add(commands, "inspect", "what was recorded: routers, windows, health", _inspect)
    inspect.add_argument("run", metavar="RUN", help="folder of the run")

    doctor = _add(commands, "doctor", "what is wrong with a run, and what to do", _doctor)
    doctor.add_argument("run", metavar="RUN", help="folder of the run")
    doctor.epilog = "Exit code 0 when there is nothing worse than a note, 1 otherwise."

    show = _add(commands, "show", "the metrics of a window, layer by layer", _show)
    show.add_argument("run", metavar="RUN", help="folder of the run")
    show.add_argument("--phase", default="train", help="phase of the window (default: %(default)s)")
    show.add_argument("--step", type=int, help="an optimizer step in it (default: the last window)")

    report = _add(commands, "report", "one self-contained HTML page", _report)
    report.add_argument("run", metavar="RUN", help="folder of the run")
    report.add_argument("-o", "--out", help="file to write (default: RUN/report.html)")

    watch = _add(commands, "watch", "follow a run on the terminal while it goes on", _watch)
    watch.add_argument("run", metavar="RUN", help="folder of the run; it may not be there yet")
    watch.add_argument("--phase", help="phase to follow (default: train, or the first there is)")
    watch.add_argument(
        "--interval",
        type=_seconds,
        default=2.0,
        metavar="SECONDS",
        help="between two looks (default: %(default)s)",
    )
    watch.add_argument("--once", action="store_true", help="print one frame and end")

    serve = _add(commands, "serve", "the report as a page that renews itself", _serve)
    serve.add_argument("run", metavar="RUN", help="folder of the run")
    serve.add_argument(
        "--port", type=_port, default=0, help="port on 127.0.0.1 (default: a free one)"
    )

    check = _add(commands, "check", "hold rules against a run, for a pipeline", _check)
    check.add_argument("run", metavar="RUN", help="folder of the run")
    check.add_argument(
        "--rules", metavar="FILE", action="append", default=[], help="TOML file of rules"
    )
    check.add_argument(
        "--rule",
        metavar="RULE",
        action="append",
        default=[],
        help="a rule such as 'load_cv < 1.0', 'dead_experts == 0 after step 500'",
    )
    check.epilog = "Exit code 0 when every rule holds, 1 when one does not, 2 when one is no rule."

    compare = _add(commands, "compare", "runs side by side: what differs, beyond noise", _compare)
    compare.add_argument("runs", metavar="RUN", nargs="+", help="folders of two or more runs")
    compare.add_argument("--phase", default="train", help="phase to compare (default: %(default)s)")
    compare.add_argument("--step", type=int, help="a step of the windows shown (default: the last)")
    compare.add_argument("-o", "--out", help="also write one self-contained HTML file")

    plot = _add(commands, "plot", "a picture for a paper, PNG or SVG", _plot)
    plot.add_argument("run", metavar="RUN", help="folder of the run")
    plot.add_argument(
        "--kind",
        required=True,
        metavar="KIND",
        help="heatmap, experts, curves, usage, top-experts, coverage, hot-experts, rank, sub-keys, "
        "weights, gradients, gradient-heatmap, gradient-bars, gradient-steps, gradient-surface, "
        "gradient-wireframe, gradient-bars-3d",
    )
    plot.add_argument("-o", "--out", metavar="FILE", help=".png or .svg (default: RUN/KIND.png)")
    plot.add_argument(
        "--phase", default="train", help="phase of the windows (default: %(default)s)"
    )
    plot.add_argument("--step", type=int, help="a step of the window shown (default: the last)")
    plot.add_argument("--layers", default="*", metavar="GLOB", help="only layers that match")

    export = _add(commands, "export", "a run in other programs' formats", _export)
    export.add_argument("run", metavar="RUN", help="folder of the run")
    export.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        help="csv, json, parquet; perfetto; seed000 (router weights), seed001 (detailed logs), "
        "seed002 (expert usage), seed003 (gradient norms)",
    )
    export.add_argument("-o", "--out", metavar="DIR", help="folder (default: RUN/export)")
    export.add_argument(
        "--experts", action="store_true", help="tables: also a row per window, layer and expert"
    )

    sync = _add(
        commands, "sync", "replay a run into a sink, such as a tracker that was down", _sync
    )
    sync.add_argument("run", metavar="RUN", help="folder of the run")
    sync.add_argument(
        "--to", required=True, metavar="SINK", help="name of a sink, or module:factory of your own"
    )
    sync.add_argument(
        "--after",
        type=int,
        default=-1,
        metavar="STEP",
        help="only windows that end after this step",
    )
    return whole


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; runs may stand on both sides of one, as in ``compare A -o page.html B``."""
    whole = parser()
    options, rest = whole.parse_known_args(arguments)
    if options.name == "compare":
        # argparse fills a list from one stretch of arguments and leaves the next one over
        options.runs += [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        whole.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it. Subcommands inherit it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _add(commands: Any, name: str, text: str, command: Any) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    added.add_argument("--json", action="store_true", help="print one JSON document instead")
    added.set_defaults(command=command)
    return added


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; it takes a whole number of at least 1")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.1 <= number <= 86400:
        raise argparse.ArgumentTypeError(f"found {text!r}; it takes seconds, 0.1 to 86400")
    return number


def _port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}; it takes a port, 0 to 65535")
    return number


def _demo(options: argparse.Namespace) -> int:
    try:
        from moetrace.demo import main as run_demo

        return run_demo(options)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the demo needs {error.name}, which is not installed; "
            "pip install 'moetrace[demo]' brings it"
        ) from error


def _inspect(options: argparse.Namespace) -> int:
    from moetrace.run import open_run
    from moetrace.show import facts, show_facts

    run = open_run(options.run)
    if options.json:
        _print_json(facts(run))
    else:
        show_facts(run)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from moetrace.run import open_run
    from moetrace.show import diagnose_run, show_diagnosis

    diagnosis = diagnose_run(open_run(options.run))
    if options.json:
        _print_json(diagnosis.to_dict())
    else:
        show_diagnosis(diagnosis)
    return 0 if diagnosis.ok else 1


def _show(options: argparse.Namespace) -> int:
    from moetrace.run import open_run
    from moetrace.show import show_table, window_at, window_record

    run = open_run(options.run)
    if options.phase not in run.phases:
        known = ", ".join(run.phases) or "none yet: the first window is written when it closes"
        raise ValueError(f"found no phase {options.phase!r}; this run has {known}")
    snapshots = run.snapshots(phase=options.phase)
    if not snapshots:
        fault = run.faults[-1] if run.faults else "the run has changed since it was opened"
        raise ValueError(f"found no window of phase {options.phase!r} that can be read: {fault}")
    snapshot = window_at(snapshots, options.step)
    if options.json:
        _print_json(window_record(run, snapshot))
    else:
        show_table(run, snapshot)
    return 0


def _report(options: argparse.Namespace) -> int:
    from pathlib import Path

    from moetrace.printable import printable
    from moetrace.report import write_report
    from moetrace.run import open_run

    run = open_run(options.run)
    out = Path(options.out) if options.out else run.path / "report.html"
    try:
        written = write_report(run, out=out)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write {str(out)!r}: {reason}; name another file with -o") from error
    if options.json:
        _print_json({"run_id": run.run_id, "report": str(written)})
    else:
        print(printable(str(written), longest=LONGEST))
    return 0


def _watch(options: argparse.Namespace) -> int:
    try:
        from moetrace.watch import Follower, show_once, view_record, watch
    except ModuleNotFoundError as error:
        raise ImportError(
            f"watch needs {error.name}, which is not installed; "
            "pip install 'moetrace[terminal]' brings it"
        ) from error

    if options.json or options.once:
        view = Follower(options.run, phase=options.phase).refresh()
        if options.json:
            _print_json(view_record(view))
        else:
            show_once(view)
    else:
        watch(options.run, phase=options.phase, interval=options.interval)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from moetrace.serve import Server, serve

    def ready(server: Server) -> None:
        if options.json:
            _print_json({"run_id": server.pages.run_id, "url": server.url})
        else:
            print(f"{server.url}  (this machine only; Ctrl-C ends)")
        sys.stdout.flush()

    serve(options.run, port=options.port, ready=ready)
    return 0


def _check(options: argparse.Namespace) -> int:
    from moetrace.check import check_run, parse_rule, read_rules, show_check
    from moetrace.run import open_run

    rules = [rule for file in options.rules for rule in read_rules(file)]
    rules += [parse_rule(text) for text in options.rule]
    run = open_run(options.run)
    judgements = check_run(run, rules)
    holds = all(judgement.holds for judgement in judgements)
    if options.json:
        told = [judgement.to_dict() for judgement in judgements]
        record = {"run_id": run.run_id, "holds": holds, "rules": told}
        _print_json({**record, "faults": list(run.faults)})
    else:
        show_check(judgements, faults=run.faults)
    return 0 if holds else 1


def _compare(options: argparse.Namespace) -> int:
    from moetrace.compare import (
        compare_runs,
        comparison_record,
        show_comparison,
        write_comparison,
    )
    from moetrace.run import open_run

    runs = [open_run(path) for path in options.runs]
    comparison = compare_runs(runs, phase=options.phase, step=options.step)
    page = write_comparison(comparison, options.out) if options.out else None
    if options.json:
        faults = {str(run.path): list(run.faults) for run in runs}
        record = {**comparison_record(comparison), "page": page, "faults": faults}
        _print_json(record)
        return 0
    show_comparison(comparison, faults=[fault for run in runs for fault in run.faults])
    if page is not None:
        from moetrace.printable import printable

        print(f"\n{printable(str(page), longest=LONGEST)}")
    return 0


def _plot(options: argparse.Namespace) -> int:
    from pathlib import Path

    from moetrace.plot import write_plot
    from moetrace.printable import printable
    from moetrace.run import open_run

    run = open_run(options.run)
    out = Path(options.out) if options.out else run.path / f"{options.kind}.png"
    where = {"phase": options.phase, "step": options.step, "layers": options.layers}
    written = write_plot(run, out, kind=options.kind, **where)
    if options.json:
        record = {"run_id": run.run_id, "kind": options.kind, "plot": str(written)}
        _print_json({**record, "faults": list(run.faults)})
    else:
        print(printable(str(written), longest=LONGEST))
    return 0


def _export(options: argparse.Namespace) -> int:
    from moetrace.export import export_run
    from moetrace.printable import printable
    from moetrace.run import open_run

    run = open_run(options.run)
    out = options.out or run.path / "export"
    exported = export_run(run, out, form=options.format, experts=options.experts)
    if options.json:
        files = [str(path) for path in exported.files]
        record = {"run_id": run.run_id, "format": exported.form, "files": files}
        _print_json({**record, "rows": exported.rows, "faults": list(run.faults)})
    else:
        for path in exported.files:
            print(printable(str(path), longest=LONGEST))
    return 0


def _sync(options: argparse.Namespace) -> int:
    from moetrace.run import open_run
    from moetrace.sync import make_sink, sync_run

    run = open_run(options.run)
    synced = sync_run(run, make_sink(options.to), after=options.after)
    if options.json:
        record = {"run_id": run.run_id, "sink": options.to, "windows": synced.windows}
        _print_json({**record, "last_step": synced.last_step, "faults": list(run.faults)})
    else:
        up_to = "" if synced.last_step is None else f", up to step {synced.last_step}"
        print(f"sent {synced.windows} windows to {options.to}{up_to}")
    return 0


def _print_json(record: dict[str, Any]) -> None:
    import json

    print(json.dumps(_finite(record), indent=2, allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    """What JSON has no number for as the run folder spells it: ``{"$float": "nan"}``.

    Health, events and the manifest hold what anybody has put there.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
