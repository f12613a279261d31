import pytest

from moetrace.serve.gate import refusal, route

OWN = ("Host", "127.0.0.1:8000")


class TestHost:
    @pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000"])
    def test_this_machine_is_let_in(self, host: str) -> None:
        """J9: the two names of the loopback address, with the server's port."""
        assert refusal("GET", [("Host", host)], port=8000) is None

    @pytest.mark.parametrize(
        "host",
        [
            "evil.com", "evil.com:8000", "127.0.0.1.evil.com:8000", "127.0.0.1:8001", "127.0.0.1",
            "localhost", "localhost:80", "LOCALHOST:8000", "localhost.:8000", "0.0.0.0:8000",
            "127.0.0.2:8000", "127.1:8000", "2130706433:8000", "0x7f.1:8000", "[::1]:8000",
            "[::ffff:127.0.0.1]:8000", "localhost:8000@evil.com", "evil.com#localhost:8000",
            "localhost:8000, evil.com", " localhost:8000", "localhost:8000 ", "localhost:08000",
            "192.168.0.1:8000", "169.254.169.254:8000", "", ":8000", "localhost:8000\x00",
            "\u24db\u24de\u24d2alhost:8000", "user@localhost:8000",
        ],
    )  # fmt: skip
    def test_every_other_name_is_turned_away(self, host: str) -> None:
        """J9: DNS rebinding reaches the socket, and not the page."""
        assert refusal("GET", [("Host", host)], port=8000) is not None

    @pytest.mark.parametrize(
        "headers",
        [[], [OWN, OWN], [OWN, ("host", "evil.com")], [("X-Forwarded-Host", "127.0.0.1:8000")]],
    )
    def test_one_host_is_needed(self, headers: list[tuple[str, str]]) -> None:
        """J9: none, two, or a proxy's word for it is no Host."""
        assert refusal("GET", headers, port=8000) is not None


class TestOtherSites:
    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get", ""])
    def test_the_server_is_only_read(self, method: str) -> None:
        """J10: there is nothing that a request could change."""
        assert refusal(method, [OWN], port=8000) == (405, "this server is only read")

    @pytest.mark.parametrize(
        "header",
        [
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Site", "same-site"),
            ("sec-fetch-site", "made up"),
            ("Origin", "https://evil.com"),
            ("Origin", "null"),
            ("Origin", "http://localhost:8000"),
        ],
    )
    def test_what_another_site_asks_is_turned_away(self, header: tuple[str, str]) -> None:
        """J10: the browser says who asks."""
        assert refusal("GET", [OWN, header], port=8000) == (403, "another site asked")

    @pytest.mark.parametrize(
        "header",
        [
            ("Sec-Fetch-Site", "none"),
            ("Sec-Fetch-Site", "same-origin"),
            ("Origin", "http://127.0.0.1:8000"),
        ],
    )
    def test_our_own_page_and_a_person_are_let_in(self, header: tuple[str, str]) -> None:
        """An address that was typed, and what our page asks."""
        assert refusal("HEAD", [OWN, header], port=8000) is None

    @pytest.mark.parametrize("header", [("Content-Length", "3"), ("Transfer-Encoding", "chunked")])
    def test_nothing_can_be_sent(self, header: tuple[str, str]) -> None:
        """J12: a body is not read."""
        assert refusal("GET", [OWN, header], port=8000) == (400, "nothing can be sent here")


class TestRoute:
    @pytest.mark.parametrize(
        "path",
        [
            "/", "/k", "k/", "/K/", "/k//", "/k/?", "/k/state/", "/k/%73tate", "/k/../k/", "//k/",
            "/k/..%2f..%2fetc%2fpasswd", "/k/\\..\\", "/k/\x00", "/etc/passwd", "/k/run.json",
            "http://127.0.0.1/k/", "/" + "a" * 9000, "/\udce9/",
        ],
    )  # fmt: skip
    def test_there_are_two_addresses(self, path: str) -> None:
        """J11: no path is decoded or made into a file's name."""
        assert route(path, key="k") is None
