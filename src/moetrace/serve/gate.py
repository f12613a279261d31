"""Which requests are answered.

A name that somebody's server resolves to 127.0.0.1 makes a browser send that page's requests here
(DNS rebinding). Such a request carries that name as its Host, so the Host has to be one of ours,
character by character. The key in the path is what another user of this machine does not know.
"""

import hmac
from collections.abc import Mapping, Sequence

__all__ = ["FORBIDDEN", "refusal", "route"]

FORBIDDEN = 403

NAMES = ("127.0.0.1", "localhost")
"""Names of this machine in a Host; the port behind them has to be the server's own."""

SITES = ("none", "same-origin")
"""Values of Sec-Fetch-Site that are let in: typed by a person, or asked for by our own page."""


def refusal(
    method: str, headers: Sequence[tuple[str, str]], *, port: int
) -> tuple[int, str] | None:
    """Why a request is not answered, as status and text; None where it may be.

    Args:
        method: Its method.
        headers: Every header line in its order, duplicates included.
        port: The server's port.

    >>> refusal("GET", [("Host", "127.0.0.1:8000")], port=8000)
    >>> refusal("GET", [("Host", "evil.example:8000")], port=8000)
    (403, 'this server answers to 127.0.0.1 and localhost alone')
    """
    if method not in ("GET", "HEAD"):
        return 405, "this server is only read"
    named = _values(headers)
    hosts = named.get("host", [])
    if len(hosts) != 1 or hosts[0] not in {f"{name}:{port}" for name in NAMES}:
        return FORBIDDEN, "this server answers to 127.0.0.1 and localhost alone"
    sites = named.get("sec-fetch-site", [])
    if any(site not in SITES for site in sites):
        return FORBIDDEN, "another site asked"
    origins = named.get("origin", [])
    if any(origin != f"http://{hosts[0]}" for origin in origins):
        return FORBIDDEN, "another site asked"
    if "content-length" in named or "transfer-encoding" in named:
        return 400, "nothing can be sent here"
    return None


def route(path: str, *, key: str) -> str | None:
    """What is asked for: ``"page"``, ``"state"``, or None for anything else.

    A path is compared with the two there are, as it stands; it is never taken apart, decoded, or
    made into the name of a file.

    >>> route("/k/", key="k"), route("/k/state", key="k"), route("/k/../state", key="k")
    ('page', 'state', None)
    """
    given = path.encode("utf-8", "surrogateescape")
    for name, wanted in (("page", f"/{key}/"), ("state", f"/{key}/state")):
        if hmac.compare_digest(given, wanted.encode("ascii")):
            return name
    return None


def _values(headers: Sequence[tuple[str, str]]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    return found
