"""A real server over real TLS on loopback, with managers who sign and machines that call, under the test's clock.

async with running(tmp_path) as house:
    await house.publish()
    digest = await house.release("1.0.0", 1, [b"weights"])
    tractor = await house.enrol("tractor-1", groups=("early",))
    answer = await tractor.sync()
"""

import asyncio
import io
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from blockbuster import blockbuster_ctx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tuf.api.metadata import Metadata

from protocol.artifact import Artifact
from protocol.delta.patch import CODEC
from protocol.ids import digest
from protocol.messages import (
    Alert,
    Counters,
    EnrolAnswer,
    EnrolRequest,
    Inventory,
    LanePosition,
    SyncAnswer,
    SyncRequest,
    UpdateStatus,
    VersionReport,
)
from protocol.objects import FIELD
from protocol.release import Classify, Golden, Model, ReleaseManifest, Tensor, TensorPreprocessing, Variant
from protocol.results import SIGNING_CONTEXT, BatchBody, LaneRows, Loss, SignedBatch, compress_body
from protocol.wire import encode, pack
from server.app import Running, serve
from server.founding import FirstAnswers, found
from tests.fakes.managers import Managers

CPU = Inventory(agent="0.1.0", platform="linux-x86_64", accelerators=("cpu",))
PATCHING = msgspec.structs.replace(CPU, patch_codecs=(CODEC,))
START_MS = 1_790_000_000_000


def no_secret(name: str) -> str:
    raise AssertionError(f"nothing here asks for a {name}")


def make_csr(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def make_manifest(
    version: str, counter: int, blobs: Sequence[bytes], product: str = "pest-detector"
) -> ReleaseManifest:
    """One model a blob; every model's golden input and output are the first blob again."""

    def artifact(data: bytes, media_type: str) -> Artifact:
        return Artifact(sha256=digest(data), length_bytes=len(data), media_type=media_type)

    tensor = (Tensor(name="x", shape=(1, 4), dtype="float32"),)
    golden = b"golden"
    models = tuple(
        Model(
            name=f"model-{number}",
            task=Classify(output="x"),
            preprocessing=TensorPreprocessing(),
            labels=("a",),
            variants=(
                Variant(
                    name="cpu",
                    runtime="onnxruntime",
                    accelerator="cpu",
                    artifact=artifact(data, "application/onnx"),
                    inputs=tensor,
                    outputs=tensor,
                    golden=(
                        Golden(
                            name="one",
                            input=artifact(golden, "application/x-npz"),
                            expected=artifact(golden, "application/x-npz"),
                        ),
                    ),
                ),
            ),
        )
        for number, data in enumerate(blobs)
    )
    return ReleaseManifest(
        format=1, product=product, version=version, release_counter=counter, created_ms=START_MS, models=models
    )


class House:
    """The running server and those who deal with it."""

    def __init__(self, state: Path, *, steady: bool = False) -> None:
        self.state = state
        self.steady = steady
        self.now_ms = START_MS
        self.managers = Managers(self.now())
        self.running: Running
        self.token = ""
        self.ca_pem = ""
        self._stack = AsyncExitStack()
        self._session: aiohttp.ClientSession

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_ms // 1000, UTC)

    def prepare(self, settings: str = "") -> None:
        """Blocking: `init`, with the online keys that the managers know."""
        (self.state / "keys").mkdir(parents=True)
        for repository, roles in self.managers.online.items():
            for role, signer in roles.items():
                (self.state / "keys" / f"{repository}.{role}.pem").write_bytes(signer.private_bytes)
        answers = FirstAnswers("127.0.0.1", 0, ("localhost", "127.0.0.1"), "127.0.0.1", 0)
        found(self.state, answers, lambda: self.now_ms, no_secret)
        if settings:
            path = self.state / "server.toml"
            path.write_text(path.read_text() + settings)

    async def start(self) -> None:
        self.running = await self._stack.enter_async_context(
            serve(self.state, lambda: self.now_ms, no_secret, steady=self.steady)
        )
        access = json.loads(await asyncio.to_thread((self.state / "operator.json").read_bytes))
        self.token, self.ca_pem = access["token"], access["ca_pem"]
        context = await asyncio.to_thread(client_context, self.ca_pem)
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))
        )

    async def stop(self) -> None:
        await self._stack.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
        token: str | None = None,
    ) -> tuple[int, Any]:
        """One request at the people's door. JSON comes back parsed, all else as bytes."""
        sent = {"Authorization": f"Bearer {self.token if token is None else token}", **(headers or {})}
        if body is not None:
            data = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        url = self.running.operator_url + path
        async with self._session.request(
            method, url, data=None if data is None else io.BytesIO(data), headers=sent
        ) as answer:
            raw = await answer.read()
            return answer.status, json.loads(raw) if answer.content_type == "application/json" and raw else raw

    async def must(self, method: str, path: str, body: Any = None, *, data: bytes | None = None) -> Any:
        status, answer = await self.ask(method, path, body, data=data)
        assert 200 <= status < 300, (status, answer)
        return answer

    async def push(self, files: dict[str, dict[str, bytes]], **more: Any) -> tuple[int, Any]:
        listed = [
            {"repository": repository, "name": name, "content": content.decode()}
            for repository, of in files.items()
            for name, content in of.items()
        ]
        return await self.ask("POST", "/api/v1/publish", {"files": listed, **more})

    async def push_again(self, **more: Any) -> str:
        """`headland release push --again`: everything that the managers have. Returns why it is held, or nothing."""
        files = {"image": self.managers.image.files(), "director": self.managers.director.files()}
        status, answer = await self.push(files, again=True, **more)
        assert status == 200, answer
        return str(answer.get("held", ""))

    async def publish(self) -> None:
        """Everything that the managers have accepted themselves."""
        status, answer = await self.push(
            {"image": self.managers.image.files(), "director": self.managers.director.files()}
        )
        assert status == 200, answer

    async def put_blobs(self, *blobs: bytes) -> None:
        for data in blobs:
            await self.must("PUT", f"/api/v1/blobs/{digest(data)}", data=data)

    async def release(self, version: str, counter: int, blobs: Sequence[bytes], *, ready: bool = True) -> str:
        """Builds, pushes, signs and publishes. Returns the manifest's digest once payloads are made."""
        manifest = encode(make_manifest(version, counter, blobs))
        await self.put_blobs(*blobs, b"golden", manifest)
        self.managers.release(version, counter, manifest)
        await self.publish()
        if ready:
            await self.payloads()
        return digest(manifest)

    async def payloads(self) -> None:
        """Returns once every payload is made."""
        for _ in range(1000):
            if not (await self.must("GET", "/api/v1/status"))["payloads_waiting"]:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("payloads were not made")

    async def patches(self) -> None:
        """Returns once every patch is made that is worth making now."""
        for _ in range(3000):
            status = await self.must("GET", "/api/v1/status")
            if status["patches"]["surveyed"] and not status["patches"]["waiting"] + status["payloads_waiting"]:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("patches were not made")

    async def rollout(self, name: str, release: str, *, group: str = "all", phases: Any = (), **more: Any) -> Any:
        body = {"name": name, "product": "pest-detector", "release": release, "group": group, "phases": list(phases)}
        body |= more
        return await self.must("POST", "/api/v1/rollouts", body)

    async def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        found = (await self.must("GET", "/api/v1/events?limit=10000"))["events"]
        return [event for event in found if kind is None or event["kind"] == kind]

    async def make_token(self, device: str, groups: Sequence[str] = ("all",)) -> str:
        body = {"device": device, "product": "pest-detector", "groups": list(groups)}
        return str((await self.must("POST", "/api/v1/tokens", body))["token"])

    async def enrol(self, name: str, groups: Sequence[str] = ("all",)) -> "Machine":
        machine = Machine(self, name)
        status, answer = await machine.enrol(await self.make_token(name, groups))
        assert status == 200, answer
        return machine


@asynccontextmanager
async def running(folder: Path, settings: str = "", *, steady: bool = False) -> AsyncIterator[House]:
    house = House(folder / "server", steady=steady)
    await asyncio.to_thread(house.prepare, settings)
    await house.start()
    try:
        yield house
    finally:
        await house.stop()


@asynccontextmanager
async def published(folder: Path, settings: str = "") -> AsyncIterator[House]:
    """As `running`, with both repositories on offer, and a watch for blocking calls in the server's loop."""
    with blockbuster_ctx(["server"]):
        async with running(folder, settings) as house:
            await house.publish()
            yield house


def client_context(ca_pem: str, files: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if files is not None:
        context.load_cert_chain(*files)
    return context


class Machine:
    """An honest machine: it keeps its key, its token, its contact id and its numbering."""

    def __init__(self, house: House, name: str) -> None:
        self.house = house
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = ""
        self.sync_token: str | None = None
        self.epoch = secrets.token_hex(16)
        self.next_seq = {"alarms": 0, "results": 0}
        self.manifest: str | None = None
        self.inventory = CPU
        self.known_inventory: str | None = None
        self.have: tuple[str, ...] = ()
        self.enrolment: EnrolAnswer
        self._context: ssl.SSLContext | None = None

    async def ask(
        self, method: str, path: str, data: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, Any]:
        """One request on a fresh connection, under its certificate when it has one."""
        if self._context is None:
            self._context = await asyncio.to_thread(self._load)
        connector = aiohttp.TCPConnector(ssl=self._context)
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            session.request(
                method,
                self.house.running.device_url + path,
                data=None if data is None else io.BytesIO(data),
                headers=headers,
            ) as answer,
        ):
            return answer.status, await answer.read(), answer.headers

    def _load(self) -> ssl.SSLContext:
        if not self.certificate:
            return client_context(self.house.ca_pem)
        folder = self.house.state.parent / f"machine-{secrets.token_hex(4)}"
        folder.mkdir()
        (folder / "cert.pem").write_text(self.certificate)
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "key.pem").write_bytes(pem)
        return client_context(self.house.ca_pem, (folder / "cert.pem", folder / "key.pem"))

    def use(self, certificate: str) -> None:
        self.certificate = certificate
        self._context = None

    async def enrol(self, token: str, name: str | None = None) -> tuple[int, Any]:
        request = EnrolRequest(token=token, device=name or self.name, csr_pem=make_csr(self.key, name or self.name))
        status, body, _ = await self.ask("POST", "/v1/enrol", encode(request))
        answer = json.loads(body)
        if status == 200:
            self.use(answer["certificate_pem"])
        return status, answer

    def request(
        self,
        *,
        contact_id: str | None = None,
        statuses: Sequence[UpdateStatus] = (),
        alerts: Sequence[Alert] = (),
        **more: Any,
    ) -> SyncRequest:
        sha256 = digest(encode(self.inventory))
        fields: dict[str, Any] = {
            "format": 1,
            "device": self.name,
            "product": "pest-detector",
            "contact_id": contact_id or secrets.token_hex(16),
            "sync_token": self.sync_token,
            "nonce": secrets.token_hex(16),
            "report": VersionReport(manifest=self.manifest),
            "inventory_sha256": sha256,
            "epoch": self.epoch,
            "lanes": {lane: LanePosition(next_seq=count, queued=0) for lane, count in self.next_seq.items()},
            "inventory": None if self.known_inventory == sha256 else self.inventory,
            "statuses": tuple(statuses),
            "alerts": tuple(alerts),
            "have": self.have,
            "counters": Counters(),
        }
        return SyncRequest(**{**fields, **more})

    async def contact(self, request: SyncRequest) -> tuple[int, Any]:
        status, body, _ = await self.ask("POST", "/v1/sync", encode(request))
        return status, json.loads(body)

    async def sync(self, **fields: Any) -> SyncAnswer:
        """A whole contact whose answer arrives."""
        request = self.request(**fields)
        status, answer = await self.contact(request)
        assert status == 200, answer
        self.sync_token = answer["sync_token"]
        self.known_inventory = request.inventory_sha256
        return SyncAnswer(**answer)

    def batch(
        self, lane: str, rows: Sequence[bytes], *, first: int | None = None, losses: Sequence[Loss] = (), **more: Any
    ) -> bytes:
        """A signed batch of consecutive rows; advances the numbering unless `first` is given."""
        start = self.next_seq[lane] if first is None else first
        if first is None:
            self.next_seq[lane] += len(rows)
        body = BatchBody(
            device=more.get("device", self.name),
            epoch=more.get("epoch", self.epoch),
            lanes=(LaneRows(lane=lane, first=start, rows=tuple(rows)),),
            losses=tuple(encode(loss) for loss in losses),
        )
        return self.sign(body, **more)

    def sign(self, body: BatchBody, *, device: str | None = None, **_: Any) -> bytes:
        payload, length = compress_body(body)
        signature = self.key.sign(SIGNING_CONTEXT + payload, ec.ECDSA(hashes.SHA256()))
        return pack(SignedBatch(device=device or self.name, body_bytes=length, payload=payload, signature=signature))

    async def send(self, batch: bytes) -> tuple[int, Any]:
        status, body, _ = await self.ask("POST", "/v1/results", batch, {"Content-Type": "application/msgpack"})
        return status, json.loads(body)


def body_of(text: str | dict[str, Any]) -> dict[str, Any]:
    """What a signed object says; the signature is not looked at."""
    metadata = json.loads(text) if isinstance(text, str) else text
    field: dict[str, Any] = metadata["signed"][FIELD]
    return field


def signed_by(text: str, house: House, role: str) -> bool:
    """Whether the director's role of this name signed the object."""
    metadata: Metadata[Any] = Metadata.from_bytes(text.encode())
    key = house.managers.online["director"][role].public_key
    try:
        key.verify_signature(metadata.signatures[key.keyid], metadata.signed_bytes)
    except KeyError:
        return False
    return True


def status(manifest: str, rollout: str, outcome: str | None, reason: str | None = None) -> UpdateStatus:
    return UpdateStatus(
        id=secrets.token_hex(16),
        manifest=manifest,
        rollout=rollout,
        state="TRIAL",
        at_ms=START_MS,
        outcome=outcome,
        reason=reason,
    )
