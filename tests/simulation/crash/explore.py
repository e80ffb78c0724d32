"""Records a workload, cuts it everywhere, and sees what the real recovery makes of each state.

Importing the product takes most of a second, so a state is recovered in a fork of this process, which has imported
everything and runs no thread. Identical trees with identical promises are looked at once.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.simulation.crash import trace
from tests.simulation.crash.filesystem import History, Promise, Reader, read_folder
from tests.simulation.crash.states import STRICT, Cuts, State, Tree
from tests.simulation.faults import FAULTS
from tests.simulation.workload import Workload

LIMIT_S: Final = 60  # of one recovery; far more than any takes
SHOWN: Final = 20
EVERY_RECOVERY: Final = 10  # of the states, where all are looked at


@dataclass
class Failure:
    """A state from which the product did not come back whole.

    Args:
        why: What was broken.
        fates: What had become of each effect that was not synced.
        depth: 0 when the work itself failed, 1 for a cut of the work, 2 for a cut of its recovery.
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
    cuts: int = 0
    checked: int = 0
    recorded: int = 0
    recoveries: int = 0
    second_cuts: int = 0
    second_checked: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    @property
    def reasons(self) -> Counter[str]:
        """How often what was broken."""
        return Counter(failure.why.strip().splitlines()[-1] for failure in self.failures)

    def line(self) -> str:
        """For a person."""
        again = (
            f"; {self.recorded} recoveries recorded, {self.recoveries} that differ cut:"
            f" {self.second_checked} states of {self.second_cuts} cuts"
        )
        return (
            f"{self.workload} ({self.model}): {self.effects} effects, {self.syncs} syncs, {self.promises} promises;"
            f" {self.checked} states of {self.cuts} cuts{again if self.recoveries else ''};"
            f" {len(self.failures)} broken; {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class Extent:
    """How much is looked at.

    Args:
        model: Of the file system.
        most: Combinations of one moment that are all taken; see `Cuts`.
        states: So many, from all moments alike; None: all. Some may turn out to be the same.
        recoveries: So many that did what no other did are cut as well.
        states_of_recovery: So many of each; None: all.
        seed: Of all chance.
        to_first: Only until something is broken.
    """

    model: str = STRICT
    most: int = 4096
    states: int | None = None
    recoveries: int = 0
    states_of_recovery: int | None = None
    seed: int = 1
    to_first: bool = False


class Explorer:
    """Of one workload.

    Args:
        workload: What is cut; the runner knows it by its name.
        folder: On a fast disk; everything is made below it and removed.
        checkout: Where the runner is started.
        fault: Planted in the work, its recovery and the look at what came of it.
    """

    def __init__(self, workload: Workload, folder: Path, checkout: Path, *, fault: str | None = None) -> None:
        self._workload = workload
        self._folder = folder
        self._checkout = checkout
        self._fault = fault
        self._volatile: tuple[str, ...] = getattr(workload, "volatile", ())
        self._home = folder / "home"
        self._log = folder / "calls"
        self._ready = folder / "ready"

    def record(self) -> History:
        """Does the work once, under strace.

        Raises:
            UnknownCallError: It touched the folder in a way that cannot be replayed.
            RuntimeError: The work itself failed.
        """
        for left in (self._home, self._ready):
            shutil.rmtree(left, ignore_errors=True)
        (self._ready / "world").mkdir(parents=True)
        self._workload.prepare(self._ready)
        shutil.copytree(self._ready, self._home, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        state, promises = self._home / "state", self._home / "promises"
        history = read_folder(state, self._volatile)
        command = [sys.executable, "-m", "tests.simulation.run", "act", self._workload.name, str(self._home)]
        planted = ["--plant", self._fault] if self._fault else []
        trace.record([*command, *planted], self._log, cwd=self._checkout)
        self._read(history, state, promises)
        self._warm_up([event.text for event in history.events if isinstance(event, Promise)])
        return history

    def _warm_up(self, promised: list[str]) -> None:
        """Recovers here once what was not cut: what is imported and compiled at first use is there in each fork."""
        self._recover(promised)
        assert threading.active_count() == 1, "a fork takes no other threads along"

    def _read(self, history: History, state: Path, promises: Path) -> None:
        calls, parents = trace.read(self._log, (state, promises))
        Reader(history, state, promises, parents, cwd=self._checkout, volatile=self._volatile).read(calls)
        self._log.unlink()
        misread = differences(Cuts(history).whole(), state, self._volatile)
        if misread:
            raise trace.UnknownCallError(
                f"replayed whole, the recording gives another folder: {'; '.join(misread[:5])}"
            )

    def explore(
        self, history: History, extent: Extent, on_progress: Callable[[Report], None] = lambda _: None
    ) -> Report:
        """Looks at the states of a recording.

        Args:
            history: As `record` gave it.
            extent: How many of them.
            on_progress: Told after each.
        """
        begun = time.monotonic()
        promised = [event.text for event in history.events if isinstance(event, Promise)]
        report = Report(
            self._workload.name,
            extent.model,
            effects=len(history.effects),
            syncs=len(history.events) - len(history.effects) - len(promised),
            promises=len(promised),
        )
        cuts = Cuts(history, extent.model, most=extent.most, seed=extent.seed)
        every = max(1, extent.states // extent.recoveries) if extent.recoveries and extent.states else EVERY_RECOVERY
        looked: set[tuple[str, int]] = set()
        shapes: set[str] = set()
        for state in cuts.states(extent.states):
            report.cuts += 1
            if state.key in looked:
                continue
            looked.add(state.key)
            told = promised[: state.promised]
            records = report.recoveries < extent.recoveries and report.checked % every == 0
            recovery = self._before_recovery(state.tree) if records else None
            why = self._judge(state.tree, told, recovery)
            report.recorded += recovery is not None
            report.checked += 1
            if why:
                report.failures.append(Failure(why, _told(state), 1))
            elif recovery is not None and (shape := _shape(recovery)) not in shapes:
                shapes.add(shape)
                self._explore_recovery(state, told, recovery, report, extent)
            report.combinations, report.left_out = cuts.combinations, cuts.left_out
            report.seconds = time.monotonic() - begun
            on_progress(report)
            if extent.to_first and report.failures:
                break
        return report

    def _explore_recovery(
        self, state: State, promised: list[str], recovery: History, report: Report, extent: Extent
    ) -> None:
        """Cuts the recovery of a state."""
        cuts = Cuts(recovery, extent.model, most=extent.most, seed=extent.seed)
        report.recoveries += 1
        looked: set[str] = set()
        for again in cuts.states(extent.states_of_recovery):
            report.second_cuts += 1
            if again.tree.digest in looked:
                continue
            looked.add(again.tree.digest)
            why = self._judge(again.tree, promised)
            report.second_checked += 1
            if why:
                report.failures.append(Failure(why, [*_told(state), "then, in the recovery:", *_told(again)], 2))

    def _before_recovery(self, tree: Tree) -> History:
        """The history of a tree to which nothing has happened yet."""
        cut = self._folder / "cut"
        tree.build(cut)
        history = read_folder(cut)
        shutil.rmtree(cut)
        return history

    def _judge(self, tree: Tree, promised: list[str], recovery: History | None = None) -> str:
        """What is wrong after the recovery of a tree; empty when all is well.

        Args:
            tree: As the cut left it.
            promised: Before the cut.
            recovery: What the recovery does is added to it.
        """
        shutil.rmtree(self._home)
        self._home.mkdir()
        state, promises = self._home / "state", self._home / "promises"
        tree.build(state)
        shutil.copytree(self._ready / "world", self._home / "world", symlinks=True)
        if recovery is None:
            return _in_fork(lambda: (self._recover(promised), self._check(promised)))
        why = _in_fork(lambda: self._recover(promised), self._log)
        if why:
            return why
        self._read(recovery, state, promises)
        return _in_fork(lambda: self._check(promised))

    def _check(self, promised: list[str]) -> None:
        with self._planted():
            self._workload.check(self._home, promised)

    def _planted(self) -> contextlib.AbstractContextManager[None]:
        return FAULTS[self._fault].plant() if self._fault else contextlib.nullcontext()

    def _recover(self, promised: list[str]) -> None:
        with self._planted():
            self._workload.recover(self._home, promised)


def _in_fork(do: Callable[[], object], log: Path | None = None) -> str:
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


def _child(do: Callable[[], object], writer: int, *, stops: bool) -> None:
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


def differences(tree: Tree, folder: Path, volatile: Collection[str] = ()) -> list[str]:
    """In what a folder is not this tree."""
    history = read_folder(folder, volatile)
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


def _shape(history: History) -> str:
    """What happened, without what differs from run to run: bytes, names by chance, times."""
    names = ("inode", "offset", "length", "folder", "old_folder", "child")
    return "\n".join(
        f"{type(event).__name__} {[getattr(event, name, None) for name in names]} {len(getattr(event, 'data', b''))}"
        for event in history.events
    )


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
