"""Where one process stands among the processes of its run: which of them route the same tokens.

Ranks add up because they route different tokens. Under tensor parallelism they usually do not:
every rank of a group sees the same hidden states, and its router makes the same choices. Nothing
can tell that from the counts for sure, so it has to be said. The file knows neither torch nor
numpy: the side that attaches and the side that reads both use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

__all__ = ["Mesh", "Topology", "topology_of"]

PIPELINE = "pp"
"""The dimension along which processes hold different layers, and some may hold no router."""

_MOST_DIMENSIONS = 16
_LONGEST_NAME = 64


@runtime_checkable
class Mesh(Protocol):
    """What is read of a ``torch.distributed.DeviceMesh``. Reading it is no collective."""

    @property
    def mesh_dim_names(self) -> tuple[str, ...] | None:
        """Names of the dimensions, or None where they have none."""
        ...

    def get_coordinate(self) -> Any:
        """Position of this process per dimension, or None where it is outside of the mesh."""
        ...


@dataclass(frozen=True, slots=True)
class Topology:
    """Coordinates of one process, and the dimensions along which the tokens are the same.

    Processes whose coordinates differ along a replicated dimension only are copies of each other: a
    reader takes one of them. All others are added up. Along ``"pp"`` processes hold
    different layers, and one without any router is no mistake.

    Attributes:
        coordinates: Position along each dimension of parallelism, from 0.
        replicated: Those of the dimensions along which every process routes the same tokens:
            tensor parallelism, as a rule, unless the sequence is split over it.

    Raises:
        ValueError: A replicated dimension has no coordinate, or a coordinate is no position.

    >>> Topology({"dp": 3, "tp": 1}, replicated=("tp",)).copies_of()
    (('dp', 3),)
    """

    coordinates: Mapping[str, int]
    replicated: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        named = {str(name): position for name, position in dict(self.coordinates).items()}
        replicated = (self.replicated,) if isinstance(self.replicated, str) else self.replicated
        object.__setattr__(self, "coordinates", named)
        object.__setattr__(self, "replicated", tuple(replicated))
        if len(named) > _MOST_DIMENSIONS or any(len(name) > _LONGEST_NAME for name in named):
            raise ValueError(
                f"found {len(named)} dimensions of parallelism; at most {_MOST_DIMENSIONS} with "
                f"names of at most {_LONGEST_NAME} characters can be kept"
            )
        for name, position in named.items():
            if type(position) is not int or not 0 <= position < 1 << 31:
                raise ValueError(f"found {name}={position!r}; a coordinate is an integer from 0")
        unknown = [name for name in self.replicated if name not in named]
        if unknown:
            raise ValueError(
                f"found {unknown[0]!r} in replicated, but no such coordinate; the coordinates are "
                f"{', '.join(named) or 'none'}"
            )

    @classmethod
    def of_mesh(cls, mesh: Mesh, *, replicated: tuple[str, ...] = ()) -> Self:
        """The coordinates of this process in a ``DeviceMesh``. No collective.

        Args:
            mesh: The mesh, with named dimensions.
            replicated: As the attribute.

        Raises:
            ValueError: The mesh has no names, or this process is not in it.
        """
        names, position = mesh.mesh_dim_names, mesh.get_coordinate()
        if not names or position is None:
            found = "no names of its dimensions" if not names else "no place for this process"
            raise ValueError(f"found a mesh with {found}; pass moetrace.Topology(coordinates)")
        return cls(
            {name: int(place) for name, place in zip(names, position, strict=True)},
            replicated=replicated,
        )

    @property
    def staged(self) -> bool:
        """Whether the layers are spread over processes, so that one may hold no router."""
        return PIPELINE in self.coordinates

    def copies_of(self) -> tuple[tuple[str, int], ...]:
        """What copies of each other have in common: the coordinates that are not replicated."""
        return tuple(
            sorted((k, v) for k, v in self.coordinates.items() if k not in self.replicated)
        )

    def to_record(self) -> dict[str, Any]:
        """The topology as it stands in the header of a segment."""
        return {"coordinates": dict(self.coordinates), "replicated": list(self.replicated)}

    @classmethod
    def from_record(cls, record: Any) -> Self | None:
        """What `to_record` wrote, or None where it is something else."""
        try:
            return cls(dict(record["coordinates"]), replicated=tuple(record["replicated"]))
        except (KeyError, TypeError, ValueError):
            return None


def topology_of(given: Topology | Mesh | None) -> Topology | None:
    """What the caller of `attach` gave, as a topology.

    Raises:
        ValueError: A mesh has no names, or this process is not in it.
        TypeError: It is something else.
    """
    if given is None or isinstance(given, Topology):
        return given
    if isinstance(given, Mesh):
        return Topology.of_mesh(given)
    raise TypeError(
        f"found {type(given).__name__} as topology; pass a DeviceMesh with named dimensions or "
        "moetrace.Topology({'dp': 0, 'tp': 1}, replicated=('tp',))"
    )
