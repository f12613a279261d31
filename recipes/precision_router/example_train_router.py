"""The same training on little data: ``example_train_router.py --model_path DIR``."""

import sys
from collections.abc import Sequence

from layerwise.options import example_parser
from layerwise.program import log_to_console, run_program

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    options = example_parser().parse_args(arguments)
    log_to_console(debug=options.debug)

    def work() -> None:
        from layerwise.training import train_router

        train_router(options)

    return run_program(work)


if __name__ == "__main__":
    sys.exit(main())
