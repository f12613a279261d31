"""What a diagnosis says: the state of every site, and findings with what to do about each."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from moetrace.diagnosis.text import in_words

__all__ = ["KINDS", "SEVERITIES", "Diagnosis", "Finding", "SiteState", "worst_first"]

KINDS = frozenset(
    """
    dead-sub-keys low-coverage unreachable-experts
    aborted all-experts-run all-masked closed coalesced compiled-before counting-failed
    counts-contradict cuda-graphs doctor-failed dropped experts-without-weights fallback fault
    forked forward-replaced hook-gone logits-are-probabilities mask-not-applied model-gone
    nan-logits near-miss no-mask not-probabilities not-read not-recorded not-run not-run-as-decided
    not-visible nothing-yet open other-scoring other-top-k out-of-range part-silent
    router-not-called router-replaced run-not-written sampled scores-contradict shared-router silent
    sink-failed some-not-traced trial-failed trial-refused unused-in-trial went-silent
    uncounted-look-ups withheld zero-weight
    """.split()  # noqa: SIM905
)
"""Every kind of finding; each has an entry in ``docs/doctor.md``."""

SEVERITIES = ("error", "warning", "note")
"""The worst first: numbers that are wrong or lost; something to look at; good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: Its name in ``docs/doctor.md``, such as ``"silent"``.
        severity: ``"error"``, ``"warning"`` or ``"note"``.
        found: What was found, in words.
        advice: What to do.
        sites: Names of the sites that it holds for, the worst first; empty where it is of no site.
    """

    kind: str
    severity: str
    found: str
    advice: str
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind


@dataclass(frozen=True, slots=True)
class SiteState:
    """One site: how it is read, what it counted, and what its experts received.

    Attributes:
        name: Dotted name of its MoE block.
        router: Class name of the router.
        rule: Class name of the reader that reads it, and how it computes the choice again where
            nothing shows it.
        num_experts: E.
        top_k: K as the router states it, 0 where it does not.
        scoring: How its logits become probabilities.
        scored_by: How that was decided.
        state: ``"counted"``, ``"silent"``, or ``"not recorded"`` (``layers=`` of attach).
        calls: Forwards counted in the windows that were looked at.
        tokens: Tokens counted in them.
        decided: Assignments per expert that the router decided in a trial forward, padding
            included; None without a trial.
        received: Assignments per expert that the experts received in it; None where not visible.
        seen_by: Where ``received`` was seen, or why nothing was visible; empty without a trial.
        identity_experts: Identity experts, which are not among E; the last columns of ``decided``.
    """

    name: str
    router: str = ""
    rule: str = ""
    num_experts: int = 0
    top_k: int = 0
    scoring: str = ""
    scored_by: str = ""
    state: str = "counted"
    calls: int = 0
    tokens: int = 0
    decided: tuple[int, ...] | None = None
    received: tuple[int, ...] | None = None
    seen_by: str = ""
    identity_experts: int = 0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with the tracing of a model, or of a run, and what is not.

    ``str(diagnosis)`` is for people: the findings, the worst first, then the sites.

    Attributes:
        subject: What was looked at: class of the model, or name of the run.
        sites: State of every site, in the model's order.
        findings: What was found, the worst first.

    >>> finding = Finding("silent", "warning", "counted nothing", "run it", ("mlp",))
    >>> sites = (SiteState("mlp", "Gate", "RouterReader", 4, 2, "softmax", state="silent"),)
    >>> print(Diagnosis("Model", sites, (finding,)))
    Model: 0 of 1 sites counted; 1 warning
    <BLANKLINE>
    warning  silent: mlp: counted nothing -> run it
    <BLANKLINE>
    1 x Gate, 4 experts, top-2, softmax, read by RouterReader
      silent: mlp
    """

    subject: str
    sites: tuple[SiteState, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is worse than a note."""
        return all(finding.severity == "note" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain numbers, strings, lists and dicts."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        return "\n".join(in_words(self.to_dict()))


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings, errors first; those of one severity stay in their order."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
