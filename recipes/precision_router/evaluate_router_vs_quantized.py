"""Trained routers beside every fixed precision and the best fixed bits per layer."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from layerwise.options import evaluation_parser
from layerwise.program import log_to_console, run_program

__all__ = ["main"]

_log = logging.getLogger("layerwise")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    options = evaluation_parser().parse_args(arguments)
    log_to_console(debug=options.debug)
    return run_program(lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> None:
    from layerwise.checkpoint import load_checkpoint, write_json
    from layerwise.frontier import draw_frontier
    from layerwise.program import seed_everything
    from layerwise.readout import read_out
    from layerwise.routing_trace import ALERTS, collapse_of, layer_choices
    from layerwise.trained import load_trained, unseen_pieces
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    import moetrace
    from moetrace.sinks import MemorySink

    seed_everything(options.random_state)
    saved = load_checkpoint(options.router)
    model = load_trained(options, saved)
    test, calibration = unseen_pieces(options, saved["config"], model)
    most = len(model.precisions) + 1 + len(model.layers) * (len(model.precisions) - 1)
    windows = MemorySink()
    with (
        tqdm(total=most + 2 * options.swaps, desc="Measuring") as progress,
        moetrace.attach(model, sinks=[windows], layers=model.sites, alerts=ALERTS) as tracer,
    ):
        readout = read_out(
            model,
            test,
            calibration,
            batch_size=options.batch_size,
            swaps=options.swaps,
            advance=progress.update,
        )
        tracer.flush()
        progress.total = progress.n  # the search ends where no swap helps
    sys.stdout.write(f"{readout.table()}\n\n{readout.verdict()}\n")
    chosen = [window for window in windows.snapshots if window.phase == "eval"]
    choices = layer_choices(chosen, model.precisions)
    for choice, static in zip(choices, readout.static_bits, strict=True):
        sys.stdout.write(f"  {choice.line()}; static {static} bit\n")
    collapsed = collapse_of(choices)
    if collapsed is not None:
        _log.warning("%s", collapsed)
    folder = Path(options.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    layers = [choice.to_dict() for choice in choices]
    write_json({**readout.to_dict(), "layers": layers}, folder / "readout.json")
    picture = draw_frontier(
        readout.points(), folder / "frontier.png", title="Routers beside fixed bits"
    )
    _log.info("Read-out saved: %s, %s", folder / "readout.json", picture)


if __name__ == "__main__":
    sys.exit(main())
