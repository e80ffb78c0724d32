"""The layers of one application's image through three usual updates: of itself, of a dependency, of the base.

The base is Debian's Python with what it needs, at the two newest versions that Debian's archive holds of each package;
the dependencies are wheels from PyPI; the application is a program of some size. What a build step makes is one tar,
as any builder of images leaves it.
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.delta_bench.debs import SystemLayer, make_system_layer
from scripts.delta_bench.layers import fetch_wheel, install_wheels, write_tar
from scripts.demo_apps.images import MADE_S, Image, Layer

BASE: Final = SystemLayer(
    "base",
    "amd64",
    (
        *("base-files", "bash", "ca-certificates", "coreutils", "dash", "libbz2-1.0", "libc6", "libcrypt1", "libdb5.3"),
        *("libexpat1", "libffi8", "libgcc-s1", "liblzma5", "libncursesw6", "libpcre2-8-0", "libpython3.11-minimal"),
        *("libpython3.11-stdlib", "libreadline8", "libselinux1", "libsqlite3-0", "libssl3", "libstdc++6", "libtinfo6"),
        *("libuuid1", "openssl", "perl-base", "python3.11", "python3.11-minimal", "tzdata", "zlib1g"),
    ),
)
WHEELS: Final = (
    *("aiohappyeyeballs==2.6.1", "aiohttp==3.12.15", "aiosignal==1.4.0", "attrs==25.3.0", "frozenlist==1.7.0"),
    *("idna==3.10", "multidict==6.6.4", "pillow==11.3.0", "propcache==0.3.2", "typing_extensions==4.15.0"),
    "yarl==1.20.1",
)
OLD_WHEELS: Final = (*WHEELS, "numpy==2.2.5")
NEW_WHEELS: Final = (*WHEELS, "numpy==2.2.6")
PLATFORM: Final = "manylinux2014_x86_64"
APPLICATION: Final = "django==5.2.5"
CHANGED: Final = "django/utils/text.py"
STEPS: Final = ("base", "RUN pip install -r requirements.txt", "COPY app /app")


@dataclass(frozen=True)
class Version:
    """One image.

    Args:
        version: Of the release that it comes in.
        what: Changed since the one before, for people.
        layers: Lowest first.
    """

    version: str
    what: str
    layers: tuple[Path, ...]

    def image(self) -> Image:
        """With a build step to each layer, as builders note them."""
        found = []
        for path, step in zip(self.layers, STEPS, strict=True):
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            found.append(Layer(path, sha256, path.stat().st_size, step))
        return Image(found, architecture=BASE.architecture)


def make_versions(folder: Path, say: Callable[[str], None]) -> list[Version]:
    """Makes the four images' layers; those that are there already stay.

    Args:
        folder: A cache; made when absent.
        say: Hears what takes time.

    Raises:
        UnavailableError: What others publish could not be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old, new = (folder / f"base-{side}.tar" for side in ("old", "new"))
    if not new.exists():
        say("the base from Debian's archive, in two versions: a minute or two")
        scratch = _empty(folder / "scratch")
        make_system_layer(BASE, scratch / "old", scratch / "new", scratch, say)
        (scratch / "old").rename(old)
        (scratch / "new").rename(new)
        shutil.rmtree(scratch)
    wheels = [folder / f"wheels-{side}.tar" for side in ("old", "new")]
    for tar, requirements in zip(wheels, (OLD_WHEELS, NEW_WHEELS), strict=True):
        if not tar.exists():
            say(f"wheels from PyPI: {', '.join(requirements)}")
            root = _empty(folder / "scratch")
            install_wheels(requirements, PLATFORM, root)
            write_tar(root, tar.with_suffix(".new"))
            tar.with_suffix(".new").rename(tar)
            shutil.rmtree(root)
    say(f"the application: {APPLICATION}")
    apps = [folder / f"app-{side}.tar" for side in ("old", "new")]
    for number, tar in enumerate(apps):
        if tar.exists():
            continue
        root = _empty(folder / "scratch")
        _write_application(root / "app", changed=bool(number))
        write_tar(root, tar.with_suffix(".new"))
        tar.with_suffix(".new").rename(tar)
        shutil.rmtree(root)
    return [
        Version("1.0.0", "the first", (old, wheels[0], apps[0])),
        Version("1.1.0", "one file of the application", (old, wheels[0], apps[1])),
        Version("1.2.0", "a dependency in the Python layer", (old, wheels[1], apps[1])),
        Version("1.3.0", "the base: security updates", (new, wheels[1], apps[1])),
    ]


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _write_application(folder: Path, *, changed: bool) -> None:
    """A program of the size of Django, for it is one: with a function more in one of its files, where it is changed."""
    folder.mkdir(parents=True)
    wheel = fetch_wheel(APPLICATION, "", folder / "wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    shutil.rmtree(folder / "wheel")
    (folder / "main.py").write_text(MAIN)
    if changed:
        with (folder / CHANGED).open("a") as file:
            file.write(CHANGE)
    for path in folder.rglob("*"):
        os.utime(path, (MADE_S, MADE_S))


CHANGE = """

def is_pest(score, threshold=0.6):
    return score > threshold
"""
MAIN = """\
import signal
import sys
import threading

import aiohttp
import django
import numpy
import PIL

done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
print("up", aiohttp.__version__, django.__version__, numpy.__version__, PIL.__version__, sys.version, flush=True)
done.wait()
"""
