"""Makes container layers the way an image build leaves them: packages installed into a tree, the tree as one tar."""

import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

FETCH_S = 600
SITE = f"usr/local/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
DPKG = "var/lib/dpkg"


class UnavailableError(Exception):
    """Something that others publish could not be had; the message says what and why."""


def run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Runs a tool to its end and returns what it printed.

    Raises:
        UnavailableError: It failed, was not there or took longer than `FETCH_S`.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=False, cwd=cwd)
    except FileNotFoundError as error:
        raise UnavailableError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{command[0]} gave no answer within {FETCH_S} s") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        wrong = [line for line in lines if line.startswith(("ERROR", "E:"))] or lines or ["no reason given"]
        raise UnavailableError(f"{' '.join(command[:4])}: {wrong[0]}")
    return done.stdout


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check", "--no-deps"]


def _other_machine(platform: str) -> list[str]:
    """A wheel for another kind of machine than this one, for the Python that runs this."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return ["--platform", platform, "--python-version", version, "--implementation", "cp", "--only-binary=:all:"]


def fetch_wheel(requirement: str, platform: str, into: Path) -> Path:
    """Lets pip fetch one wheel, without what it depends on.

    Raises:
        UnavailableError: It could not.
    """
    into.mkdir(parents=True, exist_ok=True)
    choice = _other_machine(platform) if platform else ["--only-binary=:all:", "--ignore-requires-python"]
    run([*_pip("download"), *choice, "--dest", str(into), requirement])
    wheels = list(into.glob("*.whl"))
    if len(wheels) != 1:
        raise UnavailableError(f"{requirement}: pip gave {len(wheels)} wheels")
    return wheels[0]


def take_member(wheel: Path, member: str, to: Path) -> None:
    """Takes one file out of a wheel.

    Raises:
        UnavailableError: The wheel has no such file.
    """
    with zipfile.ZipFile(wheel) as archive:
        try:
            data = archive.read(member)
        except KeyError as error:
            raise UnavailableError(f"{wheel.name} has no {member}") from error
    to.write_bytes(data)


def install_wheels(requirements: Sequence[str], platform: str, root: Path) -> None:
    """Installs packages into an image's tree, compiled as they would be inside it."""
    site = root / SITE
    site.mkdir(parents=True)
    choice = _other_machine(platform) if platform else []
    run([*_pip("install"), "--no-compile", "--target", str(site), *choice, *requirements])
    # Compiled with the paths of the image: pip would write this machine's folder into each .pyc.
    run([sys.executable, "-m", "compileall", "-q", "-s", str(root), "-p", "/", str(site)])


def unpack_debs(debs: Sequence[Path], root: Path) -> None:
    """Unpacks Debian packages into an image's tree, with what dpkg would note about them."""
    info = root / DPKG / "info"
    info.mkdir(parents=True)
    for deb in sorted(debs):
        run(["dpkg-deb", "--extract", str(deb), str(root)])
        control = root / "control-of-one"
        run(["dpkg-deb", "--control", str(deb), str(control)])
        stanza = (control / "control").read_text()
        found = re.search(r"^Package: (\S+)$", stanza, re.MULTILINE)
        if found is None:
            raise UnavailableError(f"{deb.name} does not say its name")
        name = found[1]
        for part in sorted(control.iterdir()):
            if part.name != "control":
                shutil.move(part, info / f"{name}.{part.name}")
        shutil.rmtree(control)
        listed = run(["dpkg-deb", "--contents", str(deb)]).splitlines()
        (info / f"{name}.list").write_text("".join(f"/{line.split()[5].lstrip('./')}\n" for line in listed))
        with (root / DPKG / "status").open("a") as status:
            status.write(stanza.replace("\n", "\nStatus: install ok installed\n", 1) + "\n")


def write_tar(root: Path, to: Path) -> None:
    """Writes a tree as a layer: sorted, owned by root, times of whole seconds, as the builders of images do."""

    def tidy(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = int(member.mtime)
        return member

    with tarfile.open(to, "w", format=tarfile.PAX_FORMAT) as tar:
        for folder, folders, files in os.walk(root):
            folders.sort()
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            place = Path(folder)
            if place != root:
                tar.add(place, arcname=str(place.relative_to(root)), recursive=False, filter=tidy)
            for name in sorted(files + links):
                tar.add(place / name, arcname=str((place / name).relative_to(root)), recursive=False, filter=tidy)


def write_gzip(tar: Path, to: Path) -> None:
    """Compresses a layer as a registry would hold it."""
    with tar.open("rb") as plain, to.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        shutil.copyfileobj(plain, packed, 1 << 20)
