#!/usr/bin/python3
"""An example of an application in a container: opens spray nozzles where the model sees something to spray.

It needs the standard library only, and keeps to the contract for application writers in device/README.md:

- it follows what serves (`GET /v1/active`), reads each model through the release mount, says `headland-sees DIGEST`;
- it reads results as they are made (`GET /v1/results`), alarms among them, and lives with both ends of the link going;
- it serves its own health on a port of its own loopback, for the health check `sprayer.py check`;
- it writes only into its data folder, needs no user and no root, and ends on SIGTERM.

A real one would drive valves where this one counts.
"""

import hashlib
import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SETTINGS = Path(__file__).with_name("sprayer.json")
RELEASE = Path(os.environ.get("HEADLAND_RELEASE", "/headland/release"))
LINK = Path(os.environ.get("HEADLAND_LINK", "/headland/link"))
DATA = Path(os.environ.get("SPRAYER_DATA", "/data"))
PORT = int(os.environ.get("SPRAYER_PORT", "8787"))
SILENCE_S = 5.0  # the agent says something each second
PATIENCE_S = 60.0  # an agent that is started again is back long before
WAIT_S = 50.0  # for a change of what serves
PIECE_BYTES = 1 << 20


class Link(http.client.HTTPConnection):
    """HTTP over the agent's socket."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__("headland", timeout=timeout_s)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(LINK / "headland.sock"))


class LinkGoneError(Exception):
    """The agent is not there, or does not answer; it will be."""


def lines(path: str, timeout_s: float) -> Iterator[Any]:
    """The JSON lines of an answer, as they come."""
    link = Link(timeout_s)
    try:
        link.request("GET", path)
        answer = link.getresponse()
        if answer.status != http.client.OK:
            raise LinkGoneError(f"{answer.status}: {answer.read(1000).decode(errors='replace').strip()}")
        for line in answer:
            yield json.loads(line)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise LinkGoneError(str(error) or type(error).__name__) from error
    finally:
        link.close()


class Sprayer:
    """What the application knows; its threads share it.

    Args:
        nozzles: How many it has.
        data: Its folder, which outlives the container.
    """

    def __init__(self, nozzles: int, data: Path) -> None:
        self.nozzles = nozzles
        self.manifest: str | None = None
        self.models: list[str] = []
        self.heard_s = time.monotonic()
        self.missed = 0
        self._file = data / "sprayed.json"
        self._lock = threading.Lock()
        try:
            self.sprayed = Counter(json.loads(self._file.read_text()))
        except (OSError, ValueError):  # the first start; or a cut, and counts are not worth more
            self.sprayed = Counter()

    def heard(self) -> None:
        """The stream of results goes on: whoever only follows releases would never hear an alarm."""
        self.heard_s = time.monotonic()

    def spray(self, row: dict[str, Any]) -> None:
        """A result that is an alarm opens a nozzle."""
        if not row.get("alarm"):
            return
        with self._lock:
            self.sprayed[row["model"]] += 1
            fresh = self._file.with_suffix(".new")
            try:
                fresh.write_text(json.dumps(self.sprayed))
                fresh.replace(self._file)
            except OSError as error:  # a full disk closes no nozzle
                say(f"the counts cannot be kept: {error}")

    def health(self) -> dict[str, Any]:
        why = ""
        if self.nozzles < 1:
            why = "no nozzle is there to be opened"
        elif time.monotonic() - self.heard_s > PATIENCE_S:
            why = f"no results were heard for {PATIENCE_S:.0f} s"
        return {
            "healthy": not why,
            "why": why,
            "manifest": self.manifest,
            "models": self.models,
            "sprayed": dict(self.sprayed),
            "missed": self.missed,
        }


def say(text: str) -> None:
    print(text, flush=True)


def follow_release(sprayer: Sprayer) -> None:
    """Takes up each release that serves, for ever."""
    query = ""
    while True:
        try:
            for active in lines(f"/v1/active{query}", WAIT_S + SILENCE_S):
                if not query or active["manifest"] != sprayer.manifest:
                    take_up(sprayer, active)
                query = "?" + urllib.parse.urlencode({"after": active["manifest"] or "", "wait_s": WAIT_S})
        except (LinkGoneError, OSError, ValueError) as error:
            say(f"no release to follow: {error}")
            time.sleep(1.0)


def take_up(sprayer: Sprayer, active: dict[str, Any]) -> None:
    """Looks at the models of what serves now, and says which they are.

    Raises:
        OSError: A file cannot be read: it is tried again.
        ValueError: A file is not what the agent says it is: likewise.
    """
    seen = []
    for model in active["models"]:
        with (RELEASE / model["path"]).open("rb") as file:
            hasher = hashlib.sha256()
            while piece := file.read(PIECE_BYTES):
                hasher.update(piece)
        if hasher.hexdigest() != model["sha256"]:
            raise ValueError(f"model {model['name']} is not what the agent says it is")
        seen.append(model["sha256"])
    sprayer.manifest, sprayer.models = active["manifest"], seen
    say(f"release {active['release'] or 'none'}")
    for digest in seen:
        say(f"headland-sees {digest}")


def follow_results(sprayer: Sprayer) -> None:
    """Reads results, for ever."""
    while True:
        try:
            for said in lines("/v1/results", SILENCE_S):
                sprayer.heard()
                if "row" in said:
                    sprayer.spray(said["row"])
                sprayer.missed += said.get("dropped", 0)
            say("no results to follow: the agent ended the stream")
        except LinkGoneError as error:
            say(f"no results to follow: {error}")
        time.sleep(0.5)


def serve_health(sprayer: Sprayer) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            health = sprayer.health()
            body = json.dumps(health).encode() + b"\n"
            self.send_response(200 if health["healthy"] else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def run() -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = json.loads(SETTINGS.read_text())
    sprayer = Sprayer(settings["nozzles"], DATA)
    server = serve_health(sprayer)
    for follow in (follow_release, follow_results):
        threading.Thread(target=follow, args=(sprayer,), daemon=True).start()
    say(f"sprayer {settings['version']}: {settings['nozzles']} nozzles, health on port {server.server_port}")
    stop.wait()
    say("sprayer: ends")
    return 0


def check() -> int:
    """The health check: 0 is healthy."""
    page = http.client.HTTPConnection("127.0.0.1", PORT, timeout=3)
    try:
        page.request("GET", "/")
        answer = page.getresponse()
        say(answer.read().decode().strip())
    except (OSError, http.client.HTTPException) as error:
        say(str(error))
        return 1
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(check() if sys.argv[1:] == ["check"] else run())
