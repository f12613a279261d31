"""Every reader that is shipped, and each that our pages tell people to write, keeps a contract."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import moetrace
from moetrace.readers import LookupReader, RouterReader
from moetrace.readers.bare_gate import BareGateReader, ExpertsCallReader
from moetrace.readers.choice_rule import ChoiceRule, Step
from tests.readers import contract, hand_written, hand_written_routers, tonight
from tests.readers.hand_written import D, E

SCORES = torch.tensor(
    [
        [5.0, 4.0, 0.0, -1.0, -2.0, -3.0],
        [0.0, 1.0, 6.0, 7.0, 2.0, 3.0],
        [9.0, -1.0, -2.0, -3.0, 8.0, -4.0],
    ]
)
"""What each router below makes of its three tokens."""
HIDDEN = torch.cat([SCORES, torch.zeros(3, D - E)], 1)
HIGHEST_TWO = [{0, 1}, {2, 3}, {0, 4}]
ABOVE_ZERO = [{0, 1}, {1, 2, 3, 4, 5}, {0, 4}]
HIGHEST = [{0}, {3}, {0}]
BY_TWO_OF_EACH = [{0, 1, 2, 3, 5}, {1, 2, 3, 4, 5}, {0, 4}]
"""The two tokens that each expert likes best by its share of their probability, by hand."""
ROOT = Path(__file__).parents[2]


def gate():
    """A layer whose logits are the first entries of its input."""
    layer = nn.Linear(D, E, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(E, D))
    return layer


def routes(name, chosen, *, scores=True, **options):
    """The built-in reader on a router of that class."""
    router = getattr(hand_written_routers, name)().eval()
    router.layer = gate()
    reader = RouterReader(E, **options)
    return contract.Case(reader, router, (HIDDEN,), chosen, E, shows_scores=scores)


def called():
    """Experts that are called with the choice."""
    ids = torch.tensor([[0, 1], [3, 2], [4, 0]])
    return contract.Case(
        ExpertsCallReader(E, top_k=2),
        hand_written.Stacked(),
        (HIDDEN,),
        HIGHEST_TWO,
        E,
        {"expert_weights": torch.full((3, 2), 0.5), "expert_ids": ids},
        shows_scores=False,
    )


def looked_up():
    """Experts as rows of a table."""
    ids = torch.tensor([[0, 1], [3, 2], [4, 0]])
    table = nn.Embedding(E, D)
    return contract.Case(LookupReader(), table, (ids,), HIGHEST_TWO, E, shows_scores=False)


def documented(page):
    """The reader that a page shows, as it stands there, on a gate of 8 experts."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(class GateReader:.*?)\n\n", text, re.DOTALL)
    return written(block, 8)


def remedy():
    """The reader that a near miss comes with."""
    (site,) = moetrace.discover(nn.Sequential(tonight.StackedInline()))
    return written(site.remedy, E)


def written(text, experts):
    """A reader of the user's, from its text."""
    names = {"moetrace": moetrace}
    exec(text, names)
    layer = nn.Linear(D, experts, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(experts, D))
    hidden = HIDDEN - torch.tensor([0.0] * E + [99.0] * (D - E))
    return contract.Case(names["GateReader"](), layer, (hidden,), HIGHEST_TWO, experts, raises=True)


CASES = {
    "ids": lambda: routes("WeightsIdsLogits", HIGHEST_TWO, top_k=2),
    "ids in a dict": lambda: routes("InADict", HIGHEST_TWO),
    "ids in a dataclass": lambda: routes("InADataclass", HIGHEST_TWO, scores_index=2),
    "ids and no scores": lambda: routes("IdsWeights", HIGHEST_TWO, scores=False),
    "ids without an axis": lambda: routes("Flat", HIGHEST, scores=False),
    "a map with zeros": lambda: routes("Sparse", HIGHEST_TWO, scores=False, map_indices=(0,)),
    "a map of flags": lambda: routes("Relu", ABOVE_ZERO, scores=False, map_indices=(0,)),
    "a limit": lambda: routes("Limited", HIGHEST, limit=1, scores_index=2),
    "experts choose": lambda: routes("ByTwo", BY_TWO_OF_EACH, scores=False, by_experts=True),
    "a bare gate": lambda: contract.Case(
        BareGateReader(E, ChoiceRule(2, (Step("softmax"),))), gate(), (HIDDEN,), HIGHEST_TWO, E
    ),
    "experts that are called": called,
    "tables": looked_up,
    "docs/readers.md": lambda: documented("docs/readers.md"),
    "the remedy of a near miss": remedy,
}


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES)
def test_keeps_the_contract(case, check):
    """One promise, kept by one reader."""
    check(CASES[case]())
