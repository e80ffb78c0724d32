"""What of a folder would be left if the power went now, and the disk had kept nothing but what was synced.

The hardest single outcome of a cut, kept up while real code runs; the crash states look at all the others. Databases
are taken as they lie: SQLite syncs them by itself, out of sight of this process's `os.fsync`.
"""

import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

DATABASE = (".db", ".db-wal", ".db-shm", ".db-journal")


@dataclass
class Node:
    """What the disk has of one inode: a file's bytes, a folder's names, a link's target."""

    mode: int
    content: bytes = b""
    names: dict[str, int] = field(default_factory=dict)


class Unsynced:
    """Follows one folder, which is durable as it stands.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._nodes: dict[int, Node] = {}
        self._lock = threading.Lock()
        for folder, _, files in os.walk(self._root):
            for name in files:
                if not Path(folder, name).is_symlink():  # a link is its name's
                    self._keep(Path(folder, name))
            self._keep(Path(folder))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Every `os.fsync` of this process is seen."""
        fsync = os.fsync

        def see(fd: int) -> None:
            with self._lock:
                fsync(fd)
                self.synced(fd)

        with mock.patch.object(os, "fsync", see):
            yield

    def synced(self, fd: int) -> None:
        """A file or a folder was synced just now."""
        opened = Path(f"/proc/self/fd/{fd}")  # its name may change meanwhile
        if opened.readlink().is_relative_to(self._root):
            self._keep(opened)

    def leave(self, target: Path) -> None:
        """Writes to `target` what is left. Nobody who waits for a sync comes back from it: there is no power."""
        self._lock.acquire()
        try:
            self._build(self._root, self._nodes[self._root.stat().st_ino], target)
        except BaseException:
            self._lock.release()
            raise

    def lose(self) -> None:
        """Takes from the folder itself what is not left. Databases stay where they are: somebody may look at them."""
        for path in sorted(self._root.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):  # a database is in it
                    path.rmdir()
            elif not path.name.endswith(DATABASE):
                path.unlink()
        self._build(self._root, self._nodes[self._root.stat().st_ino], self._root)

    def _keep(self, path: Path) -> None:
        """Notes what was synced just now. What is named in a folder and was itself never synced is there, but empty."""
        found = path.stat()
        node = Node(found.st_mode)
        if stat.S_ISDIR(found.st_mode):
            for child in path.iterdir():
                with contextlib.suppress(FileNotFoundError):  # renamed or removed just now, by another thread
                    named = child.lstat()
                    node.names[child.name] = named.st_ino
                    known = self._nodes.get(named.st_ino)
                    if known is None or stat.S_IFMT(known.mode) != stat.S_IFMT(named.st_mode):
                        target = os.fsencode(child.readlink()) if child.is_symlink() else b""
                        self._nodes[named.st_ino] = Node(named.st_mode, target)
        else:
            node.content = path.read_bytes()
        self._nodes[found.st_ino] = node

    def _build(self, source: Path, node: Node, target: Path) -> None:
        target.mkdir(exist_ok=True)
        if source != target and source.is_dir():
            for path in source.iterdir():
                if path.name.endswith(DATABASE):
                    shutil.copy2(path, target / path.name)
        for name, inode in sorted(node.names.items()):
            if name.endswith(DATABASE):
                continue
            child = self._nodes[inode]
            if stat.S_ISDIR(child.mode):
                self._build(source / name, child, target / name)
            elif stat.S_ISLNK(child.mode):
                (target / name).symlink_to(os.fsdecode(child.content))
            else:
                (target / name).write_bytes(child.content)
                (target / name).chmod(stat.S_IMODE(child.mode))
        target.chmod(stat.S_IMODE(node.mode))
