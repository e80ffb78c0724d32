"""Machines in the catalog: identity, what they reported, their statuses and alerts."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from protocol.messages import Alert, Counters, Inventory, LanePosition, UpdateStatus, VersionReport
from server.storage.ageing import remove_oldest
from server.storage.codec import from_json, to_json
from server.storage.records import Certified, Device, Forced
from server.storage.schema import alerts, devices, forces, group_members, statuses

_LISTED = [column for column in devices.c if column.name != "answer"]

# Built once: each request of a machine asks.
_THIS: Final = devices.c.id == bindparam("device")
_GET: Final = select(devices).where(_THIS)
_GET_LOCKED: Final = _GET.with_for_update()
_SAVE: Final = update(devices).where(_THIS)
_GROUP_SIZE: Final = (
    select(func.count())
    .select_from(group_members)
    .where(group_members.c.device_group == bindparam("of"), group_members.c.product == bindparam("product"))
)
_STANDING: Final = select(devices.c.public_key, devices.c.revoked_ms).where(_THIS)


class Devices:
    """Reads and writes machines. The changes of a contact come in one call, as one record."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, device: str) -> Device | None:
        """The machine, or None."""
        row = self._connection.execute(_GET, {"device": device}).one_or_none()
        return None if row is None else _device(row)

    def lock(self, device: str) -> Device | None:
        """As `get`, and nobody else changes it until the transaction ends."""
        row = self._connection.execute(_GET_LOCKED, {"device": device}).one_or_none()
        return None if row is None else _device(row)

    def all(self) -> list[Device]:
        """All machines by name, without their kept answers."""
        return [_device(row) for row in self._connection.execute(select(*_LISTED).order_by(devices.c.id))]

    def certificates(self) -> list[Certified]:
        """The certificates of all machines that are not revoked, by name: light, for rounds over the whole fleet."""
        query = select(devices.c.id, devices.c.certificate_pem, devices.c.trusts)
        rows = self._connection.execute(query.where(devices.c.revoked_ms.is_(None)).order_by(devices.c.id))
        return [Certified(row.id, row.certificate_pem, from_json(row.trusts, tuple[str, ...])) for row in rows]

    def enrol(self, device: Device) -> None:
        """Keeps a machine; one of the same name becomes this one, its contacts begin anew."""
        fresh = {"groups": to_json(device.groups), "revoked_ms": device.revoked_ms, **_columns(device)}
        if not self._connection.execute(update(devices).where(devices.c.id == device.id).values(fresh)).rowcount:
            self._connection.execute(insert(devices).values(id=device.id, **fresh))
        self._count_in_groups(device.id)

    def save(self, device: Device) -> None:
        """Writes a machine that was read by `lock`, all but its groups and its revocation."""
        self._connection.execute(_SAVE, {"device": device.id, **_columns(device)})

    def set_groups(self, device: str, groups: Sequence[str]) -> None:
        """Replaces a machine's groups."""
        self._connection.execute(update(devices).where(devices.c.id == device).values(groups=to_json(groups)))
        self._count_in_groups(device)

    def revoke(self, device: str, at_ms: int) -> None:
        """Revokes a machine's certificate, whatever its dates."""
        self._connection.execute(update(devices).where(devices.c.id == device).values(revoked_ms=at_ms))
        self._count_in_groups(device)

    def set_certificate(self, device: str, certificate_pem: str) -> None:
        """Notes a renewed certificate; the key stays."""
        self._connection.execute(update(devices).where(devices.c.id == device).values(certificate_pem=certificate_pem))

    def readmit(self, device: str) -> None:
        """A person vouches for a machine that was set apart, or that came back after a restore. Its next contact
        counts, whatever token it shows."""
        self._connection.execute(
            update(devices)
            .where(devices.c.id == device)
            .values(
                set_apart="",
                returned="",
                token_counter=-func.abs(devices.c.token_counter) - 1,
                contact_id=None,
                answer=None,
            )
        )

    def _count_in_groups(self, device: str) -> None:
        self._connection.execute(delete(group_members).where(group_members.c.device == device))
        row = self._connection.execute(
            select(devices.c.groups, devices.c.product, devices.c.revoked_ms).where(devices.c.id == device)
        ).one()
        names = set(from_json(row.groups, tuple[str, ...])) if row.revoked_ms is None else set()
        if names:
            self._connection.execute(
                insert(group_members),
                [{"device": device, "device_group": name, "product": row.product} for name in sorted(names)],
            )

    def standing(self, device: str) -> tuple[bytes, bool] | None:
        """What every request asks: the present public key, and whether the machine is revoked. None: unknown."""
        row = self._connection.execute(_STANDING, {"device": device}).one_or_none()
        return None if row is None else (row.public_key, row.revoked_ms is not None)

    def next_version(self, device: str, now_s: int) -> int:
        """A version for an object that is about to be signed for this machine: above all before it, and at least the
        unix seconds, so that a server restored from a backup jumps ahead."""
        last = self._connection.execute(
            select(devices.c.object_version).where(devices.c.id == device).with_for_update()
        ).scalar_one()
        version = max(last + 1, now_s)
        self._connection.execute(update(devices).where(devices.c.id == device).values(object_version=version))
        return int(version)

    def claims(self) -> dict[str, dict[str, int]]:
        """The versions of all roles that each machine says it trusts. Revoked and doubted machines are left out."""
        rows = self._connection.execute(
            select(devices.c.id, devices.c.versions)
            .where(devices.c.revoked_ms.is_(None), devices.c.set_apart == "", devices.c.versions != "{}")
            .order_by(devices.c.id)
        )
        return {row.id: from_json(row.versions, dict[str, int]) for row in rows}

    def called_since(self, at_ms: int) -> int:
        """How many unrevoked machines called since then."""
        return self._connection.execute(
            select(func.count())
            .select_from(devices)
            .where(devices.c.revoked_ms.is_(None), devices.c.last_contact_ms >= at_ms)
        ).scalar_one()

    def count(self) -> dict[str, int]:
        """How many there are: `total`, `revoked`, `set_apart`, `returned`."""
        total, revoked, apart, returned = self._connection.execute(
            select(
                func.count(),
                func.count(devices.c.revoked_ms),
                func.count().filter(devices.c.set_apart != ""),
                func.count().filter(devices.c.returned != ""),
            ).select_from(devices)
        ).one()
        return {"total": total, "revoked": revoked, "set_apart": apart, "returned": returned}

    def group_size(self, product: str, group: str) -> int:
        """How many unrevoked machines of a product are in a group."""
        return self._connection.execute(_GROUP_SIZE, {"of": group, "product": product}).scalar_one()

    def add_statuses(self, device: str, news: Sequence[UpdateStatus], at_ms: int) -> list[UpdateStatus]:
        """Keeps each status once, however often it comes. Returns those that are new, in their order."""
        return self._add_once(statuses, device, news, at_ms)

    def add_alerts(self, device: str, news: Sequence[Alert], at_ms: int) -> list[Alert]:
        """Keeps each alert once. Returns those that are new, in their order."""
        return self._add_once(alerts, device, news, at_ms)

    def force(self, device: str, name: str) -> Forced | None:
        """A force that was kept, by its id."""
        here = (forces.c.device == device, forces.c.id == name)
        body = self._connection.execute(select(forces.c.body).where(*here)).scalar()
        return None if body is None else from_json(body, Forced)

    def add_force(self, device: str, new: Forced, at_ms: int) -> bool:
        """Keeps a force once. Returns whether it is new."""
        return bool(self._add_once(forces, device, [new], at_ms))

    def statuses(self, device: str, limit: int) -> list[UpdateStatus]:
        """The newest `limit` statuses, newest first."""
        return [from_json(body, UpdateStatus) for body in self._newest(statuses, device, limit)]

    def alerts(self, device: str, limit: int) -> list[Alert]:
        """The newest `limit` alerts, newest first."""
        return [from_json(body, Alert) for body in self._newest(alerts, device, limit)]

    def forget_reports(self, before_ms: int, limit: int) -> int:
        """Removes the oldest statuses, alerts and forces that came before then, at most `limit` of each. Returns how
        many."""
        return sum(remove_oldest(self._connection, table, before_ms, limit) for table in (statuses, alerts, forces))

    def _add_once(self, table: Any, device: str, news: Sequence[Any], at_ms: int) -> list[Any]:
        by_id = {item.id: item for item in news}
        if not by_id:
            return []
        known = set(
            self._connection.execute(
                select(table.c.id).where(table.c.device == device, table.c.id.in_(list(by_id)))
            ).scalars()
        )
        fresh = [item for item in by_id.values() if item.id not in known]
        if fresh:
            self._connection.execute(
                insert(table),
                [
                    {"id": item.id, "device": device, "received_ms": at_ms, "ordinal": ordinal, "body": to_json(item)}
                    for ordinal, item in enumerate(fresh)
                ],
            )
        return fresh

    def _newest(self, table: Any, device: str, limit: int) -> Iterable[str]:
        return self._connection.execute(
            select(table.c.body)
            .where(table.c.device == device)
            .order_by(table.c.received_ms.desc(), table.c.ordinal.desc())
            .limit(limit)
        ).scalars()


def _columns(device: Device) -> dict[str, Any]:
    return {
        "product": device.product,
        "public_key": device.public_key,
        "certificate_pem": device.certificate_pem,
        "enrolled_ms": device.enrolled_ms,
        "set_apart": device.set_apart,
        "returned": device.returned,
        "token_counter": device.token_counter,
        "contact_id": device.contact_id,
        "recent": to_json(device.recent),
        "answer": device.answer,
        "object_version": device.object_version,
        "last_contact_ms": device.last_contact_ms,
        "inventory": None if device.inventory is None else to_json(device.inventory),
        "inventory_sha256": device.inventory_sha256,
        "report": to_json(device.report),
        "epoch": device.epoch,
        "lanes": to_json(device.lanes),
        "versions": to_json(device.versions),
        "counters": to_json(device.counters),
        "unsure_of_time": device.unsure_of_time,
        "link": device.link,
        "trusts": to_json(device.trusts),
        "stick_number": device.stick_number,
    }


def _device(row: Row[Any]) -> Device:
    values = dict(row._mapping)
    values["groups"] = from_json(values["groups"], tuple[str, ...])
    values["inventory"] = None if values["inventory"] is None else from_json(values["inventory"], Inventory)
    values["report"] = from_json(values["report"], VersionReport)
    values["lanes"] = from_json(values["lanes"], dict[str, LanePosition])
    values["versions"] = from_json(values["versions"], dict[str, int])
    values["trusts"] = from_json(values["trusts"], tuple[str, ...])
    values["counters"] = from_json(values["counters"], Counters)
    values["recent"] = from_json(values["recent"], dict[str, int])
    return Device(**values)
