"""Runs one tool on one pair: encodes, applies, compares every byte, and notes what it took."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.delta_bench.pairs import Pair
from scripts.delta_bench.tools import Tool

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Took:
    """What one command took.

    Attributes:
        peak_bytes: The peak memory of all its processes together.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Result:
    """One cell of the table: either the numbers, or why there are none."""

    tool: str
    patch_bytes: int | None = None
    encode: Took | None = None
    apply: Took | None = None
    failed: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


class RunError(Exception):
    """A command did not do what it was asked to; the message says why."""


def measured(command: list[str], limit_s: float) -> Took:
    """Runs a command to its end.

    Raises:
        RunError: It ended with an error, or was still running after `limit_s`.
    """
    launch = [sys.executable, "-I", "-S", str(HERE / "measure.py"), *command]
    # In a session of its own, so that what it started ends with it.
    process = subprocess.Popen(
        launch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        printed, complaint = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"not done after {limit_s:.0f} s") from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        raise RunError(_last_line(complaint))
    numbers = json.loads(printed.splitlines()[-1])
    exit_code = numbers.pop("exit_code")
    if exit_code != 0:
        raise RunError(f"exit code {exit_code}: {_last_line(complaint)}")
    return Took(**numbers)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1][:200]


def size_of(patch: Path) -> int:
    """The bytes of a patch; of all its files when it is a folder."""
    files = [patch] if patch.is_file() else [file for file in patch.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def try_out(tool: Tool, pair: Pair, scratch: Path, limit_s: float) -> Result:
    """Encodes and applies once; a failure is a result too."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    patch, out = scratch / "patch", scratch / f"out{pair.suffix}"
    size = None
    encode = None
    try:
        encode = measured(tool.encode(pair.old, pair.new, patch), limit_s)
        size = size_of(patch)
        apply = measured(tool.apply(pair.old, patch, out), limit_s)
        right = out.is_file() and digest_of(out) == digest_of(pair.new)
    except (RunError, OSError) as error:
        return Result(tool.name, size, encode, failed=str(error))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not right and tool.plainer:
        return try_out(tool.plainer, pair, scratch, limit_s)
    return Result(tool.name, size, encode, apply, failed=None if right else "the result is not the new file")
