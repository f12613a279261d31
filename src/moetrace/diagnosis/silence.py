"""Sites that counted nothing: a whole part of the model, one router alone, or all of them."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from moetrace.diagnosis.finding import Finding
from moetrace.printable import span_text

__all__ = ["check_ended", "check_silence", "part_of"]

REASONS = (
    "their forward did not run, was replaced by a kernel library or compiled elsewhere, or their "
    "reader reads nothing in it; tracer.doctor(inputs) runs one forward and says which"
)


def check_silence(names: Sequence[str], counted: Collection[str], *, steps: int) -> list[Finding]:
    """What it means that some sites counted nothing.

    Args:
        names: The sites that should count, in the model's order.
        counted: Those that did.
        steps: Optimizer steps so far.
    """
    silent = [name for name in names if name not in counted]
    if not silent:
        return []
    if not counted:
        if not steps:
            advice = "run a step between on_step_begin() and on_step_end(), then ask again"
            return [Finding("nothing-yet", "note", "no forward was counted yet", advice)]
        text = f"no site counted anything in {steps:,} steps"
        return [Finding("silent", "error", text, REASONS, tuple(silent))]
    parts: dict[str, list[str]] = {}
    for name in silent:
        parts.setdefault(part_of(name, counted), []).append(name)
    findings = [
        Finding(
            "part-silent",
            "warning",
            f"no site below {part} counted anything, and others did: this part of the model was "
            "not run, or all of it was replaced",
            "nothing, where that part is meant to rest; otherwise tracer.doctor(inputs) says which",
            tuple(inside),
        )
        for part, inside in parts.items()
        if part
    ]
    if alone := parts.get(""):
        text = "counted nothing, though their neighbours did"
        findings.append(Finding("silent", "warning", text, REASONS, tuple(alone)))
    return findings


def check_ended(
    last_counted: Mapping[str, tuple[int, int]], newest: tuple[int, int]
) -> list[Finding]:
    """Sites that counted for a while and no longer, while others went on.

    Args:
        last_counted: First and last step of the last window in which a site counted, by site.
        newest: The same of the last window in which any site counted.
    """
    ended = [name for name, span in last_counted.items() if span[1] < newest[0]]
    if not ended:
        return []
    since = span_text(*min((last_counted[name] for name in ended), key=lambda span: span[1]))
    return [
        Finding(
            "went-silent",
            "warning",
            f"counted until {since} and nothing since, while others went on",
            "look at what replaced the module, its forward or its hooks then; attach again",
            tuple(ended),
        )
    ]


def part_of(name: str, counted: Iterable[str]) -> str:
    """The part of the model that holds this silent site and no site that counted.

    Empty where that is only the layer itself: a part is more than one entry of a list of layers.

    >>> part_of("encoder.layers.0.mlp", ["decoder.layers.0.mlp"])
    'encoder'
    >>> part_of("decoder.layers.1.mlp", ["decoder.layers.0.mlp"])
    ''
    """
    counted = list(counted)
    steps = name.split(".")
    for depth in range(1, len(steps)):
        part = ".".join(steps[:depth])
        if not any(f"{other}.".startswith(f"{part}.") for other in counted):
            return "" if steps[depth - 1].isdigit() else part
    return ""
