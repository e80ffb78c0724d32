"""A real agent, enrolled with a real server: how long it takes to be up, and what it holds while it idles."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.cast import PRODUCT, Machine, Manager, Server, wait_for

NAME = "tractor-1"
PERSON = "alice"
LOOK_S = 0.01


@contextmanager
def enrolled(folder: Path) -> Iterator[tuple[Machine, Server]]:
    """A machine that enrolled and was not started yet, and its server, which runs."""
    logs = folder / "logs"
    logs.mkdir(parents=True)
    server = Server(folder / "server", logs)
    managers = Manager(folder / "workspace", folder / "passphrases")
    machine = Machine(NAME, folder / NAME, folder / f"{NAME}-frames", logs, seed=0)
    server.init(poll_s=5.0, busy_poll_s=5.0)
    server.start()
    try:
        managers("keys", "add", PERSON, person=PERSON)
        papers = ("--server", server.state / "operator.json", "--online-keys", server.state / "online-keys.json")
        managers("keys", "init", "--product", PRODUCT, "--threshold", "1", *papers)
        managers("release", "sign", "--as", PERSON, "--yes", person=PERSON)
        managers("release", "push")
        token = managers("device", "token", NAME, "--product", PRODUCT, "--group", "field")["token"]
        machine.settle(pace_s=5.0)
        machine.enroll(str(token))
        yield machine, server
    finally:
        machine.process.kill()
        server.stop()


def started_s(machine: Machine) -> float:
    """Seconds from the start of the agent's process until it says that it is up."""
    machine.process.log.unlink(missing_ok=True)
    start = time.perf_counter()
    machine.process.start()
    wait_for("the agent to be up", lambda: '"running":true' in machine.process.said(), 120, LOOK_S)
    return time.perf_counter() - start


def starts_s(machine: Machine, times: int, say: Callable[[str], None]) -> list[float]:
    """So many starts, each after an end in order."""
    found = []
    for _ in range(times):
        found.append(started_s(machine))
        machine.process.stop()
        say(f"    up after {found[-1]:.2f} s")
    return found


def resident_mib(pid: int) -> float:
    """What a process holds of the memory, shared libraries included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def idle_mib(machine: Machine, for_s: float) -> float:
    """The most that the agent held in the second half of its idling."""
    end = time.monotonic() + for_s
    held = []
    while (now := time.monotonic()) < end:
        if now > end - for_s / 2:
            held.append(resident_mib(machine.process.pid))
        time.sleep(0.25)
    return max(held)


def put_outbox(machine: Machine, outbox: Path) -> None:
    """Gives the machine, which does not run, a queue that was filled elsewhere."""
    for suffix in (".db", ".db-wal", ".db-shm", ".mark"):
        (machine.state / f"outbox{suffix}").unlink(missing_ok=True)
        part = outbox.with_suffix(suffix)
        if part.exists():
            shutil.copy(part, machine.state / f"outbox{suffix}")
