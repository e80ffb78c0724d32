"""Rollouts in the catalog, and the machines that have a place in them."""

from dataclasses import replace
from typing import Any, Final

from msgspec.structs import asdict
from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from protocol.errors import Reason
from protocol.messages import Outcome, TransferBytes
from protocol.objects import Budget, Conditions
from server.storage.codec import from_json, pairs, to_json
from server.storage.records import Member, Phase, Rollout, RolloutState
from server.storage.schema import members, rollouts

# Built once: each contact asks.
_ALL: Final = select(rollouts).order_by(rollouts.c.sequence.desc())
_OF: Final = _ALL.where(rollouts.c.product == bindparam("of"))


class Rollouts:
    """Reads and writes rollouts; what they should do is decided elsewhere."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, rollout: Rollout) -> Rollout:
        """Keeps a new rollout. Returns it with its sequence."""
        sequence = self._connection.execute(
            insert(rollouts)
            .values(
                name=rollout.name,
                product=rollout.product,
                release=rollout.release,
                manifest=rollout.manifest,
                manifest_bytes=rollout.manifest_bytes,
                release_counter=rollout.release_counter,
                era=rollout.era,
                device_group=rollout.group,
                phases=to_json(rollout.phases),
                conditions=to_json(rollout.conditions),
                created_ms=rollout.created_ms,
                state=rollout.state,
                why=rollout.why,
                phase=rollout.phase,
                judged_from_ms=rollout.judged_from_ms,
                budget=to_json(rollout.budget),
            )
            .returning(rollouts.c.sequence)
        ).scalar_one()
        return replace(rollout, sequence=sequence)

    def get(self, name: str) -> Rollout | None:
        """The rollout, or None; locked until a `write` ends."""
        row = self._connection.execute(select(rollouts).where(rollouts.c.name == name).with_for_update()).one_or_none()
        return None if row is None else _rollout(row)

    def all(self, product: str | None = None) -> list[Rollout]:
        """Newest first."""
        rows = self._connection.execute(_ALL) if product is None else self._connection.execute(_OF, {"of": product})
        return [_rollout(row) for row in rows]

    def count(self) -> dict[str, int]:
        """How many there are in each state."""
        rows = self._connection.execute(select(rollouts.c.state, func.count()).group_by(rollouts.c.state))
        return {"active": 0, "paused": 0, "halted": 0} | pairs(rows)

    def move(self, name: str, *, phase: int) -> None:
        """Opens a wider phase."""
        self._connection.execute(update(rollouts).where(rollouts.c.name == name).values(phase=phase))

    def turn(self, name: str, state: RolloutState, why: str, judged_from_ms: int | None = None) -> None:
        """Changes the state, with the reason for people."""
        values: dict[str, Any] = {"state": state, "why": why}
        if judged_from_ms is not None:
            values["judged_from_ms"] = judged_from_ms
        self._connection.execute(update(rollouts).where(rollouts.c.name == name).values(values))

    def members(self, name: str) -> list[Member]:
        """All machines with a place, by name."""
        rows = self._connection.execute(select(members).where(members.c.rollout == name).order_by(members.c.device))
        return [_member(row) for row in rows]

    def taken(self, name: str) -> dict[int, int]:
        """Places taken, by phase."""
        rows = self._connection.execute(
            select(members.c.phase, func.count()).where(members.c.rollout == name).group_by(members.c.phase)
        )
        return pairs(rows)

    def memberships(self, device: str) -> dict[str, Member]:
        """A machine's places, by rollout."""
        rows = self._connection.execute(select(members).where(members.c.device == device))
        return {row.rollout: _member(row) for row in rows}

    def join(self, member: Member) -> None:
        """Gives a machine its place."""
        self._connection.execute(
            insert(members).values(
                rollout=member.rollout, device=member.device, phase=member.phase, offered_ms=member.offered_ms
            )
        )

    def end(
        self,
        name: str,
        device: str,
        outcome: Outcome,
        reason: Reason | None,
        at_ms: int,
        *,
        needs_bytes: int | None = None,
    ) -> None:
        """Notes how a machine's update ended; a later end replaces an earlier one."""
        said = None if reason is None else reason.value
        self._change(name, device, outcome=outcome, reason=said, ended_ms=at_ms, needs_bytes=needs_bytes)

    def spend(self, name: str, device: str, transfer: TransferBytes) -> None:
        """Notes what a machine's update took over the air so far."""
        self._change(name, device, **asdict(transfer))

    def price(self, name: str, device: str, plan_bytes: int, plan_full_bytes: int) -> None:
        """Notes what the plan takes that a machine is offered."""
        self._change(name, device, plan_bytes=plan_bytes, plan_full_bytes=plan_full_bytes)

    def _change(self, name: str, device: str, **values: Any) -> None:
        self._connection.execute(
            update(members).where(members.c.rollout == name, members.c.device == device).values(values)
        )


def _rollout(row: Row[Any]) -> Rollout:
    values = dict(row._mapping)
    values["group"] = values.pop("device_group")
    values["phases"] = from_json(values["phases"], tuple[Phase, ...])
    values["conditions"] = from_json(values["conditions"], Conditions)
    values["budget"] = from_json(values["budget"], Budget)
    return Rollout(**values)


def _member(row: Row[Any]) -> Member:
    values = dict(row._mapping)
    values["reason"] = None if values["reason"] is None else Reason(values["reason"])
    values["transfer"] = TransferBytes(**{name: values.pop(name) for name in TransferBytes.__struct_fields__})
    return Member(**values)
