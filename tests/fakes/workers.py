"""Workers and canary without processes: they do what the test says, under the contract of `device.update.ports`."""

import asyncio
from collections.abc import Iterable

from device.update.ports import Health, ReleaseSet
from protocol.errors import Reason, Refused
from protocol.ids import Digest


class FakeWorkers:
    """Serves whatever it is told to, and shows the health that the test set for a digest.

    Args:
        dead: Digests that never come up.
    """

    def __init__(self, dead: Iterable[Digest] = ()) -> None:
        self.dead = set(dead)
        self.serving: Digest | None = None
        self.history: list[Digest | None] = []
        self.shown: dict[Digest, Health] = {}
        self.files: dict[Digest, bytes] = {}

    async def converge(self, release: ReleaseSet | None, *, trial: bool = False) -> None:
        await asyncio.sleep(0)
        wanted = release.digest if release is not None else None
        if release is not None:
            if release.digest in self.dead:
                raise Refused(Reason.MODEL_LOAD, f"release {release.manifest.version} does not load")
            self.files = await asyncio.to_thread(_read, release)
        if wanted != self.serving:
            self.history.append(wanted)
        self.serving = wanted

    def health(self) -> Health:
        if self.serving is None:
            return Health(digest=None, serving=False)
        return self.shown.get(self.serving, Health(digest=self.serving, serving=True, inferences=100))


class FakeCanary:
    """Refuses what the test names, and can be held up.

    Args:
        refuses: Reasons by the digest of the release.
    """

    def __init__(self, refuses: dict[Digest, Reason] | None = None) -> None:
        self.refuses = refuses or {}
        self.checked: list[Digest] = []
        self.gate: asyncio.Event | None = None

    async def check(self, release: ReleaseSet) -> None:
        self.checked.append(release.digest)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if release.digest in self.refuses:
            raise Refused(self.refuses[release.digest], f"release {release.manifest.version} fails its golden inputs")


def _read(release: ReleaseSet) -> dict[Digest, bytes]:
    found = {digest: path.read_bytes() for digest, path in release.files.items()}
    return {variant.artifact.sha256: found[variant.artifact.sha256] for variant in release.variants.values()}
