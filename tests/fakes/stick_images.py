"""Sticks with real file systems: images of FAT32 and exFAT, mounted through FUSE, and pulled like a plug."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

FileSystem = Literal["fat32", "exfat"]
FILE_SYSTEMS: tuple[FileSystem, ...] = ("fat32", "exfat")
PROGRAMS = {"fat32": ("mkfs.vfat", "fusefat"), "exfat": ("mkfs.exfat", "mount.exfat-fuse", "losetup")}
WAIT_S = 20.0


def need(kind: FileSystem) -> None:
    """Skips a test where such a stick cannot be mounted; under CI=true it fails."""
    missing = [name for name in PROGRAMS[kind] if _which(name) is None]
    why = f"{', '.join(missing)} not installed (scripts/test-setup)" if missing else ""
    if not Path("/dev/fuse").exists() or os.geteuid():
        why = "no /dev/fuse here, or not root"
    if why and os.environ.get("CI") == "true":
        pytest.fail(why)
    if why:
        pytest.skip(why)


class StickImage:
    """One stick. Its content stays in the image file between mounts.

    Args:
        path: Of the image; made when absent.
        kind: Its file system.
        size_mib: FAT32 needs 34 at least.
    """

    def __init__(self, path: Path, kind: FileSystem, size_mib: int = 64) -> None:
        self.path = path
        self.kind = kind
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._loop = ""
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(size_mib << 20)
            _run(*(("mkfs.vfat", "-F", "32") if kind == "fat32" else ("mkfs.exfat",)), path)

    def plug(self, folder: Path, *, read_only: bool = False) -> Path:
        """Mounts it, as a desktop does: nosuid, nodev, and noexec where the driver knows it."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.kind == "fat32":
            command = [_which("fusefat"), "-f", "-o", "ro" if read_only else "rw+", self.path, folder]
        else:
            self._loop = _run("losetup", *(("-r",) if read_only else ()), "-f", "--show", self.path).strip()
            options = f"{'ro,' if read_only else ''}nosuid,nodev,noexec"
            command = [_which("mount.exfat-fuse"), "-d", "-o", options, self._loop, folder]
        self._folder = folder
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends_s = time.monotonic() + WAIT_S
        while not is_mounted(folder):
            if self._process.poll() is not None or time.monotonic() > ends_s:
                self._detach()
                raise OSError(f"{self.path} could not be mounted on {folder}")
            time.sleep(0.01)
        return folder

    def unplug(self) -> None:
        """As a careful person does: everything is written first."""
        if self._folder is not None and is_mounted(self._folder):
            _run("umount", self._folder)
            assert self._process is not None
            self._process.wait(WAIT_S)
        self._detach()

    def pull(self) -> None:
        """As in a hurry: whoever reads or writes at that moment gets an error, and the folder is empty afterwards."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(WAIT_S)
        self._detach()

    @contextlib.contextmanager
    def plugged(self, folder: Path, *, read_only: bool = False) -> Iterator[Path]:
        """Mounted for as long as the context lasts."""
        try:
            yield self.plug(folder, read_only=read_only)
        finally:
            self.unplug()

    def _detach(self) -> None:
        if self._folder is not None and is_mounted(self._folder):
            _run("umount", "-l", self._folder)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(WAIT_S)
        if self._loop:
            # Busy until the kernel let go of the mount.
            for _ in range(100):
                if subprocess.run(["losetup", "-d", self._loop], capture_output=True, check=False).returncode == 0:
                    break
                time.sleep(0.05)
        self._process, self._folder, self._loop = None, None, ""


def is_mounted(folder: Path) -> bool:
    """Whether something is mounted there, also when it does not answer any more."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(folder) for line in lines)


def _which(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _run(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [_which(program) or program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"{program}: {done.stderr.strip()[-500:]}")
    return done.stdout
