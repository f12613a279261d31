"""The faults, as replacements in the text of the library."""

import shutil
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        name: What is wrong with it.
        file: Where, below ``src/moetrace``.
        found: The text that is right, there exactly once.
        planted: What stands there instead.
    """

    name: str
    file: str
    found: str
    planted: str

    def write(self, folder: Path) -> None:
        """Copy the library into ``folder`` with this fault in it."""
        shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        path = folder / "moetrace" / self.file
        text = path.read_text()
        assert text.count(self.found) == 1, (
            f"{self.name}: {self.found!r} is not in {self.file} once"
        )
        path.write_text(text.replace(self.found, self.planted))


OPERATOR, PROBE = "ops/library.py", "probes/routing.py"

MUTANTS = (
    Mutant("the recompute rule is dropped", OPERATOR, "    if in_backward():\n", "    if False:\n"),
    Mutant(
        "grad mode alone decides",
        OPERATOR,
        "    if in_backward():\n",
        "    if grad:\n        return Bin.FIRST\n    if True:\n",
    ),
    Mutant(
        "a forward without gradients is always a first pass",
        OPERATOR,
        "return Bin.FIRST if grad else Bin.NO_GRAD",
        "return Bin.FIRST",
    ),
    Mutant(
        "one random number is drawn in the hook",
        PROBE,
        "        try:\n            routing =",
        "        torch.rand(1)\n        try:\n            routing =",
    ),
    Mutant(
        "tensor operations stand in the hook instead of one operator",
        PROBE,
        "add = count if plain else accumulate",
        # in the first pass only: selective checkpointing then hands out another operator's value
        "add = count\n        if torch._C._current_graph_task_id() == -1:\n"
        "            (_detached(routing.logits_TE) @ torch.ones(8, 8)).sum()",
    ),
    Mutant(
        "padding is counted",
        OPERATOR,
        "mask_T = mask_T.reshape(-1)",
        "mask_T = None and mask_T.reshape(-1)",
    ),
)

SOUND = Mutant("nothing is wrong", OPERATOR, "    if in_backward():\n", "    if in_backward():\n")
"""The control: the same small part of the matrix with a copy that has no fault."""
