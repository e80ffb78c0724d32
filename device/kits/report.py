"""A machine's word by stick: what it would tell in a contact, signed by the same key, under a number that rises.

What is told by stick stays to be told by network: nobody knows whether the stick comes home, and the server keeps each
status, alert and force once.
"""

from typing import Final

import zstandard
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from device.state_db import StateDb
from protocol.kits import REPORT_CONTEXT, SignedReport, StickReport
from protocol.wire import pack

NUMBER: Final = "kits/report"


def next_number(state: StateDb) -> int:
    """One above the last, durable before anything bears it: two reports of a machine never have the same. Blocking."""
    state.change(NUMBER, lambda found: b"%d" % (_number(found) + 1))
    return last_number(state)


def last_number(state: StateDb) -> int:
    """Of the last report that was made here; 0: none was. Blocking."""
    return _number(state.get(NUMBER))


def sign_report(report: StickReport, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The bytes of a `SignedReport` in MessagePack. Blocking: a millisecond."""
    packed = pack(report)
    payload = zstandard.ZstdCompressor(level=9).compress(packed)
    signature = key.sign(REPORT_CONTEXT + payload, ec.ECDSA(hashes.SHA256()))
    return pack(SignedReport(device=report.device, body_bytes=len(packed), payload=payload, signature=signature))


def _number(found: bytes | None) -> int:
    return int(found) if found is not None and found.isdigit() else 0
