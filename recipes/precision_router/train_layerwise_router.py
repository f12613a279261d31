"""Train routers that pick a precision per layer: ``train_layerwise_router.py MODEL_PATH``."""

import sys
from collections.abc import Sequence

from layerwise.options import training_parser
from layerwise.program import log_to_console, run_program

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    options = training_parser().parse_args(arguments)
    log_to_console(debug=options.debug)

    def work() -> None:
        from layerwise.training import train_router

        train_router(options)

    return run_program(work)


if __name__ == "__main__":
    sys.exit(main())
