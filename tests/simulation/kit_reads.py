"""A stick fails at its n-th system call, for every n: what the machine then is, says, and does with a good stick.

`Failing` stands before `os` in the one module that reads kits from sticks, so nothing else of the process is touched.
"""

import asyncio
import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from device.kits import folder as reading
from tests.simulation.kit_stage import Machine, Stage

CALLS: Final = ("open", "scandir", "entry", "stat", "fstat", "pread")
CODES: Final = {"EIO": errno.EIO, "ENODEV": errno.ENODEV, "ENOTCONN": errno.ENOTCONN}

HARMS: Final = (
    *CODES,  # that one call fails
    *(f"{name} for good" for name in ("EIO", "ENODEV")),  # and all after it, until it is plugged in again
    "short",  # a read gives half of what it was asked for
    "end",  # a read says that the file ends there
    "flip",  # a read gives one bit wrong
    "vanish",  # the folder is empty from there on, as after an unmount
)
Outcomes = tuple[dict[str, Any], dict[str, Any]]  # of `Stage.outcomes`
OF_READS: Final = ("short", "end", "flip")


class Failing:
    """`os`, of which the call number `at` on a stick goes wrong; counted from 0.

    Args:
        stick: The folder; calls elsewhere are not counted.
        at: Which call; -1: none.
        harm: How.
    """

    def __init__(self, stick: Path, at: int = -1, harm: str = "EIO") -> None:
        self.calls: list[str] = []
        self.harmed = False
        self._stick = str(stick)
        self._at = at
        self._harm = harm
        self._ours: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, *, dir_fd: int | None = None) -> int:
        if dir_fd not in self._ours and os.fspath(path) != self._stick:
            return os.open(path, flags, dir_fd=dir_fd)
        self._count("open")
        opened = os.open(path, flags, dir_fd=dir_fd)
        self._ours.add(opened)
        return opened

    def dup(self, file: int) -> int:
        copy = os.dup(file)
        if file in self._ours:
            self._ours.add(copy)
        return copy

    def close(self, file: int) -> None:
        self._ours.discard(file)
        os.close(file)

    def fstat(self, file: int) -> os.stat_result:
        if file in self._ours:
            self._count("fstat")
        return os.fstat(file)

    def stat(self, path: Any, *, dir_fd: int, follow_symlinks: bool) -> os.stat_result:
        if dir_fd in self._ours:
            self._count("stat")
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    @contextlib.contextmanager
    def scandir(self, folder: int) -> Iterator[Iterator[Any]]:
        if folder in self._ours:
            self._count("scandir")
        with os.scandir(folder) as entries:
            yield self._entries(entries) if folder in self._ours else entries

    def _entries(self, entries: Iterator[Any]) -> Iterator[Any]:
        for entry in entries:
            self._count("entry")
            yield entry

    def pread(self, file: int, length: int, first: int) -> bytes:
        harms_now = file in self._ours and self._count("pread")
        data = os.pread(file, length, first)
        if not (harms_now and data):
            return data
        self.harmed = True
        if self._harm == "flip":
            return bytes([*data[: len(data) // 2], data[len(data) // 2] ^ 4, *data[len(data) // 2 + 1 :]])
        return data[: len(data) // 2] if self._harm == "short" else b""

    def _count(self, call: str) -> bool:
        """Returns whether what a read gives goes wrong.

        Raises:
            OSError: The call fails.
        """
        number, self.calls = len(self.calls), [*self.calls, call]
        if self._at < 0 or number < self._at:
            return False
        name, _, is_for_good = self._harm.partition(" ")
        if name in CODES and (number == self._at or is_for_good):
            self.harmed = True
            raise OSError(CODES[name], os.strerror(CODES[name]))
        if name == "vanish" and number == self._at:
            self.harmed = True
            shutil.move(self._stick, f"{self._stick} aside")
            Path(self._stick).mkdir()
        return name in OF_READS and number == self._at

    def mend(self) -> None:
        """It is a good stick again."""
        self._at = -1
        if Path(f"{self._stick} aside").exists():
            Path(self._stick).rmdir()
            shutil.move(f"{self._stick} aside", self._stick)

    @contextlib.contextmanager
    def stretched(self) -> Iterator["Failing"]:
        """For as long as the context lasts, the module that reads kits meets it."""
        reading.os = self  # type: ignore[assignment]  # the calls that fail
        try:
            yield self
        finally:
            reading.os = os  # type: ignore[assignment]  # the calls that fail
            self.mend()


@dataclass
class Report:
    """What came of a sweep.

    Args:
        calls: On the stick, undisturbed, by name.
        tried: How many cases, by harm.
        untouched: Of them, the result was there at once all the same.
        words: How often a person was told what.
        broken: What did not hold.
    """

    calls: dict[str, int] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)
    untouched: int = 0
    words: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For a person."""
        cases = ", ".join(f"{name} {number}" for name, number in self.tried.items())
        return (
            f"{sum(self.calls.values())} calls on the stick; {sum(self.tried.values())} cases ({cases}), of which"
            f" {self.untouched} went through at once; {len(self.broken)} broken"
        )

    def text(self) -> str:
        """For a program."""
        return json.dumps(asdict(self))


async def sweep(
    folder: Path,
    *,
    harms: Sequence[str] = HARMS,
    share: int = 1,
    show: Callable[[Report], None] = lambda _: None,
    stop_at: int = 3,
) -> Report:
    """Harms each call on the stick in turn.

    Args:
        folder: For everything.
        harms: That are tried.
        share: One in so many, so chosen that each call meets some harm where there are as many harms.
        show: Called after each call's cases.
        stop_at: So many that are broken are enough.
    """
    report = Report()
    stage = Stage(folder)
    with stage.machine("undisturbed") as machine, Failing(stage.stick).stretched() as failing:
        told = await machine.plug()
        assert machine.is_ready(), told
    after = stage.outcomes()
    for call in failing.calls:
        report.calls[call] = report.calls.get(call, 0) + 1
    for at, call in enumerate(failing.calls):
        for number, harm in enumerate(harms):
            if (at + number) % share or (harm in OF_READS and call != "pread"):
                continue
            report.tried[harm] = report.tried.get(harm, 0) + 1
            try:
                await _case(stage, at, harm, after, report)
            except Exception as error:  # whatever it is: the next case is tried
                report.broken.append(f"{harm} at call {at} ({call}): {type(error).__name__}: {error}")
                if len(report.broken) >= stop_at:
                    return report
        show(report)
    return report


async def _case(stage: Stage, at: int, harm: str, after: Outcomes, report: Report) -> None:
    with stage.machine("machine") as machine, Failing(stage.stick, at, harm).stretched() as failing:
        before = machine.trusted()
        async with asyncio.timeout(60):
            told = await machine.plug()
            machine.check(before, after)
            if machine.is_ready():
                report.untouched += 1
            else:
                assert failing.harmed, "nothing went wrong, and it did not come"
                # A stick that is gone is nothing to speak of; whatever lies there and is no good has its word.
                assert told.words or (not told.kits and harm == "vanish"), f"without a word: {told}"
                for word in told.words:
                    line = word.replace(str(stage.folder), "")
                    report.words[line] = report.words.get(line, 0) + 1
            failing.mend()
            await again(machine, before, after)


async def again(machine: Machine, before: dict[str, Any], after: Outcomes) -> None:
    """The stick is pulled out, a good one is plugged in, and a person has it looked at."""
    await machine.replug()
    told = await machine.plug()
    machine.check(before, after)
    assert machine.is_ready(), f"a good stick does not help: {told}"
    assert machine.trusted() == after[0]
