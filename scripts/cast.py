"""The cast of the demo and of the tests end to end, as real processes: server, machines, cameras, managers' tool.

Facts come only from what these programs print or answer; nothing here knows what a story or a test expects.
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device.layout import Layout
from device.status import read_status
from protocol.wire import encode

BIN = Path(sys.executable).parent
SCRIPTS = Path(__file__).resolve().parent
MODELS = SCRIPTS / "demo_models"
PRODUCT = "pest-detector"
START_S = 30.0
COMMAND_S = 120.0

SERVER_SETTINGS = """\
[devices]
host = "127.0.0.1"
port = {device_port}
names = ["localhost", "127.0.0.1"]

[operators]
host = "127.0.0.1"
port = {operator_port}

[contact]
poll_s = {poll_s}
busy_poll_s = {busy_poll_s}
"""

DEVICE_SETTINGS = """\
[server]
poll_min_s = {poll_min_s}
poll_max_s = {poll_max_s}
retry_first_s = {retry_first_s}
retry_longest_s = {retry_longest_s}

[inference]
frames = "{frames}"

[[inference.alarms]]
kind = "file"
path = "{alarm}"
"""


class CastError(AssertionError):
    """Something is not as it must be; the message says what was seen."""


def expect(true: bool, otherwise: str, facts: object) -> None:
    """Ends a story when a fact is not as it must be."""
    if not true:
        raise CastError(f"{otherwise}: {str(facts)[:600]}")


def run_json(*command: str | Path, env: dict[str, str] | None = None, code: int | None = 0) -> dict[str, Any]:
    """Runs a command of ours with --json and returns its object.

    Args:
        command: Its parts.
        env: Added to ours.
        code: That it must end with; None: any. Other than 0 there are `exit` and `stderr` in the answer as well.
    """
    done = subprocess.run(
        [*map(str, command), "--json"],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        env=os.environ | (env or {}),
    )
    if code is not None and done.returncode != code:
        raise CastError(
            f"{' '.join(map(str, command[:4]))} ended with {done.returncode}: {done.stderr.strip()[-2000:]}"
        )
    try:
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    except json.JSONDecodeError as error:
        raise CastError(f"{command[0]} printed no JSON: {done.stdout[:200]!r}") from error
    if code != 0:
        answer |= {"exit": done.returncode, "stderr": done.stderr}
    return answer


def wait_for(what: str, look: Callable[[], Any], timeout_s: float = 40.0, pause_s: float = 0.4) -> Any:
    """Looks until there is something to see; says what was missing when there never is."""
    end = time.monotonic() + timeout_s
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > end:
            raise CastError(f"waited {timeout_s:.0f} s in vain for: {what}")
        time.sleep(pause_s)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Process:
    """A child with a log file."""

    name: str
    command: list[str]
    log: Path
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            # A session of its own: an interrupt at the terminal is for who plays, who then ends the cast in order.
            self.child = subprocess.Popen(
                self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def kill(self) -> None:
        """Off, as at the turn of a key: SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int | None:
        """In order. Returns the exit code; None when it did not run."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int | None:
        child, self.child = self.child, None
        if child is None:
            return None
        if child.poll() is None:
            child.send_signal(how)
        try:
            return child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(timeout=5)
            return -signal.SIGKILL

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self) -> str:
        return self.said()[-1500:]


@dataclass
class Server:
    """headland-server on its embedded default: SQLite and a folder."""

    state: Path
    logs: Path
    device_port: int = 0
    process: Process = field(init=False)

    def __post_init__(self) -> None:
        self.process = Process(
            "server", [str(BIN / "headland-server"), "run", "--state", str(self.state)], self.logs / "server.log"
        )

    def init(self, *, poll_s: float, busy_poll_s: float, more: str = "") -> None:
        """On free ports, with machines that call so often; `more` goes behind its settings."""
        device_port, operator_port = free_ports(2)
        self.state.mkdir(parents=True)
        settings = SERVER_SETTINGS.format(
            device_port=device_port, operator_port=operator_port, poll_s=poll_s, busy_poll_s=busy_poll_s
        )
        (self.state / "server.toml").write_text(settings + more)
        self.device_port = device_port
        run_json(BIN / "headland-server", "init", "--state", self.state)

    def start(self) -> dict[str, Any]:
        facts = self.state / "run.json"
        facts.unlink(missing_ok=True)
        self.process.start()

        def listening() -> dict[str, Any] | None:
            if not self.process.alive:
                raise CastError(f"the server ended at start: {self.process.tail()}")
            return json.loads(facts.read_text()) if facts.exists() else None

        answer: dict[str, Any] = wait_for("the server to listen", listening, START_S)
        return answer

    def stop(self) -> None:
        self.process.stop()

    def hand_over(self, evil: Path) -> dict[str, Any]:
        """Starts the same server, same folder, in enemy hands."""
        honest = self.process.command
        self.process.command = [
            sys.executable,
            str(SCRIPTS / "demo_story" / "enemy.py"),
            "--state",
            str(self.state),
            "--evil",
            str(evil),
        ]
        try:
            return self.start()
        finally:
            self.process.command = honest

    def get(self, path: str) -> Any:
        """Asks the operator API, as `operator.json` says."""
        access = json.loads((self.state / "operator.json").read_text())
        context = ssl.create_default_context(cadata=access["ca_pem"])
        request = urllib.request.Request(
            f"{access['url']}/api/v1{path}", headers={"Authorization": f"Bearer {access['token']}"}
        )
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return json.load(answer)

    def results(self, device: str) -> list[dict[str, Any]]:
        """All ingested rows of a machine."""
        found: list[dict[str, Any]] = []
        page = {"next": 0, "rows": [{}]}
        while page["rows"]:
            page = self.get(f"/devices/{device}/results?after={page['next']}&limit=1000")
            found += page["rows"]
        return found


@dataclass
class Manager:
    """The managers' tool on one workspace; each person has a passphrase of their own."""

    workspace: Path
    passphrases: Path

    def passphrase_file(self, person: str) -> Path:
        path = self.passphrases / f"{person}.passphrase"
        if not path.exists():
            self.passphrases.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{person} keeps this secret\n")
            path.chmod(0o600)
        return path

    def __call__(self, *arguments: str | Path, person: str | None = None, code: int | None = 0) -> dict[str, Any]:
        env = {"HEADLAND_WORKSPACE": str(self.workspace)}
        if person:
            env["HEADLAND_PASSPHRASE_FILE"] = str(self.passphrase_file(person))
        return run_json(BIN / "headland", *arguments, env=env, code=code)


@dataclass
class Machine:
    """headland-device with a state folder, a frame folder and a camera that writes real JPEG files.

    Its settings are written by `settle`, before or after it enrols; it enrols with a server in its token, or at `url`.
    """

    name: str
    state: Path
    frames: Path
    logs: Path
    seed: int
    process: Process = field(init=False)
    camera: Process | None = None

    def __post_init__(self) -> None:
        command = [str(BIN / "headland-device"), "run", "--state", str(self.state), "--json"]
        self.process = Process(self.name, command, self.logs / f"{self.state.name}.log")
        self.frames.mkdir(parents=True, exist_ok=True)

    def settle(self, *, pace_s: float, more: str = "") -> None:
        """Settings for impatient people: it calls and tries again about so often; `more` goes behind them."""
        self.state.mkdir(parents=True, exist_ok=True)
        settings = DEVICE_SETTINGS.format(
            poll_min_s=pace_s,
            poll_max_s=4 * pace_s,
            retry_first_s=pace_s,
            retry_longest_s=2 * pace_s,
            frames=self.frames,
            alarm=self.state / "stop-line",
        )
        # Several machines stand on one computer here: they share neither its sticks nor the port of their page.
        quiet = {"[kits]": "folders = []", "[page]": 'listen = ""'}
        for table, setting in quiet.items():
            if table not in more:
                settings += f"\n{table}\n{setting}\n"
        (self.state / "device.toml").write_text(settings + more)

    def enroll(self, token: str, *, url: str = "", code: int | None = 0) -> dict[str, Any]:
        device = (BIN / "headland-device", "enroll", "--state", self.state, "--token", token)
        return run_json(*device, *(("--server", url) if url else ()), "--frames", self.frames, code=code)

    def status(self) -> dict[str, Any]:
        """What `printed_status` prints, read here: a process for each look would cost more than the machine does."""
        answer: dict[str, Any] = json.loads(encode(read_status(Layout(self.state))))
        return answer

    def printed_status(self) -> dict[str, Any]:
        """What `headland-device status --json` prints."""
        return run_json(BIN / "headland-device", "status", "--state", self.state)

    def film(self, fps: float) -> Process:
        self.camera = Process(
            f"{self.name}-camera",
            [sys.executable, str(SCRIPTS / "camera.py"), str(self.frames), "--fps", str(fps), "--seed", str(self.seed)],
            self.logs / f"{self.name}-camera.log",
        )
        self.camera.start()
        return self.camera

    def stop_filming(self) -> None:
        if self.camera is not None:
            self.camera.stop()
            self.camera = None

    def waiting_frames(self) -> int:
        return sum(1 for path in self.frames.iterdir() if path.suffix == ".jpg")
