"""The status as a person reads it: tables in the order in which a technician asks."""

from datetime import UTC, datetime

from rich.table import Table

from device.containers.keeper import EngineStatus
from device.kits.shown import KitsShown
from device.status import DeviceStatus, UpdateNow
from protocol.messages import UNMETERED, TransferBytes


def status_tables(status: DeviceStatus) -> tuple[Table, ...]:
    """The machine, its models, its results, and what it refused."""
    tables = [_machine(status)]
    if status.models:
        tables.append(_models(status))
    if status.engine is not None and status.engine.containers:
        tables.append(_containers(status.engine))
    if status.lanes:
        tables.append(_lanes(status))
    if status.kits.kits or status.kits.troubles:
        tables.append(kits_table(status.kits))
    if status.refusals:
        tables.append(_refusals(status))
    return tuple(tables)


def _machine(status: DeviceStatus) -> Table:
    table = Table(title=f"{status.device} of {status.product}", show_header=False, title_justify="left")
    release = status.release
    last = status.last_update
    contact, latency = status.contact, status.alarm_latency_ms
    rows = {
        "agent": _agent(status),
        "release": f"{release.version} ({release.manifest[:12]})" if release is not None else "none yet",
        "on trial": status.trial[:12] if status.trial is not None else "",
        "serving": "yes" if status.serving else ("no" if status.pid is not None else ""),
        "containers": _engine(status),
        "data folders": ", ".join(status.data_folders),
        "update": update_line(status.update),
        "last update": ""
        if last is None
        else f"{last.release.version}: {last.outcome}"
        + (f", {last.reason.value}" if last.reason is not None else "")
        + (f" ({last.detail})" if last.detail else ""),
        "frames": f"{status.frames_inferred} inferred, {status.frames_dropped} dropped, "
        f"{status.frames_waiting} waiting"
        + (f", {status.frames_unreadable} unreadable since the agent started" if status.frames_unreadable else ""),
        "results given up": f"{status.results_given_up}: the disk did not take them" if status.results_given_up else "",
        "alarms": f"{status.alarms_fired} fired; last {latency.last:.1f} ms after the frame, "
        f"median {latency.p50:.1f} ms, 99 % within {latency.p99:.1f} ms"
        if status.alarms_fired
        else "",
        "received": _received(status),
        "over the air": _air(status),
        "server": contact.server
        + (f", last contact {_time(contact.last_ms)}" if contact.last_ms is not None else ", not met yet"),
        "no contact": contact.trouble,
        "set apart": "the server saw this identity twice: a person has to decide" if contact.set_apart else "",
        "time": f"{_time(status.time.ms)}, {'sure' if status.time.sure else 'not verified since the machine started'}",
        "certificate": _certificate(status),
        "to tell": f"{status.pending_statuses} statuses, {len(status.alerts)} alerts wait for the next contact",
        "trouble": "\n".join(status.trouble),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _certificate(status: DeviceStatus) -> str:
    certificate = status.certificate
    if certificate is None:
        return "damaged: it is renewed at the next contact"
    line = f"until {_time(certificate.expires_ms)[:10]}"
    return line if certificate.state == "fresh" else f"{line}, {certificate.state}: it is renewed at the next contact"


def _received(status: DeviceStatus) -> str:
    line = f"{status.bytes_received:,} bytes of updates"
    if status.delta_bytes:
        line += f", {status.delta_bytes:,} as patches, which saved {status.saved_bytes:,}"
    return line


def _air(status: DeviceStatus) -> str:
    """What today took, where anything limits it or the link has a name."""
    air = status.air
    if air.link == UNMETERED and air.own_day_bytes is None and air.own_release_bytes is None:
        return ""
    line = f"{air.link}: {air.day_bytes:,}"
    line += f" of {air.own_day_bytes:,} bytes today" if air.own_day_bytes is not None else " bytes today"
    if air.own_release_bytes is not None:
        line += f", at most {air.own_release_bytes:,} for a release"
    return line


def _agent(status: DeviceStatus) -> str:
    if not status.running:
        return "does not run"
    return (
        "runs, and has not told of itself yet"
        if status.pid is None
        else f"runs as process {status.pid}, version {status.agent}"
    )


def update_line(update: UpdateNow) -> str:
    """Where the update is, in one line."""
    parts = [update.state + (f" of {update.release}" if update.release else "")]
    if update.forced:
        parts.append("forced by a technician")
    if update.bytes_total and update.state == "fetch":
        parts.append(f"{update.bytes_done:,} of {update.bytes_total:,} bytes")
    if update.transfer != TransferBytes() and update.state != "idle":
        took = update.transfer
        parts.append(f"took {took.delta_bytes:,} bytes as patches and {took.full_bytes:,} whole")
    if update.needs_bytes:
        parts.append(f"{update.needs_bytes:,} bytes would still travel")
    if update.healthy_of_s:
        parts.append(f"healthy for {update.healthy_s:.0f} of {update.healthy_of_s:.0f} s")
    if update.why:
        parts.append(f"waits: {update.why}")
    if update.damaged:
        parts.append(f"damaged: {update.damaged}")
    return ", ".join(parts)


def _models(status: DeviceStatus) -> Table:
    table = Table("model", "variant", "digest", "on", "ms: half", "95 %", "restarts", "fall-back")
    for name, model in status.models.items():
        table.add_row(
            name,
            model.variant,
            model.model_digest[:8],
            model.accelerator or "not up",
            f"{model.latency_p50_ms:.1f}",
            f"{model.latency_p95_ms:.1f}",
            str(model.restarts),
            model.fallback,
        )
    return table


def _engine(status: DeviceStatus) -> str:
    engine = status.engine
    if engine is None:
        return ""
    line = "all run" if engine.complete else "not as the release says: results name no release meanwhile"
    line += f", on {engine.version}" if engine.version else ""
    return f"{line}; {engine.trouble}" if engine.trouble else line


def _containers(engine: EngineStatus) -> Table:
    table = Table("container", "image", "state", "health", "restarts", "sees model", "trouble")
    for name, one in engine.containers.items():
        health = "" if one.health == "none" else one.health
        table.add_row(name, one.image[:12], one.state, health, str(one.restarts), (one.sees or "")[:8], one.trouble)
    return table


def _lanes(status: DeviceStatus) -> Table:
    table = Table("results", "produced", "queued", "receipted", "lost")
    for name, lane in status.lanes.items():
        table.add_row(name, str(lane.produced), str(lane.queued), str(lane.receipted), str(lane.lost))
    return table


def kits_table(found: KitsShown) -> Table:
    """Field kits, and sticks that cannot be read."""
    table = Table("kit", "release", "state", "what became of it", "where")
    for one in found.kits:
        words = one.sentence + (f"\n{one.hint}" if one.hint else "") + ("\nforced" if one.forced else "")
        table.add_row(one.kit, one.release, one.state.value, words, "\n".join(one.sticks) or "its stick is gone")
    for trouble in found.troubles:
        table.add_row("", "", "unreadable", trouble, "")
    if found.results:
        table.add_row("results", "", "", found.results, "")
    return table


def _refusals(status: DeviceStatus) -> Table:
    table = Table("refused", "manifest", "reason", "detail", title="`headland-device refusals lift` forgets one")
    for refusal in status.refusals:
        table.add_row(refusal.release, refusal.manifest[:12], refusal.reason.value, refusal.detail)
    return table


def _time(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
