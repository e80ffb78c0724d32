"""A contact: what a machine reports is kept, and what it should know goes back, signed, in one round trip.

The decisions are pure and stand elsewhere: `sync_token.judge` (retry or clone), `rollouts.choose` (which release),
`rollouts.judge` (what a rollout does next), `plan.make_plan` (how the bytes travel). Here they meet the catalog, in one
transaction a contact.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from protocol import limits
from protocol.artifact import Artifact
from protocol.delta.patch import CODEC
from protocol.errors import HeadlandError, Reason, Refused, StateError
from protocol.ids import Token
from protocol.kits import StickReport, is_kit
from protocol.messages import SyncAnswer, SyncRequest, TransferBytes, UpdateStatus
from protocol.objects import AssignmentBody, Payload, ReportedBody, TransferPlan
from protocol.release import ReleaseManifest, parse_manifest
from protocol.selection import needed_artifacts, select_images, select_variants
from protocol.wire import decode, encode
from server import restored, rollouts, sync_token
from server.clock import NowMs
from server.director import Director, Pen
from server.failed_patches import forgive_upgraded, take_failures, take_lifts
from server.kits.forces import take_forces
from server.kits.reports import as_contact, news_only
from server.plan import Means, make_plan, named_patches
from server.publish import Publisher, current_versions
from server.settings import Contact
from server.storage.blobs import BlobStore
from server.storage.catalog import Catalog, Session
from server.storage.records import Device, Member, Rollout
from server.sync_token import Standing

RECEIPTS_BYTES: Final = limits.MIB  # of one answer, which may have four
MANIFESTS_KEPT: Final = 64  # parsed, in memory; a fleet runs a handful
ANSWER_KEPT_MS: Final = 600_000  # a retry after that is answered anew: what was assigned then may be halted now


@dataclass(frozen=True)
class _Offer:
    """What a machine gets to hear about releases. `busy`: something for it is still being made ready."""

    assignment: str | None = None
    busy: bool = False


class Contacts:
    """Answers machines.

    Args:
        catalog: What is known.
        blobs: For manifests.
        director: Signs.
        publisher: Gets ahead again when machines trust newer online roles than are on offer.
        now_ms: The clock.
        settings: Poll intervals.
        withdraw_after: Machines on which a patch must fail to be withdrawn for all.
    """

    def __init__(
        self,
        catalog: Catalog,
        blobs: BlobStore,
        director: Director,
        publisher: Publisher,
        *,
        now_ms: NowMs,
        settings: Contact,
        withdraw_after: int,
    ) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._director = director
        self._publisher = publisher
        self._now_ms = now_ms
        self._settings = settings
        self._withdraw_after = withdraw_after
        self._manifests: dict[str, ReleaseManifest] = {}
        self._damaged: set[str] = set()

    def answer(self, request: SyncRequest, *, certificate_pem: str = "", renew: bool = False) -> SyncAnswer:
        """One contact of an enrolled, unrevoked machine. Blocks; durable when it returns.

        Args:
            request: As it came.
            certificate_pem: That it shows: a catalog out of a backup, or a cut renewal, left another one here.
            renew: Whether the machine should renew it.

        Raises:
            Refused: `WRONG_PRODUCT`.
            StateError: Nothing was published yet.
        """
        now_ms = self._now_ms()
        self._warm(request.product, now_ms)
        with self._catalog.write() as session:
            device = self._addressed(session, request.device, request.product)
            request = _by_what_is_known(request, device)
            secret = bytes.fromhex(session.facts.get("sync_secret") or "")
            shown = None
            if request.sync_token is not None:
                shown = sync_token.number_of(secret, device.id, request.sync_token)
            standing = sync_token.judge(device, shown, request.sync_token, request.contact_id)
            number = sync_token.number_to_give(device, standing, shown, request.contact_id)
            if standing is Standing.LATE:
                return self._answer_late(session, device, request, sync_token.issue(secret, device.id, number), now_ms)
            # A repeated request may have been held up: what it says of positions may be of before its first answer.
            passed = standing is not Standing.RETRY and self._passed(session, request)
            last_ms = device.last_contact_ms or 0
            device = self._recognise(session, device, standing, shown, passed=passed, now_ms=now_ms)
            self._record(session, device, request, now_ms)
            image, director = self._publisher.offers(session, request.versions)
            known, device = device, _reported(device, request, certificate_pem, now_ms)
            forgive_upgraded(session, known, device, now_ms)
            failed = 0
            if not device.set_apart:
                session.fleet.hold(device.id, request.have if _patches_reach(device) else ())
                take_lifts(session, device.id, request.lifted_patches, now_ms)
                failed = take_failures(session, device.id, request.failed_patches, now_ms, self._withdraw_after)
            if standing is Standing.NEXT and shown is not None:
                session.receipts.shown(device.id, shown)
            receipts = session.receipts.waiting(device.id, RECEIPTS_BYTES)
            session.receipts.tell(device.id, [name for name, _ in receipts], number)
            version = max(device.object_version + 1, now_ms // 1000)
            device = replace(device, object_version=version)
            pen = self._director.pen(session, request.versions)
            want_inventory = device.inventory is None or device.inventory_sha256 != request.inventory_sha256
            kept = None
            if standing is Standing.RETRY and device.answer is not None:
                kept = decode(device.answer, SyncAnswer, limit=limits.ANSWER_BYTES)
            # What was kept may name a patch of which it says now that it failed, or be under a key that was replaced.
            generation = session.facts.get("generation") or ""
            if device.set_apart or device.returned or restored.is_held(session):
                offer = _Offer()
            elif (
                kept is not None
                and kept.generation == generation
                and max(pen.since_ms, now_ms - ANSWER_KEPT_MS + 1) <= last_ms
                and not failed
            ):
                offer = _Offer(kept.assignment)
            elif want_inventory:
                offer = _Offer()
            else:
                offer = self._offer(session, device, request, pen, version=version, now_ms=now_ms, failed=failed)
            busy = offer.busy or want_inventory
            answer = SyncAnswer(
                contact_id=request.contact_id,
                sync_token=sync_token.issue(secret, device.id, number),
                generation=generation,
                time=pen.time(device.id, request.nonce, version, now_ms),
                image_timestamp=image,
                director_timestamp=director,
                assignment=offer.assignment,
                reported=self._last_report(session, device, request.nonce, version, now_ms)
                if request.recovering
                else None,
                receipts=tuple(text for _, text in receipts),
                poll_s=min(self._settings.busy_poll_s, self._settings.poll_s) if busy else self._settings.poll_s,
                want_inventory=want_inventory,
                set_apart=bool(device.set_apart) or passed or (kept is not None and kept.set_apart),
                want_metadata=() if device.set_apart else restored.wanted(session, request.versions),
                renew=renew,
            )
            device = sync_token.answered(device, standing, number, request.contact_id)
            device = replace(device, answer=encode(answer))
            session.devices.save(device)
        return answer

    def take_report(self, report: StickReport) -> bool:
        """Takes what a machine told by stick; its signature was checked before. Blocks; durable when it returns.

        It replaces what is known of the machine when nothing newer was told, by stick or by network, and its sync token
        vouches for it. Statuses, alerts and forces are kept once each, whenever they come.

        Returns:
            Whether it replaced what was known.

        Raises:
            Refused: `WRONG_PRODUCT`.
            StateError: No such machine.
        """
        now_ms = self._now_ms()
        with self._catalog.write() as session:
            device = self._addressed(session, report.device, report.product)
            secret = bytes.fromhex(session.facts.get("sync_secret") or "")
            shown = 0 if report.sync_token is None else sync_token.number_of(secret, device.id, report.sync_token)
            is_newest = sync_token.vouches(device, shown) and report.number > device.stick_number
            request = as_contact(report) if is_newest else news_only(report, device)
            self._record(session, device, request, now_ms)
            if is_newest:
                known, told = device, _told_by_stick(device, request)
                forgive_upgraded(session, known, told, now_ms)
                if not device.set_apart:
                    session.fleet.hold(device.id, request.have if _patches_reach(told) else ())
                session.devices.save(told)
        return is_newest

    def _addressed(self, session: Session, name: str, product: str) -> Device:
        device = session.devices.lock(name)
        if device is None:
            raise StateError(f"no device {name}")
        if product != device.product:
            raise Refused(Reason.WRONG_PRODUCT, f"{name} was enrolled for {device.product}, not for {product}")
        return device

    def _answer_late(
        self, session: Session, device: Device, request: SyncRequest, token: Token, now_ms: int
    ) -> SyncAnswer:
        """Nobody waits for it, if all is well: nothing of the request is taken in, and nothing new is told.

        A machine that does wait was readmitted since, or lost many answers: it shall call again soon, and be told.
        """
        version = max(device.object_version + 1, now_ms // 1000)
        session.devices.save(replace(device, object_version=version))
        image, director = self._publisher.offers(session, request.versions)
        return SyncAnswer(
            contact_id=request.contact_id,
            sync_token=token,
            generation=session.facts.get("generation") or "",
            time=self._director.pen(session, request.versions).time(device.id, request.nonce, version, now_ms),
            image_timestamp=image,
            director_timestamp=director,
            poll_s=min(self._settings.busy_poll_s, self._settings.poll_s),
            set_apart=bool(device.set_apart),
        )

    def _last_report(self, session: Session, device: Device, nonce: str, version: int, now_ms: int) -> str:
        mine = session.rollouts.memberships(device.id)
        committed = {device.report.manifest} | {
            rollout.manifest
            for rollout in session.rollouts.all(device.product)
            if rollout.name in mine and mine[rollout.name].outcome == "committed"
        }
        known = [release for release in session.repositories.releases(device.product) if release.manifest in committed]
        highest = max(known, key=lambda release: (release.era, release.release_counter), default=None)
        body = ReportedBody(device=device.id, nonce=nonce, manifest=device.report.manifest)
        if highest is not None:
            body = ReportedBody(
                device=device.id,
                nonce=nonce,
                manifest=highest.manifest,
                release=highest.version,
                release_counter=highest.release_counter,
                era=highest.era,
            )
        return self._director.pen(session, device.versions).reported(body, version, now_ms)

    def _passed(self, session: Session, request: SyncRequest) -> bool:
        """Whether more of this epoch is here than the machine has numbered: two outboxes share it."""
        seen = session.results.next_seqs(request.device, request.epoch)
        return any(lane in request.lanes and seen[lane] > request.lanes[lane].next_seq for lane in seen)

    def _recognise(
        self, session: Session, device: Device, standing: Standing, shown: int | None, *, passed: bool, now_ms: int
    ) -> Device:
        """Notes what the token says. Sets apart on a clone; deletes nothing."""
        match standing:
            case Standing.CLONE if not device.set_apart:
                why = f"sync token {shown} came a second time, from another contact: two machines share this identity"
                session.events.add(now_ms, "clone", device=device.id, reason=Reason.CLONE.value, detail=why)
                device = replace(device, set_apart=why)
            case Standing.LOST:
                session.events.add(now_ms, "sync-token-lost", device=device.id, detail="renewed by its certificate")
            case Standing.AHEAD:
                # A token that this catalog does not remember giving: it came out of a backup. Kept rows come again.
                # Once a restore was noticed, every machine of the lost time shows such a token; that is no other one.
                if not _restore_is_known(session, device):
                    restored.begin(
                        session,
                        now_ms,
                        restore=f"{device.id} {shown}",
                        backup_ms=session.facts.number("woken_ms"),
                        how=f"{device.id} shows sync token {shown}, and {device.token_counter} is the last known here",
                    )
            case _:
                pass
        if passed:
            session.events.add(
                now_ms,
                "clone",
                device=device.id,
                reason=Reason.CLONE.value,
                what="results",
                detail="more rows of its epoch are here than it has numbered",
            )
        return device

    def _record(self, session: Session, device: Device, request: SyncRequest, now_ms: int) -> None:
        """Keeps statuses and alerts once each, and lets rollouts judge what is new."""
        versions = {r.manifest: r.version for r in session.repositories.releases(device.product)}
        fresh = session.devices.add_statuses(device.id, request.statuses, now_ms)
        for status in fresh:
            if status.outcome is not None:
                session.events.add(
                    now_ms,
                    f"update-{status.outcome}",
                    device=device.id,
                    what=f"{device.product} {versions.get(status.manifest, status.manifest)}"
                    + (f" by {status.rollout}" if is_kit(status.rollout) else ""),
                    reason=status.reason.value if status.reason is not None else "",
                    detail=status.detail,
                )
        take_forces(session, device.id, request.forces, now_ms)
        for alert in session.devices.add_alerts(device.id, request.alerts, now_ms):
            if session.devices.force(device.id, alert.id) is not None:
                continue  # the force itself was noted
            session.events.add(
                now_ms,
                "alert",
                device=device.id,
                what=alert.kind,
                reason=alert.reason.value if alert.reason is not None else "",
                detail=alert.detail,
            )
        ours = current_versions(session)
        behind = {role for role, version in request.versions.items() if version > ours.get(role, version)}
        caught_up = (
            bool(behind) and not device.set_apart and self._publisher.catch_up(session, request.versions, now_ms)
        )
        if behind and (caught_up or request.versions != device.versions):
            detail = "it trusts newer metadata than this server has: "
            detail += "signed anew above it; who else has the online keys?" if caught_up else restored.PUSH_AGAIN
            session.events.add(now_ms, "server-behind", device=device.id, what=", ".join(sorted(behind)), detail=detail)
        if not device.set_apart:
            self._advance(session, device, request, fresh, now_ms)

    def _advance(
        self, session: Session, device: Device, request: SyncRequest, fresh: list[UpdateStatus], now_ms: int
    ) -> None:
        mine = session.rollouts.memberships(device.id)
        for rollout in session.rollouts.all(device.product):
            runs_it = request.report.manifest == rollout.manifest
            member = mine.get(rollout.name)
            # It may have the release already, by an earlier rollout or a stick: a place taken, and committed.
            if member is None and not (runs_it and self._join(session, device, rollout, now_ms)):
                continue
            spent = _last_transfer(rollout, fresh)
            if spent is None and runs_it and member is not None and member.plan_bytes is not None:
                spent = request.report.transfer
            if spent is not None and (member is None or spent != member.transfer):
                session.rollouts.spend(rollout.name, device.id, spent)
            ended = _last_end(rollout, fresh)
            if ended is not None and ended.outcome is not None:
                needs = ended.needs_bytes if ended.reason is Reason.BUDGET else None
                session.rollouts.end(rollout.name, device.id, ended.outcome, ended.reason, now_ms, needs_bytes=needs)
            elif runs_it and (member is None or member.outcome != "committed"):
                session.rollouts.end(rollout.name, device.id, "committed", None, now_ms)
            else:
                continue
            advance(session, rollout, now_ms)

    def _join(self, session: Session, device: Device, rollout: Rollout, now_ms: int) -> bool:
        """Gives a machine a place in a rollout that runs, if there is one for it."""
        phase = self._place(session, device, rollout, None)
        if phase is None:
            return False
        session.rollouts.join(Member(rollout=rollout.name, device=device.id, phase=phase, offered_ms=now_ms))
        return True

    def _place(self, session: Session, device: Device, rollout: Rollout, member: Member | None) -> int | None:
        if rollout.state != "active" or rollout.group not in device.groups:
            return None
        size = session.devices.group_size(rollout.product, rollout.group)
        return rollouts.place(rollout, member, device.id, session.rollouts.taken(rollout.name), size)

    def _offer(
        self,
        session: Session,
        device: Device,
        request: SyncRequest,
        pen: Pen,
        *,
        version: int,
        now_ms: int,
        failed: int,
    ) -> _Offer:
        releases = {release.manifest: release for release in session.repositories.releases(device.product)}
        mine = session.rollouts.memberships(device.id)
        candidates = []
        for rollout in session.rollouts.all(device.product):
            phase = self._place(session, device, rollout, mine.get(rollout.name))
            listed = rollout.manifest in releases and releases[rollout.manifest].listed
            candidates.append(rollouts.Candidate(rollout, phase, mine.get(rollout.name), listed))
        runs = releases.get(device.report.manifest or "")
        counter = None if runs is None else (runs.era, runs.release_counter)
        chosen = rollouts.choose(candidates, device.groups, device.report.manifest, counter)
        if chosen is None or chosen.phase is None or device.inventory is None:
            return _Offer()
        rollout = chosen.rollout
        manifest = self._manifests.get(rollout.manifest)
        if manifest is None:
            return _Offer(busy=True)
        place = Member(rollout=rollout.name, device=device.id, phase=chosen.phase, offered_ms=now_ms)
        try:
            variants = select_variants(manifest, device.inventory)
            needed = needed_artifacts(manifest, variants, select_images(manifest, device.inventory))
        except Refused as error:
            if chosen.member is None:
                session.rollouts.join(place)
            session.rollouts.end(rollout.name, device.id, "refused", error.reason, now_ms)
            session.events.add(
                now_ms,
                "not-suited",
                device=device.id,
                what=f"{rollout.product} {rollout.release}",
                reason=error.reason.value,
                detail=error.message,
            )
            return _Offer()
        plan = self._plan(session, device, request, rollout, needed)
        if plan is None:
            return _Offer(busy=True)
        body = AssignmentBody(
            device=device.id,
            product=device.product,
            rollout=rollout.name,
            release=rollout.release,
            manifest=Payload(sha256=rollout.manifest, length_bytes=rollout.manifest_bytes),
            plan=plan,
            conditions=rollout.conditions,
            budget=rollout.budget,
        )
        text = pen.assignment(body, version, now_ms)
        what = f"{rollout.product} {rollout.release}"
        if len(text) > limits.OBJECT_BYTES:
            detail = f"its plan has {len(plan.steps)} steps: no device reads an assignment of {len(text)} bytes"
            session.events.add(now_ms, "not-assignable", device=device.id, what=what, detail=detail)
            return _Offer()
        if chosen.member is None:
            session.rollouts.join(place)
            session.events.add(now_ms, "assigned", device=device.id, what=what, detail=rollout.name)
        price = (plan.travels_bytes(), plan.full_bytes)
        if chosen.member is None or price != (chosen.member.plan_bytes, chosen.member.plan_full_bytes):
            session.rollouts.price(rollout.name, device.id, *price)
        if failed:
            detail = f"{failed} patches failed: it takes {price[0]} bytes now, {price[1]} in full"
            session.events.add(now_ms, "plan-renewed", device=device.id, what=what, detail=detail)
        session.patches.name(named_patches(plan), now_ms + self._director.assignment_lifetime_ms)
        return _Offer(text)

    def _plan(
        self,
        session: Session,
        device: Device,
        request: SyncRequest,
        rollout: Rollout,
        needed: Sequence[Artifact],
    ) -> TransferPlan | None:
        """By what is ready now: what is being made is not waited for."""
        assert device.inventory is not None
        have = set(request.have)
        wanted = [artifact.sha256 for artifact in needed]
        missing = [artifact for artifact in wanted if artifact not in have]
        budget = rollout.budget
        means = Means(
            codecs=device.inventory.patch_codecs,
            memory_mib=device.inventory.memory_mib,
            patch_rate_kib_s=device.inventory.patch_rate_kib_s,
            link_rate_kib_s=request.link_rate_kib_s,
            metered=budget.release_bytes is not None or request.link in budget.day_bytes,
            failed=session.patches.failed_on(device.id),
            parts=request.parts,
        )
        patches = session.patches.ready(missing) if means.codecs else ()
        return make_plan(needed, have, session.payloads.get(wanted), patches, means)

    def _warm(self, product: str, now_ms: int) -> None:
        """Reads the manifests that an offer may need before the transaction begins: a bucket may be slow.

        A manifest is checked against its name again, for the blob store is trusted no more than any mirror; one that
        does not hold keeps its release from being offered and nothing else.
        """
        with self._catalog.read() as session:
            wanted = {r.manifest for r in session.rollouts.all(product) if r.state == "active"}
        for name in wanted - self._manifests.keys():
            try:
                data = b"".join(self._blobs.read_now(name, limits.MIB))
                if hashlib.sha256(data).hexdigest() != name:
                    raise Refused(Reason.HASH, f"the stored manifest {name} is damaged")
                manifest = parse_manifest(data)
            except HeadlandError as error:
                if name not in self._damaged:
                    self._damaged.add(name)
                    with self._catalog.write() as session:
                        session.events.add(now_ms, "blob-damaged", what=name, detail=error.message)
                continue
            while len(self._manifests) >= MANIFESTS_KEPT:
                self._manifests.pop(next(iter(self._manifests)), None)
            self._manifests[name] = manifest


def advance(session: Session, rollout: Rollout, now_ms: int) -> None:
    """Lets a rollout take the steps that are due: open phases, or halt. Each step is an event."""
    current = session.rollouts.get(rollout.name)
    while current is not None:
        size = session.devices.group_size(current.product, current.group)
        match rollouts.judge(current, session.rollouts.members(current.name), size):
            case rollouts.Widen(phase):
                session.rollouts.move(current.name, phase=phase)
                session.events.add(now_ms, "rollout-widened", what=current.name, detail=f"phase {phase + 1} is open")
            case rollouts.Halt(why):
                session.rollouts.turn(current.name, "halted", why)
                session.events.add(now_ms, "rollout-halted", what=current.name, detail=why)
            case rollouts.Stay():
                return
        current = session.rollouts.get(rollout.name)


def _restore_is_known(session: Session, device: Device) -> bool:
    """Whether the machine was last answered in a life of the catalog before the present one."""
    record = restored.read(session)
    if record is None:
        return False
    if device.answer is None:
        return device.enrolled_ms <= record.at_ms
    answered = decode(device.answer, SyncAnswer, limit=limits.ANSWER_BYTES)
    return answered.generation != session.facts.get("generation")


def _last_end(rollout: Rollout, statuses: list[UpdateStatus]) -> UpdateStatus | None:
    """The newest status that ends this rollout's update, by the device's own order."""
    ends = [
        status
        for status in statuses
        if status.rollout == rollout.name and status.manifest == rollout.manifest and status.outcome is not None
    ]
    return ends[-1] if ends else None


def _last_transfer(rollout: Rollout, statuses: list[UpdateStatus]) -> TransferBytes | None:
    """What this rollout's update took over the air, by the newest status that says so."""
    said = [
        status.transfer
        for status in statuses
        if status.rollout == rollout.name and status.manifest == rollout.manifest and status.transfer is not None
    ]
    return said[-1] if said else None


def _patches_reach(device: Device) -> bool:
    """Whether a patch that we make could serve the machine."""
    return device.inventory is not None and CODEC in device.inventory.patch_codecs


def _by_what_is_known(request: SyncRequest, device: Device) -> SyncRequest:
    """A machine that lost its record cannot know what it had committed: its report must not replace the one before."""
    return msgspec.structs.replace(request, report=device.report) if request.recovering else request


def _told_by_stick(device: Device, request: SyncRequest) -> Device:
    told = _reported(device, request, "", 0)
    return replace(told, last_contact_ms=device.last_contact_ms, link=device.link, trusts=device.trusts)


def _reported(device: Device, request: SyncRequest, certificate_pem: str, now_ms: int) -> Device:
    device = replace(
        device,
        last_contact_ms=now_ms,
        report=request.report,
        epoch=request.epoch,
        lanes=dict(request.lanes),
        versions=dict(request.versions),
        counters=request.counters,
        unsure_of_time=request.unsure_of_time,
        link=request.link,
        stick_number=request.stick_number,
        trusts=request.trusts,
        certificate_pem=certificate_pem or device.certificate_pem,
    )
    if request.inventory is not None:
        device = replace(device, inventory=request.inventory, inventory_sha256=request.inventory_sha256)
    return device
