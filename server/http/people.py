"""The people's door: TLS, a bearer token in the header, JSON in and out.

No cookie is read, so nothing that a foreign page makes a browser send carries a right; bodies must call themselves
JSON, which a form cannot. What is asked and changed stands in `server.operations`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from protocol import limits
from protocol.errors import Refused, StateError
from server.authorities import Authorities
from server.clock import NowMs
from server.http.answers import Handler, NotFoundError, Status, errors, harden, json_answer
from server.http.blobs import send_blob, take_blob
from server.http.bodies import plain_bodies, read_json, read_large
from server.http.devices import send_metadata
from server.kit_plans import KitPlans
from server.kits.pieces import Pieces
from server.operations import GroupsRequest, Operations, RolloutRequest, TokenRequest
from server.publish import Publisher, PublishRequest
from server.storage.blobs import BlobStore
from server.storage.catalog import Catalog
from server.storage.records import RepositoryKind
from server.threads import Threads
from server.tokens import Failures, secret_sha256
from signing.kits.offer import KitQuestion

BODY_BYTES: Final = 256 * limits.KIB
PUBLISH_BYTES: Final = 16 * limits.METADATA_BYTES  # a push of a few roles, or all roots again after a restore

KIT_QUESTION_BYTES: Final = limits.MIB  # names ten thousand machines

WHO: Final = web.RequestKey("who", str)


@dataclass(frozen=True)
class PeopleServices:
    """What stands behind the people's door. `device_url` is what enrolment tokens point at, `online_keys` the file."""

    catalog: Catalog
    blobs: BlobStore
    operations: Operations
    kit_plans: KitPlans
    publisher: Publisher
    pieces: Pieces
    threads: Threads
    now_ms: NowMs
    online_keys: Path
    authorities: Callable[[], Authorities]
    device_url: str


class PeopleDoor:
    """Routes of `protocol/README.md`, "Requests of people and tools".

    Args:
        services: Behind the door.
    """

    def __init__(self, services: PeopleServices) -> None:
        self._services = services
        self._failures = Failures(allowed=20)

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[errors, plain_bodies, self._authenticate])
        app.on_response_prepare.append(harden)
        app.add_routes(
            [
                web.get("/api/v1/status", self._status),
                web.get("/api/v1/online-keys", self._online_keys),
                web.get("/api/v1/ca", self._ca),
                web.get("/api/v1/tuf/{repository:image|director}/{name}", self._metadata),
                web.get("/api/v1/blobs/{digest}", self._send_blob),
                web.put("/api/v1/blobs/{digest}", self._take_blob),
                web.post("/api/v1/publish", self._publish),
                web.post("/api/v1/unhold", self._resume),
                web.post("/api/v1/tokens", self._token),
                web.get("/api/v1/devices", self._devices),
                web.get("/api/v1/devices/{device}", self._device),
                web.post("/api/v1/devices/{device}/revoke", self._revoke),
                web.post("/api/v1/devices/{device}/readmit", self._readmit),
                web.post("/api/v1/devices/{device}/groups", self._groups),
                web.get("/api/v1/devices/{device}/results", self._results),
                web.get("/api/v1/devices/{device}/receipts", self._receipts),
                web.post("/api/v1/kits/results", self._take_piece),
                web.get("/api/v1/releases", self._releases),
                web.post("/api/v1/rollouts", self._create_rollout),
                web.get("/api/v1/rollouts", self._rollouts),
                web.get("/api/v1/rollouts/{rollout}", self._rollout),
                web.post("/api/v1/rollouts/{rollout}/{action:pause|resume|halt}", self._turn),
                web.get("/api/v1/patches", self._patches),
                web.post("/api/v1/patches/{patch}/lift", self._lift_patch),
                web.post("/api/v1/kits/plan", self._plan_kit),
                web.get("/api/v1/events", self._events),
            ]
        )
        return app

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        address = request.remote or ""
        now_s = asyncio.get_running_loop().time()
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        who = None
        # Asked even when the address guesses: a token has 256 bits, and one guesser behind a shared address must not
        # lock people out of pausing a rollout. A token is ASCII; a header may hold anything.
        if scheme.lower() == "bearer" and secret.isascii() and secret:
            who = await self._services.threads.run(self._operator, secret)
        if who is None:
            if self._failures.blocked(address, now_s):
                raise Status(429, "too many bad tokens; wait a minute", headers={"Retry-After": "60"})
            self._failures.add(address, now_s)
            raise Status(401, "an operator token is needed", headers={"WWW-Authenticate": "Bearer"})
        request[WHO] = who
        return await handler(request)

    def _operator(self, secret: str) -> str | None:
        with self._services.catalog.read() as session:
            return session.tokens.operator(secret_sha256(secret.strip()), self._services.now_ms())

    async def _status(self, request: web.Request) -> web.Response:
        return json_answer(await self._services.threads.run(self._services.operations.status))

    async def _online_keys(self, request: web.Request) -> web.Response:
        content = await self._services.threads.run(self._services.online_keys.read_bytes)
        return web.Response(body=content, content_type="application/json")

    async def _ca(self, request: web.Request) -> web.Response:
        held = self._services.authorities()
        return json_answer({"trust_pem": held.trusted_pem, "links_pem": held.links_pem})

    async def _metadata(self, request: web.Request) -> web.Response:
        repository: RepositoryKind = "image" if request.match_info["repository"] == "image" else "director"
        return await send_metadata(self._services.catalog, self._services.threads, repository, request)

    async def _send_blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        # A catalog out of a backup lacks blobs that the store still has: "not here", so that the tool sends them again
        # and they are hashed and noted.
        if not await self._services.threads.run(self._noted, digest):
            raise NotFoundError(f"no blob {digest:.80} here")
        return await send_blob(request, self._services.blobs)

    def _noted(self, digest: str) -> bool:
        with self._services.catalog.read() as session:
            return session.payloads.blob_bytes(digest) is not None

    async def _take_blob(self, request: web.Request) -> web.Response:
        services = self._services
        return await take_blob(request, services.blobs, services.catalog, services.threads, services.now_ms)

    async def _publish(self, request: web.Request) -> web.Response:
        body = await read_json(request, PublishRequest, PUBLISH_BYTES)
        publisher = self._services.publisher
        try:
            done = await self._services.threads.run(publisher.publish, body, request[WHO])
        except (Refused, StateError) as error:
            await self._services.threads.run(publisher.refuse, error)
            raise
        return json_answer(done)

    async def _resume(self, request: web.Request) -> web.Response:
        await read_json(request, dict[str, Any], BODY_BYTES)
        await self._services.threads.run(self._services.publisher.resume, request[WHO])
        return json_answer(await self._services.threads.run(self._services.operations.status))

    async def _token(self, request: web.Request) -> web.Response:
        body = await read_json(request, TokenRequest, BODY_BYTES)
        services = self._services
        return json_answer(
            await services.threads.run(services.operations.make_token, body, services.device_url, request[WHO])
        )

    async def _devices(self, request: web.Request) -> web.Response:
        return json_answer({"devices": await self._services.threads.run(self._services.operations.devices)})

    async def _device(self, request: web.Request) -> web.Response:
        name = request.match_info["device"]
        return json_answer(await self._services.threads.run(self._services.operations.device, name))

    async def _revoke(self, request: web.Request) -> web.Response:
        await read_json(request, dict[str, Any], BODY_BYTES)
        name = request.match_info["device"]
        return json_answer(await self._services.threads.run(self._services.operations.revoke, name, request[WHO]))

    async def _readmit(self, request: web.Request) -> web.Response:
        await read_json(request, dict[str, Any], BODY_BYTES)
        name = request.match_info["device"]
        return json_answer(await self._services.threads.run(self._services.operations.readmit, name, request[WHO]))

    async def _groups(self, request: web.Request) -> web.Response:
        body = await read_json(request, GroupsRequest, BODY_BYTES)
        name = request.match_info["device"]
        operations = self._services.operations
        return json_answer(await self._services.threads.run(operations.set_groups, name, body, request[WHO]))

    async def _results(self, request: web.Request) -> web.Response:
        return json_answer(
            await self._services.threads.run(
                self._services.operations.results,
                request.match_info["device"],
                request.query.get("lane"),
                _number(request, "after", 0),
                _number(request, "limit", 1000),
            )
        )

    async def _receipts(self, request: web.Request) -> web.Response:
        name = request.match_info["device"]
        return json_answer({"receipts": await self._services.threads.run(self._services.operations.receipts, name)})

    async def _take_piece(self, request: web.Request) -> web.Response:
        data = await read_large(request, limits.PIECE_BYTES)
        return json_answer(await self._services.threads.run(self._services.pieces.take, data, request[WHO]))

    async def _releases(self, request: web.Request) -> web.Response:
        product = request.query.get("product")
        return json_answer({"releases": await self._services.threads.run(self._services.operations.releases, product)})

    async def _create_rollout(self, request: web.Request) -> web.Response:
        body = await read_json(request, RolloutRequest, BODY_BYTES)
        operations = self._services.operations
        return json_answer(await self._services.threads.run(operations.create_rollout, body, request[WHO]), 201)

    async def _rollouts(self, request: web.Request) -> web.Response:
        return json_answer({"rollouts": await self._services.threads.run(self._services.operations.rollouts)})

    async def _rollout(self, request: web.Request) -> web.Response:
        name = request.match_info["rollout"]
        return json_answer(await self._services.threads.run(self._services.operations.rollout, name))

    async def _turn(self, request: web.Request) -> web.Response:
        await read_json(request, dict[str, Any], BODY_BYTES)
        name, action = request.match_info["rollout"], request.match_info["action"]
        return json_answer(await self._services.threads.run(self._services.operations.turn, name, action, request[WHO]))

    async def _patches(self, request: web.Request) -> web.Response:
        return json_answer({"patches": await self._services.threads.run(self._services.operations.patches)})

    async def _lift_patch(self, request: web.Request) -> web.Response:
        await read_json(request, dict[str, Any], BODY_BYTES)
        operations = self._services.operations
        return json_answer(
            await self._services.threads.run(operations.lift_patch, request.match_info["patch"], request[WHO])
        )

    async def _plan_kit(self, request: web.Request) -> web.Response:
        body = await read_json(request, KitQuestion, KIT_QUESTION_BYTES)
        return json_answer(await self._services.threads.run(self._services.kit_plans.plan, body))

    async def _events(self, request: web.Request) -> web.Response:
        return json_answer(
            await self._services.threads.run(
                self._services.operations.events,
                _number(request, "after", 0),
                _number(request, "limit", 1000),
                request.query.get("device"),
                _number(request, "last", 0),
            )
        )


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Status(400, f"{name} is a number")
    return int(text)
