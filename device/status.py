"""What a machine says of itself: the running agent's own account, and what its databases tell without it.

The agent renews `run/status.json` each second. `read_status` puts it together with `state.db` and `outbox.db`, so that
`headland-device status` answers whether or not the agent runs.
"""

import contextlib
import errno
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from device import identity
from device.accounts import Ledger, read_ledger
from device.clock import Clock
from device.contact import read_record
from device.containers.keeper import EngineStatus
from device.damage import kept
from device.day import look
from device.inference.pump import PumpNumbers
from device.inference.workers import ModelStatus, Swap, WorkersStatus
from device.kits.shown import KitsShown
from device.layout import Layout
from device.outbox.box import read_counts
from device.outbox.damage import quarantined, salvaged
from device.refusals import Refusal
from device.rescue import open_for_reading, read_rebuilt
from device.settings import DeviceSettings
from device.settings import load as load_settings
from device.state_db import StateDb
from device.store import free_bytes
from device.totals import BYTES, DELTA, DROPPED, FULL, GIVEN_UP, INFERRED, SAVED
from device.unopened import why_unopenable
from device.update.states import Ended, State, UpdateRecord
from protocol import limits
from protocol.errors import Refused, SettingsError, StateError
from protocol.ids import Digest, Millis
from protocol.lifetimes import STATES, passed
from protocol.lifetimes import State as LifeState
from protocol.messages import Alert, Counters, TransferBytes
from protocol.wire import Message, decode, encode
from signing import locks

STATUS_BYTES: Final = limits.MIB
PENDING_SHOWN: Final = 50
STATUS_ROOM_BYTES: Final = 16 * limits.KIB  # of each account, so that the next one fits in its place
MUTE: Final = (
    "the disk of the state folder is read-only: a running agent infers, keeps no results, speaks to no server, "
    "and tells of itself in its log only"
)
FULL_BYTES: Final = 256 * limits.KIB
SILENT_S: Final = 15.0  # the account is renewed each second; a machine under load may be late


class UpdateNow(Message, omit_defaults=False):
    """Where the update machine is. `why` is what it waits for, for people; empty when it does not wait."""

    state: str = State.IDLE.value
    release: str = ""
    offer: str = ""  # the rollout or the kit that brought it
    forced: bool = False  # by a technician
    why: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    needs_bytes: int = 0  # it waits for a budget: so much would still have to travel
    transfer: TransferBytes = TransferBytes()  # what this update, or else the committed release, took so far
    healthy_s: float = 0.0
    healthy_of_s: float = 0.0
    damaged: str = ""


class AgentStatus(Message):
    """`run/status.json`: what only the running agent knows."""

    pid: int
    agent: str
    started_ms: Millis
    at_ms: Millis
    sure_of_time: bool
    update: UpdateNow | None = None  # not known before the updater has taken up its record
    workers: WorkersStatus = WorkersStatus()
    engine: EngineStatus | None = None  # None: there are no containers
    pump: PumpNumbers = PumpNumbers()
    counters: Counters = Counters()
    frames_waiting: int = 0
    contact_trouble: str = ""
    kits: KitsShown = KitsShown()
    trouble: tuple[str, ...] = ()  # what the agent found wrong with itself


class RunningRelease(Message, omit_defaults=False):
    """A release that a machine has."""

    version: str
    manifest: Digest
    release_counter: int


class LaneStatus(Message, omit_defaults=False):
    """Rows of a lane: `produced = queued + receipted + lost`."""

    produced: int
    queued: int
    receipted: int
    lost: int


class AlarmLatency(Message, omit_defaults=False):
    """From a frame's arrival until every sink had taken its alarm, in milliseconds, since the agent started."""

    last: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


class ContactStatus(Message, omit_defaults=False):
    """The server, as the machine last met it."""

    server: str
    last_ms: Millis | None
    trouble: str = ""
    unanswered: bool = False  # a contact was begun whose answer has not come
    set_apart: bool = False  # the server saw this identity twice: a person decides


class AirStatus(Message, omit_defaults=False):
    """What travelled today over the link that the settings name, and what the machine's own limits are.

    Args:
        link: Its kind.
        day_bytes: Of updates, today.
        own_day_bytes: What the settings allow a day over this link; None does not limit.
        own_release_bytes: What they allow for one release; None does not limit.
    """

    link: str
    day_bytes: int
    own_day_bytes: int | None
    own_release_bytes: int | None


class TimeStatus(Message, omit_defaults=False):
    """Trusted time; not `sure` means that no signed time was verified since the machine was switched on."""

    ms: Millis
    sure: bool


class CertificateStatus(Message, omit_defaults=False):
    """The machine's own certificate, renewed at half its life. `used` is by the machine's time, sure or not."""

    expires_ms: Millis
    used: float
    state: LifeState


class DeviceStatus(Message, omit_defaults=False):
    """Everything that `headland-device status` tells."""

    device: str
    product: str
    running: bool  # the agent
    pid: int | None
    agent: str
    release: RunningRelease | None  # committed
    trial: Digest | None
    previous: RunningRelease | None
    models: dict[str, ModelStatus]
    serving: bool  # the models
    engine: EngineStatus | None  # None: there are no containers, or the agent does not run
    data_folders: tuple[str, ...]  # of containers; they outlive updates, and nobody deletes them but a person
    swap: Swap | None
    update: UpdateNow
    last_update: Ended | None
    refusals: tuple[Refusal, ...]
    lanes: dict[str, LaneStatus]
    frames_inferred: int
    frames_dropped: int
    frames_waiting: int
    frames_unreadable: int  # since the agent started
    inference_errors: int
    results_produced: int
    results_given_up: int  # rows that the disk took too long to take
    alarms_fired: int  # since the agent started
    alarm_failures: int
    alarm_latency_ms: AlarmLatency
    bytes_received: int
    delta_bytes: int  # of them payload and index of patches
    full_bytes: int  # of them payload and index of whole artifacts
    saved_bytes: int  # what whole artifacts would have taken more than the patches that brought them
    air: AirStatus
    contact: ContactStatus
    time: TimeStatus
    certificate: CertificateStatus | None  # None: damaged, and about to be renewed
    kits: KitsShown  # that the running agent found
    alerts: tuple[Alert, ...]  # that wait to be told to the server
    pending_statuses: int
    trouble: tuple[str, ...]


def write_status(path: Path, status: AgentStatus) -> None:
    """Replaces the agent's account: whole or not at all, and not synced, as it means nothing after a restart.

    On a full disk it is written over the one before, in the room that this has; who reads at that moment may see none.
    """
    text = encode(status).ljust(STATUS_ROOM_BYTES)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(text)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _write_over(path, text)


def blank_status(path: Path) -> None:
    """Forgets the last agent's account, and keeps its room on the disk for the next one."""
    with contextlib.suppress(OSError):
        _write_over(path, b" " * path.stat().st_size)


def _write_over(path: Path, text: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        if os.fstat(file.fileno()).st_size < len(text):
            raise OSError(errno.ENOSPC, "there is no room for the status", str(path))
        file.write(text)


def read_agent_status(path: Path) -> AgentStatus | None:
    """The last account of an agent; None when there is none that can be read."""
    try:
        with path.open("rb") as file:
            return decode(file.read(STATUS_BYTES), AgentStatus, limit=STATUS_BYTES)
    except (OSError, Refused):
        return None


def read_status(layout: Layout) -> DeviceStatus:
    """Gathers the status; blocking. Works with and without a running agent.

    Raises:
        StateError: The machine is not enrolled, or neither its state database nor a seal is there.
    """
    who, stranger = identity.load_or_stranger(layout.identity, has_run=layout.shortcut.is_symlink())
    enrolment = who.enrolment
    running = locks.is_held(layout.lock)
    said = read_agent_status(layout.status)
    # Where nothing can be written, what lies there was said before, perhaps by the agent before this one.
    is_mute = bool(os.statvfs(layout.state).f_flag & os.ST_RDONLY)
    now = said if running and not is_mute else None
    state = open_for_reading(layout)
    try:
        record = state.record()
        contact = read_record(state)
        clock = Clock(state)
        reading = clock.now()
        ledger = read_ledger(state)
        totals = state.counters()
        lanes = _lanes(layout)
        return DeviceStatus(
            device=enrolment.device,
            product=enrolment.product,
            running=running,
            pid=now.pid if now is not None else None,
            agent=said.agent if said is not None else "",
            release=_release(record, "committed"),
            trial=record.active if record.state is State.TRIAL else None,
            previous=_release(record, "previous"),
            models=now.workers.models if now is not None else {},
            serving=now is not None and now.workers.serving,
            engine=now.engine if now is not None else None,
            data_folders=_data_folders(layout),
            swap=now.workers.swap if now is not None else None,
            update=_update(record, now, ledger),
            last_update=record.last,
            refusals=state.refusals(),
            lanes=lanes,
            frames_inferred=now.counters.frames_inferred if now is not None else totals.get(INFERRED, 0),
            frames_dropped=now.counters.frames_dropped if now is not None else totals.get(DROPPED, 0),
            frames_waiting=now.frames_waiting if now is not None else 0,
            frames_unreadable=now.pump.frames_unreadable if now is not None else 0,
            inference_errors=now.pump.inference_errors if now is not None else 0,
            results_produced=sum(lane.produced for lane in lanes.values()),
            results_given_up=now.counters.results_given_up if now is not None else totals.get(GIVEN_UP, 0),
            alarms_fired=now.pump.alarms_fired if now is not None else 0,
            alarm_failures=now.pump.alarm_failures if now is not None else 0,
            alarm_latency_ms=AlarmLatency()
            if now is None
            else AlarmLatency(last=now.pump.alarm_last_ms, p50=now.pump.alarm_p50_ms, p99=now.pump.alarm_p99_ms),
            bytes_received=totals.get(BYTES, 0),
            delta_bytes=totals.get(DELTA, 0),
            full_bytes=totals.get(FULL, 0),
            saved_bytes=totals.get(SAVED, 0),
            air=_air(layout, ledger, clock),
            contact=ContactStatus(
                server=enrolment.server,
                last_ms=contact.last_ms or None,
                trouble=now.contact_trouble if now is not None else "",
                unanswered=contact.pending is not None,
                set_apart=contact.set_apart,
            ),
            time=TimeStatus(ms=reading.ms, sure=reading.sure),
            certificate=_certificate(who, reading.ms),
            kits=now.kits if now is not None else KitsShown(),
            alerts=state.pending_alerts(PENDING_SHOWN),
            pending_statuses=len(state.pending_statuses(PENDING_SHOWN)),
            trouble=(
                *(now.trouble if now is not None else (stranger,) if stranger else ()),
                *(_silence(layout.status) if running and not is_mute else ()),
                *((MUTE,) if is_mute else ()),
                *_fullness(layout.state),
                *_damage(layout, state),
            ),
        )
    finally:
        state.close()


def _certificate(who: identity.Identity, now_ms: int) -> CertificateStatus | None:
    try:
        certificate = who.certificate()
    except StateError:
        return None
    used = identity.lived(certificate, datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=now_ms))
    ends_ms = int(certificate.not_valid_after_utc.timestamp() * 1000)
    return CertificateStatus(expires_ms=ends_ms, used=round(max(0.0, used), 4), state=STATES[passed(used)])


def _release(record: UpdateRecord, which: str) -> RunningRelease | None:
    held = record.committed if which == "committed" else record.previous
    if held is None:
        return None
    return RunningRelease(version=held.version, manifest=held.digest, release_counter=held.release_counter)


def _air(layout: Layout, ledger: Ledger, clock: Clock) -> AirStatus:
    """By the settings as they stand now; the running agent holds to those that it was started with."""
    try:
        settings = load_settings(layout.settings)
    except (SettingsError, StateError):
        settings = DeviceSettings()
    own, link = settings.budget.limits(), settings.link.kind
    _, fresh = look(ledger.day, clock.instant())
    return AirStatus(
        link=link,
        day_bytes=0 if fresh else ledger.day_bytes.get(link, 0),
        own_day_bytes=own.day_bytes.get(link),
        own_release_bytes=own.release_bytes,
    )


def _update(record: UpdateRecord, now: AgentStatus | None, ledger: Ledger) -> UpdateNow:
    """The record says where the update is; the agent adds its details when its account is of the same state.

    An account may be a second old, and an agent that has just been started has not taken the record up yet.
    """
    at = record.offer.release if record.offer is not None else record.committed
    spent = ledger.releases.get(at.digest, TransferBytes()) if at is not None else TransferBytes()
    if now is not None and now.update is not None and now.update.state == record.state.value:
        return msgspec.structs.replace(now.update, transfer=spent)
    return msgspec.structs.replace(_update_at_rest(record), transfer=spent)


def _update_at_rest(record: UpdateRecord) -> UpdateNow:
    trial = record.state is State.TRIAL and record.offer is not None
    return UpdateNow(
        state=record.state.value,
        release=record.offer.release.version if record.offer is not None else "",
        offer=record.offer.rollout if record.offer is not None else "",
        forced=record.offer is not None and record.offer.forced is not None,
        why=record.paused,
        healthy_s=record.healthy_s,
        healthy_of_s=record.offer.trial.healthy_s if trial and record.offer is not None else 0.0,
    )


def _lanes(layout: Layout) -> dict[str, LaneStatus]:
    with contextlib.suppress(StateError):
        return {
            lane: LaneStatus(
                produced=counts.produced, queued=counts.queued, receipted=counts.receipted, lost=counts.lost
            )
            for lane, counts in read_counts(layout.outbox_db).items()
        }
    return {}


def _data_folders(layout: Layout) -> tuple[str, ...]:
    with contextlib.suppress(OSError):
        return tuple(sorted(entry.name for entry in layout.data.iterdir()))
    return ()


def _silence(path: Path) -> tuple[str, ...]:
    """An agent that holds its folder and says nothing hangs, or has just been started."""
    try:
        silent_s = time.time() - path.stat().st_mtime
    except OSError:
        return ()
    return (f"the agent has not renewed its account for {silent_s:.0f} s",) if silent_s > SILENT_S else ()


def _fullness(folder: Path) -> tuple[str, ...]:
    """On a full disk the agent goes on, and can keep neither results nor its account of itself."""
    free = free_bytes(folder)
    return () if free >= FULL_BYTES else (f"the disk of the state folder is full: {free} bytes are free",)


def _damage(layout: Layout, state: StateDb) -> tuple[str, ...]:
    """What happened to the databases, as long as the damaged files lie there."""
    rebuilt, kept_files = read_rebuilt(state), [path.name for path in kept(layout.state_db)]
    return (
        *((rebuilt.line(),) if rebuilt is not None and (rebuilt.kept in kept_files or state.is_recovering) else ()),
        *(f"{name}: a damaged state database, kept" for name in kept_files),
        *((why,) if (why := why_unopenable(layout.outbox_db)) else ()),
        *(f"{path.name}: a damaged outbox, its rows are looked for" for path in quarantined(layout.outbox_db)),
        *(
            f"{path.name}: what an outbox was that lost rows; delete it when you like"
            for path in salvaged(layout.outbox_db)
        ),
    )
