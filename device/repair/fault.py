"""What a check sees and what it says."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from device.containers.engine import EngineView
from device.layout import Layout
from device.store import KEEP_FREE_BYTES, free_bytes
from protocol.ids import Token
from protocol.wire import Message
from signing.durable import DISK, Disk


@dataclass(frozen=True)
class Place:
    """A machine's state folder, as checks look at it. Its agent lock is held, or nothing is mended.

    Args:
        layout: Where everything lies.
        draw_token: 128 random bits in hexadecimal, for the ids of alerts.
        thorough: Also read what takes long: all files of the committed release. Not at a start, where inference waits.
        disk: Through which everything is mended.
        free: Tells the free bytes of a folder's disk.
        keep_free_bytes: Less is a fault.
        engine: Asks the engine what it holds of ours; blocking, raises `StateError`. None: it is not asked.
    """

    layout: Layout
    draw_token: Callable[[], Token]
    thorough: bool = False
    disk: Disk = field(default=DISK)
    free: Callable[[Path], int] = free_bytes
    keep_free_bytes: int = KEEP_FREE_BYTES
    engine: Callable[[], EngineView] | None = None

    def remove_all(self, paths: Iterable[Path]) -> None:
        """Removes files, links, and folders with all in them; what is gone already is fine."""
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                self.disk.remove_tree(path)
            else:
                self.disk.unlink(path)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        what: A sentence for a person, with the facts.
        mend: Mends it and says what was done; may be repeated after a cut. None: this cannot be mended here.
        advice: What a person, or the agent later, can do; empty when mending is all.
        quiet: Every cut leaves such a thing: it is mended without telling the managers.
        reported: Mending it tells the managers by itself.
    """

    what: str
    mend: Callable[[], str] | None = None
    advice: str = ""
    quiet: bool = False
    reported: bool = False


class Finding(Message, omit_defaults=False):
    """A fault and what came of it.

    Args:
        check: Which check found it.
        what: The fault.
        mended: It is gone.
        done: What was done about it, or why that did not help.
        advice: What is left to do.
        quiet: As `Fault.quiet`.
        reported: As `Fault.reported`.
    """

    check: str
    what: str
    mended: bool = False
    done: str = ""
    advice: str = ""
    quiet: bool = False
    reported: bool = False

    @property
    def is_news(self) -> bool:
        """Whether the managers are to hear of it."""
        return not self.quiet and not self.reported

    def line(self) -> str:
        """For people."""
        parts = [f"{self.check}: {self.what}", self.done, self.advice if not self.mended else ""]
        return "; ".join(part for part in parts if part)


class Check(Protocol):
    """Finds one kind of fault. Changes nothing by itself."""

    def __call__(self, place: Place, /) -> list[Fault]:
        """The faults that are there now. Blocking.

        Raises:
            OSError: It could not look.
            HeadlandError: Likewise.
        """
        ...
