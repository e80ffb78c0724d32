"""The peer: images in a real registry, pulled by a real engine over the same kind of link, its bytes counted."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.cast import CastError, wait_for
from scripts.demo_story.proxy import Proxy

SETTINGS = """\
version: 0.1
log: {{level: info, formatter: text, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "{address}:0"{tls}}}
{auth}
"""


@dataclass(frozen=True)
class Pulled:
    """What a pull took: bytes on the wire, both ways, and seconds until the image is there to run."""

    wire_bytes: int
    seconds: float


@contextmanager
def registry(
    folder: Path, *, address: str = "127.0.0.1", users: Path | None = None, tls: tuple[Path, Path] | None = None
) -> Iterator[int]:
    """A registry (Debian's `docker-registry`) on a port of its own, for as long as the context lasts.

    Args:
        folder: Made; holds all of it.
        address: Of this computer.
        users: An htpasswd file: it asks for name and password.
        tls: Certificate and key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    auth = f"auth: {{htpasswd: {{realm: here, path: {users}}}}}" if users is not None else ""
    secured = f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}" if tls is not None else ""
    settings = folder / "config.yml"
    settings.write_text(SETTINGS.format(folder=folder, address=address, auth=auth, tls=secured))
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            ["docker-registry", "serve", str(settings)],
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        )
        try:
            yield wait_for("the registry to listen", lambda: _port(child, folder / "log"), 20, 0.1)
        finally:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=10)
            child.kill()
            child.wait()


def push(layout: Path, name: str, port: int) -> None:
    """Puts an OCI layout's image into the registry as `app:NAME`, its layers compressed by gzip."""
    to = f"docker://127.0.0.1:{port}/app:{name}"
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:{name}", to]
    subprocess.run(command, check=True, capture_output=True)


def pull(docker: list[str], registry_port: int, image: str, rate_bytes_s: float | None) -> Pulled:
    """Pulls `NAME:TAG` by `docker pull` through a link that counts, and caps what comes."""
    proxy = Proxy(registry_port)
    try:
        link = proxy.link("pull")
        link.cap(rate_bytes_s)
        began = time.monotonic()
        subprocess.run([*docker, "pull", "--quiet", f"127.0.0.1:{link.port}/{image}"], check=True, capture_output=True)
        return Pulled(link.counts.to_machine + link.counts.to_server, time.monotonic() - began)
    finally:
        proxy.close()


def _port(child: "subprocess.Popen[bytes]", log: Path) -> int:
    """What it listens on, as it says once it does; 0 before."""
    said = log.read_text(errors="replace")
    if child.poll() is not None:
        raise CastError(f"the registry ended: {said[-500:]}")
    found = re.search(r"listening on [0-9.]+:(\d+)", said)
    return int(found[1]) if found is not None else 0
