"""The HTTP source: what a server may answer, and nothing else."""

import gzip
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from protocol.errors import LinkError, Reason, Refused
from signing.trust_store import HttpSource
from tests.fakes.repository_server import Shelf, http_server


@contextmanager
def says(answer: bytes, *, again: bytes = b"") -> Iterator[str]:
    """A server that answers each connection with these bytes, whatever it was asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(answer)
                    while again and not done.is_set():
                        connection.sendall(again)
                except OSError:
                    pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_a_file_is_read_whole_and_connections_are_kept_over_missing_ones() -> None:
    shelf = Shelf({"a.json": b"x" * 100_000})
    with http_server({"/m/": shelf}) as url:
        source = HttpSource(f"{url}/m")
        for _ in range(3):
            assert source.read("a.json", 100_000) == b"x" * 100_000
            with pytest.raises(LinkError) as caught:
                source.read("b.json", 10)
            assert (caught.value.status, caught.value.retryable) == (404, False)
        assert source._pool.connection_from_url(url).num_connections == 1
        source.close()


def test_a_role_name_that_looks_like_a_path_is_asked_for_as_one_name() -> None:
    shelf = Shelf({"1...%2Fx.json": b"{}"})
    with http_server({"/m/": shelf}) as url:
        assert HttpSource(f"{url}/m/").read("1...%2Fx.json", 10) == b"{}"
    assert shelf.asked == ["1...%2Fx.json"]


def test_one_byte_more_than_allowed_ends_the_transfer() -> None:
    with says(b"HTTP/1.1 200 OK\r\n\r\n", again=b"x" * 65536) as url, pytest.raises(Refused) as caught:
        HttpSource(url).read("timestamp.json", 16384)
    assert caught.value.reason is Reason.LENGTH


def test_a_coded_answer_is_refused_undecoded() -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    with says(head + bomb) as url, pytest.raises(Refused) as caught:
        HttpSource(url).read("timestamp.json", 20_000_000)
    assert caught.value.reason is Reason.METADATA


def test_a_redirect_is_not_followed() -> None:
    with says(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n") as url:
        with pytest.raises(LinkError) as caught:
            HttpSource(url).read("timestamp.json", 10)
        assert caught.value.status == 302


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_a_broken_answer_is_the_links_fault_and_worth_another_try(answer: bytes) -> None:
    with says(answer) as url, pytest.raises(LinkError) as caught:
        HttpSource(url).read("timestamp.json", 1000)
    assert caught.value.retryable
    assert caught.value.status is None


def test_a_server_error_is_worth_another_try() -> None:
    with says(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as url, pytest.raises(LinkError) as caught:
        HttpSource(url).read("timestamp.json", 1000)
    assert (caught.value.retryable, caught.value.status) == (True, 503)


def test_a_file_that_comes_byte_by_byte_is_given_up() -> None:
    ticks = iter(range(0, 100_000, 40))
    with says(b"HTTP/1.1 200 OK\r\n\r\n", again=b"x") as url, pytest.raises(LinkError, match="not whole"):
        HttpSource(url, monotonic=lambda: float(next(ticks))).read("timestamp.json", 10**9)


def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:9")
    with http_server({"/m/": Shelf({"a": b"1"})}) as url:
        assert HttpSource(f"{url}/m/").read("a", 10) == b"1"
