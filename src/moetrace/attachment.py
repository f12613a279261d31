"""`attach`, the way in: find the routers, refuse mistakes, put the hooks on."""

import fnmatch
import logging
import os
import platform
import uuid
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from moetrace.accumulator import Accumulators
from moetrace.alerts import AlertJudge, AlertRules
from moetrace.diagnosis.near_misses import grouped
from moetrace.diagnosis.structure import Traced, scored_by
from moetrace.diagnosis.tracing import Attached
from moetrace.errors import AlreadyAttached, MoETraceError, NoRouterFound
from moetrace.host_copy import is_capturing
from moetrace.layout import AccumulatorLayout
from moetrace.ops import TracerState, register
from moetrace.ops.fused import operator_form
from moetrace.probes import (
    GradientMeter,
    GradientProbe,
    IndexMeter,
    IndexProbe,
    WeightMeter,
    WeightProbe,
    device_of,
    drop_stale_code,
    is_hooked,
    put_hooks,
    tables_of,
)
from moetrace.probes.places import Places
from moetrace.rank import launch, own_rank, world_size
from moetrace.readers import Found, Reader, Site, find_routers
from moetrace.recording import Recording
from moetrace.reduction import Layer, Offer
from moetrace.sinks.recognised import recognised
from moetrace.store import RunFolder, earlier_events, earlier_weights
from moetrace.topology import Mesh, Topology, topology_of
from moetrace.tracer import Tracer
from moetrace.weight_stats import WeightStats
from moetrace.writer import Writer

__all__ = ["attach"]

_log = logging.getLogger("moetrace")

_MOST_NEAR_MISSES = 8
_DEFAULT_RULES = AlertRules()


def attach(
    model: nn.Module,
    run: str | os.PathLike[str] | None = None,
    *,
    every: int = 100,
    sample: int = 1,
    sinks: Iterable[object] = (),
    probes: Iterable[GradientProbe | IndexProbe | WeightProbe] = (),
    readers: Iterable[Reader] | None = None,
    layers: str | Iterable[str] | None = None,
    topology: Topology | Mesh | None = None,
    reduce: Literal["read", "live"] = "read",
    alerts: AlertRules | None = _DEFAULT_RULES,
    strict: bool = False,
) -> Tracer:
    """Count what every router of ``model`` does, from now on.

    Losses, gradients, weights and random state are bit-identical with and without it. Only mistakes
    in this call raise; once it has returned, nothing of moetrace reaches the training.

    Args:
        model: Any module with routers. Best attached before its first compiled forward.
        run: Folder of the run, created or continued; None keeps snapshots in memory only.
        every: Optimizer steps per window, at least 1. One snapshot is written per window.
        sample: Count only the first of every so many steps; what is left out costs an early return.
            Evaluation and named phases are counted all the same.
        sinks: Where else snapshots go: objects with ``write(snapshot)`` and ``close()``, or loggers
            such as the ``wandb`` module or a ``SummaryWriter``, see `moetrace.sinks.recognised`.
        probes: What to measure beside routing: ``GradientProbe()``, ``IndexProbe()``,
            ``WeightProbe()``. Tables of more than 4096 experts are counted without being asked.
        readers: Your own readers, tried before the built-in ones.
        layers: Glob or globs over site names: only those are recorded. All are hooked all the same,
            since compiled layers share their code. ``()`` records no router, only what the probes
            measure, and the model needs none.
        topology: Where this process stands among those of the run: a `Topology`, or a
            ``DeviceMesh`` with named dimensions. A reader then adds no two ranks that route the
            same tokens, and a pipeline stage (``"pp"``) may hold no router.
        reduce: ``"read"`` leaves the ranks apart until somebody reads the run. ``"live"`` gives the
            sinks of every rank the ``train`` windows of all ranks together, added in the
            background on a gloo group of its own; where a rank is missing, late or different,
            sinks get this rank's own windows, with one warning. Needs the default process group.
        alerts: What is worth an alert; None for none. An alert goes into the run folder and to each
            sink that has ``alert(alert)``; where no sink has it, it is a warning in the log.
        strict: Raise at the next step end what would only be logged; for tests and CI.

    Returns:
        The tracer; close it, or use it as a context manager.

    Raises:
        NoRouterFound: Nothing in the model could be read as a router. Lists the near misses. Not
            with ``layers=()``.
        AlreadyAttached: Another tracer is on this model.
        MoETraceError: A CUDA graph is being captured, which would never count.
        RunFolderError: The folder cannot be written, or holds something that is no run.
        ValueError, TypeError: An argument is not what it has to be.

    Cost: per forward of a router see `moetrace.ops.count`; no host synchronisation between windows
    and none at their end, one device-to-host copy per window.
    """
    _check_arguments(model, every, sample, alerts)
    if is_capturing():
        raise MoETraceError(
            "found a CUDA graph that is being captured: it began without hooks, and its replays "
            "would count nothing; attach before the capture"
        )
    taken_sinks = [recognised(sink) for sink in sinks]
    asked = _checked_probes(probes)
    place = topology_of(topology)
    if reduce not in ("read", "live"):
        raise ValueError(f"found reduce={reduce!r}; it is 'read' or 'live'")
    chosen = None if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    if chosen == () and not asked:
        raise ValueError("found layers=() and no probes, which records nothing; give one of them")
    found = find_routers(model, tuple(readers or ()))
    taken = [(item.site, item.module, item.reader) for item in found if item.reader is not None]
    indexed = next((probe for probe in asked if isinstance(probe, IndexProbe)), None)
    tables = tables_of(model, indexed)
    may_have_none = chosen == () or (place is not None and place.staged)
    if not taken and not tables and not may_have_none:
        raise NoRouterFound(_no_router(model, [item.site for item in found]))
    sites = [site for site, _, _ in taken]
    modules = [module for _, module, _ in taken]
    if indexed is not None and not tables:
        _log.warning(
            "found no table of experts for IndexProbe: no two embeddings of one size beside "
            "product keys; name yours with IndexProbe(tables=...)"
        )
    _refuse_second([*modules, *(table.module for table in tables)])
    recorded = _recorded(sites, chosen)
    _say_what_is_not_counted(found)
    attached = Attached(
        weakref.ref(model),
        tuple(
            Traced(site, weakref.ref(module), reader, recorded=index in recorded)
            for index, (site, module, reader) in enumerate(taken)
        ),
        tuple(item.site for item in found if item.reader is None and not item.site.taken),
    )
    devices = [device_of(module) or torch.device("cpu") for module in modules]
    folder = None if run is None else RunFolder.prepare(run)
    rank = own_rank()
    segment = None
    if folder is not None:
        header = _header(model, attached, every, place, devices)
        if tables:
            header["tables"] = [asdict(table.shape) for table in tables]
        segment = folder.open_segment(rank=rank, header=header)
    identity = {
        "run_id": uuid.uuid4().hex[:12] if folder is None else folder.run_id,
        "rank": rank,
        "attempt": 0 if segment is None else segment.attempt,
    }
    state = TracerState()
    register(state)
    accumulators = Accumulators([AccumulatorLayout(site.columns) for site in sites], devices)
    routers = [item for item in found if item.reader is not None]
    counted = [table.module for table in tables]
    placed = put_hooks(model, routers, accumulators.tensors, state, counted)
    meters = _meters(model, {item.site.name: item.router for item in found if item.reader}, asked)
    if tables:
        usual = IndexProbe() if alerts is None else _as_alerts_say(alerts)
        indices = IndexMeter(tables, indexed or usual, state)
        meters.append(indices)
    attached = replace(attached, dropped_code=drop_stale_code())
    recording = Recording(
        state,
        accumulators,
        Writer(
            sites,
            recorded,
            identity,
            segment,
            taken_sinks,
            None if alerts is None else AlertJudge(alerts, partial(_weights_at, folder, identity)),
            _offer(folder, every, [sites[index] for index in recorded], place)
            if reduce == "live"
            else None,
            partial(_events_before, folder, identity),
            sum(meter.bytes for meter in meters if isinstance(meter, IndexMeter)),
        ),
        every,
        sample,
        placed,
        meters,
        Places(model, [site.name for site in sites], [site.path for site in sites], modules),
    )
    path = None if folder is None else Path(folder.path)
    shown = [sites[index] for index in recorded]
    return Tracer(recording, shown, path, attached=attached, strict=strict)


def _events_before(
    folder: RunFolder | None, identity: Mapping[str, Any]
) -> Iterable[Mapping[str, Any]]:
    """What this rank said in earlier attempts of a run that goes on."""
    if folder is None or not identity["attempt"]:
        return ()
    return earlier_events(folder.path, rank=identity["rank"], attempt=identity["attempt"])


def _weights_at(
    folder: RunFolder | None, identity: Mapping[str, Any], step: int
) -> Iterable[WeightStats]:
    """The router weights that earlier attempts of this rank recorded at a step."""
    if folder is None or not identity["attempt"]:
        return ()
    rank, attempt = identity["rank"], identity["attempt"]
    return earlier_weights(folder.path, rank=rank, attempt=attempt, step=step)


def _check_arguments(model: Any, every: Any, sample: Any, alerts: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"found {type(model).__name__} as model; attach takes a torch.nn.Module")
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"found every={every!r}; a window needs at least 1 optimizer step")
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 1:
        raise ValueError(f"found sample={sample!r}; 1 counts every step, N one of every N")
    if not isinstance(alerts, AlertRules | None):
        raise TypeError(
            f"found {type(alerts).__name__} as alerts; give moetrace.AlertRules(...), or None"
        )


def _checked_probes(probes: Iterable[Any]) -> tuple[GradientProbe | IndexProbe | WeightProbe, ...]:
    asked = tuple(probes)
    for probe in asked:
        if not isinstance(probe, GradientProbe | IndexProbe | WeightProbe):
            raise TypeError(
                f"found {type(probe).__name__} among the probes; "
                "give GradientProbe(), IndexProbe() or WeightProbe()"
            )
    if len({type(probe) for probe in asked}) < len(asked):
        raise ValueError("found two probes of one kind; one measures all it can")
    return asked


def _meters(
    model: nn.Module,
    routers: Mapping[str, nn.Module],
    probes: Iterable[GradientProbe | IndexProbe | WeightProbe],
) -> list[GradientMeter | IndexMeter | WeightMeter]:
    meters: list[GradientMeter | IndexMeter | WeightMeter] = []
    for probe in probes:
        if isinstance(probe, GradientProbe):
            meters.append(GradientMeter(model, routers.values(), probe))
        elif isinstance(probe, WeightProbe):
            meters.append(WeightMeter((probe.targets or routers).items(), probe))
    return meters


def _as_alerts_say(rules: AlertRules) -> IndexProbe:
    """The probe of whoever has not asked for one, with the threshold of the alerts."""
    threshold = rules.usage_threshold
    return IndexProbe() if threshold is None else IndexProbe(usage_threshold=threshold)


def _recorded(sites: Sequence[Site], globs: tuple[str, ...] | None) -> list[int]:
    if globs is None or not sites:
        return list(range(len(sites)))
    matching = [
        index
        for index, site in enumerate(sites)
        if any(fnmatch.fnmatchcase(site.name, glob) for glob in globs)
    ]
    if globs and not matching:
        names = ", ".join(site.name for site in sites[:_MOST_NEAR_MISSES])
        wanted = ", ".join(map(repr, globs))
        raise ValueError(f"found no site that matches layers={wanted}; the sites are {names}")
    return matching


def _no_router(model: nn.Module, found: Sequence[Site]) -> str:
    lines = [f"found no router in {type(model).__name__}"]
    if found:
        lines.append("these came near:")
        lines += [f"  {site.path} ({site.router}): {site.reason}" for site in found[:8]]
    remedy = next((site.remedy for site in found if site.remedy), "")
    if remedy:
        lines.append(f"to count it all the same, pass readers=[...] with such a reader:\n{remedy}")
        return "\n".join(lines)
    lines.append(
        "to name a router, pass readers=[...] with an object that has matches(module) and "
        "read(module, args, kwargs, output) -> moetrace.Routing"
    )
    return "\n".join(lines)


def _say_what_is_not_counted(found: Sequence[Found]) -> None:
    missed = [f"{item.site.name}: {item.site.reason}" for item in found if item.missed]
    if missed:
        more = f"; and {len(missed) - 1} more, which discover(model) lists" if missed[1:] else ""
        _log.warning("experts that are not counted: %s%s", missed[0], more)
    limited = [item.site.name for item in found if item.site.limited and item.site.taken]
    if limited:
        _log.warning(
            "%s of %d routers: tokens_per_expert is what a capacity limit or chance has left of "
            "the choice, since they show no more; dropped says how much is missing",
            ", ".join(limited[:3]) + (", ..." if limited[3:] else ""),
            len([item for item in found if item.site.taken]),
        )


def _refuse_second(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        if is_hooked(module):
            raise AlreadyAttached(
                "this model is traced already; close() the other tracer first, or give this one "
                "more sinks instead of a second tracer"
            )


def _offer(
    folder: RunFolder | None, every: int, sites: Sequence[Site], place: Topology | None
) -> Offer:
    """What this rank says to the others where live numbers over all ranks are wanted."""
    layers = tuple(
        Layer(site.name, site.num_experts, site.top_k, site.scoring, site.identity_experts)
        for site in sites
    )
    copies = str(place.copies_of()) if place is not None and place.replicated else ""
    return Offer("" if folder is None else folder.run_id, every, layers, copies)


def _header(
    model: nn.Module,
    attached: Attached,
    every: int,
    place: Topology | None,
    devices: Sequence[torch.device],
) -> dict[str, Any]:
    return {
        "model": type(model).__name__,
        "every": every,
        "world_size": world_size(),
        "launch": launch(),
        **({} if place is None else {"topology": place.to_record()}),
        "sites": [
            {
                "name": item.site.name,
                "aliases": list(item.site.aliases),
                "shared": item.site.shared,
                "num_experts": item.site.num_experts,
                "identity_experts": item.site.identity_experts,
                "top_k": item.site.top_k,
                "scoring": item.site.scoring,
                "scored_by": scored_by(item.module(), item.site.scoring),
                "reader": item.site.reader,
                "rule": item.site.rule,
                "router": item.site.router,
                "recorded": item.recorded,
            }
            for item in attached.traced
        ],
        "near_misses": grouped(attached.near_misses),
        "operator": ", ".join(sorted({operator_form(device) for device in devices})),
        "versions": {
            "moetrace": version("moetrace"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "numpy": version("numpy"),
        },
    }
