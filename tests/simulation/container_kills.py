"""A real machine with a real engine, both killed again and again while releases of a model and a container come.

Server, agent, workers, engine and containers are the real programs. What must come of it: wherever agent and engine are
killed, one of the two complete sets runs once both are back, a good release is kept in the end and a bad one is not,
and no result names a release together with another release's model.
"""

import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import docker
from docker.errors import DockerException

from device.containers.engine import NAME_LABEL
from device.layout import Layout
from device.status import read_status
from device.update.states import State
from scripts.cast import MODELS, PRODUCT, expect, wait_for
from scripts.demo_apps.images import File, Image, layer, write_archive
from scripts.demo_apps.runtimes import busybox
from tests.e2e.device_stage import FieldMachine, Stage
from tests.fakes.private_engine import PrivateEngine

MACHINE: Final = "tractor-1"
FRAME_S: Final = 0.3
AIM_S: Final = 5.0
AIM_PAUSE_S: Final = 0.005
HOME_S: Final = 180.0
GOOD, SICK, BRIEF = "good", "sick", "brief"
KINDS: Final = (GOOD, SICK, GOOD, BRIEF)
"""Of the releases, again and again: one that holds, one whose health check is red, one whose container ends."""
UNDER_WAY: Final = (State.FETCH, State.CHECK, State.ACTIVATE, State.TRIAL, State.TRIAL, State.ROLLBACK, State.CLEANUP)
VICTIMS: Final = ("agent", "engine", "both")
RULES: Final = (
    "[trial]\nhealthy_s = 3.0\nmin_healthy_s = 0.5\nmin_inferences = 3\nmax_failed_starts = 100\nmax_retries = 100\n"
)
CONTAINER: Final = """
[[containers]]
name = "gateway"
image = "archive:image.tar"
command = ["/bin/sh", "-c", "{command}"]
mounts = [{{ kind = "release" }}, {{ kind = "link" }}]
resources = {{ memory_mib = 32, pids = 16 }}
stop_s = 2
strategy = "{strategy}"
health = {{ command = ["/bin/test", "-e", "/app/healthy"], interval_s = 1, timeout_s = 5, retries = 2 }}
"""
STAYS: Final = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"


@dataclass
class Report:
    """What was done, and what was seen."""

    seed: int
    updates: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    unlabelled: int = 0
    seconds: float = 0.0

    def line(self) -> str:
        """For a person."""
        parts = (f"{', '.join(f'{n} {name}' for name, n in sorted(c.items()))}" for c in (self.updates, self.kills))
        updates, kills = parts
        return (
            f"seed {self.seed}: {self.updates.total()} updates ({updates}), {self.kills.total()} kills ({kills}), "
            f"in state {', '.join(f'{name} {n}' for name, n in self.states.most_common())}, "
            f"{self.rows} rows, {self.unlabelled} of them of no release, {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class Set:
    """What makes a release: its container's image, and the digests of its models' files."""

    version: str
    image: str
    models: frozenset[str]


class Killing:
    """One machine whose agent and engine are killed.

    Args:
        root: An empty folder.
        engine: Not yet started.
        seed: Of what is killed, and when.
    """

    def __init__(self, root: Path, engine: PrivateEngine, *, seed: int) -> None:
        self._root = root
        self._stage = Stage(root)
        self._engine = engine
        self._random = random.Random(seed)
        self._sets: dict[str, Set] = {}  # by manifest
        self._number = 0
        self._machine: FieldMachine | None = None
        self.report = Report(seed)

    def play(self, updates: int, on_progress: Callable[[Report], None] = lambda _: None) -> Report:
        """So many updates, each with one or two kills.

        Raises:
            AssertionError: The machine did not come home; the message says how.
        """
        begun = time.monotonic()
        try:
            self._engine.start()
            best = self._open()
            for _ in range(updates):
                best = self._update(best)
                self.report.seconds = time.monotonic() - begun
                on_progress(self.report)
            self._look_at_rows()
        finally:
            self._stage.close()
            self._engine.remove()
        return self.report

    # What people do

    def _open(self) -> Set:
        self._stage.open()
        settings = f'[containers]\nsocket = "{self._engine.socket}"\n'
        machine = self._machine = self._stage.machine(MACHINE, settings=settings)
        machine.start()
        return self._update(None)

    def _update(self, best: Set | None) -> Set:
        """One release, from its building to its end; with kills, but for the first. Returns what is kept then."""
        self._number += 1
        kind = KINDS[(self._number - 1) % len(KINDS)]
        new = self._publish(f"1.{self._number}.0", kind)
        self._stage.rollout(f"rollout-{self._number}", new.version)
        if best is not None:
            self.report.updates[kind] += 1
            for _ in range(self._random.choice((1, 1, 2))):
                self._kill(self._random.choice(UNDER_WAY), {best, new})
        kept = new if kind == GOOD or best is None else best
        self._come_home(new, kept)
        return kept

    def _publish(self, version: str, kind: str) -> Set:
        """A model of the demo's in turn, beside a container with an image of its own."""
        folder = self._root / f"release-{version}"
        folder.mkdir()
        for path in MODELS.iterdir():
            (folder / path.name).symlink_to(path)
        original = "1.0.0" if self._number % 2 else "1.1.0"
        text = (MODELS / f"{PRODUCT}-{original}.toml").read_text()
        head, rest = text.split("[trial]", 1)
        head = re.sub(r"(?m)^version = .*$", f'version = "{version}"', head)
        head = re.sub(r"(?m)^counter = .*$", f"counter = {self._number}", head)
        rest = re.sub(r"latency_ms = \d+", "latency_ms = 20000", rest[rest.index("\n[") :])
        container = CONTAINER.format(
            command=STAYS if kind != BRIEF else "sleep 1; echo over; exit 3",
            strategy=self._random.choice(("stop-then-start", "start-then-stop")),
        )
        (folder / "release.toml").write_text(f"{head}{RULES}{rest}\n{container}")
        app = {"app/version": File(version.encode() * 5000)} | ({"app/healthy": File(b"")} if kind != SICK else {})
        image = Image((layer(folder, busybox(), "a shell"), layer(folder, app, "the application")))
        write_archive(image, folder / "image.tar", f"gateway:{version}")
        built = self._stage.managers("release", "build", folder)
        self._stage.sign_and_push()
        manifest = self._stage.managers("release", "show", version)["manifest"]
        models = {v["artifact"]["sha256"] for model in manifest["models"] for v in model["variants"]}
        made = self._sets[built["manifest_sha256"]] = Set(version, image.id, frozenset(models))
        shutil.rmtree(folder)
        return made

    # What happens to the machine

    def _kill(self, state: State, sets: set[Set]) -> None:
        """The victim as soon as the machine is seen in a state, wherever it is if that never comes; then both back."""
        machine = self._field()
        self._wait(AIM_S, lambda: self._state() == state, AIM_PAUSE_S)
        self._wait(self._random.choice((0.0, 0.0, self._random.uniform(0, 1.5))))
        victim = self._random.choice(VICTIMS)
        self.report.states[self._state()] += 1
        self.report.kills[victim] += 1
        if victim != "agent":
            self._engine.kill()
        if victim != "engine":
            machine.process.kill()
            if self._random.random() < 0.5:
                time.sleep(self._random.uniform(0, 1))
            machine.process.start()
        if victim != "agent":
            self._wait(self._random.uniform(0, 2))
            self._engine.start()
        self._until(f"a whole set after a kill of {victim} in state {state}", lambda: self._runs_whole(sets))

    def _come_home(self, new: Set, kept: Set) -> None:
        def is_home() -> bool:
            status = self._field().status()
            release, update = status["release"], status["update"]
            last = (status["last_update"] or {}).get("release", {}).get("version")
            idle = update is not None and update["state"] == "idle"
            is_kept = release is not None and release["version"] == kept.version
            return idle and is_kept and last == new.version and self._runs_whole({kept})

        self._until(f"{new.version} to end, and {kept.version} to run", is_home)

    def _runs_whole(self, sets: set[Set]) -> bool:
        """Whether exactly one of these sets runs: workers, container, and nothing else."""
        status = self._field().status()
        serving = {model["model_digest"] for model in status["models"].values()}
        running = self._running()
        return status["serving"] and any(running == [one.image] and serving <= one.models for one in sets)

    def _running(self) -> list[str] | None:
        """Images of the containers of ours that run, as the engine itself says; None when it does not say."""
        try:
            client = docker.DockerClient(base_url=f"unix://{self._engine.socket}", timeout=10)
        except DockerException:
            return None
        try:
            found = client.containers.list(filters={"label": NAME_LABEL}, ignore_removed=True)
            return [str(one.attrs["Image"]).removeprefix("sha256:") for one in found]
        except (DockerException, OSError):
            return None
        finally:
            client.close()

    def _wait(self, seconds: float, until: Callable[[], bool] = lambda: False, pause_s: float = FRAME_S) -> None:
        """Frames arrive meanwhile."""
        end = time.monotonic() + seconds
        next_frame = time.monotonic()
        while not until():
            now = time.monotonic()
            if now >= next_frame:
                next_frame = now + FRAME_S
                self._field().show(1)
            if now >= end:
                return
            time.sleep(min(pause_s, end - now))

    def _until(self, what: str, seen: Callable[[], bool]) -> None:
        machine = self._field()

        def look() -> bool:
            expect(machine.process.alive, "the agent ended by itself", machine.process.tail())
            machine.show(1)
            return seen()

        try:
            wait_for(what, look, HOME_S, FRAME_S)
        except AssertionError as error:
            facts: dict[str, Any] = {"running": self._running()} | machine.status()
            raise AssertionError(f"{error}; {facts}; {machine.process.tail()}") from error

    def _look_at_rows(self) -> None:
        """No row names a release and a model of another one."""
        machine = self._field()
        wait_for("all frames to be inferred", lambda: machine.waiting_frames() == 0, HOME_S)
        wait_for("all rows to be handed over", lambda: machine.queued() == 0, HOME_S)
        for each in self._stage.server.results(MACHINE):
            row = each["row"]
            self.report.rows += 1
            named = row.get("manifest")
            if named is None:
                self.report.unlabelled += 1
            else:
                expect(row["model"] in self._sets[named].models, "a row of a mixed set", row)

    def _state(self) -> State:
        return State(read_status(Layout(self._field().state)).update.state)

    def _field(self) -> FieldMachine:
        assert self._machine is not None
        return self._machine
