"""What technicians forced on machines: each an event, held against the list that the managers published last.

The machine judged it when it happened, by the list that it had; it is carried out and cannot be undone. What is looked
for here is a machine that was deceived, or that deceives.
"""

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tuf.api.metadata import Targets

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.kits import FORCE_CONTEXT, ForceRequest, Technician, TechniciansTerms
from protocol.messages import SignedForce
from protocol.wire import decode, encode
from server.storage.catalog import Session
from server.storage.records import Forced
from signing.metadata import parse, terms

ROLE = "technicians"


def take_forces(session: Session, device: str, told: Sequence[SignedForce], now_ms: int) -> None:
    """Notes each force once, by its challenge, with a word where it does not hold. A second request under a challenge
    that was answered is noted as well.

    Args:
        session: A `write`.
        device: Which machine tells it.
        told: As it kept them.
        now_ms: The clock.
    """
    if not told:
        return
    listed = {each.name: each for each in _list(session)}
    for force in told:
        new = Forced(id=_id(force), force=force)
        known = session.devices.force(device, new.id)
        is_second = known is not None and known.force != force
        if is_second:
            new = Forced(id=digest(encode(force))[:32], force=force)
        if not session.devices.add_force(device, new, now_ms):
            continue
        what, said, doubt = _judge(force, device, listed)
        if is_second:
            doubt = "another request bears the same challenge" + (f"; {doubt}" if doubt else "")
        session.events.add(
            now_ms,
            "forced",
            device=device,
            what=what,
            reason=Reason.SIGNATURE.value if doubt else "",
            detail=f"{said}; it does not hold: {doubt}" if doubt else said,
        )


def _judge(force: SignedForce, device: str, listed: dict[str, Technician]) -> tuple[str, str, str]:
    """What was forced, who says why, and what is wrong with it."""
    request = _request(force)
    if request is None:
        return "", force.request[:500], "it is no request"
    what, said = f"{request.product} {request.release}", f"by {request.technician}: {request.reason}"
    who = listed.get(request.technician)
    if request.device != device:
        return what, said, f"it was signed for {request.device}"
    if who is None:
        return what, said, "nobody of this name is in the list of technicians"
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(who.public_key))
        key.verify(bytes.fromhex(force.signature), FORCE_CONTEXT + force.request.encode())
    except (InvalidSignature, ValueError):
        return what, said, f"{who.name}'s key did not sign it"
    if who.expires_ms <= request.at_ms:
        return what, said, f"the entry of {who.name} had expired"
    if not who.may_force or (who.machines is not None and device not in who.machines):
        return what, said, f"{who.name} may not force {device}"
    return what, said, ""


def _list(session: Session) -> Sequence[Technician]:
    content = session.repositories.newest_signed("director").get(ROLE)
    if content is None:
        return ()
    try:
        return terms(parse(content, Targets, ROLE).signed, TechniciansTerms, ROLE).technicians
    except Refused:  # it was verified when it was taken in: this program is older than it
        return ()


def _request(force: SignedForce) -> ForceRequest | None:
    try:
        return decode(force.request, ForceRequest, limit=limits.SYNC_BYTES)
    except Refused:
        return None


def _id(force: SignedForce) -> str:
    request = _request(force)
    return digest(force.request.encode())[:32] if request is None else request.id
