import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from moetrace.serve import Pages, Server
from moetrace.serve import server as server_module
from moetrace.store import RunFolder
from tests.report.browser import Page
from tests.report.made import recorded, stats, window


@contextmanager
def serving(path: Path) -> Iterator[Server]:
    """A server of this run folder, in a thread."""
    with Server(Pages(path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of a run of two windows."""
    history = [window(1, 10, stats("mlp", [6, 2])), window(11, 20, stats("mlp", [5, 3]))]
    with serving(recorded(tmp_path / "run", *history).path) as running:
        yield running


def asked(server: Server, path: str, **headers: str) -> http.client.HTTPResponse:
    """The answer to a GET of this path."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def raw(server: Server, request: bytes) -> bytes:
    """Everything that comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(request)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


class TestAnswers:
    def test_gives_the_report_and_says_what_no_other_may_do_with_it(self, server: Server) -> None:
        """J10: not stored, not framed, not sniffed, no other origin; the policy as a header too."""
        answer = asked(server, f"/{server.key}/")
        text = answer.read().decode()
        assert answer.status == 200
        assert "mlp" in text
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in answer.headers
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert policy.endswith("; connect-src 'self'; frame-ancestors 'none'")
        assert policy.removesuffix("; frame-ancestors 'none'") in text

    def test_without_the_key_there_is_nothing(self, server: Server) -> None:
        """J10: another user of this machine would have to guess 144 bits."""
        assert len(server.key) == 24
        for path in ("/", "/state", "/index.html", f"/{server.key[:-1]}/"):
            assert asked(server, path).status == 404

    def test_the_state_is_another_one_when_the_folder_is(self, tmp_path: Path) -> None:
        """What the page asks for every few seconds."""
        path = tmp_path / "run"
        recorded(path, window(1, 10, stats("mlp", [6, 2])))
        with serving(path) as server:
            before = asked(server, f"/{server.key}/state").read()
            assert asked(server, f"/{server.key}/state").read() == before
            recorded(path, window(11, 20, stats("mlp", [5, 3])))
            assert asked(server, f"/{server.key}/state").read() != before

    def test_the_page_is_formed_once_per_state(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ten readers of a run that does not change cost one page."""
        path = recorded(tmp_path / "run", window(1, 10, stats("mlp", [6, 2]))).path
        formed = []
        real = server_module.Pages.page.__globals__["render"]

        def counted(*args: object, **kwargs: object) -> str:
            formed.append(1)
            text: str = real(*args, **kwargs)
            return text

        monkeypatch.setitem(server_module.Pages.page.__globals__, "render", counted)
        pages = Pages(path)
        assert len({pages.page().text for _ in range(10)}) == 1
        assert formed == [1]

    def test_a_foreign_host_gets_no_page(self, server: Server) -> None:
        """J9: as a request on the wire, two Hosts and none too."""
        for host in ("evil.com", f"evil.com:{server.server_port}", "127.0.0.1"):
            answer = asked(server, f"/{server.key}/", Host=host)
            assert (answer.status, b"mlp" in answer.read()) == (403, False)
        line = f"GET /{server.key}/ HTTP/1.1\r\n".encode()
        own = f"Host: 127.0.0.1:{server.server_port}\r\n".encode()
        for headers in (b"", own + own, own + b"Host: evil.com\r\n"):
            assert raw(server, line + headers + b"\r\n").startswith(b"HTTP/1.0 403 ")
        assert raw(server, line + own + b"\r\n").startswith(b"HTTP/1.0 200 ")

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\xff\xfe\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost\r\n\r\n", b"GET <script>x</script> HTTP/1.1 y\r\n\r\n",
        ],
    )  # fmt: skip
    def test_what_is_no_request_gets_no_echo(self, server: Server, request_bytes: bytes) -> None:
        """J1: nothing of it comes back, and the server goes on."""
        assert b"<script>" not in raw(server, request_bytes)
        assert asked(server, f"/{server.key}/state").status == 200


class TestLimits:
    def test_listens_on_the_loopback_address_alone(self, server: Server) -> None:
        """J8: the machine's other addresses refuse the connection."""
        assert server.server_address[0] == "127.0.0.1"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))
            except OSError:
                pytest.skip("this machine has no other address")
            other = probe.getsockname()[0]
        with pytest.raises(OSError, match=r"refused|timed out"):
            socket.create_connection((other, server.server_port), timeout=2)

    def test_a_long_head_is_cut_off(self, server: Server) -> None:
        """J12: beyond 16 KiB nothing is read and nothing answered."""
        filler = b"X-Filler: " + b"a" * 20_000 + b"\r\n"
        assert raw(server, b"GET / HTTP/1.1\r\n" + filler + b"\r\n") == b""

    def test_a_slow_head_is_given_up(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """J12: a byte now and then does not keep a connection open beyond its time."""
        monkeypatch.setattr(server_module, "PATIENCE", 0.4)
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
            closed = False
            while not closed and time.monotonic() < began + 15:
                try:
                    connection.sendall(b"G")
                    connection.settimeout(0.1)
                    closed = connection.recv(1) == b""
                except TimeoutError:
                    continue
                except OSError:
                    closed = True
        assert closed

    def test_more_connections_than_threads_are_turned_away(self, server: Server) -> None:
        """J12: sixteen that say nothing; the next is closed, and they are served after."""
        idle = [
            socket.create_connection(("127.0.0.1", server.server_port), timeout=20)
            for _ in range(server_module.THREADS)
        ]
        deadline = time.monotonic() + 15
        while server._free._value and time.monotonic() < deadline:
            time.sleep(0.01)
        assert raw(server, b"GET / HTTP/1.1\r\n\r\n") == b""
        for connection in idle:
            connection.close()
        while not server._free._value and time.monotonic() < deadline:
            time.sleep(0.01)
        assert asked(server, f"/{server.key}/state").status == 200


class TestInTheBrowser:
    def test_a_new_window_appears_by_itself_and_the_reader_stays(
        self, browser: Page, tmp_path: Path
    ) -> None:
        """At the last window one stays at the last; at an older one at that step."""
        folder = RunFolder.prepare(tmp_path / "run")
        segment = folder.open_segment(rank=0, header={})

        def grow(seq: int) -> None:
            made = window(10 * seq + 1, 10 * seq + 10, stats("a", [6, 2]), stats("b", [4, 4]))
            segment.append(replace(made, run_id=folder.run_id, seq=seq))

        for seq in range(3):
            grow(seq)
        with serving(tmp_path / "run") as server:
            browser.call(
                "Network.emulateNetworkConditions",
                offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1,
            )  # fmt: skip
            browser.seen.clear()
            browser.call("Page.navigate", url=server.url)
            browser.wait("document.body?.dataset.drawn === 'all'")
            assert browser.text("#window") == "steps 21-30 (window 3 of 3)"
            grow(3)
            browser.wait(
                "document.getElementById('window')?.textContent === 'steps 31-40 (window 4 of 4)'"
                " && document.body.dataset.drawn === 'all'"
            )
            browser.focus("#step")
            browser.press("Home")
            browser.run("document.getElementById('layer').selectedIndex = 1")
            browser.run("document.getElementById('layer').dispatchEvent(new Event('change'))")
            grow(4)
            browser.wait(
                "document.getElementById('step')?.max === '4'"
                " && document.body.dataset.drawn === 'all'"
            )
            assert browser.text("#window") == "steps 1-10 (window 1 of 5)"
            assert browser.run("document.getElementById('layer').value") == "b"
            assert browser.run("document.activeElement.id") == "step"
            addresses = {url for url in browser.requests() if not url.startswith("data:")}
            assert addresses == {server.url, f"{server.url}state"}
            assert browser.complaints() == []
            browser.call("Page.navigate", url="about:blank")
        segment.close()


class TestCommand:
    def test_says_where_without_torch_and_ends_with_ctrl_c(self, tmp_path: Path) -> None:
        """One JSON document with the address; the address answers; Ctrl-C is no error."""
        run = recorded(tmp_path / "run", window(1, 1, stats("mlp", [5, 3])))
        code = (
            # What starts the tests may have told its children to ignore Ctrl-C.
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "import sys; from moetrace.cli import main; code = main(sys.argv[1:]);"
            "sys.exit(99 if 'torch' in sys.modules else code)"
        )
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, "serve", "--json", str(run.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            lines: list[str] = []
            while not lines or lines[-1] != "}\n":
                lines.append(process.stdout.readline())
                assert lines[-1], process.communicate()
            url = json.loads("".join(lines))["url"]
            found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/[\w-]{24}/)", url)
            assert found is not None
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
            connection.request("GET", found[2])
            assert connection.getresponse().status == 200
        finally:
            process.send_signal(2)
            _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
