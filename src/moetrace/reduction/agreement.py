"""What all ranks have to agree on before their numbers are added, and what follows from it.

The size of a reduction is fixed here and never changes: two ranks with different sizes would end in
an abort of the process that no ``try`` catches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from moetrace.routing_stats import COUNTERS, VECTORS, RoutingStats
from moetrace.snapshot import SCHEMA, Snapshot

__all__ = ["Agreement", "Layer", "NoAgreement", "Offer"]


class NoAgreement(Exception):
    """Why the ranks cannot add their numbers, in words."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that a rank counts.

    Attributes:
        name: Its name.
        num_experts: E.
        top_k: K, 0 where it is not stated.
        scoring: How logits become probabilities.
        identity_experts: Identity experts, which are not among E.
    """

    name: str
    num_experts: int
    top_k: int
    scoring: str
    identity_experts: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """What one rank says about itself in the handshake.

    Attributes:
        run_id: Name of its run, ``""`` where it keeps none.
        every: Steps per window.
        layers: What it counts, in the model's order; without any it takes no part.
        copies: What it has in common with ranks that route the same tokens, ``""`` where none do.
        schema: Version of the fields of a snapshot.
    """

    run_id: str
    every: int
    layers: tuple[Layer, ...]
    copies: str = ""
    schema: int = SCHEMA

    def to_bytes(self) -> bytes:
        """The offer as it goes into the store of the process group."""
        return orjson.dumps(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The offer of another rank.

        Raises:
            NoAgreement: It is of another version.
        """
        try:
            record: dict[str, Any] = orjson.loads(data)
            layers = tuple(Layer(**layer) for layer in record.pop("layers"))
            return cls(layers=layers, **record)
        except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise NoAgreement("it runs another version of moetrace") from error


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the offers of all ranks come to.

    Attributes:
        layers: The layers of all ranks, each once.
        members: Ranks that count something; only those reduce.
        adding: Ranks whose numbers are added: of those that route the same tokens the lowest.
        every: Steps per window.
    """

    layers: tuple[Layer, ...]
    members: tuple[int, ...]
    adding: tuple[int, ...]
    every: int

    @classmethod
    def of(cls, offers: Sequence[Offer]) -> Self:
        """What all ranks find alike, since they all see the same offers.

        Raises:
            NoAgreement: Their numbers cannot be added; the message names a rank and why.
        """
        layers: dict[str, Layer] = {}
        first = offers[0]
        for rank, offer in enumerate(offers):
            for word in ("schema", "every", "run_id"):
                ours, theirs = getattr(first, word), getattr(offer, word)
                if ours != theirs:
                    raise NoAgreement(f"rank 0 has {word} {ours!r} and rank {rank} {theirs!r}")
            for layer in offer.layers:
                known = layers.setdefault(layer.name, layer)
                if (known.num_experts, known.scoring) != (layer.num_experts, layer.scoring):
                    raise NoAgreement(
                        f"rank {rank} has {layer.num_experts} experts scored by {layer.scoring} in "
                        f"{layer.name}, a lower rank {known.num_experts} by {known.scoring}"
                    )
        members = tuple(rank for rank, offer in enumerate(offers) if offer.layers)
        lowest: dict[str, int] = {}
        for rank in members:
            lowest.setdefault(offers[rank].copies or f"rank {rank}", rank)
        return cls(tuple(layers.values()), members, tuple(lowest.values()), first.every)

    @property
    def width(self) -> int:
        """Number of int64 entries of one reduction."""
        return sum(_width(layer) for layer in self.layers)

    def packed(self, snapshot: Snapshot) -> NDArray[np.int64]:
        """A snapshot as one vector, 0 for layers that this rank does not hold.

        Raises:
            NoAgreement: It holds a layer that nobody has agreed on.
        """
        held = {stats.layer: stats for stats in snapshot}
        sums = np.zeros(self.width, np.int64)
        start = 0
        for layer in self.layers:
            stats = held.pop(layer.name, None)
            if stats is not None:
                if stats.num_experts != layer.num_experts:
                    raise NoAgreement(f"{layer.name} has {stats.num_experts} experts by now")
                vectors = [getattr(stats, name) for name in VECTORS]
                scalars = [int(getattr(stats, name)) for name in COUNTERS]
                sums[start : start + _width(layer)] = np.concatenate([*vectors, scalars])
            start += _width(layer)
        if held:
            raise NoAgreement(f"{next(iter(held))} was not there at the handshake")
        return sums

    def unpacked(self, sums: NDArray[np.int64]) -> tuple[RoutingStats, ...]:
        """The records of all layers, from the sum over the ranks."""
        routing: list[RoutingStats] = []
        start = 0
        for layer in self.layers:
            size = layer.num_experts
            vectors: dict[str, Any] = {
                name: sums[start + index * size : start + (index + 1) * size]
                for index, name in enumerate(VECTORS)
            }
            start += len(VECTORS) * size
            numbers = sums[start : start + len(COUNTERS)].tolist()
            scalars: dict[str, Any] = dict(zip(COUNTERS, numbers, strict=True))
            start += len(COUNTERS)
            routing.append(_stats(layer, vectors, scalars))
        return tuple(routing)


def _width(layer: Layer) -> int:
    return len(VECTORS) * layer.num_experts + len(COUNTERS)


def _stats(layer: Layer, vectors: dict[str, Any], scalars: dict[str, Any]) -> RoutingStats:
    tokens = scalars["tokens"]
    chosen = int(vectors["tokens_per_expert"].sum())
    assignments = chosen + scalars["out_of_range"] + scalars["dropped"] + scalars["identity"]
    unscored = tokens > scalars["nonfinite"] and scalars["confidence_sum"] == 0
    return RoutingStats(
        layer=layer.name,
        num_experts=layer.num_experts,
        top_k=assignments // tokens if tokens and assignments else layer.top_k,
        scoring="none" if unscored else layer.scoring,
        identity_experts=layer.identity_experts,
        **vectors,
        **scalars,
    )
