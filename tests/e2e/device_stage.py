"""Real processes for tests of the machine: `headland-server`, one manager's `headland`, `headland-device` agents."""

import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device.outbox.box import read_counts

BIN = Path(sys.executable).parent
MODELS = Path(__file__).resolve().parents[2] / "scripts" / "demo_models"
PRODUCT = "pest-detector"

SERVER_SETTINGS = """\
[devices]
host = "127.0.0.1"
port = {device_port}
names = ["localhost", "127.0.0.1"]

[operators]
host = "127.0.0.1"
port = {operator_port}

[contact]
poll_s = 0.5
busy_poll_s = 0.3
"""

DEVICE_SETTINGS = """
[server]
poll_min_s = 0.3
poll_max_s = 1.0
retry_first_s = 0.3
retry_longest_s = 0.6

[[inference.alarms]]
kind = "file"
path = "{alarm}"
"""


def run_json(*command: str | Path, env: dict[str, str] | None = None, code: int = 0) -> dict[str, Any]:
    """Runs a command of ours with --json, holds its exit code, and returns its object."""
    done = subprocess.run(
        [*map(str, command), "--json"], capture_output=True, timeout=60, env=os.environ | (env or {}), check=False
    )
    assert done.returncode == code, (command, done.returncode, done.stderr.decode()[-2000:])
    answer = json.loads(done.stdout) if done.stdout.strip() else {}
    return answer | {"stderr": done.stderr.decode()} if code else answer


def until(what: str, look: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Looks until there is something to see."""
    end = time.monotonic() + timeout_s
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < end, f"waited {timeout_s} s in vain for {what}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """A process with its log."""

    def __init__(self, command: list[str | Path], log: Path) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def end(self, how: signal.Signals = signal.SIGTERM) -> int | None:
        if self.process is None:
            return None
        process, self.process = self.process, None
        process.send_signal(how)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
            raise

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Machine:
    """An enrolled `headland-device` with a folder of frames."""

    def __init__(self, name: str, state: Path) -> None:
        self.name = name
        self.state = state
        self.frames = state.with_name(f"{state.name}-frames")
        self.agent = Child(
            [BIN / "headland-device", "run", "--state", state, "--json"], state.with_name(f"{state.name}.log")
        )
        self._numbers = itertools.count()

    def enroll(self, token: str, code: int = 0) -> dict[str, Any]:
        return run_json(
            BIN / "headland-device",
            "enroll",
            "--state",
            self.state,
            "--token",
            token,
            "--frames",
            self.frames,
            code=code,
        )

    def settle(self) -> None:
        """Settings for a test's pace."""
        with (self.state / "device.toml").open("a") as file:
            file.write(DEVICE_SETTINGS.format(alarm=self.state / "stop-line"))

    def start(self) -> None:
        self.agent.start()
        until(f"{self.name} to be up: {self.agent.log}", self.is_up)

    def is_up(self) -> bool:
        assert self.agent.process is not None
        assert self.agent.process.poll() is None, self.agent.said()
        return f'"pid":{self.agent.pid},' in self.agent.said()

    def status(self) -> dict[str, Any]:
        return run_json(BIN / "headland-device", "status", "--state", self.state)

    def film(self, count: int) -> None:
        """So many JPEG frames, each appearing by a rename."""
        self.frames.mkdir(exist_ok=True)
        for _ in range(count):
            number = next(self._numbers)
            hidden = self.frames / f".{number:06d}"
            shutil.copy(MODELS / ("golden-pests.jpg" if number % 3 else "golden-healthy.jpg"), hidden)
            hidden.rename(self.frames / f"{number:06d}.jpg")

    def waiting(self) -> int:
        return sum(1 for _ in self.frames.glob("*.jpg"))

    def runs(self) -> str | None:
        release = self.status()["release"]
        return None if release is None else release["version"]

    def produced(self) -> int:
        """Rows that were ever produced, from the outbox itself."""
        return sum(counts.produced for counts in read_counts(self.state / "outbox.db").values())

    def queued(self) -> int:
        return sum(lane["queued"] for lane in self.status()["lanes"].values())


class Stage:
    """A server with one manager who signs alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "server"
        self.state.mkdir(parents=True)
        (self.state / "server.toml").write_text(
            SERVER_SETTINGS.format(device_port=free_port(), operator_port=free_port())
        )
        self.server = Child([BIN / "headland-server", "run", "--state", self.state], root / "server.log")
        self.machines: list[Machine] = []
        self.tokens: list[str] = []
        self._env = {
            "HEADLAND_WORKSPACE": str(root / "workspace"),
            "HEADLAND_PASSPHRASE_FILE": str(root / "passphrase"),
        }

    def open(self) -> None:
        run_json(BIN / "headland-server", "init", "--state", self.state)
        self.start_server()
        passphrase = self.root / "passphrase"
        passphrase.write_text("one who signs alone\n")
        passphrase.chmod(0o600)
        self.manager("keys", "add", "alice")
        self.manager(
            "keys",
            "init",
            "--product",
            PRODUCT,
            "--threshold",
            "1",
            "--server",
            self.state / "operator.json",
            "--online-keys",
            self.state / "online-keys.json",
        )
        self.sign_and_push()

    def close(self) -> None:
        for machine in self.machines:
            machine.agent.end(signal.SIGKILL)
        self.server.end()

    def start_server(self) -> None:
        facts = self.state / "run.json"
        facts.unlink(missing_ok=True)
        self.server.start()
        until("the server to listen", facts.exists)

    def manager(self, *arguments: str | Path) -> dict[str, Any]:
        return run_json(BIN / "headland", *arguments, env=self._env)

    def sign_and_push(self) -> None:
        self.manager("release", "sign", "--as", "alice", "--yes")
        self.manager("release", "push")

    def release(self, version: str) -> None:
        """One of the demo's releases, with a trial for impatient people."""
        folder = self.root / f"release-{version}"
        shutil.copytree(MODELS, folder)
        description = folder / f"{PRODUCT}-{version}.toml"
        text = description.read_text().replace("healthy_s = 4.0", "healthy_s = 1.0")
        description.write_text(text.replace("min_healthy_s = 2.0", "min_healthy_s = 0.5"))
        self.manager("release", "build", description)
        self.sign_and_push()

    def rollout(self, name: str, version: str, group: str = "field") -> None:
        self.manager("rollout", "create", name, "--release", version, "--group", group)

    def token(self, name: str, group: str = "field") -> str:
        token = str(self.manager("device", "token", name, "--product", PRODUCT, "--group", group)["token"])
        self.tokens.append(token)
        return token

    def machine(self, name: str, group: str = "field") -> Machine:
        """Enrolled, not yet started."""
        machine = Machine(name, self.root / name)
        self.machines.append(machine)
        machine.enroll(self.token(name, group))
        machine.settle()
        return machine

    def seen(self, path: str) -> Any:
        """What the operator API says."""
        access = json.loads((self.state / "operator.json").read_text())
        context = ssl.create_default_context(cadata=access["ca_pem"])
        request = urllib.request.Request(
            f"{access['url']}/api/v1{path}", headers={"Authorization": f"Bearer {access['token']}"}
        )
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return json.load(answer)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All ingested rows of a machine."""
        found: list[dict[str, Any]] = []
        after = 0
        while True:
            page = self.seen(f"/devices/{name}/results?after={after}&limit=500")
            if not page["rows"]:
                return found
            found += page["rows"]
            after = page["next"]
