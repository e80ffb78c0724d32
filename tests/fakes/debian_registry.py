"""A real registry, Debian's `docker-registry`, in a folder of the test's own, and skopeo to fill it."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from scripts.container_bench.registry import registry

USER: Final = "alice"
PASSWORD: Final = "correct horse"
_HASHED: Final = "$2b$04$9h9OU8uPO3b4RZHCr5X3G.2cOa2fCYbzxxvfZcoW99y9ywAasKPlG"  # bcrypt of that


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
    users = folder / "users"
    users.write_text(f"{USER}:{_HASHED}\n")
    with registry(folder, address=address, users=users if login else None, tls=tls) as port:
        yield f"{address}:{port}"


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
