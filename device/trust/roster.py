"""Who may force an update here: the newest list of technicians, and a technician's request held against it."""

from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from device.trust.port import ROSTER, Roster
from protocol import limits
from protocol.errors import Reason, Refused
from protocol.ids import DeviceId, Digest, Millis, Name, ProductName, Token, Version
from protocol.kits import FORCE_CONTEXT, ForceRequest, Technician
from protocol.messages import SignedForce
from protocol.wire import decode

_WORDS: Final = {
    "device": "machine",
    "product": "product",
    "id": "challenge",
    "offer": "offer",
    "release": "release",
    "manifest": "release",
}


class Facts(Protocol):
    """The part of the state database that is read here."""

    def get(self, key: str) -> bytes | None:
        """The value, or None."""
        ...


def load(facts: Facts) -> Roster | None:
    """The newest that the keeper kept; None when there is none, or none that can be read: nobody may force then."""
    found = facts.get(ROSTER)
    if found is None:
        return None
    try:
        return decode(found, Roster, limit=2 * limits.METADATA_BYTES)
    except Refused:
        return None


def may_force(
    signed: SignedForce,
    roster: Roster | None,
    *,
    device: DeviceId,
    product: ProductName,
    offer: Name,
    release: Version,
    manifest: Digest,
    challenge: Token,
    at_least_ms: Millis,
) -> ForceRequest:
    """Whether a technician may have this machine install this release now. Checked in this order: form, technician,
    signature, the list's and the entry's expiry, machine, right, and at last that it is the request that was asked for.

    What is offered, and that the challenge is still good, the caller knows. A challenge is good once: it is to be
    forgotten when this returns.

    Args:
        signed: From the technician.
        roster: The newest; None: there is none.
        device: This machine.
        product: That it follows.
        offer: The kit or the rollout that is to be forced.
        release: That it brings.
        manifest: Likewise.
        challenge: That this machine gave.
        at_least_ms: Sure time, else the time floor: `device.clock.Clock.at_least_ms`. It is later than the list, too.

    Raises:
        Refused: `METADATA`, `TECHNICIAN`, `SIGNATURE`, `EXPIRED`, `FORCE`; the message says it to the technician.
    """
    request = decode(signed.request, ForceRequest, limit=limits.FORCE_REQUEST_BYTES)
    if roster is None or not roster.technicians:
        raise Refused(
            Reason.TECHNICIAN,
            "this machine knows of no technician who may force",
            hint="a contact or a newer kit brings the list: `headland technicians` signs it",
        )
    entry = _entry(request.technician, roster)
    _check_signature(signed, entry)
    now_ms = max(at_least_ms, roster.created_ms)
    if now_ms >= roster.expires_ms:
        raise Refused(
            Reason.EXPIRED,
            f"the list of technicians expired at {_shown(roster.expires_ms)}",
            hint="a contact or a newer kit brings the next one",
        )
    if now_ms >= entry.expires_ms:
        raise Refused(
            Reason.EXPIRED,
            f"{entry.name} may force no more since {_shown(entry.expires_ms)}",
            hint="ask the release manager to renew your entry",
        )
    if entry.machines is not None and device not in entry.machines:
        raise Refused(Reason.TECHNICIAN, f"{entry.name} may not force on {device}", hint="ask for the right machine")
    if not entry.may_force:
        raise Refused(Reason.TECHNICIAN, f"{entry.name} may look, but not force", hint="ask the release manager")
    asked = {
        "device": device,
        "product": product,
        "id": challenge,
        "offer": offer,
        "release": release,
        "manifest": manifest,
    }
    for field, value in asked.items():
        if getattr(request, field) != value:
            raise Refused(
                Reason.FORCE,
                f"the request is about another {_WORDS[field]} than this machine asked about",
                hint="ask this machine anew, and sign what it says",
            )
    return request


def _entry(name: Name, roster: Roster) -> Technician:
    for entry in roster.technicians:
        if entry.name == name:
            return entry
    raise Refused(
        Reason.TECHNICIAN,
        f"{name} is not in the list of technicians, or not any more",
        hint="ask the release manager; a contact or a newer kit brings a newer list",
    )


def _check_signature(signed: SignedForce, entry: Technician) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(entry.public_key)).verify(
            bytes.fromhex(signed.signature), FORCE_CONTEXT + signed.request.encode(errors="surrogatepass")
        )
    except (InvalidSignature, ValueError) as error:
        raise Refused(
            Reason.SIGNATURE,
            f"the request is not signed by the key that the list names for {entry.name}",
            hint="use the key that the release manager has of you",
        ) from error


def _shown(ms: Millis) -> str:
    return f"{datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms):%Y-%m-%d %H:%M} UTC"
