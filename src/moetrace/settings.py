"""The settings of a tracer: from keyword arguments, a mapping, a YAML file and the environment.

The keyword arguments of `moetrace.attach` are the settings; here the same ones are read from
elsewhere. Where several places name one setting, the one nearer to the code wins:

```
keyword arguments of load()  >  MOETRACE_* variables  >  mapping or file  >  defaults
```

Nothing here imports torch; YAML is imported only where a file is read.
"""

import difflib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from moetrace.alerts import AlertRules

__all__ = ["USUAL_RULES", "Settings", "load"]

USUAL_RULES = AlertRules()
"""The alerts of whoever says nothing about alerts."""

PREFIX = "MOETRACE_"

OTHER_NAMES = {
    "log_every_n_steps": "every",
    "log_freq": "every",
    "log_frequency": "every",
    "save_dir": "run",
    "log_expert_usage": "enabled",
}
"""Names that other monitors give to a setting of ours."""

THRESHOLDS = (
    "alert_threshold_imbalance",
    "unused_expert_threshold",
    "entropy_threshold",
    "usage_threshold",
)
"""Fields of `AlertRules` that may stand beside the other settings, outside of ``alerts``."""

PEER = ("log_expert_usage", "log_freq", "usage_threshold")
"""What is ours in a ``peer_config`` block; the rest of it configures the caller's model."""


PROBES = {"gradients": "GradientProbe", "indices": "IndexProbe", "weights": "WeightProbe"}
"""Probes by the name of the field of a snapshot that they fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `moetrace.attach` takes beside the model, and whether to attach at all.

    Attributes:
        run: Folder of the run, or None to keep snapshots in memory only.
        every: Optimizer steps per window.
        sample: Count only the first of every so many steps.
        sinks: Sink objects, names of the entry-point group ``moetrace.sinks`` (``"console"``), and
            names with arguments (``{"prometheus": {"port": 9100}}``). Named ones are made by
            `attach_arguments`, each time anew.
        probes: What to measure beside routing: probe objects, ``"gradients"``, ``"indices"`` and
            ``"weights"``, and these names with arguments (``{"indices": {"dense_every": 1}}``).
        readers: Your own readers.
        layers: Glob or globs over site names, or None for all.
        topology: Where this process stands among those of the run.
        reduce: ``"live"`` shows the sinks of every rank the windows of all ranks together.
        alerts: Rules, a mapping of their fields, or None for no alerts.
        strict: Raise at the next step end what would only be logged.
        enabled: Whether to attach at all; for the caller to ask.

    Raises:
        ValueError: A field of ``alerts`` is unknown or has a value that it cannot have.
    """

    run: str | os.PathLike[str] | None = None
    every: int = 100
    sample: int = 1
    sinks: Any = ()
    probes: Any = ()
    readers: Any = None
    layers: str | Iterable[str] | None = None
    topology: Any = None
    reduce: Literal["read", "live"] = "read"
    alerts: AlertRules | Mapping[str, Any] | None = USUAL_RULES
    strict: bool = False
    enabled: bool = True

    def __post_init__(self) -> None:
        sinks = (self.sinks,) if isinstance(self.sinks, str | Mapping) else tuple(self.sinks)
        object.__setattr__(self, "sinks", sinks)
        named = isinstance(self.probes, str | Mapping)
        object.__setattr__(self, "probes", (self.probes,) if named else tuple(self.probes))
        if isinstance(self.alerts, Mapping):
            object.__setattr__(self, "alerts", AlertRules(**_rules(self.alerts, "alerts")))

    def attach_arguments(self) -> dict[str, Any]:
        """The keyword arguments of `moetrace.attach`, with named sinks and probes made.

        Raises:
            ValueError: There is no sink or probe of a name.
            TypeError: A named sink or probe does not take these arguments.
        """
        arguments = {item.name: getattr(self, item.name) for item in fields(self)}
        del arguments["enabled"]
        arguments["sinks"] = [_sink(item) for item in self.sinks]
        arguments["probes"] = [_probe(item) for item in self.probes]
        return arguments


def load(
    source: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> Settings:
    """Read settings; ``attach(model, **load("config.yaml").attach_arguments())``.

    Args:
        source: A mapping, or the path of a YAML file. Its block ``moetrace`` is read where it has
            one, else its block ``peer_config`` (also inside ``model_config``), else all of it.
        environment: Variables such as ``MOETRACE_EVERY=10``, ``MOETRACE_SINKS=console,wandb``,
            ``MOETRACE_ALERTS=off``; the process's own by default.
        **settings: Fields of `Settings`; they win over the others.

    Raises:
        ValueError: A name is unknown, or a value cannot be read; the message names the nearest.
        ImportError: A file is given and PyYAML is not installed.

    >>> load({"log_freq": 1000, "usage_threshold": 3.0}, environment={}).every
    1000
    >>> load({"every": 50}, environment={"MOETRACE_EVERY": "10"}).every
    10
    >>> load({"evry": 50}, environment={})
    Traceback (most recent call last):
    ValueError: found 'evry' in the mapping; did you mean 'every'?
    """
    parts = (
        _from_source(source),
        _from_environment(os.environ if environment is None else environment),
        _known(settings, "the keyword arguments"),
    )
    chosen: dict[str, Any] = {}
    for part in parts:
        if isinstance(part.get("alerts"), Mapping) and chosen.get("alerts") is not None:
            part["alerts"] = _over(chosen["alerts"], part["alerts"])
        chosen.update(part)
    return Settings(**chosen)


def _over(rules: AlertRules | Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    if isinstance(rules, AlertRules):
        return replace(rules, **_rules(changes, "alerts"))
    return {**rules, **changes}


def _from_source(source: Mapping[str, Any] | str | os.PathLike[str] | None) -> dict[str, Any]:
    if source is None:
        return {}
    where = "the mapping"
    if not isinstance(source, Mapping):
        where = f"{os.fspath(source)!r}"
        source = _yaml(Path(source))
    model = source.get("model_config")
    blocks = (source, model) if isinstance(model, Mapping) else (source,)
    if isinstance(source.get("moetrace"), Mapping):
        return _known(source["moetrace"], f"the block 'moetrace' of {where}")
    for block in blocks:
        if isinstance(block.get("peer_config"), Mapping):
            return _of_peer(block["peer_config"], where)
    return _known(source, where)


def _yaml(path: Path) -> Mapping[str, Any]:
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise ImportError(
            f"reading settings from {str(path)!r} needs PyYAML: pip install 'moetrace[yaml]'"
        ) from error
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ValueError(f"found {type(content).__name__} in {str(path)!r}; it holds no names")
    return content


def _of_peer(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in block:
        # Most names are the model's own; only one that is nearly ours is a slip.
        if name not in PEER and difflib.get_close_matches(str(name), PEER, n=1, cutoff=0.85):
            raise _unknown(str(name), PEER, f"the block 'peer_config' of {where}")
    found = _known({name: block[name] for name in PEER if name in block}, "the block 'peer_config'")
    threshold = block.get("usage_threshold")
    arguments = {} if threshold is None else {"usage_threshold": threshold}
    return {**found, "probes": ({"indices": arguments},)}


def _known(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings in a mapping, under our names; thresholds go into ``alerts``."""
    names = [item.name for item in fields(Settings)]
    found: dict[str, Any] = {}
    thresholds: dict[str, Any] = {}
    for key, value in given.items():
        name = OTHER_NAMES.get(key, key)
        if name in THRESHOLDS:
            thresholds[name] = value
        elif name not in names:
            raise _unknown(str(key), (*names, *OTHER_NAMES, *THRESHOLDS), where)
        elif name in found:
            raise ValueError(f"found {name!r} twice in {where}, once as {key!r}; give it once")
        else:
            found[name] = value
    if found.get("alerts") is False:
        found["alerts"] = None
    if thresholds:
        found["alerts"] = _over(found.get("alerts") or {}, thresholds)
    if found.get("alerts") is True:
        found["alerts"] = AlertRules()
    return found


def _rules(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = [item.name for item in fields(AlertRules)]
    for name in given:
        if name not in names:
            raise _unknown(str(name), names, where)
    return dict(given)


def _unknown(name: str, names: Iterable[str], where: str) -> ValueError:
    names = tuple(names)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the names are {', '.join(names)}"
    return ValueError(f"found {name!r} in {where}; {hint}")


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    given = {
        name.removeprefix(PREFIX).lower(): text
        for name, text in environment.items()
        if name.startswith(PREFIX)
    }
    read: dict[str, Any] = {}
    for name, text in given.items():
        parse = _PARSERS.get(OTHER_NAMES.get(name, name))
        if parse is None:
            known = [f"{PREFIX}{name.upper()}" for name in (*_PARSERS, *OTHER_NAMES)]
            raise _unknown(f"{PREFIX}{name.upper()}", known, "the environment")
        try:
            read[name] = parse(text.strip())
        except ValueError as error:
            raise ValueError(f"found {PREFIX}{name.upper()}={text!r}; {error}") from error
    return _known(read, "the environment")


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("give 1 or 0")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


_PARSERS: dict[str, Callable[[str], Any]] = {
    "run": str,
    "every": int,
    "sample": int,
    "sinks": _list,
    "probes": _list,
    "layers": _list,
    "reduce": str,
    "alerts": _flag,
    "strict": _flag,
    "enabled": _flag,
    **dict.fromkeys(THRESHOLDS, float),
}


def _probe(item: Any) -> Any:
    """The probe that a name stands for; anything else as it is."""
    name, arguments = _named(item, "probe")
    if name is None:
        return item
    if name not in PROBES:
        raise _unknown(name, PROBES, "probes")
    return getattr(importlib.import_module("moetrace.probes"), PROBES[name])(**arguments)


def _named(item: Any, what: str) -> tuple[str | None, dict[str, Any]]:
    if isinstance(item, Mapping):
        if len(item) != 1:
            raise ValueError(f"found the {what} {dict(item)!r}; give one name with its arguments")
        name, arguments = next(iter(item.items()))
        return str(name), dict(arguments or {})
    return (item, {}) if isinstance(item, str) else (None, {})


def _sink(item: Any) -> Any:
    """The sink that a name stands for; anything else as it is."""
    name, arguments = _named(item, "sink")
    if name is None:
        return item
    found = {point.name: point for point in entry_points(group="moetrace.sinks")}
    if name not in found:
        raise _unknown(name, found, "sinks")
    return found[name].load()(**arguments)
