"""The tools that are compared, ours among them: how each is brought in, and its commands to encode and to apply."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OURS = "headland"
DELTA = ROOT / "scripts" / "delta"
INSTALL_S = 600
# Pinned, so that two runs compare the same tools; Debian's own are of the release that runs this.
PYTHON_PEERS = ("bsdiff4==1.3.2", "hdiffpatch==2.6.0")
DEBIAN_PEERS = ("zstd", "xdelta3", "casync")
# zstd finds matches within 128 MiB unless told otherwise, xdelta3 within 64 MiB of its source.
ZSTD_NEAR = 128 << 20
XDELTA_NEAR = 64 << 20


@dataclass(frozen=True)
class Tool:
    """One column of the table.

    Attributes:
        encode: The command from (old, new, patch).
        apply: The command from (old, patch, out).
        plainer: What to try in its place where its result is not the new file.
    """

    name: str
    title: str
    encode: Callable[[Path, Path, Path], list[str]]
    apply: Callable[[Path, Path, Path], list[str]]
    plainer: "Tool | None" = None


def _far(*files: Path) -> list[str]:
    return ["--long=31", "--memory=2048MB"] if max(file.stat().st_size for file in files) > ZSTD_NEAR else []


def _xdelta_source(old: Path) -> list[str]:
    return ["-B", str(min(max(XDELTA_NEAR, old.stat().st_size), (1 << 31) - 1))]


def _xdelta(*more: str, plainer: Tool | None = None) -> Tool:
    def command(verb: list[str], old: Path, source: Path, to: Path) -> list[str]:
        return ["xdelta3", *verb, "-f", *more, *_xdelta_source(old), "-s", str(old), str(source), str(to)]

    return Tool(
        "xdelta3",
        "xdelta3 -9",
        lambda old, new, patch: command(["-9", "-e"], old, new, patch),
        lambda old, patch, out: command(["-d"], old, patch, out),
        plainer,
    )


def _worker(packages: Path, peer: str, verb: str) -> Callable[[Path, Path, Path], list[str]]:
    start = [sys.executable, "-I", str(HERE / "peer_worker.py"), str(packages), peer, verb]
    return lambda *files: [*start, *map(str, files)]


def all_tools(packages: Path) -> list[Tool]:
    """Every tool in the order of the table; `packages` is where the peers written for Python lie."""
    zstd = ["zstd", "-q", "-f"]
    best = [*zstd, "-19", "--single-thread"]
    delta = str(DELTA)
    return [
        Tool(
            "zstd",
            "zstd -19, full",
            lambda old, new, patch: [*best, str(new), "-o", str(patch)],
            lambda old, patch, out: [*zstd, "-d", str(patch), "-o", str(out)],
        ),
        Tool(
            "zstd-patch",
            "zstd --patch-from -19",
            lambda old, new, patch: [*best, *_far(old, new), f"--patch-from={old}", str(new), "-o", str(patch)],
            lambda old, patch, out: [
                *[*zstd, "-d", "--long=31", "--memory=2048MB", f"--patch-from={old}"],
                *[str(patch), "-o", str(out)],
            ],
        ),
        # By itself it takes gzip files apart and lets gzip pack the result again, which only sometimes gives the file
        # back; where it does not, its own switch for that is the fair comparison.
        _xdelta(plainer=_xdelta("-D", "-R")),
        Tool("bsdiff4", "bsdiff4", _worker(packages, "bsdiff4", "encode"), _worker(packages, "bsdiff4", "apply")),
        Tool(
            "hdiffpatch",
            "HDiffPatch lzma2",
            _worker(packages, "hdiffpatch", "encode"),
            _worker(packages, "hdiffpatch", "apply"),
        ),
        Tool("casync", "casync", _worker(packages, "casync", "encode"), _worker(packages, "casync", "apply")),
        Tool(
            OURS,
            "Headland",
            lambda old, new, patch: [delta, "encode", str(old), str(new), str(patch)],
            lambda old, patch, out: [delta, "apply", str(old), str(patch), str(out)],
        ),
    ]


def install_packages(packages: Sequence[str], folder: Path, what: str, say: Callable[[str], None]) -> bool:
    """Puts packages into a folder of their own, unless they are there; says why when it cannot.

    A folder and not an environment: a Python without ensurepip (Debian's) makes none.
    """
    made, wanted = folder / "made-from", "\n".join(packages)
    if made.is_file() and made.read_text() == wanted:
        return True
    say(f"installing {what}")
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    problem = _tried([*pip, "--target", str(folder), *packages])
    if problem:
        say(f"{what} could not be installed: {problem}")
        return False
    made.write_text(wanted)
    return True


def install_debian_peers(say: Callable[[str], None]) -> None:
    """Installs the command-line peers that are missing where we may, and says what stays missing where we may not."""
    missing = [name for name in DEBIAN_PEERS if shutil.which(name) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        say(f"not installed, so their columns stay empty: {', '.join(missing)} (as root: apt-get install them)")
        return
    say(f"installing {', '.join(missing)}")
    problem = _tried(["apt-get", "-qq", "update"])
    if problem:
        say(f"apt-get update: {problem}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for name in missing:  # one by one: a release of Debian may lack one of them
        problem = _tried(["apt-get", "-qq", "install", "-y", "--no-install-recommends", name], environment)
        if problem:
            say(f"could not install {name}: {problem}")


def _tried(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Runs a command; returns why it failed, or nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed"])[-1]


def why_missing(tool: Tool, packages: Path) -> str:
    """Why a tool cannot run here, or nothing when it can."""
    if tool.name == OURS:
        return "" if os.access(DELTA, os.X_OK) else "scripts/delta is not there"
    if tool.name in ("bsdiff4", "hdiffpatch"):
        look = f"import sys; sys.path.insert(0, {str(packages)!r}); import {tool.name}"
        return _tried([sys.executable, "-I", "-c", look])
    program = "zstd" if tool.name.startswith("zstd") else tool.name
    return "" if shutil.which(program) else f"{program} is not installed"
