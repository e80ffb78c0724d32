"""Encrypted key files: what opens them, and that nothing in them can be changed unseen."""

import os
from pathlib import Path

import pytest
from securesystemslib.signer import Signer

from protocol.errors import HeadlandError, Refused, StateError
from signing import keyfile
from signing.keyfile import generate, open_key_file, public_key_of, uri_of, write_key_file
from signing.keys import import_public, open_signer, resolve
from signing.sealed_file import SCRYPT_N, seal

CHEAP = 1 << 10
PASSPHRASE = "correct horse battery"


def write(path: Path, algorithm: keyfile.Algorithm = "ed25519") -> Signer:
    signer = generate(algorithm)
    write_key_file(path, signer, PASSPHRASE, os.urandom, CHEAP)
    return signer


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa", "ml-dsa"])
def test_a_key_file_opens_by_its_uri_and_signs(tmp_path: Path, algorithm: keyfile.Algorithm) -> None:
    path = tmp_path / "a.key"
    made = write(path, algorithm)
    asked: list[str] = []

    def secret(what: str) -> str:
        asked.append(what)
        return PASSPHRASE

    signer = open_signer(uri_of(path), made.public_key, secret)
    made.public_key.verify_signature(signer.sign(b"a release"), b"a release")
    assert asked == ["passphrase"]


def test_the_file_is_its_owners_alone_and_costs_what_the_design_says(tmp_path: Path) -> None:
    signer = generate("ed25519")
    write_key_file(tmp_path / "a.key", signer, PASSPHRASE, os.urandom)
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    assert b'"n":131072,"r":8,"p":1' in (tmp_path / "a.key").read_bytes()
    assert SCRYPT_N == 1 << 17


def test_the_private_key_is_not_in_the_file(tmp_path: Path) -> None:
    signer = generate("ed25519")
    write_key_file(tmp_path / "a.key", signer, PASSPHRASE, os.urandom, CHEAP)
    inner = b"".join(signer.private_bytes.splitlines()[1:-1])
    assert inner not in (tmp_path / "a.key").read_bytes()


def test_a_wrong_passphrase_is_told_as_such(tmp_path: Path) -> None:
    made = write(tmp_path / "a.key")
    with pytest.raises(StateError, match="passphrase is wrong") as raised:
        open_signer(uri_of(tmp_path / "a.key"), made.public_key, lambda what: "wrong horse")
    assert "keys rotate" in raised.value.hint


def test_no_flipped_bit_opens(tmp_path: Path) -> None:
    made = write(tmp_path / "a.key")
    data = (tmp_path / "a.key").read_bytes()
    for at in range(len(data) - 1):  # the last byte is the line's end
        with pytest.raises(HeadlandError):
            open_key_file(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], made.public_key, PASSPHRASE, "it")


def test_a_cheaper_header_does_not_open(tmp_path: Path) -> None:
    made = write(tmp_path / "a.key")
    data = (tmp_path / "a.key").read_bytes().replace(b'"n":1024', b'"n":2048')
    with pytest.raises(StateError):
        open_key_file(data, made.public_key, PASSPHRASE, "it")


def test_another_managers_file_does_not_pass_for_mine(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.key")
    write(tmp_path / "other.key")
    with pytest.raises(Refused, match="another key"):
        open_signer(uri_of(tmp_path / "other.key"), mine.public_key, lambda what: PASSPHRASE)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    made = write(tmp_path / "a.key")
    with pytest.raises(StateError, match="never overwritten"):
        write(tmp_path / "a.key")
    assert public_key_of(tmp_path / "a.key") == made.public_key


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="at least 8"):
        write_key_file(tmp_path / "a.key", generate("ed25519"), "short", os.urandom, CHEAP)
    assert not (tmp_path / "a.key").exists()


def test_a_header_that_asks_for_endless_memory_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    made = write(tmp_path / "a.key")
    data = (tmp_path / "a.key").read_bytes().replace(b'"n":1024', b'"n":1099511627776')
    with pytest.raises(Refused):
        open_key_file(data, made.public_key, PASSPHRASE, "it")


def test_another_sealed_file_does_not_pass_for_a_key_file(tmp_path: Path) -> None:
    made = write(tmp_path / "a.key")
    data = seal(b"not a key", PASSPHRASE, os.urandom, CHEAP)
    with pytest.raises(Refused, match="not a headland-key 1 file"):
        open_key_file(data, made.public_key, PASSPHRASE, "it")


def test_each_file_has_salt_and_nonce_of_its_own(tmp_path: Path) -> None:
    signer = generate("ed25519")
    for name in ("a", "b"):
        write_key_file(tmp_path / name, signer, PASSPHRASE, os.urandom, CHEAP)
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_a_file_that_is_not_there_is_told_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"absent\.key"):
        open_signer(uri_of(tmp_path / "absent.key"), generate("ed25519").public_key, lambda what: PASSPHRASE)


def test_an_unknown_scheme_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot open the key"):
        open_signer("floppy:a", generate("ed25519").public_key, lambda what: "")
    with pytest.raises(StateError, match="cannot be asked"):
        import_public("awskms:alias/a", None, lambda what: "")


def test_a_key_services_key_is_registered_by_its_public_half(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = tmp_path / "public.pem"
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    uri, key = import_public("awskms:alias/a", pem, lambda what: "")
    assert (uri, key.scheme) == ("awskms:alias/a", "ecdsa-sha2-nistp256")


def test_relative_files_are_found_from_the_workspace() -> None:
    assert resolve("headland-key:keys/a.key", Path("/w")) == "headland-key:/w/keys/a.key"
    assert resolve("headland-key:/k/a.key", Path("/w")) == "headland-key:/k/a.key"
    assert resolve("hsm:2?label=x", Path("/w")) == "hsm:2?label=x"


def test_an_unencrypted_file_of_securesystemslib_opens_too(tmp_path: Path) -> None:
    signer = generate("ed25519")
    (tmp_path / "plain.pem").write_bytes(signer.private_bytes)
    uri, key = import_public(f"file2:{tmp_path}/plain.pem", None, lambda what: "")
    opened = open_signer(uri, key, lambda what: "")
    signer.public_key.verify_signature(opened.sign(b"x"), b"x")
