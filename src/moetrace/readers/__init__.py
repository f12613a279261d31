"""How to read a `Routing` off each kind of router, and how to find the routers of a model."""

from moetrace.readers.base import Reader
from moetrace.readers.discovery import Site, discover, reader_for
from moetrace.readers.standard import StandardRouterReader

__all__ = ["Reader", "Site", "StandardRouterReader", "discover", "reader_for"]
