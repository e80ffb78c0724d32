"""When a machine renews its certificate, and how: at half its life, behind a rotation of the CA, and after expiry.

The server says when, at each contact; the machine also asks by itself once its own time, if it is *sure*, says that
half the life is over. The wall clock is never asked: a clock ten years ahead renews nothing, and a dead one misses
nothing, for the server judges dates and an expired certificate may still renew. An alarm is raised only where renewing
does not help, once at 50 and once at 80 % of a certificate's life and once when it has expired.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from device import identity as identities
from device.clock import Reading
from device.identity import Identity, make_csr
from device.link import Answer
from protocol import limits
from protocol.errors import HeadlandError, LinkError, Reason, Refused, StateError
from protocol.ids import Millis, Token
from protocol.lifetimes import MARKS, passed
from protocol.messages import Alert, RenewAnswer, RenewRequest
from protocol.wire import Message, decode, encode

LOG: Final = logging.getLogger("headland.contact")
KEY: Final = "certificate"
"""Where the record stands in the state database."""

PAUSE_S: Final = 3600.0
"""Between renewals that were not forced by a refusal: a server that asks for one at each contact wears no flash out."""


class Door(Protocol):
    """The server's door, as `device.link.Link`."""

    async def post(self, path: str, body: bytes, *, limit: int) -> Answer:
        """One POST, read whole."""
        ...

    async def renew(self, tls: ssl.SSLContext) -> None:
        """Ends the connections: the next one shows the new certificate."""
        ...

    async def close(self) -> None:
        """Ends the connections."""
        ...


class Notes(Protocol):
    """The part of the state database that this needs."""

    def get(self, key: str) -> bytes | None:
        """The value, or None."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Sets the value, durable on return."""
        ...

    def add_alert(self, alert: Alert) -> None:
        """Queues an alert for the server."""
        ...


class Told(Message):
    """What was told of which certificate: `mark` is the highest of `MARKS` that its alert named."""

    serial: str = ""
    mark: float = 0.0
    complaint: str = ""


class Renewal:
    """Keeps a machine's certificate good.

    Args:
        identity: Of this machine.
        door: To the server.
        notes: The state database.
        now: The machine's time.
        draw_token: 128 random bits as 32 hexadecimal digits.
        monotonic: Seconds that never go back.
        on_renewed: Called when a new certificate holds: others may have connections under the old one.
        open_bare: A door of its own to the same server.
    """

    def __init__(
        self,
        identity: Identity,
        door: Door,
        notes: Notes,
        *,
        now: Callable[[], Reading],
        draw_token: Callable[[], Token],
        monotonic: Callable[[], float],
        on_renewed: Callable[[], Awaitable[None]],
        open_bare: Callable[[ssl.SSLContext], Door],
    ) -> None:
        self._identity = identity
        self._door = door
        self._notes = notes
        self._now = now
        self._draw_token = draw_token
        self._monotonic = monotonic
        self._on_renewed = on_renewed
        self._open_bare = open_bare
        self._again_s = 0.0
        self._bare_again_s = 0.0

    async def after_contact(self, asked: bool) -> None:
        """Renews if it is time to; to be called after each contact that was answered.

        Args:
            asked: The server says that it is time.
        """
        if not (asked or await asyncio.to_thread(self._half_over)) or self._monotonic() < self._again_s:
            return
        self._again_s = self._monotonic() + PAUSE_S
        with contextlib.suppress(HeadlandError):
            await self.renew()

    async def renew(self) -> None:
        """Gets a new certificate for the same key and uses it from the next connection on.

        Raises:
            LinkError: The server could not be reached.
            Refused: It does not renew this one, or gave another than was asked for.
        """
        await self._told_if_failed(self._door)

    async def renew_bare(self) -> None:
        """As `renew`, without showing the old certificate; for where no contact succeeds.

        A server that was restored from before its CA was replaced turns newer certificates away, and that looks like a
        dropped link. What proves who asks is the signing request. When it helped nothing, it is not tried again for an
        hour: then the server is at fault, or the link after all.
        """
        if self._monotonic() < self._bare_again_s:
            return
        door = self._open_bare(await asyncio.to_thread(self._identity.bare_tls))
        try:
            await self._told_if_failed(door)
        finally:
            await door.close()
        self._bare_again_s = self._monotonic() + PAUSE_S

    async def _told_if_failed(self, door: Door) -> None:
        try:
            await self._renew(door)
        except HeadlandError as error:
            # A link that is down is told of by whoever keeps contact; it says nothing of the certificate.
            level = logging.DEBUG if isinstance(error, LinkError) else logging.WARNING
            LOG.log(level, "the certificate could not be renewed: %s", error.message)
            await asyncio.to_thread(self._tell)
            raise
        LOG.info("the certificate was renewed")

    async def _renew(self, door: Door) -> None:
        csr = await asyncio.to_thread(make_csr, self._identity.key, self._identity.enrolment.device)
        request = encode(RenewRequest(csr_pem=csr))
        answer = await door.post("/v1/renew", request, limit=limits.RENEW_ANSWER_BYTES)
        renewed = decode(answer.content(), RenewAnswer, limit=limits.RENEW_ANSWER_BYTES)
        complaint = await asyncio.to_thread(self._identity.take, renewed)
        if complaint:
            await asyncio.to_thread(self._complain, complaint)
        # A context of its own: one that is in use cannot forget a CA.
        await self._door.renew(await asyncio.to_thread(self._identity.tls))
        await self._on_renewed()

    def _half_over(self) -> bool:
        reading = self._now()
        try:
            certificate = self._identity.certificate()
        except StateError:
            return True  # it was damaged under the connections that stand; the key renews it
        return reading.sure and identities.lived(certificate, _datetime(reading.ms)) >= MARKS[0]

    def _tell(self) -> None:
        """Raises the alarm for the highest mark that sure time has passed, unless it was raised."""
        reading = self._now()
        if not reading.sure:
            return
        certificate = self._identity.certificate()
        used = identities.lived(certificate, _datetime(reading.ms))
        mark = passed(used)
        serial = f"{certificate.serial_number:x}"
        told = read_told(self._notes)
        if mark == 0.0 or (told.serial == serial and told.mark >= mark):
            return
        ends = certificate.not_valid_after_utc
        detail = (
            f"expired at {ends:%Y-%m-%d}" if used >= 1 else f"{used:.0%} of its life is over, until {ends:%Y-%m-%d}"
        )
        self._alert("certificate-ending", f"the certificate of this machine: {detail}; it could not be renewed")
        self._notes.put(KEY, encode(Told(serial=serial, mark=mark, complaint=told.complaint)))

    def _complain(self, complaint: str) -> None:
        told = read_told(self._notes)
        if told.complaint != complaint:
            self._alert("refused-ca", complaint)
            self._notes.put(KEY, encode(Told(serial=told.serial, mark=told.mark, complaint=complaint)))

    def _alert(self, kind: str, detail: str) -> None:
        at_ms: Millis = self._now().ms
        alert = Alert(id=self._draw_token(), kind=kind, at_ms=at_ms, reason=Reason.CERTIFICATE, detail=detail)
        self._notes.add_alert(alert)


def read_told(notes: Notes) -> Told:
    """What was told so far; nothing when it cannot be read."""
    data = notes.get(KEY)
    if data is None:
        return Told()
    try:
        return decode(data, Told, limit=limits.KIB * 16)
    except Refused:
        return Told()


def _datetime(ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)
