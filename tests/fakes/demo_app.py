"""An application of the demo as an ordinary process, on the sets and the socket of a machine."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from scripts.cast import free_ports, wait_for

SPRAYER = Path(__file__).parents[2] / "scripts" / "demo_apps" / "sprayer" / "sprayer.py"


class DemoApp:
    """The sprayer.

    Args:
        state: Of the machine.
        home: For its data and its log.
        program: It, or a changed copy.
    """

    def __init__(self, state: Path, home: Path, program: Path = SPRAYER) -> None:
        home.mkdir(exist_ok=True)
        self._link = state / "run" / "link"
        (self.port,) = free_ports(1)
        self._env = os.environ | {
            "HEADLAND_RELEASE": str(state / "sets"),
            "HEADLAND_LINK": ".",  # the path of a socket has 107 bytes: in a container that is no matter
            "SPRAYER_DATA": str(home),
            "SPRAYER_PORT": str(self.port),
        }
        self._command = [sys.executable, "-I", "-S", str(program)]
        self.log = home / "log"
        self.starts = 0
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self._command, cwd=self._link, env=self._env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.starts += 1
        up = "health on port"
        wait_for(f"the sprayer to start: {self.log}", lambda: self.said().count(up) == self.starts, pause_s=0.05)

    def stop(self) -> int:
        assert self.child is not None
        child, self.child = self.child, None
        child.send_signal(signal.SIGTERM)
        try:
            return child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(timeout=5)
            raise

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def sees(self) -> list[str]:
        """The models that it said it sees, in their order."""
        return [line.split()[1] for line in self.said().splitlines() if line.startswith("headland-sees ")]

    def health(self) -> dict[str, Any]:
        """What its health page says."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as answer:
                said: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            said = json.load(error)
        return said

    def check(self) -> int:
        """Runs its health check."""
        done = subprocess.run([*self._command, "check"], env=self._env, capture_output=True, timeout=20, check=False)
        return done.returncode
