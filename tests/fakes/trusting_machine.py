"""A machine that calls a real server and believes only what the device's own trust does: real stores, real judge.

tractor = TrustingMachine(house, "tractor-1", tmp_path / "tractor-1")
await tractor.enrol(await house.make_token("tractor-1"))
answer, verdict = await tractor.visit()         # reports its versions, gives back what the server lacks
"""

import asyncio
from pathlib import Path
from typing import Any

from device.clock import Moment
from device.giving_back import SignedFiles
from device.trust.judge import Judge, Sources
from device.trust.port import Verdict
from protocol import limits
from protocol.errors import LinkError
from protocol.messages import GivenBack, SyncAnswer
from protocol.wire import decode, encode
from signing.trust_store import DirectorStore, ImageStore, MemoryFloors
from tests.fakes.server_house import House, Machine

BOOT_MS = 10_000_000


class Facts:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value


class TrustingMachine(Machine):
    """See the module. `verdicts` is what it made of each answer."""

    def __init__(self, house: House, name: str, folder: Path) -> None:
        super().__init__(house, name)
        self.folder = folder
        self.versions: dict[str, int] = {}
        self.verdicts: list[Verdict] = []
        self.given: list[tuple[str, ...]] = []
        self.gives_back = True
        self._floors = MemoryFloors()
        self._facts = Facts()
        self._roots: dict[str, bytes] = {}

    async def enrol(self, token: str, name: str | None = None) -> tuple[int, Any]:
        status, answer = await super().enrol(token, name)
        if status == 200 and not self._roots:
            self._roots = {kind: answer[f"{kind}_root"].encode() for kind in ("image", "director")}
        return status, answer

    async def visit(self, **fields: Any) -> tuple[SyncAnswer, Verdict]:
        """A contact, its answer judged, and what the server asks for given back."""
        request = self.request(versions=self.versions, **fields)
        status, raw = await self.contact(request)
        assert status == 200, raw
        answer = decode(encode(raw), SyncAnswer, limit=limits.ANSWER_BYTES)
        self.sync_token = answer.sync_token
        self.known_inventory = None if answer.want_inventory else request.inventory_sha256
        verdict = await asyncio.to_thread(self._judge, answer, request.nonce, asyncio.get_running_loop())
        self.versions = dict(verdict.versions)
        self.verdicts.append(verdict)
        if answer.want_metadata and self.gives_back:
            await self.give_back(answer.want_metadata)
        return answer, verdict

    async def give_back(self, wanted: tuple[str, ...]) -> tuple[int, bytes]:
        files = await asyncio.to_thread(SignedFiles(self.folder).find, wanted)
        self.given.append(tuple(f"{file.repository}/{file.name}" for file in files))
        status, body, _ = await self.ask("POST", "/v1/metadata", encode(GivenBack(files=files)))
        return status, body

    def _judge(self, answer: SyncAnswer, nonce: str, loop: asyncio.AbstractEventLoop) -> Verdict:
        moment = Moment(boot_id="b" * 32, boot_ms=BOOT_MS, wall_ms=self.house.now_ms)
        return Judge(
            device=self.name,
            product="pest-detector",
            image=ImageStore(self.folder / "image", self._roots["image"], self._floors, product="pest-detector"),
            director=DirectorStore(self.folder / "director", self._roots["director"], self._floors),
            sources=Sources(image=Files(self, "image", loop), director=Files(self, "director", loop)),
            facts=self._facts,
            here=lambda: moment,
            built_ms=0,
        ).judge(answer, nonce, BOOT_MS / 1000)


class Files:
    """Metadata through the machine's own connection, as a `Source`."""

    def __init__(self, machine: TrustingMachine, kind: str, loop: asyncio.AbstractEventLoop) -> None:
        self._machine, self._kind, self._loop = machine, kind, loop

    def read(self, name: str, limit_bytes: int) -> bytes:
        asking = self._machine.ask("GET", f"/v1/tuf/{self._kind}/{name}")
        status, body, _ = asyncio.run_coroutine_threadsafe(asking, self._loop).result(30)
        if status != 200:
            raise LinkError(f"{name}: {status}", retryable=status >= 500, status=status)
        assert len(body) <= limit_bytes
        return body
