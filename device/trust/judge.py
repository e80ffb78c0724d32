"""Judges what a contact's answer or a field kit brought: the orders of DESIGN.md sections 3 and 7, over the trust store
and the clock's rules.

Runs in the keeper process. Everything that is learnt is durable before `judge` returns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from device import clock
from device.clock import Facts, Moment, Reading
from device.trust import roster
from device.trust.port import ROSTER, WALL_CLOCK, Complaint, KitVerdict, Listed, Roster, Terms, Verdict
from protocol import limits
from protocol.errors import HINTS, LinkError, Reason, Refused
from protocol.kits import KIT_FILE
from protocol.messages import SyncAnswer
from protocol.objects import AssignmentBody, ReceiptsBody, ReportedBody
from protocol.wire import encode
from signing.trust_store import (
    DirectorStore,
    DirectorView,
    ImageStore,
    ImageView,
    MetadataFolder,
    Nowhere,
    Offered,
    SignedKit,
    Source,
)

V = TypeVar("V")


@dataclass(frozen=True)
class Sources:
    """Where each repository's metadata comes from."""

    image: Source
    director: Source


class Judge:
    """Arguments: whose answers are judged, the two trust stores, where metadata and the clock's record are kept.

    Args:
        device: This machine's id.
        product: That it follows.
        image: Its trusted image repository.
        director: Its trusted director repository.
        sources: Where newer metadata comes from.
        facts: Holds the clock's record.
        here: Reads the machine's clocks.
        built_ms: The agent's build date.
        seal: Called at the end of each judgement: floors may have risen.
    """

    def __init__(
        self,
        *,
        device: str,
        product: str,
        image: ImageStore,
        director: DirectorStore,
        sources: Sources,
        facts: Facts,
        here: Callable[[], Moment] = clock.now_here,
        built_ms: int = clock.BUILT_MS,
        seal: Callable[[], None] = lambda: None,
    ) -> None:
        self._seal = seal
        self._device = device
        self._product = product
        self._image = image
        self._director = director
        self._sources = sources
        self._facts = facts
        self._here = here
        self._built_ms = built_ms

    def judge(self, answer: SyncAnswer, nonce: str, asked_boot_s: float) -> Verdict:
        """As `device.trust.port.Trust.judge`."""
        try:
            return _Contact(self, answer, nonce, int(asked_boot_s * 1000), self._here()).verdict()
        finally:
            self._seal()

    def receipts(self, texts: tuple[str, ...]) -> tuple[ReceiptsBody, ...]:
        """As `device.trust.port.Trust.receipts`."""
        try:
            director = self._director.stored()
        except Refused:
            director = None
        if director is None:
            return ()
        found = []
        for text in texts:
            try:
                found.append(director.verify_receipts(text, self._device))
            except Refused:
                continue
        return tuple(found)

    def judge_kit(self, folder: Path) -> KitVerdict:
        """As `device.trust.port.Trust.judge_kit`."""
        complaint: Complaint | None = None
        kit: SignedKit | None = None
        try:
            kit = self._take_kit(folder)
        except Refused as error:
            complaint = _of_kit(folder.name, error)
        except LinkError as error:
            if error.status is None:
                raise
            complaint = _of_kit(folder.name, Refused(Reason.METADATA, error.message))
        finally:
            self._seal()
        image = self._stored_image()
        return KitVerdict(
            kit=kit.body if kit is not None else None,
            expires_ms=_ms(kit.expires) if kit is not None else 0,
            signers=kit.signers if kit is not None else (),
            complaint=complaint,
            terms=self._terms(image) if image is not None else None,
            roster=self._keep_roster(),
            versions=self._versions(),
        )

    def now(self) -> datetime:
        """The time, sure or not."""
        return _datetime(self.reading().ms)

    def reading(self) -> Reading:
        """The time, and whether it is sure."""
        return clock.read(clock.load(self._facts), self._here(), self._built_ms)

    def _take_kit(self, folder: Path) -> SignedKit:
        """Nothing is written, and no floor rises, before all of it held."""
        director = self._director.beside(MetadataFolder(folder, "director"))
        content = MetadataFolder(folder.parent, folder.name).read(KIT_FILE, limits.KIT_BYTES)
        kit = self._director.peek(director).verify_kit(content)
        reading = self.reading()
        known_ms = reading.ms if reading.sure else clock.floor_ms(clock.load(self._facts), self._built_ms)
        kit.check(
            folder=folder.name,
            product=self._product,
            device=self._device,
            now=_datetime(known_ms),
            is_sure=reading.sure,
        )
        # A kit is here, so it was made before now, whatever an unsure clock says.
        at = min(_datetime(reading.ms), kit.created) if reading.sure else kit.created
        image = self._image.beside(MetadataFolder(folder, "image"))
        self._image.peek(image, at)
        # The director that will be trusted then may have taken from the kit's signers the right to sign it.
        self._director.peek(director, at).verify_kit(content)
        self._director.refresh(director, at)
        self._image.refresh(image, at)
        return kit

    def _terms(self, image: ImageView) -> Terms:
        return Terms(
            product=self._product,
            role_version=image.role_version,
            delegated_by=(image.versions["root"], image.versions["targets"]),
            era=image.era,
            floor=image.floor,
            listed={
                digest: Listed(
                    version=release.version,
                    release_counter=release.release_counter,
                    era=release.era,
                    length_bytes=release.length_bytes,
                )
                for digest, release in image.listed.items()
            },
            interlocks=image.interlocks,
            permits=tuple(permit for permit in image.permits if permit.device == self._device),
            skippable=image.skippable,
        )

    def _keep_roster(self) -> Roster | None:
        """What the newest trusted director says for kits; kept, under a number of its own, when it says something new.

        Versions of metadata would not do: after keys were stolen and rotated they may be lower (ATTACKS.md T4).
        """
        try:
            director = self._director.stored()
        except Refused:
            return None
        if director is None:
            return None
        kept = roster.load(self._facts)
        found = director.technicians
        kit_keys, kit_threshold = director.kit_signers
        newest = Roster(
            version=kept.version if kept is not None else 1,
            sealing_key=director.sealing_key,
            kit_keys=kit_keys,
            kit_threshold=kit_threshold,
        )
        if found is not None:
            newest = msgspec.structs.replace(
                newest,
                technicians=found.technicians,
                created_ms=found.created_ms,
                expires_ms=_ms(found.expires),
            )
        if newest == kept:
            return kept
        if kept is not None:
            newest = msgspec.structs.replace(newest, version=kept.version + 1)
        self._facts.put(ROSTER, encode(newest))
        return newest

    def _stored_image(self) -> ImageView | None:
        try:
            return self._image.stored()
        except Refused:
            return None

    def _versions(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for what, store in (("image", self._image), ("director", self._director)):
            try:
                found |= {f"{what}/{role}": version for role, version in store.versions().items()}
            except Refused:
                continue
        return found


class _Contact:
    """One judgement. The steps are in the order of `verdict`."""

    def __init__(self, judge: Judge, answer: SyncAnswer, nonce: str, asked_boot_ms: int, arrived: Moment) -> None:
        self._judge = judge
        self._answer = answer
        self._nonce = nonce
        self._asked_boot_ms = asked_boot_ms
        self._arrived = arrived
        self._complaints: list[Complaint] = []
        self._link: LinkError | None = None

    def verdict(self) -> Verdict:
        judge = self._judge
        # An empty timestamp: the server has nothing newer (it came out of a backup). As if it offered what is stored:
        # that goes on holding, and is stale when its time has come.
        director_source = _source(judge._sources.director, self._answer.director_timestamp, judge._director)
        image_source = _source(judge._sources.image, self._answer.image_timestamp, judge._image)

        # Whose keys sign the time must be known before the time is: a scratch copy, expiry not judged.
        keys = self._peek(director_source)
        time_ms: int | None = None
        if keys is not None:
            time_ms = self._learn_time(keys)
        elif self._link is None:
            self._complain("clock", Reason.TIME, "the director does not tell whose keys sign the time")

        # Then everything is judged again, by the time that is known now.
        reading = judge.reading()
        now = _datetime(reading.ms)
        director: DirectorView | None = None
        image: ImageView | None = None
        if self._link is None:
            director = self._refresh("director", lambda: judge._director.refresh(director_source, now), reading)
        if self._link is None:
            image = self._refresh("image", lambda: judge._image.refresh(image_source, now), reading)
        assignment = self._assignment(director, now)
        reported = self._reported(director, now)
        receipts = self._receipts(director or keys)
        if self._link is not None:
            raise self._link
        newest = image if image is not None else judge._stored_image()
        return Verdict(
            time_ms=time_ms,
            terms=judge._terms(newest) if newest is not None else None,
            assignment=assignment,
            reported=reported,
            receipts=receipts,
            complaints=tuple(self._complaints),
            versions=judge._versions(),
            may_install=reading.sure and director is not None and image is not None,
            roster=judge._keep_roster(),
        )

    def _peek(self, source: Offered) -> DirectorView | None:
        try:
            return self._judge._director.peek(source)
        except LinkError as error:
            if error.status is None or error.retryable:
                self._link = error
        except Refused:
            pass  # The refresh below meets the same bytes and complains.
        try:
            return self._judge._director.stored()
        except Refused:
            return None

    def _learn_time(self, keys: DirectorView) -> int | None:
        judge = self._judge
        try:
            time_ms = self._verified_time(keys)
        except Refused as error:
            self._complain("clock", error.reason, error.message)
            return None
        keyids, threshold = keys.keys("clock")
        before = clock.load(judge._facts)
        after = clock.learn(
            before,
            time_ms,
            self._asked_boot_ms,
            self._arrived,
            keyids=keyids,
            threshold=threshold,
            built_ms=judge._built_ms,
        )
        if after is not before:
            judge._facts.put(clock.KEY, encode(after))
            keys.keep_time_version(self._answer.time, judge._device)
        if clock.wall_is_off(self._arrived, time_ms):
            days = (self._arrived.wall_ms - time_ms) / 86_400_000
            self._complain(WALL_CLOCK, Reason.TIME, f"the wall clock is {days:+.1f} days from the signed time")
        return time_ms

    def _verified_time(self, keys: DirectorView) -> int:
        body = keys.verify_time(self._answer.time, self._judge._device, self._nonce)
        age_ms = self._arrived.boot_ms - self._asked_boot_ms
        if not 0 <= age_ms <= limits.TIME_STATEMENT_AGE_S * 1000:
            raise Refused(Reason.TIME, f"a time statement that took {age_ms / 1000:.0f} s to come")
        return body.time_ms

    def _refresh(self, what: str, refresh: Callable[[], V], reading: Reading) -> V | None:
        try:
            return refresh()
        except LinkError as error:
            if error.status is None or error.retryable:
                self._link = error
            else:
                # The server names a version and then does not have it: that is no weak link, it is a bad repository.
                # Where it names none, what is stored holds no longer.
                offered = self._answer.image_timestamp if what == "image" else self._answer.director_timestamp
                if offered:
                    self._complain(what, Reason.METADATA, error.message)
                elif reading.sure:
                    self._complain(what, Reason.EXPIRED, f"{what}: expired, and nothing newer is on offer")
        except Refused as error:
            # By an unsure time nothing can be called stale; that the time is unsure was said before.
            if reading.sure or error.reason is not Reason.EXPIRED:
                self._complain(what, error.reason, error.message)
        return None

    def _assignment(self, director: DirectorView | None, now: datetime) -> AssignmentBody | None:
        if self._answer.assignment is None or director is None:
            return None
        try:
            body = director.verify_object(self._answer.assignment, AssignmentBody, self._judge._device, now)
            _check_product(body, self._judge._product)
        except Refused as error:
            self._complain("assignment", error.reason, error.message)
            return None
        return body

    def _reported(self, director: DirectorView | None, now: datetime) -> ReportedBody | None:
        if self._answer.reported is None or director is None:
            return None
        try:
            body = director.verify_object(self._answer.reported, ReportedBody, self._judge._device, now)
            _check_nonce(body, self._nonce)
        except Refused as error:
            self._complain("reported", error.reason, error.message)
            return None
        return body

    def _receipts(self, director: DirectorView | None) -> tuple[ReceiptsBody, ...]:
        found = []
        for text in self._answer.receipts if director is not None else ():
            assert director is not None
            try:
                found.append(director.verify_receipts(text, self._judge._device))
            except Refused as error:
                self._complain("receipts", error.reason, error.message)
        return tuple(found)

    def _complain(self, what: str, reason: Reason, detail: str) -> None:
        self._complaints.append(Complaint(what=what, reason=reason, detail=detail))


_KIT_HINTS: Final[Mapping[Reason, str]] = {
    Reason.SIGNATURE: "it was changed, or comes from other managers: ask the release manager for a new kit",
    Reason.ROLLBACK: "this machine has seen what is newer: ask the release manager for a new kit",
    Reason.EXPIRED: "what it brings had expired when it was made: have it built again",
    Reason.METADATA: "it is damaged or not whole: copy it to the stick once more, or have it built again",
    Reason.LENGTH: "it is damaged: copy it to the stick once more, or have it built again",
    Reason.LIMIT: "it is damaged: copy it to the stick once more, or have it built again",
}


def _of_kit(name: str, error: Refused) -> Complaint:
    """What to do about a kit is another matter than about a server."""
    is_own = error.hint and error.hint != HINTS.get(error.reason)
    hint = error.hint if is_own else _KIT_HINTS.get(error.reason, error.hint)
    return Complaint(what="kit", reason=error.reason, detail=f"{name}: {error.message}", hint=hint)


def _source(source: Source, offered: str, store: ImageStore | DirectorStore) -> Offered:
    if offered:
        return Offered(source, _bytes(offered))
    return Offered(Nowhere(), store.timestamp())


def _check_product(body: AssignmentBody, product: str) -> None:
    if body.product != product:
        raise Refused(Reason.WRONG_PRODUCT, f"an assignment of {body.product}; this machine follows {product}")


def _check_nonce(body: ReportedBody, nonce: str) -> None:
    if body.nonce != nonce:
        raise Refused(Reason.TIME, "a last report for another request")


def _bytes(text: str) -> bytes:
    # A lone surrogate becomes bytes that no parser takes, instead of an error of ours.
    return text.encode(errors="surrogatepass")


def _datetime(ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)


def _ms(moment: datetime) -> int:
    return (moment - _datetime(0)) // timedelta(milliseconds=1)
