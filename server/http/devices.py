"""The machines' door: TLS 1.3, who asks is what their certificate says, and the catalog's word on it for each request.

The handshake takes no certificate too (enrolment has none yet) and does not look at its dates: a connection that is
turned away there looks to a machine like a dropped link, while an answer says what is wrong.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.messages import EnrolRequest, GivenBack, RenewRequest, SyncRequest
from protocol.wire import decode
from server.authorities import Authorities
from server.ca import ClientCertificate, named_device, read_client
from server.clock import NowMs
from server.contact import Contacts
from server.enrolment import Enrolment
from server.http.answers import NotFoundError, Status, errors, harden, json_answer
from server.http.blobs import send_blob
from server.http.bodies import plain_bodies, read_body
from server.ingest import ENVELOPE_BYTES, Ingest
from server.publish import Publisher
from server.standing import only_renewal, should_renew
from server.storage.blobs import BlobStore
from server.storage.catalog import Catalog
from server.storage.records import RepositoryKind
from server.threads import Threads
from server.tokens import Failures

METADATA_FILE: Final = re.compile(r"^(?:timestamp|[1-9][0-9]{0,19}\.[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?)\.json\Z")


@dataclass(frozen=True)
class DeviceServices:
    """What stands behind the machines' door."""

    catalog: Catalog
    blobs: BlobStore
    authorities: Callable[[], Authorities]
    enrolment: Enrolment
    contacts: Contacts
    ingest: Ingest
    publisher: Publisher
    threads: Threads
    now_ms: NowMs


class DeviceDoor:
    """Routes of `protocol/README.md`, "Requests of devices".

    Args:
        services: Behind the door.
    """

    def __init__(self, services: DeviceServices) -> None:
        self._services = services
        self._failures = Failures()
        self._bare_renewals = Failures(allowed=60)  # nothing can be guessed there: it bounds what strangers make us do

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[errors, plain_bodies])
        app.on_response_prepare.append(harden)
        app.add_routes(
            [
                web.get("/v1/ca", self._ca),
                web.post("/v1/enrol", self._enrol),
                web.post("/v1/renew", self._renew),
                web.post("/v1/sync", self._sync),
                web.post("/v1/results", self._results),
                web.post("/v1/metadata", self._give_back),
                web.get("/v1/tuf/{repository:image|director}/{name}", self._metadata),
                web.get("/v1/blobs/{digest}", self._blob),
            ]
        )
        return app

    async def _ca(self, request: web.Request) -> web.Response:
        return web.Response(text=self._services.authorities().trusted_pem, content_type="application/x-pem-file")

    async def _enrol(self, request: web.Request) -> web.Response:
        address = request.remote or ""
        now_s = asyncio.get_running_loop().time()
        if self._failures.blocked(address, now_s):
            raise Status(429, "too many bad tokens; wait a minute", Reason.TOKEN, {"Retry-After": "60"})
        body = decode(await read_body(request, limits.ENROL_BYTES), EnrolRequest, limit=limits.ENROL_BYTES)
        try:
            return json_answer(await self._services.threads.run(self._services.enrolment.enrol, body))
        except Refused:
            self._failures.add(address, now_s)
            raise

    async def _renew(self, request: web.Request) -> web.Response:
        """For the machine whose certificate it is; or, without one, for whoever the signing request proves to be.

        A certificate that this server cannot trace (it was restored from before its CA was replaced, or the machine's
        disk damaged the file) never gets through the handshake. The request itself is signed by the machine's key.
        """
        if _shown(request):
            device = (await self._who(request, to_renew=True)).device
            body = decode(await read_body(request, limits.ENROL_BYTES), RenewRequest, limit=limits.ENROL_BYTES)
            return json_answer(await self._services.threads.run(self._services.enrolment.renew, device, body))
        address, now_s = request.remote or "", asyncio.get_running_loop().time()
        if self._bare_renewals.blocked(address, now_s):
            raise Status(429, "too many bad requests; wait a minute", Reason.CERTIFICATE, {"Retry-After": "60"})
        try:
            data = await read_body(request, limits.ENROL_BYTES)
            body = decode(data, RenewRequest, limit=limits.ENROL_BYTES, reason=Reason.CERTIFICATE)
            device = named_device(body.csr_pem)
            return json_answer(await self._services.threads.run(self._services.enrolment.renew, device, body))
        except Refused:
            self._bare_renewals.add(address, now_s)
            raise

    async def _sync(self, request: web.Request) -> web.Response:
        services, certificate, forgotten = self._services, _certificate(request), False
        try:
            await self._who(request)
        except Refused as error:
            if error.reason is Reason.CERTIFICATE:
                forgotten = await services.threads.run(services.enrolment.forgot, certificate)
            if not forgotten:
                raise
        body = decode(await read_body(request, limits.SYNC_BYTES), SyncRequest, limit=limits.SYNC_BYTES)
        if body.device != certificate.device:
            raise Refused(
                Reason.WRONG_DEVICE, f"a contact of {body.device} under the certificate of {certificate.device}"
            )
        if forgotten:
            await services.threads.run(services.enrolment.take_back, certificate, body.product)
            await self._who(request)
        renew = should_renew(certificate, body.trusts, services.authorities(), self._now())
        answer = services.contacts.answer
        return json_answer(await services.threads.run(answer, body, certificate_pem=certificate.pem, renew=renew))

    async def _results(self, request: web.Request) -> web.Response:
        who = await self._who(request)
        data = await read_body(request, limits.BATCH_BYTES + ENVELOPE_BYTES)
        taken = await self._services.threads.run(self._services.ingest.take, data, who.device)
        return web.Response(
            text=taken.receipt,
            status=409 if taken.conflicts else 200,
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def _give_back(self, request: web.Request) -> web.Response:
        who = await self._who(request)
        body = decode(await read_body(request, limits.GIVEN_BACK_BYTES), GivenBack, limit=limits.GIVEN_BACK_BYTES)
        await self._services.threads.run(self._services.publisher.take_back, body.files, who.device)
        return web.Response(status=204)

    async def _metadata(self, request: web.Request) -> web.Response:
        await self._who(request)
        repository: RepositoryKind = "image" if request.match_info["repository"] == "image" else "director"
        return await send_metadata(self._services.catalog, self._services.threads, repository, request)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        await self._who(request)
        return await send_blob(request, self._services.blobs)

    async def _who(self, request: web.Request, *, to_renew: bool = False) -> ClientCertificate:
        """Whose certificate this is, judged anew for each request: a live connection outlives a revocation.

        Raises:
            Refused: `CERTIFICATE`: none, unknown, replaced, or good for a renewal only; `REVOKED`.
        """
        certificate = _certificate(request)
        standing = await self._services.threads.run(self._standing, certificate.device)
        why = only_renewal(certificate, standing, self._services.authorities(), self._now())
        if why and not to_renew:
            raise Refused(Reason.CERTIFICATE, why, hint="it may still be renewed: POST /v1/renew")
        return certificate

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._services.now_ms() / 1000, UTC)

    def _standing(self, device: str) -> tuple[bytes, bool] | None:
        with self._services.catalog.read() as session:
            return session.devices.standing(device)


def _certificate(request: web.Request) -> ClientCertificate:
    """What the handshake traced to our CA; the catalog has not been asked about it.

    Raises:
        Refused: `CERTIFICATE`: none, or it names no device.
    """
    der = _shown(request)
    if not der:
        raise Refused(Reason.CERTIFICATE, "this request needs the device's certificate")
    return read_client(der)


def _shown(request: web.Request) -> bytes | None:
    connection = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    return connection.getpeercert(binary_form=True) if connection is not None else None


async def send_metadata(
    catalog: Catalog, threads: Threads, repository: RepositoryKind, request: web.Request
) -> web.Response:
    """One file of a repository, as it is on offer.

    Raises:
        NotFoundError: None of that name; for the next root this ends the chain.
    """
    name = request.match_info["name"]
    if METADATA_FILE.match(name) is None:
        raise NotFoundError("no such metadata file")

    def read() -> bytes | None:
        with catalog.read() as session:
            return session.repositories.served(repository, name)

    content = await threads.run(read)
    if content is None:
        raise NotFoundError(f"no {repository}/{name} on offer")
    return web.Response(body=content, content_type="application/json", headers={"Cache-Control": "no-cache"})
