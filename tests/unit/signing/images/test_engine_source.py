"""Where an engine of this computer is looked for, and what its answers may be."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from protocol.errors import HeadlandError, LinkError, Reason, Refused, SettingsError, StateError
from signing.images import engine
from signing.images import http as http_room
from signing.images.engine import find_socket
from signing.images.http import ask_socket
from tests.fakes.image_files import layer, make_image, write_archive
from tests.fakes.intake import Taking

ONE = make_image([layer({"app": b"program"})])


@contextmanager
def answering(path: Path, *answers: bytes, after_s: float = 0.0) -> Iterator[list[bytes]]:
    """A socket that gives one answer to each who asks, and hangs up; what it was asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(65536))
                    if answer is answers[-1]:
                        time.sleep(after_s)
                    with suppress(ConnectionError):  # who had enough hangs up
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield asked
        thread.join(10)


def http(body: bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


INSPECTED = http(json.dumps({"Id": f"sha256:{ONE.id}", "RepoTags": ["app:1"]}).encode())


@pytest.fixture
def engine_socket(taking: Taking, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s") / "e"
    taking.environment["DOCKER_HOST"] = f"unix://{path}"
    return path


def archive(taking: Taking) -> bytes:
    write_archive(taking.folder / "app.tar", ONE)
    return (taking.folder / "app.tar").read_bytes()


def test_an_image_is_what_its_name_means_and_nothing_of_its_archive_stays(taking: Taking, engine_socket: Path) -> None:
    with answering(engine_socket, INSPECTED, http(archive(taking))) as asked:
        (image,) = taking.take("engine:group/app:1 ?x é")
    assert taking.is_whole(image, ONE)
    assert asked[0].startswith(b"GET /images/group%2Fapp%3A1%20%3Fx%20%C3%A9/json HTTP/1.1\r\n")
    assert asked[1].startswith(f"GET /images/{ONE.id}/get HTTP/1.1\r\n".encode())
    assert taking.left_over() == []


@pytest.mark.parametrize(
    "said", [b"", b"{}", b"[]", b'{"Id": "app"}', b'{"Id": "sha256:../../x"}', b"{" * 10_000, b" " * (5 << 20)]
)
def test_an_engine_that_says_nothing_of_an_image_is_not_asked_for_it(
    taking: Taking, engine_socket: Path, said: bytes
) -> None:
    with answering(engine_socket, http(said)), pytest.raises(Refused):
        taking.take("engine:app")


@pytest.mark.parametrize("before", [(), (INSPECTED,)])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http(b"{}", "404 Not Found"), StateError),
        (http(b"{}", "500 Internal Server Error"), StateError),
        (http(b"x" * 100, length=1000), LinkError),
        (http(b"x" * 1000), Refused),
        (b"", LinkError),
        (b"SSH-2.0-\x1b[2J\r\n", LinkError),
    ],
)
def test_an_engine_that_gives_no_image_is_said(
    taking: Taking, engine_socket: Path, before: tuple[bytes, ...], answer: bytes, kind: type[HeadlandError]
) -> None:
    with answering(engine_socket, *before, answer), pytest.raises(kind) as caught:
        taking.take("engine:app")
    assert caught.value.message.isprintable()
    assert taking.left_over() == []


def test_an_empty_archive_of_an_engine_is_said(taking: Taking, engine_socket: Path) -> None:
    with answering(engine_socket, INSPECTED, http(b"")), pytest.raises(LinkError, match="empty archive"):
        taking.take("engine:app")


def test_an_engine_may_take_its_time_to_pack_a_large_image(
    taking: Taking, engine_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_room, "TIMEOUT_S", 0.05)
    with answering(engine_socket, INSPECTED, http(archive(taking)), after_s=0.3):
        assert taking.is_whole(taking.take("engine:app")[0], ONE)
    engine_socket.unlink()
    monkeypatch.setattr(http_room, "PACKING_S", 0.05)
    with (
        answering(engine_socket, INSPECTED, http(archive(taking)), after_s=0.3),
        pytest.raises(LinkError, match="timed out"),
    ):
        taking.take("engine:app")


def test_headers_that_come_several_times_are_all_read(engine_socket: Path) -> None:
    answer = b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm="r"\r\nWWW-Authenticate: Basic x\r\n\r\n'
    with answering(engine_socket, answer), ask_socket(engine_socket, "/") as said:
        assert said.headers["www-authenticate"] == 'Bearer realm="r", Basic x'


def test_an_archive_without_an_end_is_refused(
    taking: Taking, engine_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ARCHIVE_BYTES", 5000)
    with answering(engine_socket, INSPECTED, http(bytes(6000), length=1 << 40)), pytest.raises(Refused) as caught:
        taking.take("engine:app")
    assert caught.value.reason is Reason.LIMIT
    assert taking.left_over() == []


def test_an_engine_is_a_socket_of_this_computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SOCKETS", ("/nowhere/docker.sock",))
    (tmp_path / "file").write_text("")
    for host in ("tcp://192.0.2.1:2375", "ssh://user@host", "/var/run/docker.sock"):
        with pytest.raises(SettingsError, match="socket of this computer"):
            find_socket({"DOCKER_HOST": host})
    for environment in ({}, {"DOCKER_HOST": f"unix://{tmp_path}/file"}, {"XDG_RUNTIME_DIR": str(tmp_path)}):
        with pytest.raises(StateError, match="no container engine answers"):
            find_socket(environment)
    # What cannot be looked at is not ours, as another user's folder of Podman: the next place counts.
    monkeypatch.setattr(engine, "SOCKETS", (f"/{'x' * 300}",))
    (tmp_path / "podman").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "podman/podman.sock"))
        assert find_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "podman/podman.sock"
