"""What routers of nobody's may return: each shape with what a user has to see of it.

Six tokens, four experts, two per token; ``SCORES`` are finite and differ. The choice goes round:
token 0 to experts 0 and 1, token 1 to experts 2 and 3, so that each expert has three of the twelve.
"""

import dataclasses
import types
from collections import namedtuple

import torch

T, E, K = 6, 4, 2
IDS = torch.arange(T * K).reshape(T, K) % E
WEIGHTS = torch.full((T, K), 0.5)
SCORES = torch.linspace(-1.0, 1.0, T * E).reshape(T, E)
EVENLY = [3, 3, 3, 3]


@dataclasses.dataclass
class Record:
    """A dataclass of a router."""

    scores: object = None
    weights: object = None
    ids: object = None


Pair = namedtuple("Pair", "weights ids")


def nested(layout):
    """A nested tensor of two sequences."""
    return torch.nested.nested_tensor([SCORES[:2], SCORES[2:]], layout=layout)


def int8_scores():
    """Scores of a quantised layer."""
    return torch.quantize_per_tensor(SCORES, 0.1, 0, torch.qint8)


SKIPPED = {
    # nothing in it is a tensor
    "none": (lambda: None, "an output of None"),
    "a number": (lambda: 3, "an output of int"),
    "a string": (lambda: "experts 0 and 1", "an output of str"),
    "strings": (lambda: ("zero", "one"), "an output of (str, str)"),
    "an empty tuple": (lambda: (), "an output of tuple"),
    "an empty dict": (dict, "an output of dict"),
    "nones": (lambda: [None] * 3, "(None, None, None)"),
    "an object": (object, "an output of object"),
    "a generator": (lambda: (item for item in (SCORES, WEIGHTS, IDS)), "an output of generator"),
    "arrays of numpy": (lambda: (WEIGHTS.numpy(), IDS.numpy()), "(ndarray, ndarray)"),
    "lists of numbers": (lambda: ([0, 1], [0.5, 0.5]), "((int, int), (float, float))"),
    # tensors, and no tuple, dict or dataclass of them
    "a dict in a dict": (lambda: {"a": {"b": IDS}}, "(a: (b: int64[6, 2]))"),
    "deeper than one": (
        lambda: [[[SCORES, WEIGHTS, IDS]]],
        "(((float32[6, 4], float32[6, 2], int64",
    ),
    "a mapping": (lambda: types.MappingProxyType({"ids": IDS}), "an output of mappingproxy"),
    # tensors that are no choice
    "scores alone": (lambda: SCORES, "float32[6, 4]"),
    "probabilities alone": (lambda: SCORES.softmax(-1), "float32[6, 4]"),
    "a loss": (lambda: torch.tensor(1.0), "float32[]"),
    "an axis too few": (lambda: SCORES.sum(0), "float32[4]"),
    "an empty tensor": (lambda: torch.empty(0), "float32[0]"),
    "ids without weights": (lambda: IDS, "int64[6, 2]"),
    "ids and scores": (lambda: (SCORES, IDS), "(float32[6, 4], int64[6, 2])"),
    "ids of two routers": (lambda: (WEIGHTS, IDS, IDS), "int64[6, 2], int64[6, 2])"),
    "float ids": (lambda: (WEIGHTS, IDS.float()), "(float32[6, 2], float32[6, 2])"),
    "bool ids": (lambda: (WEIGHTS, IDS.bool()), "bool[6, 2]"),
    "complex ids": (lambda: (WEIGHTS, IDS.to(torch.complex64)), "complex64[6, 2]"),
    "more experts than exist": (
        lambda: (SCORES, torch.full((T, E + 1), 0.2), torch.arange(T * 5).reshape(T, 5) % E),
        "int64[6, 5]",
    ),
    "no expert": (lambda: (SCORES, WEIGHTS[:, :0], IDS[:, :0]), "int64[6, 0]"),
    "other weights": (lambda: (SCORES, torch.full((T, 3), 0.3), IDS), "float32[6, 3], int64[6, 2]"),
    "scores of other tokens": (lambda: (SCORES[:4], WEIGHTS, IDS), "(float32[4, 4], float32[6, 2]"),
    "ids of other tokens": (lambda: (SCORES, WEIGHTS[:3], IDS[:3]), "int64[3, 2]"),
    "a sparse map": (lambda: (SCORES > 0).to_sparse(), "sparse bool[6, 4]"),
    "sparse ids": (lambda: (WEIGHTS.to_sparse(), IDS.to_sparse()), "sparse int64[6, 2]"),
    "a nested tensor": (lambda: nested(torch.strided), "its reader raised RuntimeError"),
}
"""Skipped, and what the reason names."""

COUNTED = {
    "a list": (lambda: [SCORES, WEIGHTS, IDS], EVENLY, {}, set()),
    "a dict": (lambda: {"ids": IDS, "scores": SCORES, "weights": WEIGHTS}, EVENLY, {}, set()),
    "a dict of numbers": (lambda: {0: SCORES, 1: WEIGHTS, 2: IDS}, EVENLY, {}, set()),
    "a dataclass": (lambda: Record(SCORES, WEIGHTS, IDS), EVENLY, {}, set()),
    "a tuple in a tuple": (lambda: ((SCORES,), (WEIGHTS, IDS)), EVENLY, {}, set()),
    "a dataclass in one": (lambda: Record(Record(SCORES, WEIGHTS, IDS)), EVENLY, {}, set()),
    "a named tuple": (lambda: Pair(WEIGHTS, IDS), EVENLY, {"scoring": "none"}, set()),
    "ids of one byte": (lambda: (SCORES, WEIGHTS, IDS.to(torch.uint8)), EVENLY, {}, set()),
    "more axes": (lambda: (SCORES[None], WEIGHTS[None], IDS[None]), EVENLY, {}, set()),
    "half precision": (lambda: (SCORES.half(), WEIGHTS.half(), IDS), EVENLY, {}, set()),
    # scores that are none: the counts stand, and every entropy says why it is withheld
    "integer scores": (lambda: (SCORES.long(), WEIGHTS, IDS), EVENLY, {"scoring": "none"}, set()),
    "bool scores": (lambda: (SCORES > 0, WEIGHTS, IDS), EVENLY, {"scoring": "none"}, set()),
    "complex scores": (
        lambda: (torch.complex(SCORES, SCORES), WEIGHTS, IDS),
        EVENLY,
        {"scoring": "none"},
        set(),
    ),
    "int8 scores": (lambda: (int8_scores(), WEIGHTS, IDS), EVENLY, {"scoring": "none"}, set()),
    "sparse scores": (
        lambda: (SCORES.to_sparse_csr(), WEIGHTS, IDS),
        EVENLY,
        {"scoring": "none"},
        set(),
    ),
    "jagged scores": (
        lambda: (nested(torch.jagged), WEIGHTS, IDS),
        EVENLY,
        {"scoring": "none"},
        set(),
    ),
    "scores of more experts": (
        lambda: (SCORES.repeat(1, 2), WEIGHTS, IDS),
        EVENLY,
        {"scoring": "none"},
        set(),
    ),
    # bad values: each in a column of its own
    "scores that are NaN": (
        lambda: (SCORES * torch.nan, WEIGHTS, IDS),
        EVENLY,
        {"nonfinite": 6},
        {"nan-logits"},
    ),
    "one infinite score": (
        lambda: (SCORES.masked_fill(SCORES[2, 1] == SCORES, torch.inf), WEIGHTS, IDS),
        EVENLY,
        {"nonfinite": 1},
        {"nan-logits"},
    ),
    "ids too large": (
        lambda: (SCORES, WEIGHTS, IDS + E),
        [0, 0, 0, 0],
        {"out_of_range": 12},
        {"out-of-range"},
    ),
    "ids below zero": (
        lambda: (SCORES, WEIGHTS, IDS - 1),
        [3, 3, 3, 0],
        {"out_of_range": 3},
        {"out-of-range"},
    ),
    "one expert, twice": (lambda: (SCORES, WEIGHTS, IDS * 0), [12, 0, 0, 0], {}, set()),
    "a map of zeros": (
        lambda: (SCORES, torch.zeros(T, E, dtype=torch.bool)),
        [0, 0, 0, 0],
        {"scoring": "none"},
        {"counts-contradict"},
    ),
    "a map of more": (
        lambda: (SCORES, torch.ones(T, E, dtype=torch.bool).index_fill(1, torch.tensor(0), False)),
        [0, 6, 6, 6],
        {"top_k": 3, "scoring": "none"},
        {"other-top-k"},
    ),
    "no token": (lambda: (SCORES[:0], WEIGHTS[:0], IDS[:0]), [0, 0, 0, 0], {"tokens": 0}, set()),
}
"""Counted: assignments per expert, other columns that are not 0, and kinds of findings."""

ON_NO_DEVICE = {
    "all of it": lambda: tuple(item.to("meta") for item in (SCORES, WEIGHTS, IDS)),
    "the scores": lambda: (SCORES.to("meta"), WEIGHTS, IDS),
}
"""Tensors that hold nothing."""
