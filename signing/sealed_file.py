"""Bytes under a passphrase: scrypt and an AEAD, for private keys and for files that hold secrets and travel.

Two lines of text: a JSON header (`Header`: parameters, and what may be read without the passphrase), and base64 of
ChaCha20-Poly1305 over the content. The exact bytes of the header's line are the associated data: who changes anything
in it makes a file that does not open.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.wire import Message, decode, encode

SCRYPT_N: Final = 1 << 17
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
PASSPHRASE_MIN: Final = 8
HEADER_BYTES: Final = 64 * limits.KIB  # the public half of an ML-DSA key is 2 KiB
SEALED_BYTES: Final = 16 * limits.MIB  # keys and settings: a few kilobytes

Format = Literal["headland-key 1", "headland-sealed 1"]
RandomBytes = Callable[[int], bytes]


class Header(Message):
    """The first line. `n` is bounded above, for a file must not exhaust memory; the tools write `SCRYPT_N`."""

    format: Format
    kdf: Literal["scrypt"]
    n: Annotated[int, msgspec.Meta(ge=1 << 10, le=1 << 20)]
    r: Literal[8]
    p: Literal[1]
    salt: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    cipher: Literal["chacha20-poly1305"]
    nonce: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{24}\Z")]
    public: dict[str, Any] = {}  # of a key file: the public half, as `signing.online_keys.key_to_dict`

    def key(self, passphrase: str) -> ChaCha20Poly1305:
        """The cipher under the key that the passphrase gives. Costs scrypt's time and memory."""
        kdf = Scrypt(salt=bytes.fromhex(self.salt), length=32, n=self.n, r=self.r, p=self.p)
        return ChaCha20Poly1305(kdf.derive(passphrase.encode("utf-8")))


@dataclass(frozen=True)
class Sealed:
    """A file that was read and not opened yet.

    Args:
        header: The first line, parsed and not verified.
        line: Its exact bytes.
        body: The content under the cipher.
        what: For messages.
    """

    header: Header
    line: bytes
    body: bytes
    what: str

    def open(self, passphrase: str, hint: str = "") -> bytes:
        """The content.

        Raises:
            StateError: The passphrase is wrong, or the bytes were changed: no one can tell which.
        """
        try:
            return self.header.key(passphrase).decrypt(bytes.fromhex(self.header.nonce), self.body, self.line)
        except InvalidTag as error:
            raise StateError(f"{self.what}: the passphrase is wrong, or the file was changed", hint=hint) from error


def seal(
    content: bytes,
    passphrase: str,
    random: RandomBytes,
    n: int = SCRYPT_N,
    *,
    form: Format = "headland-sealed 1",
    public: dict[str, Any] | None = None,
) -> bytes:
    """Seals bytes.

    Args:
        content: Held in memory.
        passphrase: At least 8 characters.
        random: `os.urandom`.
        n: scrypt's cost, a power of two; tests take less.
        form: What the file is.
        public: May be read without the passphrase.

    Raises:
        StateError: The passphrase is too short.
    """
    if len(passphrase) < PASSPHRASE_MIN:
        raise StateError(f"a passphrase of {len(passphrase)} characters; at least {PASSPHRASE_MIN} are needed")
    header = Header(
        format=form,
        kdf="scrypt",
        n=n,
        r=SCRYPT_R,
        p=SCRYPT_P,
        salt=random(16).hex(),
        cipher="chacha20-poly1305",
        nonce=random(12).hex(),
        public=public or {},
    )
    line = encode(header)
    body = header.key(passphrase).encrypt(bytes.fromhex(header.nonce), content, line)
    return line + b"\n" + base64.b64encode(body) + b"\n"


def passphrase_in(path: Path) -> str:
    """The first line of a file, for programs that have nobody to ask.

    Raises:
        StateError: There is none, or it is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        lines = []
    if not lines or not lines[0]:
        raise StateError(f"{path}: its first line should be the passphrase, in UTF-8")
    return lines[0]


def read(data: bytes, what: str, form: Format = "headland-sealed 1", limit: int = 2 * SEALED_BYTES) -> Sealed:
    """Reads what `seal` made, and opens nothing.

    Args:
        data: From outside.
        what: For messages.
        form: What it must be.
        limit: The most bytes that are looked at.

    Raises:
        Refused: `METADATA`, `LENGTH`: not such a file.
    """
    if len(data) > limit:
        raise Refused(Reason.LENGTH, f"{what}: too long for a {form.partition(' ')[0]} file")
    line, _, rest = data.partition(b"\n")
    header = decode(line, Header, limit=HEADER_BYTES)
    if header.format != form:
        raise Refused(Reason.METADATA, f"{what}: not a {form} file: it is {header.format}")
    if header.n & (header.n - 1):
        raise Refused(Reason.METADATA, f"{what}: not a {form} file: scrypt's n is a power of two")
    try:
        return Sealed(header, line, base64.b64decode(rest.strip(), validate=True), what)
    except binascii.Error as error:
        raise Refused(Reason.METADATA, f"{what}: not a {form} file: {error}") from error
