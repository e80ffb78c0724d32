"""A real registry, Debian's `docker-registry`, in a folder of the test's own, and skopeo to fill it."""

import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

USER: Final = "alice"
PASSWORD: Final = "correct horse"
_HASHED: Final = "$2b$04$9h9OU8uPO3b4RZHCr5X3G.2cOa2fCYbzxxvfZcoW99y9ywAasKPlG"  # bcrypt of that
STARTS_S: Final = 20.0

CONFIG: Final = """
version: 0.1
log: {{level: info, formatter: text}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}
http: {{addr: "{address}:0"{tls}}}
{auth}
"""


def need(*programs: str) -> None:
    """Skips the test where a program is missing; under CI that is a failure."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        message = f"not installed: apt-get install {' '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@contextmanager
def debian_registry(
    folder: Path, *, address: str = "127.0.0.1", login: bool = False, tls: tuple[Path, Path] | None = None
) -> Iterator[str]:
    """Runs one; yields HOST:PORT.

    Args:
        folder: Made; holds all of it.
        address: Of this computer.
        login: It asks for name and password.
        tls: Certificate and key.
    """
    need("docker-registry")
    folder.mkdir()
    (folder / "users").write_text(f"{USER}:{_HASHED}\n")
    auth = f"auth: {{htpasswd: {{realm: here, path: {folder}/users}}}}" if login else ""
    secured = f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}" if tls is not None else ""
    (folder / "config.yml").write_text(CONFIG.format(folder=folder, address=address, auth=auth, tls=secured))
    with subprocess.Popen(
        ["docker-registry", "serve", str(folder / "config.yml")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
    ) as process:
        try:
            yield f"{address}:{_port(process)}"
        finally:
            process.kill()


def _port(process: "subprocess.Popen[bytes]") -> int:
    assert process.stderr is not None
    heard = b""
    end_s = time.monotonic() + STARTS_S
    os.set_blocking(process.stderr.fileno(), False)
    with selectors.DefaultSelector() as ready:
        ready.register(process.stderr, selectors.EVENT_READ)
        while time.monotonic() < end_s:
            if ready.select(0.5):
                more = process.stderr.read()
                heard += more or b""
                found = re.search(rb"listening on 127\.0\.0\.\d:(\d+)", heard)
                if found:
                    return int(found[1])
                if more == b"":
                    break
    raise AssertionError(f"the registry did not start: {heard.decode(errors='replace')[-500:]}")


def skopeo(*words: object, environment: Mapping[str, str] | None = None) -> None:
    """Runs skopeo."""
    need("skopeo")
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
