"""What outside readers see: `sets/active`, a link to the folder of the release that serves.

`sets/DIGEST/` holds `manifest.json`, `models/MODEL` and `config/NAME` as second names of the store's files, so that
they take no space. A set appears by one rename and is complete then. The link lies in the folder of the sets and is
flipped there in one step: a container that has this folder mounted sees it flip. `active` in the state folder is a
link to it that never changes. Both only follow the update record: they decide nothing.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from device.layout import Layout
from device.update.ports import ReleaseSet
from protocol.ids import Digest, is_digest
from signing.durable import DISK, TEMPORARY_PREFIX, Disk

READABLE: Final = 0o755  # readers may be other users; the state folder above, or a mount, says who gets this far
SHORTCUT: Final = "sets/active"
NO_LINKS: Final = frozenset({errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP})


class Sets:
    """The folder `sets` and the links `active` of a state folder. Blocking; every call may be repeated.

    Args:
        state: The state folder.
        disk: Through which every effect goes.
        tell: Called, in the caller's thread, with what `active` names once it does.
    """

    def __init__(
        self, state: Path, *, disk: Disk = DISK, tell: Callable[[ReleaseSet | None], None] = lambda _: None
    ) -> None:
        layout = Layout(state)
        self._disk = disk
        self._tell = tell
        self._link = layout.active
        self._shortcut = layout.shortcut
        self._sets = layout.sets
        disk.make_dir(self._sets, READABLE)
        with contextlib.suppress(OSError):  # a disk that takes no writes now still has what is to serve
            for leftover in self._sets.glob(f"{TEMPORARY_PREFIX}*"):
                if leftover.is_symlink():  # to a set, which a walk into it would empty
                    disk.unlink(leftover)
                else:
                    disk.remove_tree(leftover)

    def show(self, release: ReleaseSet, manifest: Path) -> None:
        """Makes `active` the release; durable on return.

        Args:
            release: Whole, in the store.
            manifest: Where its manifest lies.
        """
        self._build(release.digest, _layout(release, manifest))
        if _target(self._link) != release.digest:
            self._disk.point(self._link, release.digest)
        if _target(self._shortcut) != SHORTCUT:
            self._disk.point(self._shortcut, SHORTCUT)
        self._tell(release)

    def hide(self) -> None:
        """Removes `sets/active`: nothing serves."""
        self._disk.unlink(self._link)
        self._tell(None)

    def shown(self) -> Digest | None:
        """The release that `active` names."""
        return _target(self._link)

    def collect(self, keep: Collection[Digest]) -> None:
        """Deletes the sets of all other releases."""
        for entry in list(os.scandir(self._sets)):
            if is_digest(entry.name) and entry.name not in keep and entry.name != self.shown():
                self._disk.remove_tree(Path(entry.path))

    def _build(self, name: Digest, layout: dict[str, Path]) -> None:
        folder = self._sets / name
        if _is_built(folder, layout):
            return
        fresh = self._sets / f"{TEMPORARY_PREFIX}{name}"
        self._disk.remove_tree(fresh)
        for place, source in layout.items():
            self._disk.make_dir((fresh / place).parent, READABLE)
            self._name(source, fresh / place)
        if folder.exists():  # a repaired file has another inode: the set is made anew
            old = self._sets / f"{TEMPORARY_PREFIX}old-{name}"
            self._disk.remove_tree(old)
            self._disk.rename(folder, old)
            self._disk.rename(fresh, folder)
            self._disk.remove_tree(old)
        else:
            self._disk.rename(fresh, folder)

    def _name(self, source: Path, place: Path) -> None:
        try:
            self._disk.link(source, place)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            self._disk.copy(source, place)


def _target(link: Path) -> str | None:
    try:
        return str(link.readlink())
    except OSError:
        return None


def _layout(release: ReleaseSet, manifest: Path) -> dict[str, Path]:
    return {
        "manifest.json": manifest,
        **{f"models/{name}": release.files[variant.artifact.sha256] for name, variant in release.variants.items()},
        **{f"config/{config.name}": release.files[config.artifact.sha256] for config in release.manifest.configs},
    }


def _is_built(folder: Path, layout: dict[str, Path]) -> bool:
    try:
        return all(_is_same(folder / place, source) for place, source in layout.items())
    except FileNotFoundError:
        return False


def _is_same(place: Path, source: Path) -> bool:
    """Second names of one file; where the file system has none, copies of one length made after the source."""
    if place.samefile(source):
        return True
    ours, theirs = place.stat(), source.stat()
    return (
        ours.st_nlink == 1
        and theirs.st_nlink == 1
        and ours.st_size == theirs.st_size
        and (ours.st_mtime_ns >= theirs.st_mtime_ns)
    )
