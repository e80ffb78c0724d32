"""Sync tokens: a counter with a MAC, so that a token says by itself whether it is the newest, used before, or from a
life of the catalog that a backup does not remember.

To the device it is 128 opaque bits. Nobody guesses it, but it is no secret that protects anything by itself: who shows
it came through the device's own certificate.
"""

import hashlib
import hmac
from dataclasses import replace
from enum import Enum, auto
from typing import Final

from protocol.ids import Token
from server.storage.records import Device

REMEMBERED: Final = 32  # contacts before the last whose requests may still be on their way: minutes, at the fastest


class Standing(Enum):
    """What a contact's token and id say together."""

    FIRST = auto()
    NEXT = auto()
    RETRY = auto()  # the same contact again: its answer got lost
    LATE = auto()  # a request of an earlier contact, which was answered long ago: it was held up, or came twice
    LOST = auto()  # the device has no token any more, or one that this server never gave
    CLONE = auto()  # a token that was used before, by another contact
    AHEAD = auto()  # given by a later life of this catalog: the catalog was restored from a backup


def issue(secret: bytes, device: str, counter: int) -> Token:
    """The token with this number for this device."""
    head = counter.to_bytes(8, "big")
    return (head + _mac(secret, device, head)).hex()


def number_of(secret: bytes, device: str, token: Token) -> int | None:
    """The number of a token that was issued with `secret` for this device, else None."""
    raw = bytes.fromhex(token)
    if not hmac.compare_digest(raw[8:], _mac(secret, device, raw[:8])):
        return None
    return int.from_bytes(raw[:8], "big")


def judge(device: Device, shown: int | None, token: Token | None, contact_id: Token) -> Standing:
    """Tells a retry from a clone.

    Args:
        device: As kept: `token_counter` is the number of the last token given, `contact_id` who got it.
        shown: `number_of` the token.
        token: As sent.
        contact_id: As sent; drawn by the device and kept before its first try.
    """
    if contact_id in device.recent and contact_id != device.contact_id:
        return Standing.LATE
    if device.token_counter < 0:
        return Standing.NEXT
    same = contact_id == device.contact_id
    if token is None or shown is None:
        if same:
            return Standing.RETRY
        return Standing.FIRST if token is None and device.token_counter == 0 else Standing.LOST
    if shown > device.token_counter:
        return Standing.AHEAD
    if shown == device.token_counter:
        return Standing.NEXT
    # Not only the number before: a counter that was negative jumped above whatever the machine had kept.
    return Standing.RETRY if same else Standing.CLONE


def number_to_give(device: Device, standing: Standing, shown: int | None, contact_id: Token) -> int:
    """The number of the token that the answer carries: for what was answered before, the same as then."""
    if standing is Standing.RETRY:
        return device.token_counter
    if standing is Standing.LATE:
        return device.recent[contact_id]
    return max(abs(device.token_counter), shown or 0) + 1


def vouches(device: Device, shown: int | None) -> bool:
    """Whether a report by stick with the token of this number may replace what is known: an older one is a copy's.

    The last answer may have got lost, and what is above the last came after the backup that this catalog is from.

    Args:
        device: As kept.
        shown: `number_of` the token; 0: the machine had no answer yet.
    """
    return shown is not None and shown >= abs(device.token_counter) - 1


def answered(device: Device, standing: Standing, number: int, contact_id: Token) -> Device:
    """The machine as it is kept once the answer with this number was made."""
    if standing in (Standing.RETRY, Standing.LATE):
        return device
    kept = list(device.recent.items())[-REMEMBERED:]
    return replace(device, token_counter=number, contact_id=contact_id, recent=dict([*kept, (contact_id, number)]))


def _mac(secret: bytes, device: str, head: bytes) -> bytes:
    return hmac.digest(secret, head + device.encode(), hashlib.sha256)[:8]
