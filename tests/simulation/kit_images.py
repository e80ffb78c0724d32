"""Real sticks, FAT32 and exFAT through FUSE, with a kit: damaged, or pulled out while they are read.

Whatever is done to the image, a machine takes what was signed, or nothing and says why; and a good stick then helps.
"""

import asyncio
import contextlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.fakes.stick_images import FILE_SYSTEMS, FileSystem, StickImage
from tests.simulation.kit_stage import Machine, Stage

SECTOR: Final = 512
BYTES: Final = (1, 1, 3, 30)  # changed at once
TRY_S: Final = 60.0
Outcomes = tuple[dict[str, Any], dict[str, Any]]


@dataclass
class Report:
    """What came of a sweep: how many sticks were damaged, could not be mounted at all, brought nothing and had a word
    for it, or brought all; and what did not hold."""

    tried: dict[str, int] = field(default_factory=dict)
    not_mounted: int = 0
    with_words: int = 0
    whole: int = 0
    broken: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For a person."""
        cases = ", ".join(f"{name} {number}" for name, number in self.tried.items())
        return (
            f"{sum(self.tried.values())} damaged sticks ({cases}): {self.not_mounted} could not be mounted,"
            f" {self.with_words} brought nothing and said why, {self.whole} brought all; {len(self.broken)} broken"
        )

    def text(self) -> str:
        """For a program."""
        return json.dumps(asdict(self))


class RealStick:
    """A real stick, and a stage whose kit lies on it.

    Args:
        folder: For everything.
        kind: Its file system.
        model_bytes: Of the release; small ones leave most of the image to the file system's own structures.
    """

    def __init__(self, folder: Path, kind: FileSystem, model_bytes: int) -> None:
        folder.mkdir(parents=True)
        self.mount = folder / "mount"
        self.image = StickImage(folder / "stick.img", kind, 36)
        with self.image.plugged(self.mount) as stick:
            self.stage = Stage(folder, model_bytes=model_bytes)
            for path in sorted(self.stage.stick.rglob("*")):
                there = stick / path.relative_to(self.stage.stick)
                there.mkdir() if path.is_dir() else there.write_bytes(path.read_bytes())
        self.after = self.stage.outcomes()

    def copy(self, path: Path) -> StickImage:
        """Another stick like it."""
        shutil.copyfile(self.image.path, path)
        return StickImage(path, self.image.kind)

    async def again(self, machine: Machine, before: dict[str, Any]) -> None:
        """The good one, read-only, helps."""
        with self.image.plugged(self.mount, read_only=True):
            await machine.replug()
            told = await machine.plug()
            machine.check(before, self.after)
            assert machine.is_ready(), f"a good stick does not help: {told}"


async def sweep(
    folder: Path, *, seed: int, count: int, show: Callable[[Report], None] = lambda _: None, stop_at: int = 3
) -> Report:
    """Damages sticks.

    Args:
        folder: For everything.
        seed: Of all chance.
        count: How many.
        show: Called after each.
        stop_at: So many that are broken are enough.
    """
    report = Report()
    sticks = [RealStick(folder / kind, kind, 20_000) for kind in FILE_SYSTEMS]
    for number in range(count):
        stick = sticks[number % len(sticks)]
        kind = stick.image.kind
        report.tried[kind] = report.tried.get(kind, 0) + 1
        try:
            await _damaged(stick, folder / "damaged.img", random.Random(f"{seed} {number}"), report)
        except Exception as error:  # whatever it is: the next one is tried
            report.broken.append(f"{kind}, seed {seed}, number {number}: {type(error).__name__}: {error}")
            if len(report.broken) >= stop_at:
                break
        show(report)
    return report


async def _damaged(stick: RealStick, path: Path, draw: random.Random, report: Report) -> None:
    damaged = stick.copy(path)
    damage(path, draw)
    with stick.stage.machine("machine", stick.mount) as machine:
        before = machine.trusted()
        try:
            damaged.plug(stick.mount, read_only=True)
        except OSError:
            report.not_mounted += 1
        else:
            try:
                async with asyncio.timeout(TRY_S):
                    told = await machine.plug()
            finally:
                damaged.pull()
            machine.check(before, stick.after)
            if machine.is_ready():
                report.whole += 1
            else:
                # Where no folder of kits is to be seen any more, there is nothing to speak of.
                assert told.words or not told.kits, f"without a word: {told}"
                report.with_words += 1
        await stick.again(machine, before)


def damage(path: Path, draw: random.Random) -> None:
    """Changes some bytes of an image, where something is written: half of the time in the first of it, where a file
    system has its own tables."""
    with path.open("r+b") as file:
        used = []
        for number in range(path.stat().st_size // SECTOR):
            if file.read(SECTOR).strip(b"\0"):
                used.append(number)
        if draw.random() < 0.5:
            used = used[: max(8, len(used) // 4)]
        near = draw.choice(used)
        for _ in range(draw.choice(BYTES)):
            sector = near if draw.random() < 0.5 else draw.choice(used)
            at = sector * SECTOR + draw.randrange(SECTOR)
            file.seek(at)
            (value,) = file.read(1)
            file.seek(at)
            file.write(bytes([value ^ draw.randrange(1, 256)]))


def first_cluster(entry: bytes) -> int:
    """Of a directory entry of FAT32."""
    return int.from_bytes(entry[20:22], "little") << 16 | int.from_bytes(entry[26:28], "little")


def find_folder(image: bytes, name: str) -> int:
    """Where the directory entry of a folder of FAT32 lies: after that of its long name, which has up to 13 letters."""
    at = image.find(name[:5].encode("utf-16-le") + b"\x0f")
    assert at > 0, name
    entry = at - 1 + 32
    assert image[entry + 11] == 0x10, name
    return entry


def turn_into(path: Path, folder: str, other: str) -> None:
    """On FAT32: makes a folder the same as another one, which may hold it: a loop without an end."""
    image = path.read_bytes()
    at, to = find_folder(image, folder), find_folder(image, other)
    entry = bytearray(image[at : at + 32])
    entry[20:22], entry[26:28] = image[to + 20 : to + 22], image[to + 26 : to + 28]
    with path.open("r+b") as file:
        file.seek(at)
        file.write(entry)


def endless(path: Path, folder: str) -> None:
    """On FAT32: the one cluster of a folder goes on with itself, and nothing in it says that the folder ends."""
    image = path.read_bytes()
    at = find_folder(image, folder)
    cluster = first_cluster(image[at : at + 32])
    reserved, tables = int.from_bytes(image[14:16], "little"), image[16]
    table_bytes = int.from_bytes(image[36:40], "little") * SECTOR
    cluster_bytes = image[13] * SECTOR
    begin = reserved * SECTOR + tables * table_bytes + (cluster - 2) * cluster_bytes
    with path.open("r+b") as file:
        for entry in range(begin, begin + cluster_bytes, 32):
            if not image[entry]:  # nothing follows: now it is one that was deleted
                file.seek(entry)
                file.write(b"\xe5")
        for number in range(tables):
            file.seek(reserved * SECTOR + number * table_bytes + 4 * cluster)
            file.write(cluster.to_bytes(4, "little"))


async def pulled(stick: RealStick, after_s: float) -> bool:
    """The plug is pulled at some moment of a try, and the stick plugged in again.

    Returns:
        Whether the try was over before.
    """
    with stick.stage.machine("machine", stick.mount) as machine:
        before = machine.trusted()
        stick.image.plug(stick.mount, read_only=True)
        pulling = asyncio.create_task(_pull(stick.image, after_s))
        async with asyncio.timeout(TRY_S):
            told = await machine.plug()
            was_first = not pulling.done()
            await pulling
        machine.check(before, stick.after)
        assert machine.is_ready() or told.words or not told.kits, f"without a word: {told}"
        await stick.again(machine, before)
        return was_first


async def _pull(image: StickImage, after_s: float) -> None:
    await asyncio.sleep(after_s)
    with contextlib.suppress(OSError):
        await asyncio.to_thread(image.pull)
