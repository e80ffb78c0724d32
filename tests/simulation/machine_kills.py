"""Real machines in a live fleet, killed at random, again and again, while releases come and frames arrive.

Server, agents, workers and the managers' tool are the real programs over real TLS; only the frames are drawn ahead.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.cast import MODELS, PRODUCT, expect, wait_for
from tests.e2e.device_stage import FieldMachine, Stage

FRAME_S = 0.3
KILLS_A_RELEASE = 20
CALM_S = 240.0
RULES = (
    "[trial]\nhealthy_s = 3.0\nmin_healthy_s = 0.5\nmin_inferences = 3\nmax_failed_starts = 100\nmax_retries = 100\n"
)
"""A trial that many kills in a row cannot exhaust: what is at stake here is that it ends, and how."""


@dataclass
class Report:
    """What was done, and what was seen."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    releases: int = 0
    rows: int = 0
    lost: int = 0
    frames: int = 0
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        """All kills."""
        return sum(self.kills.values())

    def line(self) -> str:
        """For a person."""
        where = ", ".join(f"{state} {count}" for state, count in self.states.most_common())
        what = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        return (
            f"seed {self.seed}: {self.killed} kills ({what}; in state {where}), {self.releases} releases,"
            f" {self.rows} rows, {self.lost} counted as lost, {self.frames} frames, {self.seconds:.0f} s"
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
            newest = "1.0.0"
            for number in range(kills):
                if number % KILLS_A_RELEASE == 0:
                    newest = self._release()
                self._wait(min(self._random.expovariate(1 / 1.5), 6.0))
                self._kill()
                self.report.seconds = time.monotonic() - begun
                on_progress(self.report)
            for name in self._names:
                self._settle(name, newest)
        finally:
            self._stage.close()
        self._no_orphans()
        self.report.seconds = time.monotonic() - begun
        return self.report

    def _open(self) -> None:
        self._stage.open()
        self._build("1.0.0")
        self._stage.rollout("first", "1.0.0")
        for name in self._names:
            machine = self._machines[name] = self._stage.machine(name)
            machine.start()
        for machine in self._machines.values():
            machine.until_it_runs("1.0.0")

    def _release(self) -> str:
        self.report.releases += 1
        version = f"1.{self.report.releases}.0"
        self._build(version)
        self._stage.rollout(f"rollout-{self.report.releases}", version)
        return version

    def _build(self, version: str) -> None:
        """The demo's first release under another number, with a file that differs."""
        folder = self._stage.root / f"release-{version}"
        folder.mkdir()
        for path in MODELS.iterdir():
            (folder / path.name).symlink_to(path)
        text = (MODELS / f"{PRODUCT}-1.0.0.toml").read_text()
        head, rest = text.split("[trial]", 1)
        rest = rest[rest.index("\n[") :]
        head = head.replace('version = "1.0.0"', f'version = "{version}"')
        head = head.replace("counter = 1\n", f"counter = {self.report.releases + 1}\n")
        (folder / "rates.json").write_text(f'{{"release": "{version}", "rates": "{random.Random(version).random()}"}}')
        description = folder / "release.toml"
        description.write_text(f'{head}{RULES}{rest}\n[[configs]]\nname = "rates.json"\nfile = "rates.json"\n')
        self._stage.managers("release", "build", description)
        self._stage.sign_and_push()

    def _wait(self, seconds: float) -> None:
        """Frames arrive meanwhile."""
        end = time.monotonic() + seconds
        while True:
            for machine in self._machines.values():
                expect(machine.process.alive, f"{machine.name} ended by itself", machine.process.tail())
                machine.show(1)
                self.report.frames += 1
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(FRAME_S, left))

    def _kill(self) -> None:
        """The agent of one machine most often; of all at once, or the server, now and then."""
        chance = self._random.random()
        if chance < 0.08:
            self.report.kills["server"] += 1
            self._stage.server.process.kill()
            self._stage.server.start()
            return
        names = self._names if chance < 0.2 else [self._random.choice(self._names)]
        for name in names:
            machine = self._machines[name]
            update = machine.status()["update"]
            self.report.states[update["state"] if update else "starting"] += 1
            machine.process.kill()
        for name in names:
            self._machines[name].process.start()
        self.report.kills["all machines" if len(names) > 1 else names[0]] += 1

    def _settle(self, name: str, newest: str) -> None:
        """Calm: it commits the newest release, and hands over all that it has."""
        machine = self._machines[name]

        def has_come_home() -> bool:
            expect(machine.process.alive, f"{name} ended by itself", machine.process.tail())
            machine.show(1)
            self.report.frames += 1
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
        self.report.lost += lost
        expect(produced == ingested + lost, "produced is not ingested and lost", (name, produced, ingested, lost))
        keys = Counter((row["epoch"], row["lane"], row["seq"]) for row in rows)
        expect(max(keys.values()) == 1, "a row is there twice", keys.most_common(3))
        frames = Counter(row["row"]["frame"] for row in rows)
        shown = next(machine.numbers)
        dropped = machine.status()["frames_dropped"]
        missing = shown - len(frames)
        expect(missing <= dropped, "frames are neither results nor counted as dropped", (name, shown, missing, dropped))
        expect(max(frames.values()) == 1, "a frame gave its result twice", frames.most_common(3))

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
