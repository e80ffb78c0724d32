"""The demo's cast as real processes: the server, the machines with their cameras, and the managers' tool.

Facts come only from what these programs print or answer; nothing here knows what the story expects.
"""

import json
import os
import signal
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
SCRIPTS = Path(__file__).resolve().parent.parent
START_S = 30.0
COMMAND_S = 120.0


class DemoError(Exception):
    """A step was not verified; the message says what was seen."""


def run_json(*command: str | Path, env: dict[str, str] | None = None, may_fail: bool = False) -> dict[str, Any]:
    """Runs a command of ours with --json and returns its object; with `may_fail`, also `exit` and `stderr`."""
    done = subprocess.run(
        [*map(str, command), "--json"],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        env=os.environ | (env or {}),
    )
    if done.returncode and not may_fail:
        raise DemoError(f"{' '.join(map(str, command[:4]))} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    try:
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    except json.JSONDecodeError as error:
        raise DemoError(f"{command[0]} printed no JSON: {done.stdout[:200]!r}") from error
    if may_fail:
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
            raise DemoError(f"waited {timeout_s:.0f} s in vain for: {what}")
        time.sleep(pause_s)


@dataclass
class Process:
    """A child with a log file."""

    name: str
    command: list[str]
    log: Path
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            # A session of its own: an interrupt at the terminal is for the demo, which then ends its cast in order.
            self.child = subprocess.Popen(
                self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def kill(self) -> None:
        """Off, as at the turn of a key: SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.child is None:
            return
        if self.child.poll() is None:
            self.child.send_signal(how)
        try:
            self.child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait(timeout=5)
        self.child = None

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""


@dataclass
class Server:
    """headland-server on its embedded default: SQLite and a folder."""

    state: Path
    logs: Path
    process: Process = field(init=False)

    def __post_init__(self) -> None:
        self.process = Process(
            "server", [str(BIN / "headland-server"), "run", "--state", str(self.state)], self.logs / "server.log"
        )

    def init(self) -> None:
        run_json(BIN / "headland-server", "init", "--state", self.state)

    def start(self) -> dict[str, Any]:
        facts = self.state / "run.json"
        facts.unlink(missing_ok=True)
        self.process.start()

        def listening() -> dict[str, Any] | None:
            if not self.process.alive:
                raise DemoError(f"the server ended at start: {self.process.tail()}")
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

    def __call__(self, *arguments: str | Path, person: str | None = None, may_fail: bool = False) -> dict[str, Any]:
        env = {"HEADLAND_WORKSPACE": str(self.workspace)}
        if person:
            env["HEADLAND_PASSPHRASE_FILE"] = str(self.passphrase_file(person))
        return run_json(BIN / "headland", *arguments, env=env, may_fail=may_fail)


@dataclass
class Machine:
    """headland-device with a state folder, a frame folder and a camera that writes real JPEG files."""

    name: str
    state: Path
    frames: Path
    logs: Path
    seed: int
    process: Process = field(init=False)
    camera: Process | None = None

    def __post_init__(self) -> None:
        self.process = Process(
            self.name, [str(BIN / "headland-device"), "run", "--state", str(self.state)], self.logs / f"{self.name}.log"
        )
        self.frames.mkdir(parents=True, exist_ok=True)

    def enroll(self, token: str, url: str, *, may_fail: bool = False) -> dict[str, Any]:
        device = (BIN / "headland-device", "enroll", "--state", self.state, "--token", token)
        return run_json(*device, "--server", url, "--frames", self.frames, may_fail=may_fail)

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
