"""One thread a request, few of them, none for long."""

import io
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from moetrace.errors import MoETraceError
from moetrace.serve.gate import refusal, route
from moetrace.serve.pages import Pages

__all__ = ["LOOPBACK", "Server", "serve"]

LOOPBACK = "127.0.0.1"
"""The only address that is listened on."""

PATIENCE = 10.0
"""Seconds in which a request has to have said all it wants."""

SENDING = 30.0
"""Seconds in which an answer has to have been taken."""

HEAD = 16384
"""Most bytes of a request; there is no body."""

THREADS = 16
"""Requests that are answered at once; more are turned away."""

HEADERS = (
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)


class Server(ThreadingHTTPServer):
    """Serves the page of one run on the loopback address.

    Args:
        pages: The pages.
        port: Port to listen on; 0 takes a free one.

    Attributes:
        url: The address to open; nobody can guess the key in it.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = THREADS

    def __init__(self, pages: Pages, *, port: int = 0) -> None:
        self.pages, self.key = pages, secrets.token_urlsafe(18)
        self._free = threading.BoundedSemaphore(THREADS)
        super().__init__((LOOPBACK, port), _Handler)
        self.url = f"http://{LOOPBACK}:{self.server_port}/{self.key}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, where one is free."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: who breaks off a request needs no traceback on our terminal."""


def serve(
    path: str | os.PathLike[str],
    *,
    port: int = 0,
    ready: Callable[[Server], object] = lambda server: None,
) -> None:
    """Serve the live report of a run until Ctrl-C.

    Args:
        path: The folder that ``attach`` was given.
        port: Port to listen on; 0 takes a free one.
        ready: Called once with the server that listens.

    Raises:
        RunNotReadable: There is no run in the folder, or none that can be read.
        OSError: The port is taken.
    """
    with Server(Pages(path), port=port) as server:
        ready(server)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # one request a connection: nothing is kept open
    server_version = "moetrace"
    sys_version = ""

    def handle(self) -> None:
        head = _head(self.connection)
        if head is None:
            return
        self.connection.settimeout(SENDING)
        self.rfile = io.BytesIO(head)
        self.close_connection = True
        self.raw_requestline = self.rfile.readline()
        if self.parse_request():
            self._answer()

    def _answer(self) -> None:
        server = cast(Server, self.server)
        no = refusal(self.command, self.headers.items(), port=server.server_port)
        if no is not None:
            self._send(no[0], f"{no[1]}\n", "text/plain")
            return
        asked = route(self.path, key=server.key)
        try:
            if asked == "page":
                page = server.pages.page()
                self._send(HTTPStatus.OK, page.text, "text/html", policy=page.policy)
            elif asked == "state":
                self._send(HTTPStatus.OK, server.pages.state(), "text/plain")
            else:
                self._send(HTTPStatus.NOT_FOUND, "there is nothing here\n", "text/plain")
        except (MoETraceError, ValueError, OSError):
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "the run cannot be read\n", "text/plain")

    def _send(
        self, status: int, text: str, kind: str, *, policy: str = "default-src 'none'"
    ) -> None:
        body = text.encode("utf-8")
        self.send_response_only(status)
        for name, value in HEADERS:
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", f"{policy}; frame-ancestors 'none'")
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What cannot be parsed gets a status and nothing of what it said."""
        self.command = getattr(self, "command", None) or "GET"
        self.request_version = "HTTP/1.0"
        self._send(code, "this is no request\n", "text/plain")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the key stands in every request's path."""


def _head(connection: socket.socket) -> bytes | None:
    """The request up to its empty line, or None where it is too long or does not come in time.

    A timeout on the socket alone would start anew with every byte.
    """
    deadline = time.monotonic() + PATIENCE
    head = b""
    while b"\r\n\r\n" not in head:
        left = deadline - time.monotonic()
        if left <= 0 or len(head) > HEAD:
            return None
        connection.settimeout(left)
        try:
            part = connection.recv(4096)
        except OSError:
            return None
        if not part:
            return None
        head += part
    return head if len(head) <= HEAD else None
