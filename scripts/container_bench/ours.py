"""Headland's side: a real server and a real machine with a real engine, over the same kind of link as the pull."""

import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from scripts.cast import PRODUCT, Machine, Manager, Server, expect, wait_for
from scripts.container_bench.layers import Version
from scripts.demo_story.proxy import Link, Proxy

MANAGER = "alice"
MACHINE = "machine-1"
PATCHES_S = 1800.0  # the server makes them ahead: this is not what a machine waits for
UPDATE_S = 900.0
DESCRIPTION = """\
product = "{product}"
version = "{version}"
counter = {counter}

[trial]
healthy_s = 2.0
min_healthy_s = 1.0
min_inferences = 0

[[containers]]
name = "app"
image = "archive:{archive}"
command = ["/usr/bin/python3.11", "/app/main.py"]
environment = {{ PYTHONPATH = "/app:/usr/local/lib/python3.11/site-packages", PYTHONDONTWRITEBYTECODE = "1" }}
resources = {{ memory_mib = 512 }}
"""
STEP = re.compile(r"^(\S+ \S+) INFO \S+: update: (\S+) -> (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Updated:
    """What an update took: bytes on the wire, both ways, contacts included, and seconds to have it in the engine.

    Args:
        wire_bytes: From the moment it is offered until it is committed.
        payload_bytes: Of these, signed payloads.
        seconds: Fetching, applying and loading: what `docker pull` does.
    """

    wire_bytes: int
    payload_bytes: int
    seconds: float


class Ours:
    """One server with one machine.

    Args:
        root: An empty folder.
        engine: The socket of the machine's engine.
    """

    def __init__(self, root: Path, engine: Path) -> None:
        root.mkdir(parents=True)
        self._root = root
        self._server = Server(root / "server", root)
        self._managers = Manager(root / "workspace", root / "passphrases")
        self._machine = Machine(MACHINE, root / MACHINE, root / "frames", root, seed=1)
        self._engine = engine
        self._proxy: Proxy | None = None
        self._link: Link | None = None
        self._built = 0

    def open(self) -> None:
        self._server.init(poll_s=1.0, busy_poll_s=0.5)
        self._server.start()
        self._managers("keys", "add", MANAGER, person=MANAGER)
        state = self._server.state
        server = ("--server", state / "operator.json", "--online-keys", state / "online-keys.json")
        self._managers("keys", "init", "--product", PRODUCT, "--threshold", "1", *server)
        self._sign_and_push()
        self._proxy = Proxy(self._server.device_port)
        self._link = self._proxy.link(MACHINE)
        token = str(self._managers("device", "token", MACHINE, "--group", "field")["token"])
        # Every byte counts: the plan with the fewest wins, however fast this computer's link is.
        link = '[link]\nkind = "cellular"\n[budget.day_bytes]\ncellular = 10000000000\n'
        self._machine.settle(pace_s=0.5, more=f'{link}[containers]\nsocket = "{self._engine}"\n')
        self._machine.enroll(token, url=self._link.url)
        self._machine.process.start()

    def close(self) -> None:
        self._machine.process.stop()
        if self._proxy is not None:
            self._proxy.close()
        self._server.stop()

    def publish(self, version: Version, archive: Path) -> None:
        """Builds, signs, pushes it, and waits until the server has made what will travel."""
        self._built += 1
        folder = self._root / f"release-{version.version}"
        folder.mkdir()
        (folder / "release.toml").write_text(
            DESCRIPTION.format(product=PRODUCT, version=version.version, counter=self._built, archive=archive)
        )
        self._managers("release", "build", folder)
        self._sign_and_push()

        def made() -> bool:
            status = self._server.get("/status")
            patches = status["patches"]
            return not (status["payloads_waiting"] or patches["waiting"] or not patches["surveyed"])

        wait_for(f"the server to have made {version.version}", made, PATCHES_S)

    def update(self, version: Version, rate_bytes_s: float | None) -> Updated:
        """Offers a release, and waits until the machine has committed it."""
        assert self._link is not None
        self._link.cap(rate_bytes_s)
        before = self._link.counts.to_machine + self._link.counts.to_server
        said = len(self._machine.process.said())
        rollout = f"rollout-{self._built}"
        self._managers("rollout", "create", rollout, "--release", version.version, "--group", "field")

        def committed() -> dict[str, Any] | None:
            expect(self._machine.process.alive, "the machine ended", self._machine.process.tail())
            status = self._machine.status()
            release = status["release"]
            last = status["last_update"]
            ended = last and last["release"]["version"] == version.version and last["outcome"] != "committed"
            expect(not ended, f"{version.version} was not kept", last)
            return status if release is not None and release["version"] == version.version else None

        status = wait_for(f"{version.version} to be committed", committed, UPDATE_S)
        wire = self._link.counts.to_machine + self._link.counts.to_server - before
        # By the machine: the server hears of it with a contact that is yet to come.
        transfer = status["update"]["transfer"] or {}
        payload = int(transfer.get("delta_bytes", 0)) + int(transfer.get("full_bytes", 0))
        return Updated(wire, payload, self._fetching_s(said))

    def _fetching_s(self, said: int) -> float:
        """From the log of the machine, whose lines have times."""
        steps = [
            (datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f"), old, new)
            for at, old, new in STEP.findall(self._machine.process.said()[said:])
        ]
        began = next(at for at, _, new in steps if new == "fetch")
        ended = next(at for at, old, new in steps if old == "fetch" and new == "check")
        return (ended - began).total_seconds()

    def _sign_and_push(self) -> None:
        self._managers("release", "sign", "--as", MANAGER, "--yes", person=MANAGER)
        self._managers("release", "push")


def empty(folder: Path) -> Path:
    """The folder, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
