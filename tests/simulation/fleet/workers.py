"""What infers on a machine of a play, without processes: it does what the release says that it does."""

import asyncio
import hashlib
from typing import Any

from device.inference.replies import FrameReply, ModelReply
from device.update.ports import Health, ReleaseSet
from protocol.errors import Reason, Refused
from tests.simulation.fleet.machine import current
from tests.simulation.fleet.releases import kind_of


class Workers:
    """`device.update.ports.Workers`."""

    def __init__(self, **_: Any) -> None:
        self._machine = current()
        self._machine.workers = self
        self._release: ReleaseSet | None = None
        self._kind = ""
        self._since_s = 0.0
        self._inferred_s = 0.0
        self.by: str | None = None
        """The version that answers now."""

    @property
    def digest(self) -> str | None:
        """The manifest that serves."""
        return self._release.digest if self._release is not None else None

    async def close(self) -> None:
        self.by = None

    async def converge(self, release: ReleaseSet | None, *, before_switch: Any = None) -> None:
        await asyncio.sleep(0.2)
        if release is None:
            self._release, self.by = None, None
            return
        if self._release is not None and self._release.digest == release.digest:
            return
        kind = await asyncio.to_thread(read_kind, release)
        if kind == "hang":
            await asyncio.sleep(60)
            raise Refused(Reason.MODEL_LOAD, "it did not come up within 60 s")
        if kind == "trial-golden":
            raise Refused(Reason.TRIAL_GOLDEN, "a golden input does not hold in the worker")
        if before_switch is not None:
            await before_switch()
        machine = self._machine
        self._release, self._kind, self._since_s = release, kind, machine.world.loop.time()
        self.by = release.manifest.version
        machine.checker.serves(machine, release)
        if kind == "kills-trial":
            machine.world.loop.call_later(machine.random() * 35, self._kill)

    def _kill(self) -> None:
        plug = self._machine.plug
        if plug is not None and self._machine.workers is self and self._kind == "kills-trial":
            self._machine.checker.killed(self._machine)
            plug.cut(f"{self.by} took the machine down")

    async def infer(self, _: Any) -> FrameReply:
        release = self._release
        assert release is not None
        now_s, last_s = self._machine.world.loop.time(), max(self._since_s, self._inferred_s)
        await asyncio.sleep(0.01)
        # As one frame all that came in the seconds since the last one: a play has no time for each.
        count = min(int(now_s - last_s), 60)
        self._inferred_s = now_s if count else self._inferred_s
        return FrameReply(release.digest, tuple(self._reply(release, number) for number in range(count)))

    def _reply(self, release: ReleaseSet, number: int) -> ModelReply:
        fails = self._kind == "errors" and number % 4 == 0
        (model,) = release.manifest.models
        return ModelReply(model, model.variants[0].artifact.sha256, "cpu", "error" if fails else "finding")

    def health(self) -> Health:
        if self._release is None:
            return Health(digest=None, serving=False)
        served_s = self._machine.world.loop.time() - self._since_s
        # Soon, so that a machine that is cut again and again does not add up healthy seconds before it is seen.
        crashed = self._kind == "crash" and served_s > 7
        return Health(
            digest=self._release.digest,
            serving=not crashed,
            crashes=("SIGSEGV",) if crashed else (),
            latency_ms={"pests": 5000.0 if self._kind == "slow" else 5.0},
        )


class Canary:
    """`device.update.ports.Canary`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._machine = current()

    async def check(self, release: ReleaseSet) -> None:
        kind = await asyncio.to_thread(read_kind, release)
        await asyncio.sleep(5)
        if kind == "kills-check":
            plug = self._machine.plug
            if plug is not None:
                self._machine.checker.killed(self._machine)
                plug.cut(f"{release.manifest.version} took the machine down while it was tried")
            await asyncio.Event().wait()
        if kind == "golden":
            raise Refused(Reason.GOLDEN, "its golden inputs do not hold")


def read_kind(release: ReleaseSet) -> str:
    """Reads all files of a release as a worker would; they must be what the manifest says."""
    kinds = []
    for name, path in release.files.items():
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != name:
            raise Refused(Reason.HASH, f"{name[:12]} is not what it was")
    for variant in release.variants.values():
        kinds.append(kind_of(release.files[variant.artifact.sha256].read_bytes()))
    (kind,) = kinds
    return kind
