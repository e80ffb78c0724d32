"""A disk that is really full: a workload's state folder lies on a tmpfs that is too small, by more and more.

`python -m tests.simulation.full_disk WORKLOAD SIZES` as root. Nothing is injected: SQLite and the kernel say no
themselves, also in the middle of a write. Then there is room, and the next start must make good.
"""

import argparse
import json
import logging
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.simulation.run import run
from tests.simulation.sweep import CLEAR, Outcome, forked
from tests.simulation.tripwire import die
from tests.simulation.workload import REFUSED, Promises
from tests.simulation.workloads.catalogue import WORKLOADS

AMPLE_KIB = 64 * 1024
LOGS_KIB = 160  # what SQLite takes beside its databases while they are open
WORK_CPU_S = 0.5  # a loop that tries again and again on a full disk is turned off then


def squeeze(name: str, sizes: int) -> Outcome:
    """Plays the workload on so many disks that are too small for it, and one that is not."""
    outcome = Outcome(name)
    WORKLOADS[name].load()
    with tempfile.TemporaryDirectory(prefix="full-disk-") as folder:
        template, home = Path(folder) / "template", Path(folder) / "home"
        trouble = forked(lambda: run("prepare", name, template))
        assert not trouble, trouble
        before = _used_kib(template / "state")
        trouble, grown = _play(name, template, home, AMPLE_KIB)
        assert not trouble, trouble
        most = grown - before + LOGS_KIB
        for number in range(sizes):
            room = max(before + most * number // sizes, 16)  # 0 would be no limit at all
            outcome.tried[f"{room} KiB"] = 1
            trouble, _ = _play(name, template, home, room)
            if trouble:
                outcome.broken.append(f"{name} on {room} KiB: {trouble}")
    return outcome


def _play(name: str, template: Path, home: Path, room_kib: int) -> tuple[str, int]:
    shutil.copytree(template, home, symlinks=True, ignore=shutil.ignore_patterns("state"))
    state = home / "state"
    state.mkdir()
    _mount(state, f"size={AMPLE_KIB}k", "-t", "tmpfs", "tmpfs")
    try:
        shutil.copytree(template / "state", state, symlinks=True, dirs_exist_ok=True)
        state.chmod(0o700)
        _mount(state, f"remount,size={room_kib}k")
        trouble = forked(lambda: _act(name, home, is_small=room_kib < AMPLE_KIB), may_be_killed=True)
        if trouble:
            return f"act: {trouble}", 0
        used = _used_kib(state)
        _mount(state, f"remount,size={AMPLE_KIB}k")

        def recover() -> None:
            run("recover", name, home)
            run("check", name, home)

        return forked(recover), used
    finally:
        subprocess.run(["umount", state], check=True)
        shutil.rmtree(home)


def _act(name: str, home: Path, *, is_small: bool) -> None:
    if is_small:
        Promises(home / "promises")(REFUSED)
        signal.signal(signal.SIGPROF, lambda *_: die())
        signal.setitimer(signal.ITIMER_PROF, WORK_CPU_S)
    try:
        run("act", name, home)
    except CLEAR:
        if not is_small:
            raise
    die()


def _mount(where: Path, options: str, *more: str) -> None:
    subprocess.run(["mount", "-o", options, *more, where], check=True)


def _used_kib(folder: Path) -> int:
    """In whole pages, as a tmpfs counts, and one for each folder."""
    return sum(4 * -(-max(path.lstat().st_size, 1) // 4096) for path in folder.rglob("*"))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.simulation.full_disk", description="Plays on disks that are too small."
    )
    parser.add_argument("workload", choices=sorted(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("sizes", type=int)
    options = parser.parse_args()
    logging.disable()
    outcome = squeeze(options.workload, options.sizes)
    print(json.dumps(asdict(outcome)))
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
