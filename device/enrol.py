"""Enrolment: a one-time token becomes a certificate and the first roots, over a link that nobody vouches for yet.

The token carries the hashes of the CA and of both first roots, so the first answer of the network is held against
words that came by another way. Key and request are kept before they are sent: after a cut the same request goes again.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import random as chance
import sqlite3
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from device import identity as identities
from device.identity import Enrolment
from device.layout import Layout
from device.link import Answer, Link
from device.outbox import schema
from device.retry import persist
from device.state_db import StateDb
from protocol import limits
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.ids import digest
from protocol.messages import ENROLMENT_MARK, EnrolAnswer, EnrolRequest, TokenContent
from protocol.wire import decode, encode
from signing import anchors, durable

TOKEN_BYTES: Final = 4096
CA_BYTES: Final = 64 * limits.KIB
ROOTS_BYTES: Final = 2 * limits.METADATA_BYTES + limits.RENEW_ANSWER_BYTES  # an answer carries both roots
ATTEMPTS: Final = 3  # a person waits: a few tries, then the reason
LONGEST_WAIT_S: Final = 1.0


class Door(Protocol):
    """The server, as far as a machine without a certificate may speak to it."""

    async def get(self, path: str, *, limit: int) -> Answer:
        """As `device.link.Link.get`."""
        ...

    async def post(self, path: str, body: bytes, *, limit: int) -> Answer:
        """As `device.link.Link.post`."""
        ...

    async def close(self) -> None:
        """Ends the connection."""
        ...


def open_link(url: str, tls: ssl.SSLContext) -> Door:
    """The real door."""
    return Link(url, tls, request_s=30.0)


def read_token(text: str) -> TokenContent:
    """What a token says.

    Raises:
        Refused: `TOKEN`: it is no token, or was cut when it was copied.
    """
    if not text.startswith(ENROLMENT_MARK) or len(text) > TOKEN_BYTES:
        raise Refused(Reason.TOKEN, f"an enrolment token begins with {ENROLMENT_MARK!r}; this does not look like one")
    body = text[len(ENROLMENT_MARK) :]
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(Reason.TOKEN, "the token is damaged: was a part of it lost in copying?") from error
    try:
        return decode(data, TokenContent, limit=TOKEN_BYTES, reason=Reason.TOKEN)
    except Refused as error:
        raise Refused(Reason.TOKEN, "the token is damaged: was a part of it lost in copying?") from error


async def enrol(
    layout: Layout,
    token_text: str,
    *,
    server: str = "",
    frames: Path | None = None,
    open_door: Callable[[str, ssl.SSLContext], Door] = open_link,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    random: Callable[[], float] = chance.random,
) -> Enrolment:
    """Makes this state folder the machine that the token names. Safe to repeat after a cut.

    Args:
        layout: The state folder; made when absent.
        token_text: As the manager handed it over.
        server: Instead of the address in the token.
        frames: The folder that the camera writes to, for the first settings; `STATE/frames` when None.
        open_door: Opens a connection to a server.
        sleep: Waits so many seconds.
        random: Draws from 0 to 1.

    Returns:
        What the machine is enrolled as. Everything is durable.

    Raises:
        Refused: `TOKEN`, or the server is not the one that the token was made for.
        StateError: The folder is another machine's already.
        LinkError: The server could not be reached.
    """
    token_text = "".join(token_text.split())  # a token that came by mail may be broken into lines
    token = read_token(token_text)
    url = (server or token.server).rstrip("/")
    if not url.startswith("https://"):
        raise StateError(f"{url!r} is no address of a server", hint="such as https://farm.example:8443")
    done = await asyncio.to_thread(_already, layout, token)
    if done is not None:
        return done
    key, csr = await asyncio.to_thread(_keep_request, layout, token)

    async def answered(door: Door, ask: Callable[[Door], Awaitable[Answer]]) -> bytes:
        async def attempt() -> bytes:
            return (await ask(door)).content()

        try:
            return await persist(attempt, attempts=ATTEMPTS, random=random, sleep=sleep, longest_s=LONGEST_WAIT_S)
        except LinkError as error:
            if error.status is not None or error.hint:
                raise
            hint = "is headland-server running, and is this its address for machines? --server names another"
            raise LinkError(f"no answer from {url}: {error.message}", retryable=error.retryable, hint=hint) from error
        finally:
            await door.close()

    ca_pem = (
        await answered(open_door(url, identities.unverified_context()), lambda door: door.get("/v1/ca", limit=CA_BYTES))
    ).decode("ascii", errors="replace")
    ca = _find_ca(ca_pem, token, url)
    request = encode(EnrolRequest(token=token_text, device=token.device, csr_pem=csr))
    body = await answered(
        open_door(url, identities.private_context(cadata=anchors.render([ca]))),
        lambda door: door.post("/v1/enrol", request, limit=ROOTS_BYTES),
    )
    answer = decode(body, EnrolAnswer, limit=ROOTS_BYTES)
    _check_answer(answer, token)
    links = anchors.read(answer.links_pem) if answer.links_pem else ()
    identities.check_leaf(answer.certificate_pem, anchors.vouched([ca], links), token.device, key)
    trusted = anchors.follow([ca], anchors.read(answer.trust_pem), links) if answer.trust_pem else (ca,)
    enrolment = Enrolment(server=url, device=token.device, product=token.product)
    await asyncio.to_thread(_keep, layout, enrolment, answer, anchors.render(trusted), frames)
    return enrolment


def _already(layout: Layout, token: TokenContent) -> Enrolment | None:
    try:
        known = identities.read_enrolment(layout.identity)
    except (OSError, StateError):  # not enrolled yet; or made whole by this token, as far as it can be
        return None
    if (known.device, known.product) != (token.device, token.product):
        raise StateError(
            f"{layout.state} is already {known.device} of {known.product}; the token is for "
            f"{token.device} of {token.product}",
            hint="use another state folder for another machine",
        )
    if not _is_whole(layout.identity):
        return None
    durable.unlink(_request_path(layout, known.device))
    return known


def _is_whole(folder: Path) -> bool:
    """What the disk lost or damaged comes again with a new token; a key that can be read stays."""
    try:
        identities.load(folder).tls()
    except StateError:
        return False
    return all((folder / f"{name}.root.json").exists() for name in ("image", "director"))


def _keep_request(layout: Layout, token: TokenContent) -> tuple[ec.EllipticCurvePrivateKey, str]:
    durable.make_dir(layout.state)
    durable.make_dir(layout.identity)
    durable.sweep(layout.identity)
    if not (layout.identity / "enrolment.json").exists():  # no agent can run here yet
        durable.sweep(layout.state)
    key = identities.keep_key(layout.identity / "key.pem")
    path = _request_path(layout, token.device)
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is made anew
        csr = path.read_text(encoding="ascii")
        if x509.load_pem_x509_csr(csr.encode()).public_key() == key.public_key():
            return key, csr
    csr = identities.make_csr(key, token.device)
    durable.write(path, csr.encode())
    return key, csr


def _request_path(layout: Layout, device: str) -> Path:
    return layout.identity / f"{device}.csr.pem"


def _find_ca(pem: str, token: TokenContent, url: str) -> x509.Certificate:
    """The CA that the token names, among those that the server shows: it may have been replaced since."""
    for certificate in anchors.read(pem):
        if anchors.sha256(certificate) == token.ca_sha256:
            return certificate
    raise Refused(
        Reason.CERTIFICATE,
        f"{url} is not the server that the token was made for: its CA has another hash",
        hint="somebody may be between this machine and the server; ask the manager",
    )


def _check_answer(answer: EnrolAnswer, token: TokenContent) -> None:
    if (answer.device, answer.product) != (token.device, token.product):
        raise Refused(Reason.WRONG_DEVICE, f"the server enrolled {answer.device} of {answer.product} instead")
    if [anchors.sha256(each) for each in anchors.read(answer.ca_pem)] != [token.ca_sha256]:
        raise Refused(Reason.CERTIFICATE, "the server's answer names another CA than the token")
    for name, text, known in (
        ("image", answer.image_root, token.image_root_sha256),
        ("director", answer.director_root, token.director_root_sha256),
    ):
        if digest(text.encode()) != known:
            raise Refused(
                Reason.HASH,
                f"the {name} repository's first root is not the one that the token names",
                hint="ask for a new token: the managers may have made the repositories anew",
            )


def _keep(layout: Layout, enrolment: Enrolment, answer: EnrolAnswer, ca_pem: str, frames: Path | None) -> None:
    folder = layout.identity
    durable.write(folder / "ca.pem", ca_pem.encode(), mode=0o644)
    durable.write(folder / "image.root.json", answer.image_root.encode(), mode=0o644)
    durable.write(folder / "director.root.json", answer.director_root.encode(), mode=0o644)
    durable.write(folder / "cert.pem", answer.certificate_pem.encode(), mode=0o644)
    if not layout.settings.exists():
        folder_of_frames = (frames or layout.state / "frames").absolute()
        durable.write(layout.settings, first_settings(folder_of_frames).encode(), mode=0o644)
    # The databases are made here, by a short process: their schema needs a library that the agent should not carry.
    StateDb(layout.state_db).close()
    try:
        schema.open_writer(layout.outbox_db).close()
    except sqlite3.Error as error:
        raise StateError(
            f"{layout.outbox_db} cannot be made: {error}", hint="is the disk full, or read-only?"
        ) from error
    durable.write(folder / "enrolment.json", encode(enrolment))
    durable.unlink(_request_path(layout, enrolment.device))


def first_settings(frames: Path) -> str:
    """The `device.toml` that a machine begins with."""
    quoted = json.dumps(str(frames))  # a JSON string is a TOML basic string
    return (
        "# Settings of this machine; device/README.md lists them all. An unknown key is refused at start.\n\n"
        f"[inference]\nframes = {quoted}\n"
    )
