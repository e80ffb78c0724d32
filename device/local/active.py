"""What serves, for programs on the machine: told by whoever flips `sets/active`, once it is flipped."""

import asyncio

from device.update.ports import ReleaseSet
from protocol.ids import Digest
from protocol.wire import Message


class ShownFile(Message):
    """A file of what serves. `path` is below the folder of the sets, and goes on naming this very file."""

    name: str
    sha256: Digest
    path: str


class Active(Message, omit_defaults=False):
    """What serves.

    Args:
        manifest: sha256 of the release's manifest, which lies at `folder`/manifest.json; None: nothing serves.
        release: Its version.
        folder: Of the release, below the folder of the sets.
        models: The file that is loaded for each model.
        configs: Files of the release.
    """

    manifest: Digest | None = None
    release: str = ""
    folder: str = ""
    models: tuple[ShownFile, ...] = ()
    configs: tuple[ShownFile, ...] = ()


class Board:
    """What serves now, and a way to wait for what comes next. Made in its event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._active: Active | None = None

    @property
    def active(self) -> Active | None:
        """What serves; None until it was told for the first time."""
        return self._active

    def show(self, release: ReleaseSet | None) -> None:
        """Says that `sets/active` names the release, or none. Called in any thread."""
        self._loop.call_soon_threadsafe(self._show, _active(release))

    async def other_than(self, manifest: Digest | None, wait_s: float) -> Active | None:
        """What serves, as soon as that is known and something else than `manifest`, and at the latest after `wait_s`
        seconds; None: it is not known yet."""
        try:
            async with asyncio.timeout(wait_s):
                while self._active is None or self._active.manifest == manifest:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self._active

    def _show(self, active: Active) -> None:
        if active != self._active:
            self._active = active
            self._changed.set()
            self._changed = asyncio.Event()


def _active(release: ReleaseSet | None) -> Active:
    if release is None:
        return Active()

    def shown(kind: str, name: str, sha256: Digest) -> ShownFile:
        return ShownFile(name=name, sha256=sha256, path=f"{release.digest}/{kind}/{name}")

    return Active(
        manifest=release.digest,
        release=release.manifest.version,
        folder=release.digest,
        models=tuple(shown("models", name, one.artifact.sha256) for name, one in release.variants.items()),
        configs=tuple(shown("config", one.name, one.artifact.sha256) for one in release.manifest.configs),
    )
