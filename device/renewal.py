"""A certificate that expired is renewed under itself: the server lets an unrevoked machine do that and nothing else."""

import asyncio
import ssl
from typing import Protocol

from device.identity import Identity, make_csr
from device.link import Answer
from protocol import limits
from protocol.messages import RenewAnswer, RenewRequest
from protocol.wire import decode, encode


class Door(Protocol):
    """The server's door, as `device.link.Link`."""

    async def post(self, path: str, body: bytes, *, limit: int) -> Answer:
        """One POST, read whole."""
        ...

    async def close(self) -> None:
        """Ends the connections: the next one shows the new certificate."""
        ...


async def renew(identity: Identity, tls: ssl.SSLContext, door: Door) -> bool:
    """Gets a new certificate for the same key and uses it from the next connection on.

    Args:
        identity: Of this machine.
        tls: The context that the door uses; it is given the new certificate.
        door: To the server.

    Returns:
        True: a new one was taken.

    Raises:
        LinkError: The server could not be reached.
        Refused: It does not renew this one, or gave another than was asked for.
    """
    csr = await asyncio.to_thread(make_csr, identity.key, identity.enrolment.device)
    answer = await door.post("/v1/renew", encode(RenewRequest(csr_pem=csr)), limit=limits.ENROL_BYTES)
    renewed = decode(answer.content(), RenewAnswer, limit=limits.ENROL_BYTES)
    await asyncio.to_thread(identity.replace_certificate, renewed.certificate_pem)
    await asyncio.to_thread(tls.load_cert_chain, identity.folder / "cert.pem", identity.folder / "key.pem")
    await door.close()
    return True
