"""What replaces certificates and keys: a machine's renewal over a rotation of the CA, and the rotations themselves.

A machine whose pair does not fit is locked out; so are all machines where the server has lost the key of its CA, or the
online key that the managers' metadata names.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from device import identity
from device.identity import Enrolment
from protocol import limits
from protocol.messages import RenewAnswer
from protocol.wire import decode, encode
from server import authorities, keyring
from server.ca import read_csr
from server.keyring import Keyring, make_keys, make_next
from signing import anchors, durable
from tests.simulation.workload import Promises, leftovers

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DEVICE, PRODUCT = "tractor-1", "pest-detector"
ROLE = "director.clock"


class Renewing:
    """A machine takes a certificate of a CA that has followed the one that it trusts."""

    name = "renewal"

    def prepare(self, home: Path) -> None:
        world, folder = home / "world", home / "state/identity"
        folder.mkdir(parents=True, mode=0o700)
        authorities.found(world, NOW)
        old = authorities.load(world)
        key = identity.keep_key(folder / "key.pem")
        csr = read_csr(identity.make_csr(key, DEVICE), DEVICE)
        durable.write(folder / "ca.pem", old.trusted_pem.encode())
        durable.write(folder / "cert.pem", old.current.issue_device(DEVICE, csr, NOW, 60).encode())
        enrolment = Enrolment(server="https://localhost:1", device=DEVICE, product=PRODUCT)
        durable.write(folder / "enrolment.json", encode(enrolment))
        held = authorities.rotate(world, NOW)
        answer = RenewAnswer(
            certificate_pem=held.current.issue_device(DEVICE, csr, NOW + timedelta(days=30), 60),
            trust_pem=held.trusted_pem,
            links_pem=held.links_pem,
        )
        durable.write(world / "answer.json", encode(answer))

    def act(self, home: Path, promise: Promises) -> None:
        self._take(home)
        promise("renewed")

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        durable.sweep(home / "state/identity")
        self.pair(home)  # whatever the cut left, the machine speaks to the server with it
        self._take(home)

    def check(self, home: Path, promised: Sequence[str]) -> None:
        me = self.pair(home)
        held = authorities.load(home / "world")
        assert me.certificate().not_valid_after_utc == NOW + timedelta(days=90)
        assert me.anchors() == held.trusted
        assert leftovers(home / "state") == []

    def pair(self, home: Path) -> identity.Identity:
        """Key and certificate fit, some CA of the server signed it, and what is trusted leads to the newest."""
        me = identity.load(home / "state/identity")
        me.tls()
        held = authorities.load(home / "world")
        assert me.certificate().public_key() == me.key.public_key()
        assert anchors.issued_by(me.certificate(), held.certificates)
        assert anchors.vouched(me.anchors(), anchors.read(held.links_pem))
        return me

    def _take(self, home: Path) -> None:
        answer = decode((home / "world/answer.json").read_bytes(), RenewAnswer, limit=limits.RENEW_ANSWER_BYTES)
        assert identity.load(home / "state/identity").take(answer) == ""


class RotatingCa:
    """The server replaces its CA, and later ends the old one."""

    name = "ca-rotation"

    def prepare(self, home: Path) -> None:
        folder = home / "state/ca"
        folder.mkdir(parents=True, mode=0o700)
        authorities.found(folder, NOW)
        (home / "world/first.pem").write_text(authorities.load(folder).trusted_pem)

    def act(self, home: Path, promise: Promises) -> None:
        held = authorities.rotate(home / "state/ca", NOW)
        promise(f"rotated {held.marks[0]}")
        authorities.end(home / "state/ca", NOW)
        promise("ended")

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        folder = home / "state/ca"
        authorities.settle(folder)
        if len(authorities.load(folder).record.generations) == 1:
            authorities.rotate(folder, NOW)
        authorities.end(folder, NOW)

    def check(self, home: Path, promised: Sequence[str]) -> None:
        folder = home / "state/ca"
        held = authorities.load(folder)
        assert [each.standing for each in held.record.generations] == ["current", "ended"]
        rotated = [line.split()[1] for line in promised if line.startswith("rotated ")]
        assert not rotated or held.marks[0] == rotated[0], "a CA that machines were shown is gone"
        first = anchors.read((home / "world/first.pem").read_text())
        assert anchors.follow(first, held.trusted, anchors.read(held.links_pem)) == held.trusted
        assert (folder / "ca.pem").read_text() == held.trusted_pem
        assert sorted(path.name for path in folder.iterdir()) == ["authorities.json", "ca.key", "ca.pem"]


class RotatingOnlineKey:
    """The next key of a role waits, and takes the other's place once metadata names it."""

    name = "online-key-rotation"

    def prepare(self, home: Path) -> None:
        folder = home / "state/keys"
        folder.mkdir(parents=True, mode=0o700)
        make_keys(folder, {})

    def act(self, home: Path, promise: Promises) -> None:
        folder = home / "state/keys"
        make_next(folder, {}, [ROLE])
        keyid = self._ring(home).waiting()[ROLE]
        promise(f"exported {keyid}")  # managers may delegate to it from here on
        self._ring(home).settle({ROLE: keyid})
        promise("settled")

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        ring = self._ring(home)
        exported = [line.split()[1] for line in promised if line.startswith("exported ")]
        if exported:
            assert ring.signer(ROLE, exported).public_key.keyid == exported[0], "what managers delegated to is lost"
            ring.settle({ROLE: exported[0]})

    def check(self, home: Path, promised: Sequence[str]) -> None:
        ring = self._ring(home)
        exported = [line.split()[1] for line in promised if line.startswith("exported ")]
        if exported:
            assert ring["director"]["clock"].public_key.keyid == exported[0]
            assert not ring.waiting()
        assert len({ring[kind][role].public_key.keyid for kind, role in map(_split, keyring.NAMES)}) == 7

    def _ring(self, home: Path) -> Keyring:
        return Keyring(home / "state/keys", {}, lambda what: "")


def _split(name: str) -> tuple[str, str]:
    kind, _, role = name.partition(".")
    return kind, role


def workloads() -> list[Renewing | RotatingCa | RotatingOnlineKey]:
    return [Renewing(), RotatingCa(), RotatingOnlineKey()]
