"""Train routers for several average precisions, and draw what each of them gives."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from layerwise.options import sweep_parser
from layerwise.program import log_to_console, run_program

__all__ = ["main"]

_log = logging.getLogger("layerwise")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    options = sweep_parser().parse_args(arguments)
    log_to_console(debug=options.debug)
    return run_program(lambda: _sweep(options))


def _sweep(options: argparse.Namespace) -> None:
    from layerwise.checkpoint import load_checkpoint, write_json
    from layerwise.evaluation import score_fixed, score_router
    from layerwise.frontier import Point, draw_frontier
    from layerwise.preparation import validation_examples
    from layerwise.trained import load_trained, unseen_pieces
    from layerwise.training import train_router

    folder = Path(options.save_dir)
    points: list[Point] = []
    for target in options.targets:
        one = argparse.Namespace(
            **{
                **vars(options),
                "objective": "target",
                "target_precision": target,
                "save_dir": str(folder / f"target_{target:g}"),
            }
        )
        saved = load_checkpoint(train_router(one))
        model = load_trained(options, saved)
        few = argparse.Namespace(
            **{**vars(options), "num_examples": max(1, validation_examples(options))}
        )
        test, _ = unseen_pieces(few, saved["config"], model)
        if not points:
            for bits in model.precisions:
                fixed = score_fixed(model, test, bits, batch_size=options.batch_size)
                points.append(Point("fixed", float(bits), fixed.cross_entropy, f"{bits} bit"))
        found = score_router(model, test, batch_size=options.batch_size)
        label = f"target {target:g}"
        points.append(Point("router", found.avg_precision, found.cross_entropy, label))
        _log.info("%s: %.2f bits, CE %.4f", label, found.avg_precision, found.cross_entropy)
        rows = [
            {
                "kind": point.kind,
                "label": point.label,
                "avg_precision": point.bits,
                "cross_entropy": point.cross_entropy,
            }
            for point in points
        ]
        write_json(rows, folder / "frontier.json")
        draw_frontier(points, folder / "frontier.png", title="Routers trained for a target")
    _log.info("Frontier saved: %s, %s", folder / "frontier.json", folder / "frontier.png")


if __name__ == "__main__":
    sys.exit(main())
