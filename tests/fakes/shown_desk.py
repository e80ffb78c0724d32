"""A desk that shows what a test puts on it, behind the real door of the machine's page, on a port."""

import asyncio
import socket
from pathlib import Path

import msgspec

from device.cancelling import cancel
from device.desk.page_socket import PageSocket
from device.desk.pairing import PageSettings, Pairing
from device.desk.port import Desk
from device.inference.workers import ModelStatus
from device.kits.exporting import ExportsShown
from device.kits.forcing import Challenge, Forced
from device.kits.shown import KitShown, KitsShown
from device.status import (
    AirStatus,
    AlarmLatency,
    ContactStatus,
    DeviceStatus,
    LaneStatus,
    RunningRelease,
    TimeStatus,
    UpdateNow,
)
from protocol.errors import HeadlandError
from protocol.ids import Name
from protocol.kits import ForceRequest, KitId
from protocol.messages import SignedForce
from protocol.wire import decode, encode
from tests.fakes.browser import Loop

NOW_MS = 1_790_000_000_000
HOUR_MS = 3_600_000
MANIFEST = "ab" * 32

STATUS = DeviceStatus(
    device="tractor-1",
    product="pest-detector",
    running=True,
    pid=1,
    agent="1.0.0",
    release=RunningRelease(version="1.1.0", manifest=MANIFEST, release_counter=2),
    trial=None,
    previous=None,
    models={"pests": ModelStatus(model_digest=MANIFEST, variant="cpu", accelerator="cpu")},
    serving=True,
    engine=None,
    data_folders=(),
    swap=None,
    update=UpdateNow(),
    last_update=None,
    refusals=(),
    lanes={
        "alarms": LaneStatus(produced=12, queued=2, receipted=10, lost=0),
        "results": LaneStatus(produced=40_312, queued=1_250, receipted=39_062, lost=0),
    },
    frames_inferred=0,
    frames_dropped=0,
    frames_waiting=0,
    frames_unreadable=0,
    inference_errors=0,
    results_produced=0,
    results_given_up=0,
    alarms_fired=0,
    alarm_failures=0,
    alarm_latency_ms=AlarmLatency(),
    bytes_received=0,
    delta_bytes=0,
    full_bytes=0,
    saved_bytes=0,
    air=AirStatus(link="cellular", day_bytes=0, own_day_bytes=None, own_release_bytes=None),
    contact=ContactStatus(server="https://server", last_ms=NOW_MS - 5 * HOUR_MS),
    time=TimeStatus(ms=NOW_MS, sure=True),
    certificate=None,
    kits=KitsShown(),
    alerts=(),
    pending_statuses=0,
    trouble=(),
)


class ShownDesk:
    """What a test sets is shown: `status`, `kits`, the next `error`, and `words`, which an export ends with.

    Args:
        folder: For the pairing code.
    """

    def __init__(self, folder: Path) -> None:
        self.code_file = folder / "page.json"
        self.status = STATUS
        self.kits: dict[str, KitShown] = {}
        self.troubles: tuple[str, ...] = ()
        self.results = ""
        self.error: HeadlandError | None = None
        self.words = "all that waited lies on the stick"
        self.names: dict[str, Name] = {}
        self.asked: list[str] = []
        self.forced: list[tuple[SignedForce, ForceRequest]] = []
        self.now_s = 1000.0
        self.slow_s = 0.0

    def set(self, **changes: object) -> None:
        """Changes the status."""
        self.status = msgspec.structs.replace(self.status, **changes)

    def show(self, **kit: object) -> None:
        """Shows a kit, or shows it anew."""
        shown = msgspec.convert({"sticks": ["/media/stick"], "state": "offered", "sentence": "it fits"} | kit, KitShown)
        self.kits[shown.kit] = shown

    def desk(self) -> Desk:
        return Desk(
            status=self._status,
            shown=self._shown,
            look=self._look,
            apply=self._apply,
            challenge=self._challenge,
            force=self._force,
            export=self._export,
        )

    def _shown(self) -> KitsShown:
        return KitsShown(kits=tuple(self.kits.values()), troubles=self.troubles, results=self.results)

    async def _status(self) -> bytes:
        return encode(self.status)

    async def _note(self, what: str) -> None:
        self.asked.append(what)
        await asyncio.sleep(self.slow_s)
        if self.error is not None:
            raise self.error

    async def _look(self, path: Path | None) -> KitsShown:
        await self._note("look")
        return self._shown()

    async def _apply(self, kit: KitId) -> KitShown:
        await self._note(f"apply {kit}")
        return self.kits[kit]

    async def _challenge(self, offer: Name) -> Challenge:
        await self._note(f"challenge {offer}")
        return Challenge(
            id="0" * 32,
            at_ms=NOW_MS,
            device=self.status.device,
            product=self.status.product,
            release="1.2.0",
            manifest=MANIFEST,
            offer=offer,
        )

    async def _force(self, signed: SignedForce) -> Forced:
        request = decode(signed.request, ForceRequest, limit=20_000)
        self.forced.append((signed, request))
        return Forced(offer=request.offer, release=request.release, technician=request.technician)

    async def _export(self, path: Path | None) -> ExportsShown:
        await self._note("export")
        self.results = self.words
        return ExportsShown(sentence=self.words)


class ServedDesk(ShownDesk):
    """The same on a port of this machine, served by a thread until `close`; `go_away` and `come_back` in between."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.settings = PageSettings(listen=f"127.0.0.1:{free.getsockname()[1]}")
        self.url = self.settings.url()
        self._loop = Loop()
        self._task: asyncio.Task[None] | None = None
        self.come_back()

    def come_back(self) -> None:
        async def start() -> None:
            pairing = Pairing(self.code_file, lambda: self.now_s)
            page = PageSocket(self.settings, pairing, self.desk(), self._names)
            self._task = asyncio.create_task(page.run())
            await asyncio.sleep(0.05)
            assert not page.trouble

        self._loop.run(start)

    def go_away(self) -> None:
        async def end() -> None:
            if self._task is not None:
                await cancel(self._task)
            self._task = None

        self._loop.run(end)

    def close(self) -> None:
        self.go_away()
        self._loop.close()

    async def _names(self) -> dict[str, Name]:
        return self.names
