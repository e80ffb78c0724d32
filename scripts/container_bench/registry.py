"""The peer: images in a real registry, pulled by a real engine over the same kind of link, its bytes counted."""

import contextlib
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.cast import CastError, free_ports, wait_for
from scripts.demo_story.proxy import Proxy

SETTINGS = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@dataclass(frozen=True)
class Pulled:
    """What a pull took: bytes on the wire, both ways, and seconds until the image is there to run."""

    wire_bytes: int
    seconds: float


@contextmanager
def registry(folder: Path) -> Iterator[int]:
    """A registry (Debian's `docker-registry`) on a port of its own, for as long as the context lasts."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "config.yml"
    settings.write_text(SETTINGS.format(folder=folder / "data", port=port))
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
        try:
            wait_for("the registry to answer", lambda: _answers(child, port, folder / "log"), 20, 0.1)
            yield port
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


def _answers(child: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    if child.poll() is not None:
        raise CastError(f"the registry ended: {log.read_text(errors='replace')[-500:]}")
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=2) as answer,
    ):
        return bool(answer.status == 200)
    return False
