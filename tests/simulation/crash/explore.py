"""Records a workload, cuts it everywhere, and sees what the real recovery makes of each state.

Importing the product takes most of a second, so a state is recovered in a fork of this process, which has imported
everything and runs no thread. Identical trees with identical promises are looked at once.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.simulation.crash import trace
from tests.simulation.crash.filesystem import History, Promise, Reader, read_folder
from tests.simulation.crash.states import STRICT, Cuts, State, Tree
from tests.simulation.workload import Workload

LIMIT_S: Final = 60  # of one recovery; far more than any takes
SHOWN: Final = 20


@dataclass
class Failure:
    """A state from which the product did not come back whole.

    Args:
        why: What was broken.
        fates: What had become of each effect that was not synced.
        depth: 1 for a cut of the work, 2 for a cut of its recovery.
    """

    why: str
    fates: list[str]
    depth: int


@dataclass
class Report:
    """What was looked at, and what was found."""

    workload: str
    model: str
    effects: int = 0
    syncs: int = 0
    promises: int = 0
    combinations: int = 0
    left_out: int = 0
    states: int = 0
    checked: int = 0
    recoveries: int = 0
    second_states: int = 0
    second_checked: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    @property
    def reasons(self) -> Counter[str]:
        """How often what was broken."""
        return Counter(failure.why.strip().splitlines()[-1] for failure in self.failures)

    def line(self) -> str:
        """For a person."""
        deeper = f", {self.recoveries} recoveries cut to {self.second_checked} more" if self.recoveries else ""
        return (
            f"{self.workload:20} {self.model:8} {self.effects:5} effects {self.syncs:4} syncs {self.promises:3}"
            f" promises: {self.checked} of {self.states} states{deeper}, {len(self.failures)} broken, {self.seconds:.0f} s"
        )


class Explorer:
    """Of one workload.

    Args:
        workload: What is cut.
        folder: On a fast disk; everything is made below it and removed.
        act: The command that does the work as a process of its own; HOME is appended.
        cwd: Where it runs.
    """

    def __init__(self, workload: Workload, folder: Path, act: Sequence[str], cwd: Path) -> None:
        self._workload = workload
        self._folder = folder
        self._act = act
        self._cwd = cwd
        self._home = folder / "home"
        self._log = folder / "calls"
        self._ready = folder / "ready"
        self._number = 0

    def record(self) -> History:
        """Does the work once, under strace.

        Raises:
            UnknownCallError: It touched the folder in a way that cannot be replayed.
            RuntimeError: The work itself failed.
        """
        for left in (self._home, self._ready):
            shutil.rmtree(left, ignore_errors=True)
        self._ready.mkdir(parents=True)
        self._workload.prepare(self._ready)
        shutil.copytree(self._ready, self._home, symlinks=True)
        state, promises = self._home / "state", self._home / "promises"
        history = read_folder(state)
        trace.record([*self._act, str(self._home)], self._log, cwd=self._cwd)
        self._read(history, state, promises)
        return history

    def _read(self, history: History, state: Path, promises: Path) -> None:
        calls, parents = trace.read(self._log, (state, promises))
        Reader(history, state, promises, parents, cwd=self._cwd).read(calls)
        self._log.unlink()
        misread = differences(Cuts(history).whole(), state)
        if misread:
            raise trace.UnknownCallError(
                f"replayed whole, the recording gives another folder: {'; '.join(misread[:5])}"
            )

    def explore(
        self,
        history: History,
        *,
        model: str = STRICT,
        most: int = 4096,
        sample: int | None = None,
        deeper: int = 0,
        seed: int = 1,
        on_progress: Callable[[Report], None] = lambda _: None,
    ) -> Report:
        """Looks at the states of a recording.

        Args:
            history: As `record` gave it.
            model: Of the file system.
            most: Combinations of one moment; see `Cuts`.
            sample: So many distinct states, drawn by the seed; None: all.
            deeper: In so many of them the recovery is recorded and cut as well (of those with distinct recoveries).
            seed: Of all chance.
            on_progress: Told now and then.
        """
        begun = time.monotonic()
        cuts = Cuts(history, model, most=most, seed=seed)
        promised = [event.text for event in history.events if isinstance(event, Promise)]
        report = Report(
            self._workload.name,
            model,
            effects=len(history.effects),
            promises=len(promised),
        )
        report.syncs = len(history.events) - report.effects - report.promises
        chosen = self._choose(cuts, report, sample, seed)
        step = max(1, len(chosen) // deeper) if deeper else 0
        recoveries: set[str] = set()
        for at, state in enumerate(chosen):
            records = bool(step) and at % step == 0
            told = promised[: state.promised]
            why = self._judge(state.tree, told, recorded=records)
            report.checked += 1
            if why:
                report.failures.append(Failure(why, _told(state), 1))
            elif records:
                self._explore_recovery(state, told, report, recoveries, model=model, most=most, seed=seed)
            report.seconds = time.monotonic() - begun
            on_progress(report)
        return report

    def _choose(self, cuts: Cuts, report: Report, sample: int | None, seed: int) -> list[State]:
        found: dict[tuple[str, int], State] = {}
        for state in cuts.states():
            found.setdefault(state.key, state)
        report.combinations, report.left_out, report.states = cuts.combinations, cuts.left_out, len(found)
        chosen = list(found.values())
        if sample is not None and sample < len(chosen):
            chosen = random.Random(seed).sample(chosen, sample)
        return chosen

    def _explore_recovery(
        self, state: State, promised: list[str], report: Report, seen: set[str], *, model: str, most: int, seed: int
    ) -> None:
        """Cuts the recovery of a state that was just recorded, unless another one did the same."""
        cut = self._folder / "cut"
        shutil.rmtree(cut, ignore_errors=True)
        state.tree.build(cut)
        history = read_folder(cut)
        shutil.rmtree(cut)
        self._read(history, self._home / "state", self._home / "promises")
        shape = "\n".join(_shape(event) for event in history.events)
        if shape in seen:
            return
        seen.add(shape)
        report.recoveries += 1
        cuts = Cuts(history, model, most=most, seed=seed)
        found: dict[str, State] = {}
        for second in cuts.states():
            found.setdefault(second.tree.digest, second)
        report.second_states += len(found)
        for second in found.values():
            why = self._judge(second.tree, promised)
            report.second_checked += 1
            if why:
                report.failures.append(Failure(why, [*_told(state), "then, in the recovery:", *_told(second)], 2))

    def _judge(self, tree: Tree, promised: list[str], *, recorded: bool = False) -> str:
        """What is wrong after the recovery of a tree; empty when all is well."""
        shutil.rmtree(self._home)
        self._home.mkdir()
        tree.build(self._home / "state")
        shutil.copytree(self._ready / "world", self._home / "world", symlinks=True)
        if not recorded:
            return _in_fork(lambda: self._recover_and_check(promised))
        return _in_fork(lambda: self._workload.recover(self._home, promised), self._log) or _in_fork(
            lambda: self._workload.check(self._home, promised)
        )

    def _recover_and_check(self, promised: list[str]) -> None:
        self._workload.recover(self._home, promised)
        self._workload.check(self._home, promised)


def _in_fork(do: Callable[[], None], log: Path | None = None) -> str:
    """What it raises, as text; empty when it ends well.

    Args:
        do: Runs in a copy of this process.
        log: Where strace writes what it calls.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(do, writer, stops=log is not None)
    os.close(writer)
    attached = None
    if log is not None:
        os.waitpid(pid, os.WUNTRACED)
        attached = trace.Attached(pid, log)
    with open(reader, "rb") as pipe:  # noqa: PTH123  (a descriptor)
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    if attached is not None:
        attached.wait()
    if not os.WIFEXITED(status):
        return f"the recovery was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return said


def _child(do: Callable[[], None], writer: int, *, stops: bool) -> None:
    """Ends the process."""
    try:
        signal.alarm(LIMIT_S)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nowhere, fd)
        if stops:
            os.kill(os.getpid(), signal.SIGSTOP)
        do()
    except BaseException:
        os.write(writer, traceback.format_exc()[-6000:].encode())
    finally:
        os._exit(0)


def differences(tree: Tree, folder: Path) -> list[str]:
    """In what a folder is not this tree."""
    history = read_folder(folder)
    there = Cuts(history).whole().entries
    found = [f"{path} is missing" for path in tree.entries.keys() - there.keys()]
    found += [f"{path} is there" for path in there.keys() - tree.entries.keys()]
    found += [f"{path} differs" for path in tree.entries.keys() & there.keys() if tree.entries[path] != there[path]]
    return sorted(found)


def _told(state: State) -> list[str]:
    return [f"{fate}: {_words(effect)}" for effect, fate in state.fates]


def _words(effect: object) -> str:
    text = repr(effect)
    return text if len(text) < 300 else f"{text[:200]}... ({len(text)} characters)"


def _shape(event: object) -> str:
    """An event without what differs from run to run: bytes, names by chance, times."""
    names = [
        str(getattr(event, name))
        for name in ("inode", "offset", "length", "folder", "old_folder", "child")
        if hasattr(event, name)
    ]
    return f"{type(event).__name__} {' '.join(names)} {len(getattr(event, 'data', b''))}"


@contextlib.contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is one: these trees are written thousands of times and need not last."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="headland-crash-") as made:
        yield Path(made)


def as_json(report: Report) -> str:
    """For a program."""
    return json.dumps(
        {
            **{name: value for name, value in vars(report).items() if name != "failures"},
            "broken": len(report.failures),
            "reasons": report.reasons.most_common(SHOWN),
            "failures": [vars(failure) for failure in report.failures[:SHOWN]],
        }
    )
