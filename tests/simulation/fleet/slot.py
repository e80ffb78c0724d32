"""Where sticks are plugged into a machine of a play, and how they are read and written: without threads, and pulled out
before any single read or write.

A stick is a folder. To plug it in is to move it to where the machine looks for sticks; to pull it out moves it back,
and what is in the midst of writing to it fails from there on, as with a device that is gone.
"""

import asyncio
import contextlib
import contextvars
import errno
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from protocol import limits
from protocol.errors import HeadlandError
from protocol.kits import PIECE_SUFFIX, read_piece
from signing.stick import StickFolder
from tests.simulation.fleet.power import CURRENT

if TYPE_CHECKING:
    from tests.simulation.fleet.machine import Machine

T = TypeVar("T")

READS_AN_HOUR: Final = 6000
"""Some kits with all their metadata, judged a dozen times. What reads more goes round and round."""
NEVER: Final = 1 << 60
ROOM_BYTES: Final = 1 << 40
_READ_NAMES: Final = StickFolder.names


@dataclass
class Plugged:
    """A stick while it is in.

    Args:
        home: Where it lies when it is out.
        left: Reads and writes until somebody pulls it.
        room_bytes: What may be written to it.
    """

    home: Path
    left: int = NEVER
    room_bytes: int = ROOM_BYTES


class Slot:
    """Of one machine; it outlives its boots.

    Args:
        machine: Whose.
        folder: Where sticks appear.
        chance: How long reads take.
    """

    def __init__(self, machine: "Machine", folder: Path, chance: random.Random) -> None:
        self._machine = machine
        self._chance = chance
        self.folder = folder
        self.inside: dict[str, Plugged] = {}
        self._reads: Counter[int] = Counter()
        self._writes_to: tuple[str, Plugged | None] | None = None

    def plug(self, stick: Path, plugged: Plugged) -> None:
        """Somebody plugs a stick in; the kernel tells the machine."""
        self._machine.world.log(self._machine.name, f"stick {stick.name} is in")
        self.folder.mkdir(exist_ok=True)
        stick.rename(self.folder / stick.name)
        self.inside[stick.name] = plugged
        self._tell()

    def pull(self, name: str) -> None:
        """Somebody pulls it out, if it is still in."""
        plugged = self.inside.pop(name, None)
        if plugged is None:
            return
        self._machine.world.log(self._machine.name, f"stick {name} is out")
        (self.folder / name).rename(plugged.home)
        self._tell()

    def _tell(self) -> None:
        machine = self._machine
        if machine.plug is not None and not machine.plug.dead and machine.parts is not None:
            machine.parts.kits.wake()

    def touch(self, name: str) -> None:
        """It is about to be read or written."""
        world = self._machine.world
        hour = int(world.loop.time() // 3600)
        self._reads[hour] += 1
        if self._reads[hour] > READS_AN_HOUR:
            world.break_off(AssertionError(f"{self._machine.name}: sticks are read again and again, without end"))
        plugged = self.inside.get(name)
        if plugged is None:
            return
        plugged.left -= 1
        if plugged.left < 0:
            world.fault("stick-pulled", self._machine.name, name)
            self.pull(name)

    def wait_s(self) -> float:
        """How long one read takes."""
        return self._chance.choice((0.0, 0.0, 0.01, 0.2))

    # Writing

    @contextlib.contextmanager
    def writing(self, name: str, plugged: Plugged | None) -> Iterator[None]:
        """For one work that writes."""
        self._writes_to = name, plugged
        try:
            yield
        finally:
            self._writes_to = None

    def wrote(self) -> None:
        """Before each single effect on a stick.

        Raises:
            OSError: It is gone.
        """
        assert self._writes_to is not None
        name, plugged = self._writes_to
        self.touch(name)
        if plugged is None or self.inside.get(name) is not plugged:
            raise OSError(errno.EIO, "the stick is gone")

    @property
    def room_bytes(self) -> int:
        """Of the stick that is written to."""
        found = self._writes_to[1] if self._writes_to is not None else None
        return ROOM_BYTES if found is None else found.room_bytes

    @property
    def is_gone(self) -> bool:
        """Whether what is written to was pulled meanwhile."""
        found = self._writes_to
        return found is not None and self.inside.get(found[0]) is not found[1]


def _slot() -> Slot:
    plug = CURRENT.get()
    assert plug is not None
    found: Slot = plug.owner.slot
    return found


class Thread:
    """In the place of `threading.Thread` where a stick is read: the same, some time later, in the loop."""

    def __init__(self, *, target: Callable[[], None], name: str, daemon: bool) -> None:
        assert daemon
        self._work = target
        self._stick = name.removeprefix("stick ")
        plug = CURRENT.get()
        assert plug is not None
        self._plug = plug

    def start(self) -> None:
        slot = _slot()
        asyncio.get_running_loop().call_later(slot.wait_s(), self._run, context=contextvars.copy_context())

    def _run(self) -> None:
        if not self._plug.dead:
            _slot().touch(self._stick)
            self._work()


class Hand:
    """In the place of `device.kits.hand.Hand`, without its thread."""

    hangs = False

    def __init__(self, what: str, *_: Any) -> None:
        self._slot = _slot()
        self._name = Path(what).name
        self._plugged = self._slot.inside.get(self._name)

    async def do(self, work: Callable[..., T], *arguments: object) -> T:
        await asyncio.sleep(self._slot.wait_s())
        self._slot.touch(self._name)
        if self._plugged is None or self._slot.inside.get(self._name) is not self._plugged:
            raise OSError(errno.ENODEV, "the stick is gone")
        with self._slot.writing(self._name, self._plugged):
            return work(*arguments)

    def later(self, work: Callable[[], None]) -> None:
        work()

    def end(self) -> None:
        """Nothing goes on."""


def no_watch(*_: Any) -> None:
    """In the place of what the kernel tells of mounts and folders: the slot tells it."""
    raise OSError(errno.ENOSYS, "nobody tells here")


def mounted(look_at: Callable[[int], Any]) -> Callable[[int], Any]:
    """Every folder here is a mount; and they come in an order that only the play decides."""

    def wrapped(folder: int) -> Any:
        below, is_ours, device, _ = look_at(folder)
        return sorted(below), is_ours, device, True

    return wrapped


def names(folder: StickFolder, suffix: str = "") -> list[str]:
    """As `StickFolder.names`: names of pieces and receipts are drawn by chance anew in each process, so the order is
    that of what is in them."""
    return sorted(_READ_NAMES(folder, suffix), key=lambda name: (_content(folder, name), name))


def free_bytes(_: StickFolder) -> int:
    """As `StickFolder.free_bytes`."""
    return _slot().room_bytes if CURRENT.get() is not None else ROOM_BYTES


def _content(folder: StickFolder, name: str) -> str:
    try:
        if name.endswith(PIECE_SUFFIX):
            said, _ = read_piece(folder.read(name, limits.PIECE_BYTES))
            return repr((said.kind, said.epoch, sorted(said.rows.items()), sorted(said.losses.items()), said.number))
        if name.endswith(".json"):
            return json.dumps(json.loads(folder.read(name, limits.PIECE_BYTES))["signed"], sort_keys=True)
    except (HeadlandError, OSError, ValueError, KeyError):
        pass
    return ""
