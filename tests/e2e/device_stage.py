"""A stage for tests of the machine: a real server with one manager who signs alone, and real agents."""

import itertools
import shutil
from pathlib import Path

from device.outbox.box import read_counts
from scripts.cast import MODELS, PRODUCT, Machine, Manager, Server, wait_for

ALICE = "alice"


class FieldMachine(Machine):
    """A machine whose frames appear when a test says so."""

    def __init__(self, name: str, state: Path) -> None:
        super().__init__(name, state, state.with_name(f"{state.name}-frames"), logs=state.parent, seed=0)
        self.numbers = itertools.count()

    def start(self) -> None:
        self.process.start()
        wait_for(f"{self.name} to be up: {self.process.log}", self.is_up, pause_s=0.1)

    def is_up(self) -> bool:
        assert self.process.alive, self.process.said()
        return f'"pid":{self.process.pid},' in self.process.said()

    def show(self, count: int) -> None:
        """So many JPEG frames, each appearing by a rename."""
        for _ in range(count):
            number = next(self.numbers)
            hidden = self.frames / f".{number:06d}"
            shutil.copy(MODELS / ("golden-pests.jpg" if number % 3 else "golden-healthy.jpg"), hidden)
            hidden.rename(self.frames / f"{number:06d}.jpg")

    def runs(self) -> str | None:
        release = self.status()["release"]
        return None if release is None else release["version"]

    def until_it_runs(self, version: str, timeout_s: float = 90) -> None:
        wait_for(f"{version} to be committed", lambda: self.show(1) or self.runs() == version, timeout_s, 0.1)

    def produced(self) -> int:
        """Rows that were ever produced, from the outbox itself."""
        return sum(counts.produced for counts in read_counts(self.state / "outbox.db").values())

    def queued(self) -> int:
        return sum(lane["queued"] for lane in self.status()["lanes"].values())


class Stage:
    """A server with one manager who signs alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server = Server(root / "server", root)
        self.managers = Manager(root / "workspace", root / "passphrases")
        self.machines: list[FieldMachine] = []
        self.tokens: list[str] = []

    def open(self) -> None:
        self.server.init(poll_s=0.5, busy_poll_s=0.3)
        self.server.start()
        self.managers("keys", "add", ALICE, person=ALICE)
        state = self.server.state
        server = ("--server", state / "operator.json", "--online-keys", state / "online-keys.json")
        self.managers("keys", "init", "--product", PRODUCT, "--threshold", "1", *server)
        self.sign_and_push()

    def close(self) -> None:
        for machine in self.machines:
            machine.process.kill()
        self.server.stop()

    def sign_and_push(self) -> None:
        self.managers("release", "sign", "--as", ALICE, "--yes", person=ALICE)
        self.managers("release", "push")

    def release(self, version: str) -> None:
        """One of the demo's releases, with a trial for impatient people."""
        folder = self.root / f"release-{version}"
        shutil.copytree(MODELS, folder)
        description = folder / f"{PRODUCT}-{version}.toml"
        text = description.read_text().replace("healthy_s = 4.0", "healthy_s = 1.0")
        description.write_text(text.replace("min_healthy_s = 2.0", "min_healthy_s = 0.5"))
        self.managers("release", "build", description)
        self.sign_and_push()

    def rollout(self, name: str, version: str, group: str = "field") -> None:
        self.managers("rollout", "create", name, "--release", version, "--group", group)

    def token(self, name: str, group: str = "field") -> str:
        token = str(self.managers("device", "token", name, "--product", PRODUCT, "--group", group)["token"])
        self.tokens.append(token)
        return token

    def machine(self, name: str, group: str = "field", settings: str = "") -> FieldMachine:
        """Enrolled, not yet started."""
        machine = FieldMachine(name, self.root / name)
        self.machines.append(machine)
        machine.settle(pace_s=0.3, more=settings)
        machine.enroll(self.token(name, group))
        return machine
