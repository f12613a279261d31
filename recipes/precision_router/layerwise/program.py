"""What every program of this recipe does around its work: log, device, and errors as exit codes."""

import logging
import random
from collections.abc import Callable

__all__ = ["device_of", "log_to_console", "run_program", "seed_everything"]

_log = logging.getLogger("layerwise")

_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def log_to_console(*, debug: bool = False) -> None:
    """Log lines as ``[12:34:56 | INFO] ...``; what the caller has set up before stays."""
    logging.basicConfig(
        level=logging.INFO, format="[%(asctime)s | %(levelname)s] %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if debug:
        _log.setLevel(logging.DEBUG)


def run_program(work: Callable[[], None]) -> int:
    """Do it; an error that a user can mend becomes one line and exit code 1."""
    import moetrace
    from layerwise.errors import RecipeError

    try:
        work()
    except (RecipeError, moetrace.MoETraceError) as error:
        _log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        _log.error("stopped; --resume goes on after the last whole epoch")
        return 130
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error)
        if not isinstance(error, MemoryError) and not any(m in text.lower() for m in _MEMORY):
            raise
        _log.error(
            "out of memory (%s); take a smaller --batch_size or --seq_len, --recompute, "
            "or --neighbours 2",
            text.splitlines()[0] if text else type(error).__name__,
        )
        return 1
    return 0


def seed_everything(seed: int) -> None:
    """Draw the same numbers in every run of the same program."""
    import torch

    random.seed(seed)
    torch.manual_seed(seed)


def device_of(name: str | None) -> str:
    """The device to use: the one asked for, else cuda where there is one, else the CPU.

    Raises:
        RecipeError: There is no such device.
    """
    import torch

    from layerwise.errors import RecipeError

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(
            f"found no --device {name} ({reason}); leave it out, or take cpu"
        ) from None
    return name
