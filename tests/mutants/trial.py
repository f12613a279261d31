"""Run a small eager part of the matrix with each of the given copies of moetrace.

As a program: ``python -m tests.mutants.trial FOLDER...`` writes one JSON object: what the matrix
had to say about each folder. Torch and transformers are imported once, each copy has a fork.
"""

import json
import os
import sys
import warnings


def main(folders):
    """Try each folder in a process of its own."""
    import torch
    import transformers  # noqa: F401 - before the fork, since it takes seconds

    from tests.tiny import seeded

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seeded("Qwen3Moe")
    assert "moetrace" not in sys.modules
    json.dump({folder: forked(folder) for folder in folders}, sys.stdout)


def forked(folder):
    """What a child process with that copy on its path finds."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        try:
            said = faults(folder)
        except BaseException as error:
            said = [f"{type(error).__name__}: {error}"]
        with os.fdopen(writing, "w") as pipe:
            json.dump(said, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = json.load(pipe)
    os.wait()
    return said


def faults(folder):
    """What the matrix complains about in the first cell where it does; empty where all is right."""
    sys.path.insert(0, folder)
    import moetrace
    from tests.matrix import cell
    from tests.matrix.modes import CHECKPOINTED, Mode
    from tests.matrix.training import WORK

    assert moetrace.__file__.startswith(folder), moetrace.__file__
    cell.prepare()
    said = []
    for checkpointed in CHECKPOINTED:
        outcome = cell.run(Mode("Qwen3Moe", "eager", checkpointed), WORK[:2])
        if outcome.traced_error:
            said.append(f"{checkpointed}: {outcome.traced_error}")
        elif outcome.counted != outcome.truth:
            said.append(f"{checkpointed}: counts")
        if outcome.differing:
            said.append(f"{checkpointed}: bits of {len(outcome.differing)} tensors")
        if said:
            break
    return said


if __name__ == "__main__":
    main(sys.argv[1:])
