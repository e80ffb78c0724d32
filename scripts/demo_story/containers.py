"""The demo's chapter on containers: a release of a model and an application, changed together over a bad link.

One machine has a container engine of its own. What `docker pull` would have moved for the same image is measured in
the same run, between a real registry and a second engine.
"""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.cast import SCRIPTS, CastError
from scripts.container_bench.registry import pull, push, registry
from scripts.demo_apps.images import Image, write_layout
from scripts.demo_apps.runtimes import NoRuntimeError, python
from scripts.demo_apps.sprayer_images import describe

CANNOT = 77


@dataclass(frozen=True)
class ContainerRelease:
    """A release of the chapter.

    Args:
        model: The demo's release whose model it carries.
        sprayer: The version of its application.
    """

    version: str
    model: str
    sprayer: str


FIRST = ContainerRelease("1.5.0", "1.1.0", "1.0.0")
BETTER = ContainerRelease("1.6.0", "1.0.0", "1.1.0")
BROKEN = ContainerRelease("1.7.0", "1.1.0", "1.2.0")


class Engine:
    """A private container engine in a folder, by `scripts/engine`.

    Args:
        folder: Its own; the path is short, as that of a socket must be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"

    def start(self) -> str:
        """Starts it. Returns why none can run here, or nothing."""
        done = self._run("start")
        if done.returncode not in (0, CANNOT):
            raise CastError(f"the container engine does not start: {done.stderr.strip()[-500:]}")
        return done.stderr.strip().removeprefix("engine: ") if done.returncode else ""

    def remove(self) -> None:
        self._run("remove")

    def running(self) -> list[str]:
        """Images of what runs, as the engine itself says."""
        done = subprocess.run(
            ["docker", "--host", f"unix://{self.socket}", "ps", "--no-trunc", "--quiet"],
            capture_output=True,
            text=True,
            check=True,
        )
        ids = done.stdout.split()
        if not ids:
            return []
        asked = ["docker", "--host", f"unix://{self.socket}", "inspect", "--format", "{{.Image}}", *ids]
        found = subprocess.run(asked, capture_output=True, text=True, check=True)
        return [line.removeprefix("sha256:") for line in found.stdout.split()]

    def _run(self, what: str) -> subprocess.CompletedProcess[str]:
        command = [str(SCRIPTS / "engine"), what, str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def why_no_containers() -> str:
    """What is missing for this chapter on this computer; empty when nothing is. Installs nothing."""
    missing = [name for name in ("dockerd", "docker", "docker-registry", "skopeo") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    try:
        python()
    except (NoRuntimeError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


def write_description(release: ContainerRelease, image: Image, folder: Path) -> Path:
    """A description of the release, with all that it names beside it."""
    counter = 10 + int(release.version.split(".")[1])
    return describe(folder, release.version, counter, model=release.model, image=image)


def pulled_bytes(root: Path, before: Image, after: Image, say: Callable[[str], None]) -> int:
    """What `docker pull` moves for the image `after` on an engine that has `before`, from a real registry."""
    peer = Engine(root / "peer")
    try:
        why = peer.start()
        if why:
            raise CastError(f"the second engine does not start: {why}")
        docker = ["docker", "--host", f"unix://{peer.socket}"]
        with registry(root / "registry") as port:
            for name, image in (("before", before), ("after", after)):
                layout = root / f"layout-{name}"
                write_layout(image, layout, name)
                push(layout, name, port)
                shutil.rmtree(layout)
                took = pull(docker, port, f"app:{name}", None)
                say(f"docker pull, {name}: {took.wire_bytes:,} bytes on the wire")
        return took.wire_bytes
    finally:
        peer.remove()


def sees(status: dict[str, Any]) -> dict[str, Any]:
    """The sprayer, as the machine shows it; nothing before it runs."""
    found: dict[str, Any] = ((status.get("engine") or {}).get("containers") or {}).get("sprayer") or {}
    return found
