"""Bringing a stick's results home: each piece to whoever takes it, receipts back onto the stick.

The manager's tool sends pieces to the server's API, the server's own command takes them itself; both go through a stick
like this. A piece that is damaged or refused stops no other one, and stays where it is.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from protocol import limits
from protocol.errors import HeadlandError, LinkError, Reason, Refused, StateError
from protocol.ids import Count, DeviceId, is_name
from protocol.kits import PIECE_SUFFIX, RECEIPTS_FOLDER, RESULTS_FOLDER, PieceKind, read_piece
from protocol.wire import Message
from signing.stick import StickFolder, stick_folder

MACHINES_LOOKED_AT: Final = 100_000
COMPLAINTS_SAID: Final = 100  # of one machine: a stick whose sectors die has thousands
UNREADABLE: Final = 16  # in a row: a stick that was pulled may stay mounted, and gives nothing any more
UNANSWERED: Final = 3  # in a row: a server that fails at one piece may take the others


class TakenPiece(Message):
    """What became of a piece.

    Args:
        fresh: Rows that were new.
        known: Rows that were there already: by network, or from a copy of the stick.
        conflicting: Rows that are there with other bytes; kept apart, and not receipted.
        losses: Loss records in it.
        receipt: A signed `ReceiptsBody`; empty for a report.
        whole: All of it is durable there: the piece may go.
        newest: Of a report: it replaced what was known of the machine.
        words: What a person should know; mostly empty.
    """

    device: DeviceId
    kind: PieceKind
    fresh: Count = 0
    known: Count = 0
    conflicting: Count = 0
    losses: Count = 0
    receipt: str = ""
    whole: bool = False
    newest: bool = False
    words: str = ""


Take = Callable[[bytes], TakenPiece]
Progress = Callable[[int, int], None]
"""Hears how many pieces are done, and of how many."""


@dataclass
class Brought:
    """What a machine's folder held.

    Args:
        rows: New ones.
        known: Rows that were there already.
        conflicting: Rows that are there with other bytes.
        losses: Loss records.
        pieces: Batches and reports that were taken.
        reports: Of these, reports.
        removed: Pieces that were taken from the stick.
        refused: Pieces of which something was not taken: damaged, foreign, in conflict, or not to be read.
        complaints: A line for each of the first of these, and for what could not be written to the stick.
        unsaid: More complaints, without their lines.
    """

    rows: int = 0
    known: int = 0
    conflicting: int = 0
    losses: int = 0
    pieces: int = 0
    reports: int = 0
    removed: int = 0
    refused: int = 0
    complaints: list[str] = field(default_factory=list)
    unsaid: int = 0

    def refuse(self, line: str) -> None:
        """Counts a piece that was not taken, and says why."""
        self.refused += 1
        self.complain(line)

    def complain(self, line: str) -> None:
        """Says it, unless so much was said that nobody would read it."""
        if len(self.complaints) < COMPLAINTS_SAID:
            self.complaints.append(line)
        else:
            self.unsaid += 1


def bring_home(
    stick: Path, take: Take, *, keep: bool = False, progress: Progress = lambda done, of: None
) -> dict[str, Brought]:
    """Takes every piece on a stick, once; again it changes nothing. Two that do so at once share the pieces.

    Args:
        stick: Where it is mounted, or its folder of results.
        take: Takes one piece; raises `Refused` for one that is bad, and LinkError with a `status` where the server
            fails at it, which is given up after `UNANSWERED` in a row. Whatever else it raises ends it.
        keep: Removes no piece.
        progress: Told after each piece.

    Returns:
        What came of it, by the folder's name: the machine's.

    Raises:
        StateError: There are no results, or the server takes none.
        LinkError: The server cannot be reached, or the stick is gone: what was taken so far was.
        Refused: `TOKEN`: the server asks for another one.
    """
    found: dict[str, Brought] = {}
    done = of = 0
    with _results(stick) as (results, at_hand):
        names = [name for name in results.names()[:MACHINES_LOOKED_AT] if is_name(name.lower())]
        counts = {name: count for name in names if (count := _count(results, name)) is not None}
        of = sum(counts.values())
        try:
            for name in counts:
                for _ in _bring(results, name, found.setdefault(name.lower(), Brought()), take, at_hand, keep=keep):
                    done += 1
                    progress(done, of)
        except HeadlandError as error:
            error.message += f" ({done} of {of} pieces were done)"
            error.args = (error.message,)
            raise
    return found


def write_receipt(folder: StickFolder, name: str, receipt: str) -> None:
    """Puts a receipt into a machine's folder; one of the same name is replaced. Raises OSError as the stick does."""
    with folder.below(RECEIPTS_FOLDER, make=True) as receipts:
        receipts.write(f"{name}.json", receipt.encode())


def _bring(
    results: StickFolder, name: str, brought: Brought, take: Take, at_hand: "_AtHand", *, keep: bool
) -> Iterator[None]:
    """One machine's folder; yields after each piece."""
    try:
        with results.below(name) as folder:
            for piece in folder.names(PIECE_SUFFIX):
                _take_one(folder, piece, take, at_hand, brought, keep=keep)
                yield
    except OSError as error:
        at_hand.doubt()
        brought.refuse(f"its folder cannot be read: {error.strerror or error}")


def _take_one(folder: StickFolder, name: str, take: Take, at_hand: "_AtHand", brought: Brought, *, keep: bool) -> None:
    try:
        data = folder.read(name, limits.PIECE_BYTES)
    except FileNotFoundError:
        at_hand.doubt()
        return  # somebody else brings this stick home too, and had it first
    except OSError as error:
        at_hand.doubt()
        brought.refuse(f"{name}: it cannot be read: {error.strerror or error}")
        return
    except Refused as error:
        brought.refuse(f"{name}: {error.message}")
        return
    at_hand.unreadable = 0
    try:
        read_piece(data)  # a damaged one is not worth a way to the server
        taken = take(data)
    except LinkError as error:
        at_hand.unanswered += 1
        if error.status is None or at_hand.unanswered >= UNANSWERED:
            raise
        brought.refuse(f"{name}: {error.message}")
        return
    except Refused as error:
        if error.reason is Reason.TOKEN:
            raise
        brought.refuse(f"{name}: {error.message}")
        return
    at_hand.unanswered = 0
    brought.pieces += 1
    brought.reports += taken.kind == "report"
    brought.rows += taken.fresh
    brought.known += taken.known
    brought.conflicting += taken.conflicting
    brought.losses += taken.losses
    brought.refused += taken.conflicting > 0
    if taken.words:
        brought.complain(f"{name}: {taken.words}")
    try:
        if taken.receipt:
            write_receipt(folder, name[: -len(PIECE_SUFFIX)], taken.receipt)
        if taken.whole and not keep:
            folder.remove(name)
            brought.removed += 1
    except OSError as error:
        at_hand.doubt()
        # Taken it is; the receipt goes with the machine's next contact all the same.
        brought.complain(f"{name}: taken, but the stick cannot be written to: {error.strerror or error}")


class _AtHand:
    """Whether stick and server are still there: what they fail at in a row is counted."""

    def __init__(self, stick: Path, top: StickFolder) -> None:
        self.unreadable = 0
        self.unanswered = 0
        self._stick = stick
        self._top = top

    def doubt(self) -> None:
        """The stick did not do what it should.

        Raises:
            LinkError: It is gone.
        """
        self.unreadable += 1
        what = "gives nothing any more"
        if self.unreadable < UNREADABLE:
            with suppress(OSError):
                if self._stick.stat().st_dev == self._top.device:
                    return
            what = "is gone"
        raise LinkError(
            f"the stick at {self._stick} {what}", hint="plug it in and say the same again: nothing counts twice"
        )


@contextmanager
def _results(stick: Path) -> Iterator[tuple[StickFolder, _AtHand]]:
    """The folder of results."""
    with ExitStack() as opened:
        try:
            top = opened.enter_context(stick_folder(stick))
            is_it = stick.resolve().name.lower() == RESULTS_FOLDER
            results = top if is_it else opened.enter_context(top.below(RESULTS_FOLDER))
        except FileNotFoundError as error:
            raise StateError(
                f"{stick} holds no results: it has no folder {RESULTS_FOLDER}", hint="name where the stick is mounted"
            ) from error
        yield results, _AtHand(stick, top)


def _count(results: StickFolder, name: str) -> int | None:
    """How many pieces a machine's folder holds, for the bar; None: it is no folder."""
    try:
        with results.below(name) as folder:
            return len(folder.names(PIECE_SUFFIX))
    except NotADirectoryError:
        return None
    except OSError:
        return 0
