"""How to read a `Routing` off each kind of router, and how to find the routers of a model."""

from moetrace.readers.base import Reader
from moetrace.readers.discovery import discover, find_routers
from moetrace.readers.lookup import LookupReader
from moetrace.readers.modality import KINDS_ARGUMENT
from moetrace.readers.router_output import RouterReader
from moetrace.readers.site import Found, Site

__all__ = [
    "KINDS_ARGUMENT",
    "Found",
    "LookupReader",
    "Reader",
    "RouterReader",
    "Site",
    "discover",
    "find_routers",
]
