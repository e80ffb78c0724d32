"""The long forms of the simulations: `scripts/test` plays a fixed handful, this plays as many as one asks for.

    scripts/soak --seeds 10000            seeds 1 to 10000, on all cores
    scripts/soak --seeds 1000 --from 5001 others
    scripts/soak --seed 4711              one seed again, with its whole log
    scripts/soak --crash                  every state that a power cut can leave, of every workload: hours
    scripts/soak --crash update trust     of these; --states 2000 looks at so many of each
    scripts/soak --sweep                  every harm at every fail point
    scripts/soak --kill 1000              so many SIGKILLs of real machines and their server, in a live fleet
    scripts/soak --kill-containers 50     so many updates of a model with a container, agent and engine killed in each
    scripts/soak --kill-server 1000       of the server alone
    scripts/soak --kill-server-everywhere of the server, once at each effect of a story
    scripts/soak --kit-reads              a stick with a field kit fails at each of its calls, in every way
    scripts/soak --kit-tamper             each byte of a kit's metadata is changed, and blobs where it matters
    scripts/soak --kit-images 200         so many damaged FAT32 and exFAT sticks with a kit

Exit codes: 0 all is well; 1 an invariant was broken, and what did it is named; 2 usage; 77 no engine can run here.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

import soak_cuts
import soak_kits

if TYPE_CHECKING:
    from tests.simulation.fleet.play import Played

SHOWN_LINES = 80
REPORT_S = 15.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", type=_positive, metavar="N", help="play so many seeds of the whole fleet")
    what.add_argument("--seed", type=int, metavar="S", help="play one seed again and show its log")
    what.add_argument("--crash", nargs="*", metavar="WORKLOAD", help="look at all crash states, or those of workloads")
    what.add_argument("--sweep", nargs="*", metavar="WORKLOAD", help="every harm at every fail point of these, or all")
    what.add_argument("--kill", type=_positive, metavar="N", help="kill real machines so often")
    what.add_argument("--kill-containers", type=_positive, metavar="N", help="kill agent and engine in so many updates")
    what.add_argument("--kill-server", type=_positive, metavar="N", help="kill a real server so often")
    what.add_argument("--kill-server-everywhere", action="store_true", help="kill a real server at each effect")
    what.add_argument("--kit-reads", action="store_true", help="fail at each call on a stick with a kit")
    what.add_argument("--kit-tamper", action="store_true", help="change each byte of a kit's metadata")
    what.add_argument("--kit-images", type=_positive, metavar="N", help="damage so many sticks with a kit")
    parser.add_argument("--states", type=_positive, metavar="N", help="of each crash workload so many cuts (all)")
    parser.add_argument("--chance", type=int, metavar="S", help="the seed of kills and changes (drawn, and printed)")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="S", help="the first seed (1)")
    parser.add_argument("--processes", type=_positive, default=os.cpu_count() or 1, help="how many at once (all cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was begun is ended, and scratch folders go
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    if options.crash is not None:
        return soak_cuts.crash(options.crash, options.states, options.processes, as_json=options.json)
    if options.sweep is not None:
        return soak_cuts.sweep(options.sweep)
    if options.kill is not None:
        return soak_cuts.kill_machines(options.kill, options.chance, as_json=options.json)
    if options.kill_containers is not None:
        return soak_cuts.kill_containers(options.kill_containers, options.chance, as_json=options.json)
    if options.kill_server is not None or options.kill_server_everywhere:
        return soak_cuts.kill_server(options.kill_server, options.chance, as_json=options.json)
    if options.kit_reads or options.kit_tamper or options.kit_images is not None:
        return soak_kits.play(options)
    if options.seed is not None:
        return _replay(options.seed, as_json=options.json)
    return _soak(options.first, options.seeds, options.processes, as_json=options.json)


def _replay(seed: int, *, as_json: bool) -> int:
    from tests.simulation.fleet.play import play

    played = play(seed)
    if as_json:
        print(json.dumps(_facts(played) | {"log": played.lines}))
    else:
        print("\n".join(played.lines))
        print(f"seed {seed}: {played.story}\nhash {played.hash}, {played.steps} steps looked at, {played.cpu_s:.1f} s")
        print(played.wrong or "everybody came home")
    return 1 if played.wrong else 0


def _soak(first: int, count: int, processes: int, *, as_json: bool) -> int:
    began_s = told_s = time.monotonic()
    seen: Counter[str] = Counter()
    steps = 0
    cpu_s = days = 0.0
    wrong: list[Played] = []
    for done, played in enumerate(_play_all(range(first, first + count), processes), start=1):
        seen.update(played.seen)
        steps, days, cpu_s = steps + played.steps, days + played.days, cpu_s + played.cpu_s
        if played.wrong:
            wrong.append(played)
            print(f"seed {played.seed} is wrong: {played.wrong}\n{played.story}", file=sys.stderr)
            print("\n".join(played.lines[-SHOWN_LINES:]), file=sys.stderr, flush=True)
        if time.monotonic() - told_s >= REPORT_S or done == count:
            told_s = time.monotonic()
            left_s = (told_s - began_s) / done * (count - done)
            said = f"{done} of {count} seeds, {steps} steps looked at, {len(wrong)} wrong, {left_s / 60:.0f} min to go"
            print(said, file=sys.stderr, flush=True)
    from tests.simulation.fleet.faults import COUNTED

    never = [name for name in COUNTED if not seen[name]]
    if as_json:
        facts = {"seeds": count, "first": first, "steps": steps, "virtual_days": round(days), "cpu_s": round(cpu_s, 1)}
        facts |= {"faults": dict(sorted(seen.items())), "never": never}
        print(json.dumps(facts | {"wrong": [_facts(played) for played in wrong]}))
    else:
        print(
            f"{count} seeds from {first}: {steps} steps looked at, {days:.0f} virtual days, {cpu_s / count:.1f} s each"
        )
        print("faults: " + ", ".join(f"{name} {number}" for name, number in seen.most_common()))
        if never:
            print(f"never: {', '.join(never)}")
        print(f"wrong: {', '.join(str(played.seed) for played in wrong)}" if wrong else "everybody came home")
    return 1 if wrong else 0


def _play_all(seeds: Sequence[int], processes: int) -> Iterator["Played"]:
    """In the order in which they end. Processes are started afresh: the blob store's threads do not outlive a fork."""
    from tests.simulation.fleet.template import scratch

    folder = scratch()

    def end(*_: object) -> None:
        """At once: a pool that is told to end may wait for ever for a process that waits for it."""
        for child in multiprocessing.active_children():
            child.kill()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(143)

    signal.signal(signal.SIGTERM, end)
    # Not a `multiprocessing.Pool`: that waits for ever for the seed of a process that was killed.
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(str(folder),)
    )
    try:
        for done in as_completed([pool.submit(_play, seed) for seed in seeds]):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _begin(folder: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    os.environ["HEADLAND_SCRATCH"] = folder


def _play(seed: int) -> "Played":
    from tests.simulation.fleet.play import play

    played = play(seed)
    if not played.wrong:
        played.lines = []
    return played


def _facts(played: "Played") -> dict[str, object]:
    return {
        "seed": played.seed,
        "story": played.story,
        "wrong": played.wrong,
        "hash": played.hash,
        "steps": played.steps,
        "faults": played.seen,
    }


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
