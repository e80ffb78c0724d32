"""What people can ask and change. Blocking; each change is one transaction with its line in the audit trail."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from protocol import limits
from protocol.errors import Reason, StateError
from protocol.ids import DeviceId, Name, ProductName, Version, parse_name, parse_product
from protocol.kits import is_kit
from protocol.messages import LanePosition, TransferBytes
from protocol.objects import Budget, Conditions
from protocol.results import LANES, ResultRow
from protocol.wire import Message, json_reader
from server import restored, rollouts, steady_clock
from server.authorities import Authorities
from server.ca import certificate_expiry
from server.certificates import told_ca
from server.clock import NowMs
from server.contact import advance
from server.enrolment import Enrolment
from server.failed_patches import lift
from server.http.answers import NotFoundError
from server.lifetimes import collect, told
from server.publish import role_states
from server.sizes import travel_sizes
from server.storage.catalog import Catalog, Session
from server.storage.jobs import COMPRESS
from server.storage.records import (
    REPOSITORIES,
    Device,
    Member,
    Patch,
    PatchFailure,
    Phase,
    Release,
    Rollout,
    Totals,
)

STATUSES_SHOWN: Final = 100
RECEIPTS_BYTES: Final = 16 * limits.MIB  # of one machine, for a stick
PATCHES_SHOWN: Final = 1000
ROWS_MAX: Final = 10_000
EVENTS_MAX: Final = 10_000


class TokenRequest(Message):
    """Lets a machine enrol."""

    device: DeviceId
    product: ProductName
    groups: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()


class GroupsRequest(Message):
    """Replaces a machine's groups."""

    groups: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)]


class RolloutRequest(Message):
    """A new rollout. Without phases: everybody in the group at once."""

    name: Name
    product: ProductName
    release: Version
    group: Name
    phases: Annotated[tuple[Phase, ...], msgspec.Meta(max_length=64)] = ()
    conditions: Conditions = Conditions()
    budget: Budget | None = None  # left out: the server's default; empty: no limit


class Operations:
    """The operators' side of the server.

    Args:
        catalog: What is known.
        enrolment: Makes tokens.
        now_ms: The clock.
        budget: Of a rollout that does not say.
        authorities: The CAs that hold now.
        tls: The folder of the listeners' certificate.
    """

    def __init__(
        self,
        catalog: Catalog,
        enrolment: Enrolment,
        now_ms: NowMs,
        budget: Budget,
        *,
        authorities: Callable[[], Authorities],
        tls: Path,
    ) -> None:
        self._catalog = catalog
        self._enrolment = enrolment
        self._now_ms = now_ms
        self._budget = budget
        self._authorities = authorities
        self._tls = tls

    def status(self) -> dict[str, Any]:
        """Generation, roles with versions and expiry, lives, and counts."""
        return read_status(self._catalog, self._authorities(), self._tls, self._now_ms())

    def make_token(self, request: TokenRequest, server_url: str, who: str) -> dict[str, Any]:
        """An enrolment token, shown once."""
        parse_product(request.product)
        with self._catalog.read() as session:
            signed = (name.partition("/") for name in session.repositories.newest())
            known = {role for repository, _, role in signed if repository == "image"} - {"root", "targets"}
        if request.product not in known:
            raise StateError(
                f"no product {request.product!r} is published; known: {', '.join(sorted(known)) or 'none'}"
            )
        token = self._enrolment.make_token(request.device, request.product, request.groups, server_url, who)
        return {"token": token}

    def devices(self) -> list[dict[str, Any]]:
        """All machines."""
        with self._catalog.read() as session:
            versions = {release.manifest: release for release in session.repositories.releases()}
            totals = session.results.totals()
            conflicts = session.results.conflict_counts()
            return [
                _device(device, versions, totals.get(device.id, {}), conflicts.get(device.id, 0))
                for device in session.devices.all()
            ]

    def device(self, name: str) -> dict[str, Any]:
        """One machine, with its newest statuses and alerts (newest first) and its places in rollouts."""
        with self._catalog.read() as session:
            device = _found(session, name)
            versions = {release.manifest: release for release in session.repositories.releases(device.product)}
            shown = _device(
                device,
                versions,
                session.results.totals().get(device.id, {}),
                session.results.conflict_counts().get(device.id, 0),
            )
            here = session.results.epoch_totals(name, device.epoch)
            return shown | {
                "gone": {lane: _gone(position, here.get(lane)) for lane, position in device.lanes.items()},
                "statuses": session.devices.statuses(name, STATUSES_SHOWN),
                "alerts": session.devices.alerts(name, STATUSES_SHOWN),
                "rollouts": {
                    rollout: {"phase": member.phase, **_member(member)}
                    for rollout, member in session.rollouts.memberships(name).items()
                },
                "failed_patches": [
                    {"patch": patch, "payload": payload, "reason": reason}
                    for (patch, payload), reason in session.patches.failed_on(name).items()
                ],
            }

    def receipts(self, name: str) -> list[dict[str, str]]:
        """Signed receipts for what came by stick that the machine has not shown to have, oldest first."""
        with self._catalog.read() as session:
            _found(session, name)
            waiting = session.receipts.waiting(name, RECEIPTS_BYTES)
        return [{"id": each, "receipt": text} for each, text in waiting]

    def revoke(self, name: str, who: str) -> dict[str, Any]:
        """Turns a machine away for good, from its next request on."""
        now_ms = self._now_ms()
        with self._catalog.write() as session:
            if _found(session, name).revoked_ms is None:
                session.devices.revoke(name, now_ms)
                session.events.add(now_ms, "revoked", who=who, device=name, reason=Reason.REVOKED.value)
        return self.device(name)

    def readmit(self, name: str, who: str) -> dict[str, Any]:
        """A person vouches for a machine that was set apart, or that came back after a restore."""
        with self._catalog.write() as session:
            device = _found(session, name)
            if not device.set_apart and not device.returned:
                raise StateError(f"{name} is neither set apart nor returned after a restore")
            session.devices.readmit(name)
            session.events.add(self._now_ms(), "readmitted", who=who, device=name)
        return self.device(name)

    def set_groups(self, name: str, request: GroupsRequest, who: str) -> dict[str, Any]:
        """Replaces a machine's groups."""
        with self._catalog.write() as session:
            _found(session, name)
            groups = tuple(dict.fromkeys(request.groups))
            session.devices.set_groups(name, groups)
            session.events.add(self._now_ms(), "groups", who=who, device=name, what=", ".join(groups))
        return self.device(name)

    def results(self, name: str, lane: str | None, after: int, limit: int) -> dict[str, Any]:
        """Ingested rows in order of arrival. `next` goes into `after` for what comes then."""
        if lane is not None and lane not in LANES:
            raise StateError(f"there is no lane {lane!r}; lanes: {', '.join(LANES)}")
        with self._catalog.read() as session:
            _found(session, name)
            rows = session.results.rows(name, lane, after, max(1, min(limit, ROWS_MAX)))
        return {
            "rows": [
                {"id": row.id, "epoch": row.epoch, "lane": row.lane, "seq": row.seq, "row": _row(row.body)}
                for row in rows
            ],
            "next": rows[-1].id if rows else after,
        }

    def releases(self, product: str | None) -> list[dict[str, Any]]:
        """What the products' roles list, and what they listed once; newest first."""
        with self._catalog.read() as session:
            found = session.repositories.releases(product)
            return [
                {
                    "product": release.product,
                    "version": release.version,
                    "release_counter": release.release_counter,
                    "era": release.era,
                    "manifest": release.manifest,
                    "manifest_bytes": release.manifest_bytes,
                    "artifacts": release.artifacts,
                    "total_bytes": release.total_bytes,
                    "listed": release.listed,
                    **travel_sizes(session, release, found),
                }
                for release in found
            ]

    def create_rollout(self, request: RolloutRequest, who: str) -> dict[str, Any]:
        """Starts a rollout of a listed release."""
        parse_product(request.product)
        if is_kit(request.name):
            raise StateError(
                f"{request.name!r} would pass for a field kit's name: a rollout's does not begin with kit-"
            )
        phases = request.phases or (Phase(percent=100),)
        _check_phases(phases)
        now_ms = self._now_ms()
        with self._catalog.write() as session:
            if session.rollouts.get(request.name) is not None:
                raise StateError(f"there is a rollout {request.name!r} already")
            release = _listed(session, request.product, request.release)
            created = session.rollouts.add(
                Rollout(
                    name=request.name,
                    sequence=0,
                    product=request.product,
                    release=release.version,
                    manifest=release.manifest,
                    manifest_bytes=release.manifest_bytes,
                    release_counter=release.release_counter,
                    era=release.era,
                    group=request.group,
                    phases=phases,
                    conditions=request.conditions,
                    created_ms=now_ms,
                    budget=self._budget if request.budget is None else request.budget,
                )
            )
            session.events.add(
                now_ms,
                "rollout-created",
                who=who,
                what=request.name,
                detail=f"{request.product} {release.version} to {request.group}",
            )
            session.fleet.changed()
            advance(session, created, now_ms)
            warnings = _warnings(session, created)
        return {**self.rollout(request.name), "warnings": warnings}

    def rollouts(self) -> list[dict[str, Any]]:
        """All rollouts, newest first."""
        with self._catalog.read() as session:
            return [_rollout(session, rollout) for rollout in session.rollouts.all()]

    def rollout(self, name: str) -> dict[str, Any]:
        """One rollout, phase by phase as they fill."""
        with self._catalog.read() as session:
            rollout = session.rollouts.get(name)
            if rollout is None:
                raise NotFoundError(f"no rollout {name!r}")
            return _rollout(session, rollout)

    def turn(self, name: str, action: str, who: str) -> dict[str, Any]:
        """Pauses, resumes or halts. Who resumes has seen the failures until now: they do not halt it again."""
        now_ms = self._now_ms()
        with self._catalog.write() as session:
            rollout = session.rollouts.get(name)
            if rollout is None:
                raise NotFoundError(f"no rollout {name!r}")
            match action:
                case "pause":
                    if rollout.state != "active":
                        raise StateError(f"rollout {name} is {rollout.state}, not active")
                    session.rollouts.turn(name, "paused", f"by {who}")
                case "resume":
                    if rollout.state == "active":
                        raise StateError(f"rollout {name} is active")
                    _listed(session, rollout.product, rollout.release)
                    session.rollouts.turn(name, "active", "", judged_from_ms=now_ms)
                case "halt":
                    if rollout.state == "halted":
                        raise StateError(f"rollout {name} is halted: {rollout.why}")
                    session.rollouts.turn(name, "halted", f"by {who}")
                case _:
                    raise NotFoundError(f"a rollout can be paused, resumed or halted, not {action!r:.40}")
            session.fleet.changed()
            past = {"pause": "paused", "resume": "resumed", "halt": "halted"}[action]
            session.events.add(now_ms, f"rollout-{past}", who=who, what=name)
            advance(session, rollout, now_ms)
        return self.rollout(name)

    def patches(self) -> list[dict[str, Any]]:
        """Patches in trouble: failed on machines, withdrawn, given up, or no cheaper than the whole."""
        with self._catalog.read() as session:
            return [_trouble(patch, failures) for patch, failures in session.patches.troubled(PATCHES_SHOWN).items()]

    def lift_patch(self, prefix: str, who: str) -> dict[str, Any]:
        """Lets a patch be tried again where it failed; one that was withdrawn is made anew."""
        with self._catalog.write() as session:
            key = lift(session, prefix, who, self._now_ms()).pair.id
            patch = session.patches.get(key)
            assert patch is not None
            return _trouble(patch, [])

    def events(self, after: int, limit: int, device: str | None, last: int = 0) -> dict[str, Any]:
        """The audit trail, oldest first. `next` goes into `after` for what comes then; `last` asks for the newest.

        `base` is the newest line that went for its age and `head` the newest there is: all between is one chain.
        """
        with self._catalog.read() as session:
            if last:
                found = session.events.last(min(last, EVENTS_MAX), device)
            else:
                found = session.events.after(after, max(1, min(limit, EVENTS_MAX)), device)
            base, head = session.events.base(), session.events.head()
        return {
            "events": found,
            "next": found[-1].id if found else after,
            "base": {"number": base[0], "hash": base[1]},
            "head": {"number": head[0], "hash": head[1]},
        }


def read_status(catalog: Catalog, held: Authorities, tls: Path, now_ms: int) -> dict[str, Any]:
    """What `status` shows, for the door and for the command alike.

    Args:
        catalog: What is known.
        held: The CAs.
        tls: The folder of the listeners' certificate.
        now_ms: The clock.
    """
    with catalog.read() as session:
        blobs, blob_bytes = session.payloads.blob_count()
        return {
            "generation": session.facts.get("generation"),
            "now_ms": now_ms,
            "repositories": {kind: role_states(session, kind) for kind in REPOSITORIES},
            "devices": session.devices.count(),
            "rollouts": session.rollouts.count(),
            "blobs": {"count": blobs, "bytes": blob_bytes},
            "payloads_waiting": session.jobs.waiting(COMPRESS),
            "patches": {**session.patches.count(), "surveyed": session.fleet.is_surveyed()},
            "cannot_sign": session.facts.get("resign_trouble") or "",
            "missing": [msgspec.to_builtins(each) for each in restored.missing(session)],
            "restored": _restored(session),
            "backup_ms": session.facts.number("backup_ms") or None,
            "clock": {"known_ms": steady_clock.known(session), "off_ms": session.facts.number("clock_off_ms")},
            **told(collect(session, held, tls), now_ms),
            "ca": told_ca(session, held),
        }


def _restored(session: Session) -> dict[str, Any] | None:
    record = restored.read(session)
    if record is None:
        return None
    return {
        "at_ms": record.at_ms,
        "backup_ms": record.backup_ms,
        "how": record.how,
        "held": record.held,
        "pushed": list(record.roles),
        "why": record.why,
        "called": session.devices.called_since(record.at_ms),
    }


def _trouble(patch: Patch, failures: Sequence[PatchFailure]) -> dict[str, Any]:
    return {
        "patch": patch.pair.id,
        "base": patch.pair.base,
        "result": patch.pair.result,
        "codec": patch.pair.codec,
        "state": "offered" if patch.payload is not None else "withheld" if patch.why else "waiting",
        "why": patch.why,
        "made": patch.made,
        "payload": patch.payload,
        "payload_bytes": patch.payload_bytes,
        "index_bytes": patch.index_bytes,
        "lifted_ms": patch.lifted_ms,
        "failures": [asdict(failure) for failure in failures],
    }


def _found(session: Session, name: str) -> Device:
    device = session.devices.get(parse_name(name, "device"))
    if device is None:
        raise NotFoundError(f"no device {name!r}")
    return device


def _listed(session: Session, product: str, version: str) -> Release:
    for release in session.repositories.releases(product):
        if release.version == version and release.listed:
            return release
    raise StateError(
        f"{product} {version} is not listed", hint="`headland release list` shows what the managers have signed"
    )


def _warnings(session: Session, rollout: Rollout) -> list[str]:
    """What is allowed and yet most likely a slip of the pen: machines may join a group later."""
    here = [device for device in session.devices.all() if device.product == rollout.product and not device.revoked_ms]
    inside = {device.id for device in here if rollout.group in device.groups}
    if not inside:
        others = sorted({group for device in here for group in device.groups})
        return [
            f"no machine of {rollout.product} is in the group {rollout.group!r}: nothing happens until one joins it; "
            + (f"groups with machines: {', '.join(others)}" if others else "none of its machines is in any group")
        ]
    outside = [name for phase in rollout.phases for name in phase.devices or () if name not in inside]
    return [f"a phase waits for {', '.join(outside)}: not in the group {rollout.group!r}"] if outside else []


def _check_phases(phases: Sequence[Phase]) -> None:
    for number, phase in enumerate(phases, 1):
        said = [kind for kind in ("devices", "count", "percent") if getattr(phase, kind) is not None]
        if len(said) != 1:
            raise StateError(f"phase {number} must say one of devices, count and percent; it says {said or 'none'}")


def _device(device: Device, releases: dict[str, Release], totals: dict[str, Totals], conflicts: int) -> dict[str, Any]:
    running = releases.get(device.report.manifest or "")
    return {
        "device": device.id,
        "product": device.product,
        "groups": device.groups,
        "enrolled_ms": device.enrolled_ms,
        "last_contact_ms": device.last_contact_ms,
        "certificate_expires": certificate_expiry(device.certificate_pem).isoformat(),
        "revoked": device.revoked_ms is not None,
        "set_apart": device.set_apart,
        "returned": device.returned,
        "report": {
            "release": device.report.release or (running.version if running is not None else ""),
            "manifest": device.report.manifest,
            "trial": device.report.trial,
            "state": device.report.state,
            "transfer": None if device.report.transfer is None else msgspec.structs.asdict(device.report.transfer),
        },
        "inventory": device.inventory,
        "versions": device.versions,
        "counters": msgspec.structs.asdict(device.counters),
        "unsure_of_time": device.unsure_of_time,
        "link": device.link,
        "epoch": device.epoch,
        "lanes": {lane: msgspec.structs.asdict(position) for lane, position in device.lanes.items()},
        "ingested": {lane: totals[lane].ingested if lane in totals else 0 for lane in LANES},
        "lost": {lane: totals[lane].lost if lane in totals else 0 for lane in LANES},
        "conflicts": conflicts,
    }


def _rollout(session: Session, rollout: Rollout) -> dict[str, Any]:
    members = session.rollouts.members(rollout.name)
    size = session.devices.group_size(rollout.product, rollout.group)
    tallies = rollouts.tally(rollout, members, size)
    return {
        "name": rollout.name,
        "product": rollout.product,
        "release": rollout.release,
        "manifest": rollout.manifest,
        "group": rollout.group,
        "created_ms": rollout.created_ms,
        "state": rollout.state,
        "why": rollout.why,
        "halted": rollout.why if rollout.state == "halted" else "",
        "phase": rollout.phase,
        "conditions": rollout.conditions,
        "budget": rollout.budget,
        "transfer": {
            name: sum(getattr(member.transfer, name) for member in members) for name in TransferBytes.__struct_fields__
        },
        "phases": [
            {
                "devices": spec.devices,
                "count": spec.count,
                "percent": spec.percent,
                "success_percent": spec.success_percent,
                "error_percent": spec.error_percent,
                "places": tally.places,
                "contacted": tally.contacted,
                "committed": tally.committed,
                "failed": tally.failed,
                "deferred": tally.deferred,
                "unseen": tally.unseen,
                "members": {member.device: _member(member) for member in members if member.phase == number},
            }
            for number, (spec, tally) in enumerate(zip(rollout.phases, tallies, strict=True))
        ],
    }


def _member(member: Member) -> dict[str, Any]:
    return {
        "outcome": member.outcome,
        "reason": member.reason,
        "ended_ms": member.ended_ms,
        "plan_bytes": member.plan_bytes,
        "plan_full_bytes": member.plan_full_bytes,
        "needs_bytes": member.needs_bytes,
        "transfer": msgspec.structs.asdict(member.transfer),
    }


def _gone(position: LanePosition, here: Totals | None) -> int:
    """Numbers of an epoch that the machine neither holds nor has told as lost, and that are not here: receipted by a
    life of the catalog that no backup remembers, and dropped since."""
    ingested, lost = (0, 0) if here is None else (here.ingested, here.lost)
    return max(0, position.next_seq - position.queued - ingested - max(lost, position.lost))


def _row(body: bytes) -> Any:
    """A row as JSON when it is a result, else its text: the server keeps what a device signed, whatever it is."""
    try:
        return json_reader(ResultRow).decode(body[: limits.ROW_BYTES])
    except (msgspec.MsgspecError, UnicodeError):
        return body.decode(errors="replace")
