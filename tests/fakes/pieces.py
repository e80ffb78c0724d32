"""Sticks in memory of the tests: pieces as machines write them."""

import secrets
from pathlib import Path
from typing import Any

import zstandard
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.ids import digest
from protocol.kits import REPORT_CONTEXT, PieceHeader, PieceKind, SignedReport, StickReport, write_piece
from protocol.messages import VersionReport
from protocol.wire import pack
from server import sealing_keys
from signing.sealing import seal
from tests.fakes.server_house import CPU, Machine


def sealing_key_of(state: Path) -> str:
    """The public half of a server's newest sealing key."""
    return next(iter(sealing_keys.read_all(state / "keys")))


def piece(sealing_key: str, device: str, kind: PieceKind, inner: bytes) -> bytes:
    """A piece around bytes that are signed already."""
    sealed = seal(sealing_key, inner, device, kind)
    header = PieceHeader(format=1, device=device, kind=kind, sealed_to=sealing_key, sha256=digest(sealed))
    return write_piece(header, sealed)


def report(machine: Machine, number: int, **more: Any) -> StickReport:
    """What a machine would tell by stick now."""
    fields = {
        "format": 1,
        "device": machine.name,
        "product": "pest-detector",
        "number": number,
        "sync_token": machine.sync_token,
        "at_ms": 1,
        "report": VersionReport(manifest=machine.manifest),
        "inventory": CPU,
        "epoch": machine.epoch,
        "lanes": {},
    }
    return StickReport(**{**fields, **more})


def signed_report(machine: Machine, said: StickReport) -> bytes:
    """Its `SignedReport`."""
    packed = pack(said)
    payload = zstandard.ZstdCompressor().compress(packed)
    signature = machine.key.sign(REPORT_CONTEXT + payload, ec.ECDSA(hashes.SHA256()))
    return pack(SignedReport(device=said.device, body_bytes=len(packed), payload=payload, signature=signature))


def lay(stick: Path, device: str, data: bytes) -> Path:
    """Puts a piece onto a stick."""
    folder = stick / "headland-results" / device
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{secrets.token_hex(8)}.piece"
    path.write_bytes(data)
    return path
