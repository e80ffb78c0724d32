"""Real machines in a live fleet, killed again and again, while good and bad releases come and frames arrive.

Server, agents, workers and the managers' tool are the real programs over real TLS; only the frames are drawn ahead.
The first kills after each release are aimed: a state of the update machine is drawn, and its machine killed as soon as
it is seen there.
"""

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from device.layout import Layout
from device.status import read_status
from device.update.states import State
from scripts import make_broken_models
from scripts.cast import MODELS, PRODUCT, expect, wait_for
from tests.e2e.device_stage import FieldMachine, Stage

FRAME_S = 0.3
KILLS_A_RELEASE = 6
AIMED = 4  # of these
AIM_S = 4.0
AIM_PAUSE_S = 0.005
CALM_S = 240.0
UNDER_WAY = tuple(state for state in State if state is not State.IDLE)
GOOD, DAMAGED, CARELESS = "good", "damaged", "careless"
KINDS = (GOOD, DAMAGED, GOOD, CARELESS)
"""Of the releases, again and again: one that holds, one that CHECK refuses, one that only its trial shows as bad."""
RULES = (
    "[trial]\nhealthy_s = 3.0\nmin_healthy_s = 0.5\nmin_inferences = 3\nmax_failed_starts = 100\nmax_retries = 100\n"
)
"""A trial that many kills in a row cannot exhaust: what is at stake here is that it ends, and how."""
PATIENT = "latency_ms = 20000"
"""A good release is never judged by how busy this machine is."""


@dataclass
class Report:
    """What was done, and what was seen."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    frames: int = 0
    dropped: int = 0
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        """All kills."""
        return sum(self.kills.values())

    def line(self) -> str:
        """For a person."""
        where = ", ".join(f"{state} {count}" for state, count in self.states.most_common())
        what = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.releases.items())
        counted = f"{self.rows} rows of {self.frames} frames, {self.dropped} counted as dropped"
        return (
            f"seed {self.seed}: {self.killed} kills ({what}; in state {where}), releases: {kinds},"
            f" {counted if self.frames else 'frames are counted at the end'}, {self.seconds:.0f} s"
        )


class Killing:
    """A fleet in which things are killed.

    Args:
        root: An empty folder.
        seed: Of what is killed, and when.
        machines: How many.
    """

    def __init__(self, root: Path, *, seed: int, machines: int = 2) -> None:
        self._stage = Stage(root)
        self._random = random.Random(seed)
        self._names = [f"tractor-{number}" for number in range(1, machines + 1)]
        self._machines: dict[str, FieldMachine] = {}
        self.report = Report(seed)

    def play(self, kills: int, on_progress: Callable[[Report], None] = lambda _: None) -> Report:
        """Opens the stage, kills, waits for the calm, and looks.

        Args:
            kills: How many.
            on_progress: Told after each.

        Raises:
            AssertionError: A machine did not come home whole; the message says how.
        """
        begun = time.monotonic()
        try:
            self._open()
            best = "1.0.0"
            for number in range(kills):
                if number % KILLS_A_RELEASE == 0:
                    best = self._release(best)
                if number % KILLS_A_RELEASE < AIMED:
                    self._kill_in(self._random.choice(UNDER_WAY))
                else:
                    self._wait(min(self._random.expovariate(1 / 1.5), 6.0))
                    self._kill()
                self.report.seconds = time.monotonic() - begun
                on_progress(self.report)
            for name in self._names:
                self._settle(name, best)
        finally:
            self._stage.close()
        self._no_orphans()
        self.report.seconds = time.monotonic() - begun
        return self.report

    def _open(self) -> None:
        self._stage.open()
        self._build("1.0.0", GOOD)
        self._stage.rollout("first", "1.0.0")
        for name in self._names:
            machine = self._machines[name] = self._stage.machine(name)
            machine.start()
        for machine in self._machines.values():
            machine.until_it_runs("1.0.0")

    def _release(self, best: str) -> str:
        """Publishes the next one, to all. Returns which is the best now."""
        kind = KINDS[self.report.releases.total() % len(KINDS)]
        self.report.releases[kind] += 1
        version = f"1.{self.report.releases.total()}.0"
        self._build(version, kind)
        self._stage.rollout(f"rollout-{self.report.releases.total()}", version)
        return version if kind == GOOD else best

    def _build(self, version: str, kind: str) -> None:
        """One of the demo's releases under another number, with a file that differs."""
        folder = self._stage.root / f"release-{version}"
        folder.mkdir()
        source, original = self._source(kind)
        for path in source.iterdir():
            (folder / path.name).symlink_to(path)
        text = (source / f"{PRODUCT}-{original}.toml").read_text()
        head, rest = text.split("[trial]", 1)
        head = re.sub(r"(?m)^version = .*$", f'version = "{version}"', head)
        head = re.sub(r"(?m)^counter = .*$", f"counter = {self.report.releases.total() + 1}", head)
        rest = rest[rest.index("\n[") :]
        if kind == GOOD:
            rest = re.sub(r"latency_ms = \d+", PATIENT, rest)
        (folder / "rates.json").write_text(f'{{"release": "{version}", "rates": "{random.Random(version).random()}"}}')
        description = folder / "release.toml"
        description.write_text(f'{head}{RULES}{rest}\n[[configs]]\nname = "rates.json"\nfile = "rates.json"\n')
        self._stage.managers(
            "release", "build", description, *(["--untried", "a bad one, on purpose"] if kind == DAMAGED else [])
        )
        self._stage.sign_and_push()

    def _source(self, kind: str) -> tuple[Path, str]:
        """The folder with a release of this kind, and its number there."""
        if kind == GOOD:
            return MODELS, "1.0.0"
        broken = self._stage.root / "broken"
        if not broken.exists():
            make_broken_models.write(broken)
        return broken, make_broken_models.DAMAGED if kind == DAMAGED else make_broken_models.CARELESS

    def _wait(self, seconds: float, until: Callable[[], bool] = lambda: False, pause_s: float = FRAME_S) -> None:
        """Frames arrive meanwhile."""
        end = time.monotonic() + seconds
        next_frame = time.monotonic()
        while not until():
            now = time.monotonic()
            if now >= next_frame:
                next_frame = now + FRAME_S
                for machine in self._machines.values():
                    expect(machine.process.alive, f"{machine.name} ended by itself", machine.process.tail())
                    machine.show(1)
            if now >= end:
                return
            time.sleep(min(pause_s, end - now))

    def _kill_in(self, state: State) -> None:
        """One machine as soon as it is seen in a state; where it never comes there, wherever it is."""
        machine = self._machines[self._random.choice(self._names)]
        self._wait(AIM_S, lambda: self._state(machine) == state, AIM_PAUSE_S)
        self._kill_machines([machine.name])

    def _kill(self) -> None:
        """The agent of one machine most often; of all at once, or the server, now and then."""
        chance = self._random.random()
        if chance < 0.08:
            self.report.kills["server"] += 1
            self._stage.server.process.kill()
            self._stage.server.start()
            return
        self._kill_machines(self._names if chance < 0.2 else [self._random.choice(self._names)])

    def _kill_machines(self, names: list[str]) -> None:
        for name in names:
            machine = self._machines[name]
            machine.process.kill()
            self.report.states[self._state(machine)] += 1
        for name in names:
            self._machines[name].process.start()
        self.report.kills["all machines" if len(names) > 1 else names[0]] += 1

    def _state(self, machine: FieldMachine) -> str:
        """Of its update, from its own disk: a process for each look would come too late."""
        return read_status(Layout(machine.state)).update.state

    def _settle(self, name: str, newest: str) -> None:
        """Calm: it commits the newest release, and hands over all that it has."""
        machine = self._machines[name]

        def has_come_home() -> bool:
            expect(machine.process.alive, f"{name} ended by itself", machine.process.tail())
            machine.show(1)
            status = machine.status()
            release, update = status["release"], status["update"]
            return bool(release and release["version"] == newest and update and update["state"] == "idle")

        wait_for(f"{name} to commit {newest}", has_come_home, CALM_S, FRAME_S)
        wait_for(f"{name} to infer all frames", lambda: machine.waiting_frames() == 0, CALM_S)
        wait_for(f"{name} to hand over its rows", lambda: machine.queued() == 0, CALM_S)
        machine.process.stop()
        self._look(name, machine)

    def _look(self, name: str, machine: FieldMachine) -> None:
        rows = self._stage.server.results(name)
        seen = self._stage.server.get(f"/devices/{name}")
        produced, ingested, lost = machine.produced(), len(rows), sum(seen["lost"].values())
        self.report.rows += ingested
        expect(produced == ingested + lost, "produced is not ingested and lost", (name, produced, ingested, lost))
        expect(lost == 0, "rows were lost on a disk with room for them", (name, seen["lost"]))
        frames = Counter(row["row"]["frame"] for row in rows)
        expect(frames.total() == len(frames), "a frame was inferred twice", frames.most_common(3))
        shown = next(machine.numbers)
        dropped = machine.status()["frames_dropped"]
        self.report.frames += shown
        missing = shown - len(frames)
        expect(missing == dropped, "frames are neither results nor counted as dropped", (name, shown, missing, dropped))
        self.report.dropped += dropped

    def _no_orphans(self) -> None:
        """Workers and other children end with their agent, however it ended."""
        mine = str(self._stage.root).encode()

        def left() -> list[bytes]:
            found = []
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    try:
                        command = (entry / "cmdline").read_bytes()
                        is_dead = b") Z " in (entry / "stat").read_bytes()
                    except OSError:
                        continue
                    if mine in command and not is_dead:
                        found.append(command.replace(b"\0", b" "))
            return found

        wait_for("all processes to be gone", lambda: not left(), 30.0)
