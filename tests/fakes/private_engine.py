"""A container engine of a test's own, by `scripts/engine`: real, in a folder, and easily killed."""

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "engine"
CANNOT = 77

Kind = Literal["docker", "podman"]


@dataclass
class PrivateEngine:
    """One engine; `start` before use. Its folder has a short path: a socket's may have 108 bytes.

    Args:
        kind: Which program.
        size_mib: What it holds lies in memory and may take this much.
        live_restore: Whether containers outlive a Docker engine. Podman's always do.
        network: Whether it has a network of its own, with a bridge; Docker only.
    """

    kind: Kind = "docker"
    size_mib: int | None = None
    live_restore: bool = False
    network: bool = False
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="headland-engine-")))
    _has_run: bool = False

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.kind}.sock"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def pid(self) -> int:
        return int((self.folder / "pid").read_text())

    def start(self) -> None:
        """Starts it, or starts it again after a kill. Skips the test where none can run; under CI that is a failure."""
        options = [
            *("--until", str(os.getpid())),
            *(["--podman"] if self.kind == "podman" else []),
            *(["--size-mib", str(self.size_mib)] if self.size_mib else []),
            *(["--live-restore"] if self.live_restore else []),
            *(["--network"] if self.network else []),
        ]
        done = self._script("start", options)
        if done.returncode == CANNOT:
            message = f"no {self.kind} here: {done.stderr.strip()}"
            if os.environ.get("CI") == "true" or self._has_run:
                pytest.fail(message)
            pytest.skip(message)
        assert done.returncode == 0, done.stderr
        self._has_run = True

    def kill(self) -> None:
        """SIGKILL, as when the machine's memory ran out. What it ran may live on for a moment."""
        os.kill(self.pid, signal.SIGKILL)

    def freeze(self) -> None:
        """It neither answers nor ends, until `thaw`; on return its every thread has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not self._all_stopped():
            assert time.monotonic() < deadline, "the engine did not stop"
            time.sleep(0.001)

    def _all_stopped(self) -> bool:
        # The signal is sent at once, but each thread stops at its own next turn: one may still answer until then.
        threads = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """An orderly end; what it holds stays for the next start."""
        assert self._script("stop").returncode == 0

    def remove(self) -> None:
        """The end of it and of all that it left: processes, mounts, files."""
        self._script("remove")

    def _script(self, what: str, options: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        words = [str(SCRIPT), what, str(self.folder), *(options or [])]
        return subprocess.run(words, capture_output=True, text=True, timeout=110, check=False)
