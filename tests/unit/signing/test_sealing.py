"""What is sealed to a server is read by that server alone, and only as what it was sealed as."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocol.errors import Reason, Refused
from signing.sealing import open_sealed, public_half, seal

KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
OLD = X25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
SECRET = b'{"label": "pest", "frame": "field-7.jpg"}'


def test_what_was_sealed_is_opened_by_the_key_of_then_among_newer_ones():
    sealed = seal(public_half(OLD), SECRET, "tractor-1", "batch")
    assert SECRET[:8] not in sealed
    assert open_sealed([KEY, OLD], sealed, "tractor-1", "batch") == SECRET


def test_the_same_bytes_never_look_the_same():
    assert seal(public_half(KEY), SECRET, "t", "batch") != seal(public_half(KEY), SECRET, "t", "batch")


@pytest.mark.parametrize(
    ("keys", "device", "kind"),
    [([OLD], "tractor-1", "batch"), ([KEY], "tractor-2", "batch"), ([KEY], "tractor-1", "report"), ([], "t", "batch")],
)
def test_another_key_device_or_kind_opens_nothing(keys, device, kind):
    sealed = seal(public_half(KEY), SECRET, "tractor-1", "batch")
    with pytest.raises(Refused) as refusal:
        open_sealed(keys, sealed, device, kind)
    assert refusal.value.reason is Reason.BATCH


def test_one_flipped_bit_anywhere_and_every_shorter_length_is_refused():
    sealed = seal(public_half(KEY), SECRET, "t", "batch")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        for bad in (bytes(changed), sealed[:place]):
            with pytest.raises(Refused):
                open_sealed([KEY], bad, "t", "batch")


def test_a_key_of_small_order_is_refused_and_nothing_is_sealed_to_it():
    with pytest.raises(Refused):
        seal("00" * 32, SECRET, "t", "batch")
