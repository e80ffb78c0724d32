"""Whether a technician may force: each refusal has a word, and nothing that was not asked for is taken."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device.trust.port import Roster
from device.trust.roster import may_force
from protocol.errors import Refused
from protocol.kits import FORCE_CONTEXT, ForceRequest, Technician
from protocol.messages import SignedForce
from protocol.wire import encode

DAY = 86_400_000
NOW = 400 * DAY
KEY = Ed25519PrivateKey.generate()
OTHER = Ed25519PrivateKey.generate()
EVA = Technician(
    name="eva",
    public_key=KEY.public_key().public_bytes_raw().hex(),
    expires_ms=NOW + 20 * DAY,
    may_force=True,
    machines=("tractor-1", "tractor-2"),
)
ROSTER = Roster(version=3, technicians=(EVA,), created_ms=NOW - DAY, expires_ms=NOW + 30 * DAY)
ASKED: Mapping[str, Any] = {
    "device": "tractor-1",
    "product": "pest-detector",
    "offer": "kit-spring",
    "release": "1.1.0",
    "manifest": "a" * 64,
}


def signed(key: Ed25519PrivateKey = KEY, context: bytes = FORCE_CONTEXT, **changes: Any) -> SignedForce:
    fields = {**ASKED, "id": "1" * 32, "technician": "eva", "reason": "hail is coming", "at_ms": NOW} | changes
    text = encode(ForceRequest(**fields))
    return SignedForce(request=text.decode(), signature=key.sign(context + text).hex())


def ask(request: SignedForce, roster: Roster | None = ROSTER, at_least_ms: int = NOW) -> ForceRequest:
    return may_force(request, roster, **ASKED, challenge="1" * 32, at_least_ms=at_least_ms)


def entry(**changes: Any) -> Roster:
    return msgspec.structs.replace(ROSTER, technicians=(msgspec.structs.replace(EVA, **changes),))


def test_a_technician_of_the_list_may() -> None:
    assert ask(signed()).reason == "hail is coming"
    assert ask(signed(), entry(machines=None)).technician == "eva"
    assert ask(signed(), at_least_ms=0), "the floor is years behind: the list's own creation counts"


CASES: list[tuple[Callable[[], ForceRequest], str, str]] = [
    (lambda: ask(signed(), None), "technician", "no technician"),
    (lambda: ask(signed(), Roster(version=4)), "technician", "no technician"),
    (lambda: ask(signed(technician="bob")), "technician", "not in the list"),
    (lambda: ask(signed(OTHER)), "signature", "not signed by the key"),
    (lambda: ask(signed(context=b"headland report 1\x00")), "signature", "not signed by the key"),
    (lambda: ask(signed(), entry(public_key="f" * 64)), "signature", "not signed by the key"),
    (lambda: ask(signed(), at_least_ms=NOW + 30 * DAY), "expired", "list of technicians expired"),
    (lambda: ask(signed(), at_least_ms=NOW + 20 * DAY), "expired", "may force no more"),
    (lambda: ask(signed(), entry(expires_ms=NOW - 2 * DAY), at_least_ms=0), "expired", "may force no more"),
    (lambda: ask(signed(), entry(machines=("tractor-9",))), "technician", "may not force on tractor-1"),
    (lambda: ask(signed(), entry(machines=())), "technician", "may not force on tractor-1"),
    (lambda: ask(signed(), entry(may_force=False)), "technician", "not force"),
    (lambda: ask(signed(id="2" * 32)), "force", "another challenge"),
    (lambda: ask(signed(device="tractor-2")), "force", "another machine"),
    (lambda: ask(signed(product="weeds")), "force", "another product"),
    (lambda: ask(signed(offer="spring")), "force", "another offer"),
    (lambda: ask(signed(release="1.0.0")), "force", "another release"),
    (lambda: ask(signed(manifest="b" * 64)), "force", "another release"),
    (lambda: ask(SignedForce(request="{}", signature="0" * 128)), "metadata", "not a ForceRequest"),
]


@pytest.mark.parametrize(("do", "reason", "words"), CASES)
def test_each_refusal_has_its_reason_and_a_word(do: Callable[[], ForceRequest], reason: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        do()
    assert caught.value.reason == reason
    assert caught.value.hint or reason == "metadata"


def test_no_changed_byte_of_a_request_is_taken() -> None:
    good = signed()
    for at in range(len(good.request)):
        changed = bytearray(good.request.encode())
        changed[at] ^= 1
        with pytest.raises(Refused):
            ask(SignedForce(request=changed.decode(errors="replace"), signature=good.signature))
