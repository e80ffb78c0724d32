"""What a cut of the demo is said to have cost: bytes of the patch, not what else the machine fetched meanwhile."""

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.limits import PATCH_SEGMENT_BYTES
from scripts.demo_story.cuts import Cuts
from scripts.demo_story.proxy import CHUNK_BYTES, Proxy

PATCH_BYTES = 3 * PATCH_SEGMENT_BYTES
ANSWER_BYTES = 8 * 1024
LOST_BYTES = 8 * CHUNK_BYTES  # what may lie between the proxy and the machine


class Answers(socketserver.StreamRequestHandler):
    """As many bytes as each line asks for."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            for line in self.rfile:
                self.wfile.write(bytes(int(line)))


class Tractor:
    """A machine, and its own process: it fetches a patch and calls all the time, and a kill costs the open segment."""

    name = "tractor"

    def __init__(self, port: int, log: Path) -> None:
        self.process, self.log = self, log
        self.log.touch()
        self.calls_bytes = 0
        self.had: list[int] = []  # of the patch, whenever it came to an end
        self._port = port
        self._threads: list[threading.Thread] = []
        self._running = threading.Event()

    def start(self) -> None:
        self._running.set()
        begins = self.had[-1] // PATCH_SEGMENT_BYTES * PATCH_SEGMENT_BYTES if self.had else 0
        self._threads = [threading.Thread(target=self._fetch, args=(begins,)), threading.Thread(target=self._call)]
        for thread in self._threads:
            thread.start()

    def kill(self) -> None:
        self._running.clear()
        for thread in self._threads:
            thread.join()

    def _fetch(self, here: int) -> None:
        while self._running.is_set() and here < PATCH_BYTES:
            self._say(f"payload abc: from byte {here} of {PATCH_BYTES}")
            for chunk in self._asked(PATCH_BYTES - here):
                here += len(chunk)
            self.had.append(here)
        if here == PATCH_BYTES:
            self._say("patch abc: applying the group at byte 0")

    def _call(self) -> None:
        while self._running.is_set():
            self.calls_bytes += sum(map(len, self._asked(ANSWER_BYTES)))

    def _asked(self, length: int) -> Iterator[bytes]:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=10) as link:
            link.sendall(f"{length}\n".encode())
            while length and self._running.is_set() and (chunk := link.recv(min(length, CHUNK_BYTES))):
                length -= len(chunk)
                yield chunk

    def _say(self, what: str) -> None:
        with self.log.open("a") as log:
            log.write(what + "\n")


def test_answers_to_contacts_are_not_counted_as_patch_that_travelled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.demo_story.cuts.DOWNLOAD_S", 2.0)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever).start()
        proxy = Proxy(server.server_address[1])
        link = proxy.link("tractor")
        tractor = Tractor(link.port, tmp_path / "log")
        try:
            cuts = Cuts(tractor, link, "1.1.0", PATCH_BYTES)
            tractor.start()
            cuts.make(drops=2)
            made, groups = cuts.told()
        finally:
            tractor.kill()
            proxy.close()
            server.shutdown()
    assert [cut.how for cut in made] == ["drop", "kill", "drop", "kill"]
    assert groups == 1
    assert tractor.calls_bytes > LOST_BYTES, "nothing that could be taken for patch"
    assert [cut.from_bytes for cut in made[:3]] == [
        int(place) for place in re.findall(r"from byte (\d+)", tractor.log.read_text())[1:4]
    ]
    for cut, had in zip(made[:3], tractor.had, strict=False):
        assert had <= cut.came_bytes <= had + LOST_BYTES
        assert max(had - cut.from_bytes, 0) <= cut.bytes_again <= had - cut.from_bytes + LOST_BYTES
