"""Layer 2: a workload is harmed at each of its effects in turn, started again, and looked at.

`python -m tests.simulation.sweep WORKLOAD...` prints one JSON object a workload. A process of its own, so that the
forks are of a parent that has imported everything and started nothing: neither threads nor loops nor databases.

A kill before effect n is one after effect n - 1 as well: nothing but effects changes the disk, and promises that were
made in between make the check stricter. After the last effect, the workload is killed once it is done.
"""

import argparse
import contextlib
import faulthandler
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import sqlite_utils  # the first database of a state folder needs it, and each fork would import it anew

from protocol.errors import HeadlandError
from tests.simulation.faults import FAULTS
from tests.simulation.run import run
from tests.simulation.tripwire import HARMS, Harm, Tripwire, die
from tests.simulation.unsynced import Unsynced
from tests.simulation.workload import REFUSED, Promises
from tests.simulation.workloads.catalogue import WORKLOADS

CLEAR = (HeadlandError, OSError)
"""What a command tells a person in a line, and a loop tries again after."""

TIMEOUT_S = 60


@dataclass
class Outcome:
    """What came of a sweep.

    Args:
        workload: Its name.
        effects: How many fail points there are.
        tried: How many were tried, by harm.
        broken: What did not hold.
    """

    workload: str
    effects: int = 0
    tried: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def sweep(
    name: str, *, harms: Sequence[Harm] = HARMS, share: int = 1, fault: str | None = None, stop_at: int = 3
) -> Outcome:
    """Harms a workload everywhere.

    Args:
        name: Of the workload.
        harms: That are tried.
        share: One in so many, so chosen that with 5 each effect meets one harm of all.
        fault: Planted all the time.
        stop_at: So many broken promises are enough.
    """
    outcome = Outcome(name)
    WORKLOADS[name].load()
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=_memory()) as folder:
        template = Path(folder) / "template"
        _must(forked(lambda: run("prepare", name, template)))
        home = Path(folder) / "home"
        _copy(template, home)
        effects, trouble = _effects(name, home, fault)
        if trouble:
            outcome.broken.append(f"{name}, unharmed: {trouble}")
            return outcome
        outcome.effects = len(effects)
        for at in range(len(effects) + 1):
            for harm in _harms(harms, at, share):
                shutil.rmtree(home)
                _copy(template, home)
                outcome.tried[harm] = outcome.tried.get(harm, 0) + 1
                trouble = _try(name, home, at, harm, fault)
                if trouble:
                    what = effects[at] if at < len(effects) else "the end"
                    outcome.broken.append(f"{name}: {harm} at {at} ({what}): {trouble}")
                    if len(outcome.broken) >= stop_at:
                        return outcome
    return outcome


def forked(work: Callable[[], object], *, may_be_killed: bool = False) -> str:
    """Runs `work` in a fork. Returns what went wrong, as text; empty when nothing did."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        text = ""
        try:
            faulthandler.enable()  # also a crash of the interpreter says where
            signal.alarm(TIMEOUT_S)
            work()
        except BaseException as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"
        with contextlib.suppress(OSError):
            os.write(writing, text.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        text = file.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and not (may_be_killed and os.WTERMSIG(status) == signal.SIGKILL):
        return f"ended by signal {os.WTERMSIG(status)}"
    return text


def _effects(name: str, home: Path, fault: str | None) -> tuple[list[str], str]:
    """All effects of the work, and what went wrong without any harm."""
    wire = Tripwire(0, "none")
    told = home / "effects"

    def act() -> None:
        with wire.stretched():
            run("act", name, home, fault)
        told.write_text("\n".join(wire.effects))

    trouble = forked(act)
    return ([], trouble) if trouble else (told.read_text().splitlines(), "")


def _try(name: str, home: Path, at: int, harm: Harm, fault: str | None) -> str:
    state, left = home / "state", home / "left"

    def act() -> None:
        world = Promises(home / "promises")  # whoever looks at the disk's light knows that it refused
        with contextlib.ExitStack() as stack:
            on_end: Callable[[], None] = _nothing
            if harm == "cut":
                unsynced = Unsynced(state)
                stack.enter_context(unsynced.watched())
                on_end = partial(unsynced.leave, left)
            stack.enter_context(Tripwire(at, harm, lambda: world(REFUSED), on_end).stretched())
            try:
                run("act", name, home, fault)
            except CLEAR:
                if harm in ("kill", "cut"):
                    raise
            on_end()
            die()

    def recover() -> None:
        if harm == "cut":
            shutil.rmtree(state)
            left.rename(state)
        run("recover", name, home, fault)
        run("check", name, home, fault)

    trouble = forked(act, may_be_killed=True)
    return f"act: {trouble}" if trouble else forked(recover)


def _nothing() -> None:
    """No more is to be done before the end."""


def _harms(harms: Sequence[Harm], at: int, share: int) -> list[Harm]:
    return [harm for number, harm in enumerate(harms) if (at + number) % share == 0]


def _copy(template: Path, home: Path) -> None:
    shutil.copytree(template, home, symlinks=True)


def _must(trouble: str) -> None:
    if trouble:
        raise AssertionError(trouble)


def _memory() -> str | None:
    """Where a killed process needs no real disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.simulation.sweep", description="Harms workloads at each effect.")
    parser.add_argument("workload", nargs="+")
    parser.add_argument("--harm", action="append", choices=HARMS)
    parser.add_argument("--share", type=int, default=1, help="one in so many")
    parser.add_argument("--plant", choices=sorted(FAULTS), metavar="FAULT")
    parser.add_argument("--stop-at", type=int, default=3)
    options = parser.parse_args()
    assert sqlite_utils
    logging.disable()  # what goes wrong on purpose is told as it should be, thousands of times
    clean = True
    for name in options.workload:
        outcome = sweep(
            name,
            harms=tuple(options.harm or HARMS),
            share=options.share,
            fault=options.plant,
            stop_at=options.stop_at,
        )
        print(json.dumps(asdict(outcome)), flush=True)
        clean = clean and not outcome.broken
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
