"""What a person can mend, said in one line, and never a trace of calls."""

__all__ = ["ExperimentError", "is_out_of_memory", "out_of_memory_advice"]


class ExperimentError(Exception):
    """An experiment cannot go on; the message says what was found and what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the host.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    >>> is_out_of_memory(ValueError("shapes"))
    False
    """
    # torch's own class by its name: a mistake in an option is said without importing torch
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def out_of_memory_advice(*, batch_size: int, grad_accum: int, max_length: int) -> str:
    """The options that need less memory; the first leaves the result of a step as it is.

    >>> out_of_memory_advice(batch_size=4, grad_accum=4, max_length=128)
    'out of memory; try --batch_size 2 --grad_accum 8, or --max_length 64'
    """
    remedies = []
    if batch_size > 1:
        smaller = batch_size // 2
        more = -(-batch_size * grad_accum // smaller)
        remedies.append(f"--batch_size {smaller} --grad_accum {more}")
    remedies.append(f"--max_length {max(16, max_length // 2)}")
    return f"out of memory; try {', or '.join(remedies)}"
