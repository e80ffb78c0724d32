"""The CA through its generations: made, replaced while machines are asleep, ended when none depends on the old one.

    ca/authorities.json   every generation's certificate and what it is good for, newest first: the one commit point
    ca/ca.key             the key of the newest; `next.key` beside it only while a rotation is under way
    ca/ca.pem             what machines should trust now, for people; made from authorities.json

A rotation makes a new key, has the old key sign it (a *link*, `signing.anchors`), and destroys the old key: from then
on the new one signs everything. Nobody waits: whoever trusts only the old CA verifies the server through the link. The
decision and what else was considered: `adr/the-ca-is-replaced-by-its-own-word.md`.

    current    signs
    retiring   its certificates are good; machines that show one, or trust only it, are told to renew
    ended      its certificates may only renew, like expired ones; machines forget it
"""

import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from protocol import limits
from protocol.errors import HeadlandError, SettingsError, StateError
from protocol.messages import TrustMark
from protocol.wire import Message, decode
from server.ca import CA_LIFETIME, Authority, key_id
from signing import anchors, durable
from signing.locks import one_by_one

RECORD: Final = "authorities.json"
OVERLAP: Final = timedelta(days=30)
"""How long an old CA stays at least, unless a person forces its end: a server restored from a backup of last week must
still find machines that trust the CA of that backup."""

Standing = Literal["current", "retiring", "ended"]


class Generation(Message, omit_defaults=False):
    """One CA. `link_pem` is its key signed by the generation before; empty for the first."""

    pem: str
    link_pem: str
    standing: Standing
    since_ms: int  # it has this standing


class Record(Message, omit_defaults=False):
    """`authorities.json`. Newest first; exactly the first is current."""

    format: Literal[1]
    generations: tuple[Generation, ...]


@dataclass(frozen=True)
class Authorities:
    """All generations at one moment.

    Args:
        record: As it is kept.
        current: The newest, with its key.
    """

    record: Record
    current: Authority

    @cached_property
    def certificates(self) -> anchors.Certificates:
        """Of every generation, newest first."""
        return tuple(_certificate(each) for each in self.record.generations)

    @cached_property
    def trusted(self) -> anchors.Certificates:
        """What machines should trust, newest first."""
        return tuple(_certificate(each) for each in self.record.generations if each.standing != "ended")

    @cached_property
    def trusted_pem(self) -> str:
        """The same as PEM."""
        return anchors.render(self.trusted)

    @cached_property
    def all_pem(self) -> str:
        """Every generation: the handshake takes them all, and what a certificate is good for is judged after it."""
        return "".join(each.pem for each in self.record.generations)

    @cached_property
    def links_pem(self) -> str:
        """Every link, newest first: from any CA there ever was to the newest."""
        return "".join(each.link_pem for each in self.record.generations)

    @cached_property
    def marks(self) -> tuple[TrustMark, ...]:
        """Of `trusted`, as machines report them: the first is the newest's."""
        return anchors.marks(self.trusted)

    @cached_property
    def _standings(self) -> dict[str, Standing]:
        return {key_id(_certificate(each)): each.standing for each in self.record.generations}

    def standing(self, issuer: str) -> Standing:
        """What certificates signed by the CA with this key id are good for."""
        return self._standings.get(issuer, "ended")

    def of_token(self, ca_sha256: str) -> x509.Certificate:
        """The CA that an enrolment token names, or the newest."""
        found = [each for each in self.trusted if anchors.sha256(each) == ca_sha256]
        return found[0] if found else self.trusted[0]


def found(folder: Path, now: datetime, lifetime: timedelta = CA_LIFETIME) -> None:
    """Makes the first CA. Not when there is one."""
    with one_by_one(folder):
        if (folder / RECORD).exists():
            _settle(folder)
            return
        first = Authority.make(now, lifetime)
        durable.write(folder / "ca.key", first.private_pem())
        generation = Generation(pem=first.pem(), link_pem="", standing="current", since_ms=_ms(now))
        _commit(folder, Record(format=1, generations=(generation,)))


def load(folder: Path) -> Authorities:
    """What holds now.

    Raises:
        SettingsError: The folder does not hold a CA and its key.
    """
    record = _read(folder)
    certificate = _certificate(record.generations[0])
    key = _key_of(folder, certificate)
    if key is None:
        raise SettingsError(
            f"{folder}: the key of the CA is not there", hint="put ca/ back whole, from the newest backup"
        )
    return Authorities(record, Authority(certificate, key))


def rotate(folder: Path, now: datetime, lifetime: timedelta = CA_LIFETIME) -> Authorities:
    """Makes a new CA that the old one vouches for, and destroys the old key. Durable; a cut leaves the old or the new.

    Raises:
        SettingsError: The folder does not hold a CA.
        StateError: So many rotations that machines would not read all links.
    """
    with one_by_one(folder):
        _settle(folder)
        old = load(folder)
        if len(old.record.generations) >= anchors.CERTIFICATES_MAX:
            raise StateError(f"the CA was replaced {len(old.record.generations) - 1} times: machines follow no further")
        new = Authority.make(now, lifetime)
        durable.write(folder / "next.key", new.private_pem())
        link = anchors.render([old.current.vouch_for(new)])
        head, *rest = old.record.generations
        fresh = Generation(pem=new.pem(), link_pem=link, standing="current", since_ms=_ms(now))
        retired = msgspec.structs.replace(head, standing="retiring", since_ms=_ms(now))
        _commit(folder, Record(format=1, generations=(fresh, retired, *rest)))
        _settle(folder)
        return load(folder)


def end(folder: Path, now: datetime) -> Authorities:
    """Ends every retiring CA. Whether that may be is the caller's matter."""
    with one_by_one(folder):
        record = _read(folder)
        ended = tuple(
            msgspec.structs.replace(each, standing="ended", since_ms=_ms(now)) if each.standing == "retiring" else each
            for each in record.generations
        )
        _commit(folder, Record(format=1, generations=ended))
        return load(folder)


def newest_mark(record: bytes) -> TrustMark:
    """The mark of the newest CA in the content of an `authorities.json` of ours."""
    generations = decode(record, Record, limit=limits.MIB).generations
    return anchors.marks([_certificate(generations[0])])[0]


def settle(folder: Path) -> None:
    """Ends what a cut left of a rotation: its new key takes its place, or is destroyed."""
    with one_by_one(folder):
        _settle(folder)


def _settle(folder: Path) -> None:
    durable.sweep(folder)
    record = _read(folder)
    trusted = _trusted_pem(record).encode()
    if not (folder / "ca.pem").exists() or (folder / "ca.pem").read_bytes() != trusted:
        durable.write(folder / "ca.pem", trusted, mode=0o644)
    waiting = folder / "next.key"
    if not waiting.exists():
        return
    certificate = _certificate(record.generations[0])
    if _matches(waiting, certificate):
        durable.rename(waiting, folder / "ca.key")  # this is what destroys the old key
    else:
        durable.unlink(waiting)


def _commit(folder: Path, record: Record) -> None:
    durable.write(folder / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n", mode=0o644)
    durable.write(folder / "ca.pem", _trusted_pem(record).encode(), mode=0o644)


def _trusted_pem(record: Record) -> str:
    return "".join(each.pem for each in record.generations if each.standing != "ended")


def _read(folder: Path) -> Record:
    try:
        record = decode((folder / RECORD).read_bytes(), Record, limit=limits.MIB)
        for each in record.generations:
            _certificate(each)
    except (OSError, HeadlandError, ValueError) as error:
        raise SettingsError(
            f"{folder / RECORD} cannot be read: {error}", hint="put ca/ back whole, from the newest backup"
        ) from error
    if [each.standing for each in record.generations].count("current") != 1 or (
        record.generations[0].standing != "current"
    ):
        raise SettingsError(f"{folder / RECORD}: exactly the first CA is the current one")
    return record


def _certificate(generation: Generation) -> x509.Certificate:
    return x509.load_pem_x509_certificate(generation.pem.encode())


def _key_of(folder: Path, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey | None:
    for name in ("ca.key", "next.key"):
        with contextlib.suppress(FileNotFoundError):
            if _matches(folder / name, certificate):
                key = load_pem_private_key((folder / name).read_bytes(), password=None)
                assert isinstance(key, ec.EllipticCurvePrivateKey)
                return key
    return None


def _matches(path: Path, certificate: x509.Certificate) -> bool:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError:
        return False
    return isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()


def _ms(now: datetime) -> int:
    return int(now.timestamp() * 1000)
