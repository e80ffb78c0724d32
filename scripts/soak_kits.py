"""The parts of `scripts/soak` that harm field kits: see soak.py."""

import argparse
import asyncio
import contextlib
import logging
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

REPORT_S = 15.0
PARTS = 64  # of the tamper sweep: what one process plays at a time


def play(options: argparse.Namespace) -> int:
    """What was asked for."""
    if options.kit_reads:
        return reads(as_json=options.json)
    if options.kit_images is not None:
        return images(options.kit_images, options.chance, as_json=options.json)
    return tamper(options.processes, options.chance, as_json=options.json)


def reads(*, as_json: bool) -> int:
    """A stick fails at each of its calls, in every way."""
    from tests.simulation.kit_reads import sweep

    logging.disable()  # what goes wrong on purpose is told as it should be, thousands of times
    with _scratch() as folder:
        report = asyncio.run(sweep(folder, show=_now_and_then(lambda report: report.line())))
    if as_json:
        print(report.text())
    else:
        print(report.line())
        for word, number in sorted(report.words.items(), key=lambda item: -item[1]):
            print(f"  {number} times: {word}")
        print("\n".join(report.broken) or "each time a good stick brought all of it")
    return 1 if report.broken else 0


def tamper(processes: int, seed: int | None, *, as_json: bool) -> int:
    """Each byte of a kit's metadata is changed, and blobs at the places that matter."""
    from tests.simulation.kit_tamper import Report, sweep_blobs

    seed = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", file=sys.stderr, flush=True)
    logging.disable()
    with _scratch() as folder:
        report: Report = asyncio.run(sweep_blobs(folder / "blobs"))
        show = _now_and_then(lambda done: f"{done} of {PARTS} parts, {len(report.broken)} broken")
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            waiting = [pool.submit(_tamper, folder / str(number), seed, number) for number in range(PARTS)]
            for done, part in enumerate(as_completed(waiting), start=1):
                report.add(part.result())
                show(done)
    print(report.text() if as_json else "\n".join([*report.lines(), *report.broken]))
    return 1 if report.broken else 0


def _tamper(folder: Path, seed: int, number: int) -> Any:
    from tests.simulation.kit_tamper import sweep

    logging.disable()
    return sweep(folder, seed=seed, part=(number, PARTS))


def images(count: int, seed: int | None, *, as_json: bool) -> int:
    """Real file systems, damaged, each with a kit."""
    from tests.simulation.kit_images import sweep

    seed = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", file=sys.stderr, flush=True)
    logging.disable()
    with _scratch() as folder:
        report = asyncio.run(sweep(folder, seed=seed, count=count, show=_now_and_then(lambda report: report.line())))
    print(report.text() if as_json else "\n".join([report.line(), *report.broken]))
    return 1 if report.broken else 0


def _now_and_then(line: Callable[[Any], str]) -> Callable[[Any], None]:
    told_s = time.monotonic()

    def show(what: Any) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= REPORT_S:
            told_s = time.monotonic()
            print(line(what), file=sys.stderr, flush=True)

    return show


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """In memory where there is one: each case syncs some dozen files."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="headland-soak-", dir=memory) as folder:
        yield Path(folder)
