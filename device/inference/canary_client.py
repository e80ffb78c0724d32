"""The update machine's canary: a throw-away process, watched from outside."""

import asyncio
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from device.inference.canary_request import CanaryAnswer, CanaryRequest, cpu_limit_s, wall_limit_s
from device.inference.endings import ending_of, once_more_if_killed, verdict_of
from device.inference.spawning import end_process, start_process, worker_environment
from device.update.ports import ReleaseSet
from protocol import limits
from protocol.errors import Reason, Refused
from protocol.wire import decode, encode

_ANSWER_BYTES: Final = limits.MIB
_TAIL_BYTES: Final = 400


class SubprocessCanary:
    """Implements `device.update.ports.Canary` with `python -m device.inference.canary`.

    Args:
        scratch: A folder for requests; what is left in it after a cut means nothing.
        threads: Of one inference on the CPU.
        environ: Of the agent.
        wall_limit_s: Instead of the limit that follows from the bounds.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        threads: int = 1,
        environ: Mapping[str, str] | None = None,
        wall_limit_s: float | None = None,
    ) -> None:
        self._scratch = scratch
        self._threads = threads
        self._environ = worker_environment(os.environ if environ is None else environ)
        self._wall_limit_s = wall_limit_s

    async def check(self, release: ReleaseSet) -> None:
        """As in the port."""
        await self.try_release(release)

    async def try_release(self, release: ReleaseSet) -> CanaryAnswer:
        """As `check`, and tells what was measured.

        Raises:
            Refused: As in the port.
        """
        if not release.variants:
            return CanaryAnswer(ok=True)
        wall_s = self._wall_limit_s or wall_limit_s(list(release.variants.values()))
        folder = await asyncio.to_thread(self._write_request, release, wall_s)
        try:
            answer = await once_more_if_killed(lambda: self._run(folder / "request.json", wall_s), asyncio.sleep)
        finally:
            await asyncio.to_thread(_remove, folder)
        if not answer.ok:
            raise Refused(answer.reason or Reason.MODEL_LOAD, answer.message)
        return answer

    def _write_request(self, release: ReleaseSet, wall_s: float) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="canary-", dir=self._scratch))
        # The manifest is written again from the record: the canary reads the fields, the identity was checked before.
        (folder / "manifest.json").write_bytes(encode(release.manifest))
        request = CanaryRequest(
            manifest=str(folder / "manifest.json"),
            files={digest: str(path) for digest, path in release.files.items()},
            variants={model: variant.name for model, variant in release.variants.items()},
            threads=self._threads,
            cpu_s=cpu_limit_s(wall_s, self._threads, os.cpu_count() or 1),
            parent_pid=os.getpid(),
        )
        (folder / "request.json").write_bytes(encode(request))
        return folder

    async def _run(self, request: Path, wall_s: float) -> CanaryAnswer:
        process = await start_process(
            "device.inference.canary", str(request), environ=self._environ, stdout=asyncio.subprocess.PIPE
        )
        try:
            out, complaints = await asyncio.wait_for(process.communicate(), wall_s)
        except TimeoutError:
            raise Refused(Reason.BOUNDS, f"the release was not tried within {wall_s:.0f} s: it hangs") from None
        finally:
            await end_process(process)
        assert process.returncode is not None
        if process.returncode != 0:
            tail = complaints[-_TAIL_BYTES:].decode(errors="replace").strip()
            ending = ending_of(process.returncode)
            raise verdict_of(process.returncode, f"the model ended its process: {ending}; {tail}")
        return _parse(out)


def _parse(out: bytes) -> CanaryAnswer:
    """The last line: a native runtime may have printed something of its own before."""
    lines = out.strip().splitlines()
    if not lines:
        raise Refused(Reason.MODEL_CRASH, "the model's process ended without a word")
    try:
        return decode(lines[-1], CanaryAnswer, limit=_ANSWER_BYTES, reason=Reason.MODEL_CRASH)
    except (Refused, msgspec.MsgspecError) as error:
        raise Refused(Reason.MODEL_CRASH, f"the model's process said something else: {error}") from error


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
    folder.rmdir()
