"""Which tables of experts a model has, and where the scores of what is looked up in them show."""

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from moetrace.readers.lookup import MOST_ROWS, looked_up_experts
from moetrace.readers.wrapping import Core, class_of, cores, user_name

__all__ = ["IndexProbe", "Table", "TableShape", "tables_of"]

MOST_GRID = 65_536
"""Sub-keys of one half at most."""


@dataclass(frozen=True, slots=True)
class IndexProbe:
    """Asks `moetrace.attach` to count what tables of experts are asked for, row by row.

    Without it, tables of product keys with more than 4096 experts are counted all the same; with it
    those of any size, and others that are named.

    Attributes:
        tables: Tables by the name that their records shall have, or globs over the names of
            modules; None for those that are found by their product keys.
        usage_threshold: An expert is hot above so many times the mean over all experts.
        scores: Sum the router's scores per expert too, where they show.
        scores_from: For a table in ``tables``, under its name, the module that returns one score
            for each id after the look-up; 0 or more each.
        columns: Sub-keys of the second half in the tables of ``tables`` that are not found by
            themselves: expert ``i * columns + j`` has sub-keys i and j. 0 for no product keys.
        dense_every: Windows between two whose counts per expert go into the run folder, the first
            one included; 0 for never.
        indices_from: Takes a table, and the arguments and keywords that it is called with, and
            returns the ids, ``(..., K)``, or ``(batch, length, heads, K)``; or None to count
            nothing. None takes the first argument.

    Raises:
        ValueError: A number is not what it has to be.
    """

    tables: Mapping[str, nn.Module] | str | Iterable[str] | None = None
    usage_threshold: float = 5.0
    scores: bool = True
    scores_from: Mapping[str, nn.Module] | None = None
    columns: int = 0
    dense_every: int = 50
    indices_from: (
        Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Tensor | None] | None
    ) = None

    def __post_init__(self) -> None:
        if not self.usage_threshold > 0 or not math.isfinite(self.usage_threshold):
            raise ValueError(f"found usage_threshold={self.usage_threshold!r}; give a multiple > 0")
        if self.dense_every < 0 or self.columns < 0:
            raise ValueError("dense_every and columns are counts; 0 is never, or none")


@dataclass(frozen=True, slots=True)
class TableShape:
    """What a record says of one table.

    Attributes:
        layer: Name of its layer.
        num_experts: E, its rows.
        columns: Sub-keys of the second half; 0 without product keys.
    """

    layer: str
    num_experts: int
    columns: int


@dataclass(frozen=True, slots=True)
class Table:
    """One table of experts, with the modules that show what it is asked for.

    Attributes:
        shape: Its name and size.
        module: What is called with the ids.
        scorer: What returns the scores after the look-up, or None.
        gate: What returns the scores of the sub-keys before it, or None.
    """

    shape: TableShape
    module: nn.Module
    scorer: nn.Module | None = None
    gate: nn.Module | None = None


def tables_of(model: nn.Module, request: IndexProbe | None) -> list[Table]:
    """The tables that are to be counted, each once, in the model's order.

    Args:
        model: The model.
        request: What the user asked for, or None: then only tables too large for routing.

    Raises:
        ValueError: A name or glob names no table, or one whose rows are no grid of ``columns``.
    """
    found = list(cores(model))
    by_keys = {id(core.hooked): table for core in found if (table := _of_product_keys(core))}
    if request is None:
        return [table for table in by_keys.values() if table.shape.num_experts > MOST_ROWS]
    if request.tables is None:
        return list(by_keys.values())
    scorers = request.scores_from or {}
    tables = [
        by_keys.get(id(module)) or _named(name, module, request, scorers.get(name))
        for name, module in _chosen(found, request.tables)
    ]
    return list({id(table.module): table for table in tables}.values())


def _of_product_keys(core: Core) -> Table | None:
    if core.block is None or not isinstance(core.module, nn.Embedding):
        return None
    looked_up = looked_up_experts(core.block)
    if looked_up is None or looked_up[0] is not core.module:
        return None
    experts = core.module.num_embeddings
    block: Any = core.block
    heads = block.heads if getattr(block, "separate_embed_per_head", False) else 1
    side = math.isqrt(experts // heads)
    square = side * side * heads == experts
    path = user_name(core.paths[0])
    scorer = getattr(block, "score_activation", None)
    gate = getattr(block, "router_gate", None)
    doge = "DogeCDMoE" in (base.__name__ for base in class_of(block).__mro__)
    return Table(
        TableShape(path.rpartition(".")[0] or path, experts, side if square else 0),
        core.hooked,
        scorer=scorer if isinstance(scorer, nn.Module) else None,
        gate=gate if doge and square and getattr(gate, "out_features", 0) == 2 * side else None,
    )


def _chosen(
    found: list[Core], wanted: Mapping[str, nn.Module] | str | Iterable[str]
) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(wanted, Mapping):
        yield from wanted.items()
        return
    for glob in [wanted] if isinstance(wanted, str) else wanted:
        twins: set[tuple[int, int]] = set()
        hits = [
            core
            for core in found
            if _rows(core.module)
            and any(fnmatch.fnmatchcase(user_name(path), glob) for path in core.paths)
        ]
        if not hits:
            tables = [user_name(core.paths[0]) for core in found if _rows(core.module)]
            raise ValueError(
                f"found no table that matches {glob!r}; the tables are {', '.join(tables[:8])}"
            )
        for core in hits:
            # The second table of a layer (down, up) is asked for the same rows.
            twin = (id(core.block), _rows(core.module))
            if twin not in twins:
                twins.add(twin)
                yield user_name(core.paths[0]), core.hooked


def _named(name: str, module: nn.Module, request: IndexProbe, scorer: nn.Module | None) -> Table:
    rows = _rows(module)
    if not rows:
        raise ValueError(
            f"found no rows in {type(module).__name__} ({name}); a table has num_embeddings, "
            "num_experts or a weight with a row per expert"
        )
    columns = request.columns
    if columns and (rows % columns or max(columns, rows // columns) > MOST_GRID):
        raise ValueError(
            f"found {rows} rows in {name}, no grid of {columns} columns with at most {MOST_GRID} "
            "sub-keys a side; give columns so that i * columns + j is the expert's id"
        )
    return Table(TableShape(name, rows, columns), module, scorer)


def _rows(module: nn.Module) -> int:
    """Rows of a table of experts; 0 for what is none."""
    for name in ("num_embeddings", "num_experts"):
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value if name == "num_embeddings" or not list(module.children()) else 0
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Linear):
        return int(weight.shape[0])
    return 0
