"""Results out by stick: what waits for a receipt is copied onto a stick, sealed to the server, and stays here.

A stick may be full, read-only, pulled at any write, copied, or never seen again: nothing here depends on it. Each piece
appears whole, by rename; what lies there whole already is not written again; and a piece is removed only when the
server has receipted all of it. Receipts that a stick brings are taken in first.
"""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from device.kits.hand import ANSWER_S, Hand
from device.kits.report import next_number, sign_report
from device.outbox.batch import sign_batch
from device.outbox.box import BATCH_ROWS_BYTES, Outbox
from device.outbox.copying import Elsewhere
from device.state_db import StateDb
from device.trust.port import Trust
from protocol import limits
from protocol.errors import HeadlandError, LinkError, Refused
from protocol.ids import Count, DeviceId, digest
from protocol.kits import (
    PIECE_SUFFIX,
    RECEIPTS_FOLDER,
    RESULTS_FOLDER,
    PieceHeader,
    PieceKind,
    PublicKey,
    StickReport,
    read_piece,
    write_piece,
)
from protocol.results import LANES, BatchBody, Loss
from protocol.spans import Spans
from protocol.wire import Message, decode
from signing.durable import DISK, Disk
from signing.sealing import seal
from signing.stick import StickFolder, stick_folder

LEFT_FREE_BYTES: Final = limits.MIB  # on the stick: it is not ours alone, and receipts need room
LEAST_BYTES: Final = 16 * limits.KIB  # of room, for a piece of a few rows
AROUND_BYTES: Final = 8 * limits.KIB  # of a small piece: header, envelope, seal
RECEIPT_SUFFIX: Final = ".json"
RECEIPTS_LOOKED_AT: Final = 4096  # at one visit: each is verified in another process, and a stick is anybody's
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})

End = Literal["complete", "full", "read-only", "gone", "no-key", "failed"]


class Exported(Message):
    """What came of an export.

    Args:
        end: `complete`: all that waited at its beginning lies on the stick.
        words: The same for a person.
        pieces: Written now, with how many rows and losses; the report is not among them.
        there: Pieces that lay on the stick already.
        damaged: Files there that are no whole pieces of this machine; left alone.
        removed: Pieces that went because the server has all that was in them.
        settled: Rows and losses that receipts on the stick settled.
    """

    end: End
    words: str
    pieces: Count = 0
    rows: Count = 0
    losses: Count = 0
    report: bool = False
    there: Count = 0
    damaged: Count = 0
    removed: Count = 0
    settled: Count = 0


class Export:
    """Writes to sticks, one at a time.

    Args:
        device: This machine.
        outbox: Whose rows are copied.
        key: The device's, which signs batches and reports.
        state: Keeps the number of the last report.
        trust: Verifies receipts.
        report: Makes what is told beside the results, under a number.
        sealing_key: The server's, as the managers name it now; None: they name none. May block.
        disk: Does what changes on the stick.
        answer_s: How long a stick may take for one piece.
    """

    def __init__(
        self,
        device: DeviceId,
        *,
        outbox: Outbox,
        key: ec.EllipticCurvePrivateKey,
        state: StateDb,
        trust: Trust,
        report: Callable[[int], Awaitable[StickReport]],
        sealing_key: Callable[[], PublicKey | None],
        disk: Disk = DISK,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._device = device
        self._outbox = outbox
        self._key = key
        self._state = state
        self._trust = trust
        self._report = report
        self._sealing_key = sealing_key
        self._disk = disk
        self._answer_s = answer_s
        self._hands: dict[Path, Hand] = {}  # that did not come back
        self._alone = asyncio.Lock()

    async def to(self, stick: Path, device: int | None = None) -> Exported:
        """Takes in the receipts on a stick, and copies onto it what waits. A repetition after any failure is safe.

        Args:
            stick: Where it is mounted.
            device: Number of the file system that must lie there; None: whichever does.
        """
        async with self._alone:
            tally = _Tally()
            old = self._hands.pop(stick, None)
            if old is not None and old.hangs:
                self._hands[stick] = old
                return tally.ended("gone", "the stick does not answer: pull it out and plug it in again")
            hand = Hand(str(stick), self._answer_s)
            try:
                return await self._to(_Place(stick, device, hand, self._disk), tally)
            except LinkError as error:
                return tally.ended("gone", error.message)
            except OSError as error:
                return tally.ended(*_said(error, began=tally.pieces > 0))
            except HeadlandError as error:
                return tally.ended("failed", error.message)
            finally:
                hand.end()
                if hand.hangs:
                    self._hands[stick] = hand

    async def _to(self, place: "_Place", tally: "_Tally") -> Exported:
        tally.settled = await self._take_receipts(place)
        sealing_key = await asyncio.to_thread(self._sealing_key)
        if sealing_key is None:
            return tally.ended("no-key", "the managers have named no key to seal results to: none are written")
        async with place.opened(RESULTS_FOLDER, self._device, make=True) as folder:
            return await self._fill(folder, place.hand, sealing_key, tally)

    # Receipts in

    async def _take_receipts(self, place: "_Place") -> int:
        try:
            async with place.opened(RESULTS_FOLDER, self._device, RECEIPTS_FOLDER) as folder:
                return await self._settle(folder, place.hand)
        except FileNotFoundError:
            return 0

    async def _settle(self, folder: StickFolder, hand: Hand) -> int:
        settled, used = 0, []
        for name in (await hand.do(folder.names, RECEIPT_SUFFIX))[:RECEIPTS_LOOKED_AT]:
            try:
                text = (await hand.do(folder.read, name, limits.OBJECT_BYTES)).decode()
            except (Refused, OSError, UnicodeDecodeError):
                continue
            for receipt in await self._trust.receipts((text,)):
                if self._outbox.generation is None:  # a machine that never had a contact
                    await self._outbox.meet_generation(receipt.generation)
                settled += await self._outbox.apply_receipt(receipt)
                # One of another life of the server's catalog may count yet: after a contact with that one.
                if receipt.generation == self._outbox.generation:
                    used.append(name)
        for name in used:
            with contextlib.suppress(OSError):  # of a read-only stick; again it changes nothing
                await hand.do(folder.remove, name)
        return settled

    # Results out

    async def _fill(self, folder: StickFolder, hand: Hand, sealing_key: PublicKey, tally: "_Tally") -> Exported:
        await hand.do(folder.sweep)
        found, tally.damaged = await self._look(folder, hand)
        kept, reports = {}, []
        for name, header in found.items():
            if header.kind == "report":
                reports.append(name)
            elif await self._is_settled(header):
                await hand.do(folder.remove, name)
                tally.removed += 1
            else:
                kept[name] = header
        there = [header for header in kept.values() if header.sealed_to == sealing_key]
        tally.there = len(there)
        copies = self._outbox.copies(_spans_of(there))
        while True:
            free_bytes = await hand.do(folder.free_bytes)
            room_bytes = BATCH_ROWS_BYTES if free_bytes is None else free_bytes - LEFT_FREE_BYTES
            limit_bytes = max(LEAST_BYTES, min(BATCH_ROWS_BYTES, room_bytes)) - AROUND_BYTES
            batch = await self._outbox.next_copy(copies, limit_bytes)
            if not tally.report and (batch is None or not _is_urgent(batch)):
                report = await self._report(await asyncio.to_thread(next_number, self._state))
                signed = await asyncio.to_thread(sign_report, report, self._key)
                header = self._header("report", sealing_key, number=report.number)
                if not await hand.do(_put, folder, header, signed):
                    return tally.full()
                tally.report = True
                for name in reports:
                    await hand.do(folder.remove, name)
            if batch is None:
                return tally.ended("complete", "all that waits is on the stick")
            signed = await asyncio.to_thread(sign_batch, batch, self._key)
            if not await hand.do(_put, folder, self._header_of(batch, sealing_key), signed):
                return tally.full()
            tally.wrote(batch)

    async def _is_settled(self, header: PieceHeader) -> bool:
        rows = {lane: Spans.of(spans) for lane, spans in header.rows.items()}
        losses = {lane: Spans.of(spans) for lane, spans in header.losses.items()}
        return header.epoch is not None and await self._outbox.is_settled(header.epoch, rows, losses)

    async def _look(self, folder: StickFolder, hand: Hand) -> tuple[dict[str, PieceHeader], int]:
        """The whole pieces of this machine by name, and how many files are none. Reads all of them."""
        found, damaged = {}, 0
        for name in await hand.do(folder.names, PIECE_SUFFIX):
            try:
                header, _ = read_piece(await hand.do(folder.read, name, limits.PIECE_BYTES))
            except (Refused, OSError):
                damaged += 1
                continue
            if header.device == self._device:
                found[name] = header
            else:
                damaged += 1
        return found, damaged

    def _header(self, kind: PieceKind, sealing_key: PublicKey, *, number: int = 0) -> PieceHeader:
        return PieceHeader(
            format=1, device=self._device, kind=kind, sealed_to=sealing_key, sha256=digest(b""), number=number
        )

    def _header_of(self, batch: BatchBody, sealing_key: PublicKey) -> PieceHeader:
        losses: dict[str, list[tuple[int, int]]] = {}
        for raw in batch.losses:
            loss = decode(raw, Loss, limit=limits.ROW_BYTES)
            losses.setdefault(loss.lane, []).append((loss.first, loss.last))
        rows: dict[str, list[tuple[int, int]]] = {}
        for part in batch.lanes:
            rows.setdefault(part.lane, []).append((part.first, part.first + len(part.rows) - 1))
        return PieceHeader(
            format=1,
            device=self._device,
            kind="batch",
            sealed_to=sealing_key,
            sha256=digest(b""),
            epoch=batch.epoch,
            rows={lane: tuple(spans) for lane, spans in rows.items()},
            losses={lane: tuple(spans) for lane, spans in losses.items()},
        )


@dataclass
class _Tally:
    pieces: int = 0
    rows: int = 0
    losses: int = 0
    report: bool = False
    there: int = 0
    damaged: int = 0
    removed: int = 0
    settled: int = 0

    def wrote(self, batch: BatchBody) -> None:
        self.pieces += 1
        self.rows += sum(len(part.rows) for part in batch.lanes)
        self.losses += len(batch.losses)

    def full(self) -> Exported:
        return self.ended("full", "the stick is full: what is not on it waits for the next stick or contact")

    def ended(self, end: End, why: str) -> Exported:
        pieces = "1 piece" if self.pieces == 1 else f"{self.pieces} pieces"
        done = f"{self.rows} results in {pieces} written"
        return Exported(end=end, words=f"{done}; {why}", **vars(self))


@dataclass(frozen=True)
class _Place:
    """A stick, and the hand that works on it."""

    root: Path
    device: int | None
    hand: Hand
    disk: Disk

    @contextlib.asynccontextmanager
    async def opened(self, *names: str, make: bool = False) -> AsyncIterator[StickFolder]:
        """A folder on it, for as long as the block lasts; whatever hangs then closes it once it has come back."""
        stack = contextlib.ExitStack()

        def open_all() -> StickFolder:
            folder = stack.enter_context(stick_folder(self.root, disk=self.disk))
            if self.device not in (None, folder.device):
                raise FileNotFoundError(errno.ENOENT, "another file system is there now")
            for name in names:
                folder = stack.enter_context(folder.below(name, make=make))
            return folder

        try:
            yield await self.hand.do(open_all)
        finally:
            self.hand.later(stack.close)


def _spans_of(headers: list[PieceHeader]) -> Elsewhere:
    rows: dict[tuple[str, str], list[tuple[int, int]]] = {}
    losses: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for header in headers:
        if header.epoch is not None:
            for lane, spans in header.rows.items():
                rows.setdefault((header.epoch, lane), []).extend(spans)
            for lane, spans in header.losses.items():
                losses.setdefault((header.epoch, lane), []).extend(spans)
    return Elsewhere(
        rows={key: Spans.of(spans) for key, spans in rows.items()},
        losses={key: Spans.of(spans) for key, spans in losses.items()},
    )


def _put(folder: StickFolder, header: PieceHeader, signed: bytes) -> bool:
    """Seals and writes a piece. False: there is no room for it. Blocking."""
    sealed = seal(header.sealed_to, signed, header.device, header.kind)
    sha256 = digest(sealed)
    data = write_piece(replace(header, sha256=sha256), sealed)
    free_bytes = folder.free_bytes()
    if free_bytes is not None and free_bytes - LEFT_FREE_BYTES < len(data):
        return False
    folder.write(f"{sha256[:32]}{PIECE_SUFFIX}", data)
    return True


def _is_urgent(batch: BatchBody) -> bool:
    return bool(batch.lanes) and batch.lanes[0].lane == LANES[0]


def _said(error: OSError, *, began: bool) -> tuple[End, str]:
    # Some drivers of FAT forbid to write where there is no room: what took pieces a moment ago is not read-only.
    if error.errno in FULL or (began and error.errno in READ_ONLY):
        return "full", "the stick is full: what is not on it waits for the next stick or contact"
    if error.errno in READ_ONLY:
        return "read-only", "the stick cannot be written to: what waits stays here"
    return "gone", f"the stick was pulled, or fails ({error.strerror or error}): what is not on it stays here"
