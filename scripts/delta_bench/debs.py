"""System layers from Debian's archive: a set of packages at the two newest versions that it holds of each.

The archive keeps a stable release's version beside that of its security updates, so there are two of many packages;
which they are changes with time, and is said in the progress. Nothing of this machine's own package lists is touched.
"""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path

from scripts.delta_bench.layers import UnavailableError, run, unpack_debs, write_tar


@dataclass(frozen=True)
class SystemLayer:
    """A set of packages for one kind of machine."""

    name: str
    architecture: str
    packages: Sequence[str]


SYSTEM_LAYERS = (
    SystemLayer(
        "system-base-arm64",
        "arm64",
        (
            *("bash", "ca-certificates", "coreutils", "libexpat1", "libpython3.11-minimal", "libpython3.11-stdlib"),
            *("libsqlite3-0", "libssl3", "libxml2", "openssl", "perl-base", "python3.11-minimal", "tzdata", "zlib1g"),
        ),
    ),
    SystemLayer(
        "system-tools-amd64",
        "amd64",
        (
            *("curl", "libc-bin", "libc6", "libcurl4", "libglib2.0-0", "libnghttp2-14", "libpcre2-8-0", "nginx"),
            "openssh-client",
        ),
    ),
)


class Archive:
    """Debian's archive for one architecture, through package lists of our own."""

    def __init__(self, folder: Path, architecture: str) -> None:
        lists, cache, status = folder / "lists", folder / "cache", folder / "status"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        status.touch()
        settings = {
            "Dir::State::lists": str(lists),
            "Dir::State::status": str(status),
            "Dir::Cache": str(cache),
            "Debug::NoLocking": "1",
            "APT::Sandbox::User": re.sub(r"\W", "", os.environ.get("USER", "root")) or "root",
            "APT::Architecture": architecture,
            "APT::Architectures::": architecture,
        }
        self._options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def update(self) -> None:
        run(["apt-get", "-qq", *self._options, "update"])

    def versions(self, package: str) -> list[str]:
        """The versions that can be had, oldest first."""
        printed = run(["apt-cache", *self._options, "madison", package])
        found = {line.split("|")[1].strip() for line in printed.splitlines() if line.endswith("Packages")}
        return sorted(found, key=cmp_to_key(_compare))

    def download(self, package: str, version: str, into: Path) -> Path:
        before = set(into.glob("*.deb"))
        run(["apt-get", "-qq", *self._options, "download", f"{package}={version}"], cwd=into)
        return next(iter(set(into.glob("*.deb")) - before))


def _compare(a: str, b: str) -> int:
    if a == b:
        return 0
    try:
        run(["dpkg", "--compare-versions", a, "lt", b])
    except UnavailableError:
        return 1
    return -1


def make_system_layer(layer: SystemLayer, old: Path, new: Path, scratch: Path, say: Callable[[str], None]) -> None:
    """Writes the layer of the older and of the newest versions.

    Raises:
        UnavailableError: There is no such archive here, or it holds two versions of none of the packages.
    """
    archive = Archive(scratch / "apt", layer.architecture)
    archive.update()
    chosen: dict[str, tuple[str, str]] = {}
    for package in layer.packages:
        versions = archive.versions(package)
        if versions:
            chosen[package] = (versions[-2] if len(versions) > 1 else versions[-1], versions[-1])
    changed = {package: pair for package, pair in chosen.items() if pair[0] != pair[1]}
    if not changed:
        raise UnavailableError("the archive holds two versions of none of its packages")
    say(f"{layer.name}: " + ", ".join(f"{package} {a} to {b}" for package, (a, b) in changed.items()))
    for side, to in enumerate((old, new)):
        folder, root = scratch / f"debs-{side}", scratch / "root"
        folder.mkdir()
        root.mkdir()
        unpack_debs([archive.download(package, pair[side], folder) for package, pair in chosen.items()], root)
        write_tar(root, to)
        shutil.rmtree(root)
