"""The install rule, and the second look before a release is activated. Pure: facts in, verdict out.

Expiry gates installing and is judged before this, by trust. What was verified when it was stored may be activated
later: the second look holds what can have changed since: the files, the floors, what was delisted, and the conditions.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec

from device.trust.port import Terms
from device.update.states import Held, Offer, UpdateRecord, is_worn_out
from protocol.artifact import Artifact
from protocol.errors import Reason, Refused
from protocol.ids import DeviceId, Digest, ProductName, Token, Version, digest
from protocol.kits import PERMIT_DAYS, PermitTerms
from protocol.messages import Inventory
from protocol.objects import AssignmentBody, Conditions
from protocol.release import ReleaseManifest, Variant, parse_manifest
from protocol.selection import needed_artifacts, select_images, select_variants

DAY_MINUTES = 1440
DAY_MS = 86_400_000


@dataclass(frozen=True)
class Machine:
    """Who this is and what it can run."""

    device: DeviceId
    product: ProductName
    inventory: Inventory

    @property
    def agent(self) -> Version:
        """The running agent's version."""
        return self.inventory.agent


@dataclass(frozen=True)
class Floor:
    """The committed floor: it rises at COMMIT, in the transaction that records it, and never falls."""

    era: int = 0
    counter: int = 0  # of that era
    permit_ms: int = 0  # when the newest permit was made that was used up here

    def admits(self, era: int, counter: int) -> bool:
        """Whether a release is newer than all that was committed."""
        return (era, counter) > (self.era, self.counter)


@dataclass(frozen=True)
class Time:
    """What is known of it.

    Args:
        ms: Now.
        sure: Whether that is verified in this boot.
        floor_ms: It is not earlier, whatever the wall clock says.
    """

    ms: int
    sure: bool
    floor_ms: int


@dataclass(frozen=True)
class Accepted:
    """An offer that may be installed."""

    offer: Offer
    manifest: ReleaseManifest
    variants: Mapping[str, Variant]
    artifacts: tuple[Artifact, ...]


@dataclass(frozen=True)
class Later:
    """An offer or an activation that has to wait, and why, for people."""

    why: str


def judge_offer(
    assignment: AssignmentBody,
    manifest_bytes: bytes,
    terms: Terms,
    machine: Machine,
    *,
    floor: Floor,
    record: UpdateRecord,
    refused: Mapping[Digest, str],
    delisted: Collection[Digest],
    forced: Token | None = None,
    permit: PermitTerms | None = None,
) -> Accepted | Later:
    """DESIGN section 3's install rule.

    Args:
        assignment: Verified; it names the manifest for this device.
        manifest_bytes: As they came, not yet trusted.
        terms: The newest trusted.
        machine: This one.
        floor: Of what was committed.
        record: What runs, and what was given up.
        refused: Why, by the digest of each manifest that was refused on evidence.
        delisted: Digests that an older role listed and a newer one did not.
        forced: The technician's request that forces it: retries that are used up do not count then.
        permit: Of `permit_for` this release.

    Raises:
        Refused: The reason that a person and the server are told.
    """
    name = assignment.manifest.sha256
    if assignment.device != machine.device:
        raise Refused(Reason.WRONG_DEVICE, f"an assignment for {assignment.device}; this is {machine.device}")
    if not assignment.product == terms.product == machine.product:
        raise Refused(Reason.WRONG_PRODUCT, f"an assignment of {assignment.product}; this follows {machine.product}")
    if len(manifest_bytes) != assignment.manifest.length_bytes:
        raise Refused(Reason.LENGTH, f"manifest {name[:12]} has {len(manifest_bytes)} bytes, not the signed length")
    if digest(manifest_bytes) != name:
        raise Refused(Reason.HASH, f"manifest {name[:12]} came with the hash {digest(manifest_bytes)[:12]}")
    _check_listed(name, assignment.release, terms, delisted)
    manifest = parse_manifest(manifest_bytes)
    _check_manifest(manifest, assignment, terms)
    if name in refused:
        raise Refused(Reason.REFUSED_BEFORE, f"release {manifest.version} was refused here: {refused[name]}")
    release = Held(digest=name, version=manifest.version, release_counter=manifest.release_counter, era=manifest.era)
    needs_permit = not is_repair(release, record) and _is_below(release, terms, floor, record, permit)
    variants = select_variants(manifest, machine.inventory)
    images = select_images(manifest, machine.inventory)
    if _version_key(manifest.min_agent) > _version_key(machine.agent):
        return Later(f"agent: release {manifest.version} needs {manifest.min_agent}, this is {machine.agent}")
    offer = Offer(release=release, rollout=assignment.rollout, conditions=assignment.conditions, trial=manifest.trial)
    if forced is None and is_worn_out(record, offer):
        return Later(f"release {manifest.version} used up its retries in this rollout: it waits for another one")
    permit_ms = permit.created_ms if needs_permit and permit is not None else 0
    offer = msgspec.structs.replace(offer, forced=forced, permit_ms=permit_ms)
    return Accepted(offer, manifest, variants, needed_artifacts(manifest, variants, images))


def look_again(
    offer: Offer,
    terms: Terms,
    *,
    floor: Floor,
    record: UpdateRecord,
    refused: Mapping[Digest, str],
    now_ms: int,
    sure_of_time: bool,
    signals_off: Collection[str],
    permit: PermitTerms | None = None,
) -> Later | None:
    """ACTIVATE's second look, with what is known here now; the network is not needed.

    Args:
        offer: Fetched and checked.
        terms: The newest trusted.
        floor: Of what was committed.
        record: What runs.
        refused: As in `judge_offer`.
        now_ms: Trusted time as far as it is known.
        sure_of_time: Whether that is verified in this boot.
        signals_off: Machine signals that are known to be off.
        permit: Of `permit_for` this release; only that which the offer was accepted by counts.

    Returns:
        None when it may be activated now; else why not yet.

    Raises:
        Refused: It may not be activated any more.
    """
    release = offer.release
    if release.digest not in terms.listed:
        raise Refused(Reason.DELISTED, f"release {release.version} was delisted since it was fetched")
    if release.digest in refused:
        raise Refused(Reason.REFUSED_BEFORE, f"release {release.version} was refused here: {refused[release.digest]}")
    if permit is not None and permit.created_ms != offer.permit_ms:
        permit = None
    if not is_repair(release, record):
        _is_below(release, terms, floor, record, permit)
    conditions = offer.conditions
    # The managers' interlocks and the assignment's own: an assignment adds, it never takes away.
    signals_clear = list(dict.fromkeys((*terms.interlocks, *conditions.signals_clear)))
    if offer.forced is not None:
        conditions = msgspec.structs.replace(conditions, not_before_ms=None, window_utc=None)
        signals_clear = [name for name in signals_clear if name not in terms.skippable]
    return _conditions_hold(conditions, signals_clear, now_ms, sure_of_time, signals_off)


def permit_for(release: Digest, terms: Terms, device: DeviceId, floor: Floor, time: Time) -> PermitTerms | None:
    """The permit by which this machine may go back to a release, once: the oldest that counts.

    One that was made no later than the newest which was used up here counts no more. It ends by sure time; by what is
    known at least where time is not sure. How long it may last is held here too.

    Args:
        release: Its manifest.
        terms: The newest trusted.
        device: This one.
        floor: Of what was committed, and of permits.
        time: What is known of it.
    """

    def counts(permit: PermitTerms) -> bool:
        at_ms = time.ms if time.sure else max(time.floor_ms, permit.created_ms)
        return (
            permit.device == device
            and permit.manifest == release
            and permit.created_ms > floor.permit_ms
            and permit.expires_ms - permit.created_ms <= PERMIT_DAYS * DAY_MS
            and at_ms < permit.expires_ms
        )

    return min((permit for permit in terms.permits if counts(permit)), key=lambda one: one.created_ms, default=None)


def is_repair(release: Held, record: UpdateRecord) -> bool:
    """Whether the offer is the committed release itself, to mend it."""
    return record.committed is not None and record.committed.digest == release.digest


def may_fall_back(release: Held, terms: Terms | None) -> bool:
    """Whether the release before the committed one may serve while that cannot.

    Not when the managers delisted it, or raised era or floor above it: nobody could install it any more, and damage to
    one file must not bring it back. Then nothing serves until the mended release does. The committed one itself serves
    whatever they said since, until a better one is offered.

    Args:
        release: The record's previous one.
        terms: The newest; None: none are known, and nothing speaks against it.
    """
    if terms is None:
        return True
    return release.digest in terms.listed and (release.era, release.release_counter) >= (terms.era, terms.floor)


def _check_listed(name: Digest, version: Version, terms: Terms, delisted: Collection[Digest]) -> None:
    if name in terms.listed:
        return
    if name in delisted:
        raise Refused(Reason.DELISTED, f"release {version} was delisted by the managers")
    raise Refused(Reason.NOT_LISTED, f"release {version} ({name[:12]}) is not listed by role {terms.product}")


def _check_manifest(manifest: ReleaseManifest, assignment: AssignmentBody, terms: Terms) -> None:
    if manifest.product != assignment.product:
        raise Refused(Reason.WRONG_PRODUCT, f"a manifest of {manifest.product} where {assignment.product} is assigned")
    listed = terms.listed[assignment.manifest.sha256]
    said = (manifest.version, manifest.release_counter, manifest.era)
    if said != (listed.version, listed.release_counter, listed.era) or manifest.version != assignment.release:
        raise Refused(
            Reason.MANIFEST,
            f"manifest {manifest.version} (counter {manifest.release_counter}, era {manifest.era}) is listed as "
            f"{listed.version} ({listed.release_counter}, {listed.era}) and assigned as {assignment.release}",
        )


def _is_below(release: Held, terms: Terms, floor: Floor, record: UpdateRecord, permit: PermitTerms | None) -> bool:
    """Holds the floors; whether it is below the committed one, where only a permit lets it go."""
    where = f"release {release.version} has counter {release.release_counter} in era {release.era}"
    if release.era != terms.era:
        raise Refused(Reason.COUNTER_FLOOR, f"{where}; the managers' era is {terms.era}")
    if release.release_counter < terms.floor:
        raise Refused(Reason.PRODUCT_FLOOR, f"{where}; the product's floor is {terms.floor}")
    # A machine that lost all but its floor gets back what it ran: where nothing is committed, that is no step back.
    is_return = record.committed is None and (release.era, release.release_counter) == (floor.era, floor.counter)
    if is_return or floor.admits(release.era, release.release_counter):
        return False
    if permit is None or release.era != floor.era:
        raise Refused(Reason.COUNTER_FLOOR, f"{where}; committed here was {floor.counter} in era {floor.era}")
    return True


def _conditions_hold(
    conditions: Conditions,
    signals_clear: Collection[str],
    now_ms: int,
    sure_of_time: bool,
    signals_off: Collection[str],
) -> Later | None:
    late = conditions.activate_before_ms
    if late is not None and sure_of_time and now_ms >= late:
        raise Refused(Reason.EXPIRED, "the time by which it had to be activated has passed")
    raised = [name for name in signals_clear if name not in signals_off]
    if raised:
        return Later(f"signals: {', '.join(raised)}")
    asks_time = late is not None or conditions.not_before_ms is not None or conditions.window_utc is not None
    if asks_time and not sure_of_time:
        return Later("time: the conditions name a time, and this machine is not sure of it yet")
    if conditions.not_before_ms is not None and now_ms < conditions.not_before_ms:
        return Later("time: not before the moment that the rollout names")
    if conditions.window_utc is not None and not _in_window(conditions.window_utc, now_ms):
        begins, ends = (f"{minute // 60:02d}:{minute % 60:02d}" for minute in conditions.window_utc)
        return Later(f"window: {begins} to {ends} UTC")
    return None


def _in_window(window: tuple[int, int], now_ms: int) -> bool:
    """From the first minute up to the second; over midnight when the first is later. Equal ends mean all day."""
    begins, ends = window
    minute = now_ms // 60_000 % DAY_MINUTES
    if begins == ends:
        return True
    if begins < ends:
        return begins <= minute < ends
    return minute >= begins or minute < ends


def _version_key(version: Version) -> tuple[int, ...]:
    """The three numbers; a suffix does not make an agent too old."""
    return tuple(int(part) for part in version.split("-")[0].split("+")[0].split("."))
