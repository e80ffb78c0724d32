"""Layer three: the whole, server and machines, in one process and in virtual time. `fleet/` has the plays, the README
beside this the list of faults. Here is a fixed handful of seeds; `scripts/soak --seeds N` plays as many as one likes.
"""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

from tests.simulation.fleet import faults
from tests.simulation.fleet.faults import CALM, Ills
from tests.simulation.fleet.machine import Machine
from tests.simulation.fleet.planted import PLANTED
from tests.simulation.fleet.planted_kits import PLANTED_KITS, kit, permit, visit
from tests.simulation.fleet.play import Played, play, tail
from tests.simulation.fleet.releases import GOOD, KINDS
from tests.simulation.fleet.story import WINTER_S, Act, Story
from tests.simulation.fleet.world import DAY_S, StuckError, World, ended

SEEDS = (2, 3, 6, 7)
REPLAYED = 3
HOUR_S = 3600.0


WORST = (
    7,
    Story(
        machines=("tractor", "sprayer"),
        lasts_s=3 * DAY_S,
        ills=Ills(
            request_lost=0.2,
            answer_lost=0.2,
            twice=0.4,
            late=0.2,
            cut_in_blob=0.5,
            changed=0.2,
            away=0.3,
            power=True,
            ignition=True,
            clocks=faults.CLOCKS,
            bulky=True,
            ttl_s=6 * HOUR_S,
        ),
        acts=(
            Act(0.2 * DAY_S, "release", (2, "large", 100.0, None)),
            Act(0.5 * DAY_S, "crash", (20,)),
            Act(0.7 * DAY_S, "attack", ("tractor", "frozen", 0.5 * DAY_S)),
            Act(0.7 * DAY_S, "attack", ("sprayer", "replayed", 1.5 * DAY_S)),
            Act(1.0 * DAY_S, "roots", ("image", 3)),
            Act(1.4 * DAY_S, "copied", ("sprayer",)),
            Act(1.5 * DAY_S, "release", (3, "kills-trial", 100.0, None)),
            Act(1.7 * DAY_S, "readmit", ("sprayer",)),
        ),
        poll_s=6 * 3600.0,
    ),
)
"""Everything at once, so that each fault happens at least once whatever the seeds draw."""


def check(played: Played) -> Played:
    assert not played.wrong, f"seed {played.seed}: {played.wrong}\n{played.story}\n{tail(played)}"
    return played


def directed(*acts: Act, days: float = 2.0, machines: tuple[str, ...] = ("tractor",), **ills: object) -> Story:
    return Story(machines, days * DAY_S, Ills(**ills), acts, 6 * HOUR_S)  # type: ignore[arg-type]  # handed through


def release(kind: str, number: int = 2, at_days: float = 0.1) -> Act:
    return Act(at_days * DAY_S, "release", (number, kind, 100.0, None))


CONTAINED = (
    9,
    directed(
        release("contained"),
        release("contained-sick", 3, 0.6),
        release("contained", 4, 1.2),
        days=4,
        engine=True,
        power=True,
        keep_layers="never",
    ),
)
"""Containers from the first day on, and what happens to them and their engine."""


CARRIED = (
    12,
    directed(
        Act(0.0, "list", ("all",)),
        Act(0.1 * DAY_S, "release", (2, "large", None, None)),
        kit(1, 1, 2, at_days=0.2),
        visit(1, at_days=0.3, left=27, home_s=60.0),
        visit(1, at_days=0.7, damage="blobs", is_copied=True, home_s=60.0),
        visit(1, at_days=1.1, stick="red", stays_s=0.3 * DAY_S),
        permit(1, 1.2),
        kit(2, 1, at_days=1.5, only=True),
        visit(2, at_days=1.6, stays_s=0.3 * DAY_S, home_s=60.0),
        Act(2.0 * DAY_S, "release", (3, "good", None, None)),
        kit(1, 3, at_days=2.1, window=(100, 110)),
        visit(1, at_days=2.2, forces="otto"),
        visit(1, at_days=2.6, forces="eva"),
        Act(3.0 * DAY_S, "makers", (("carol", "bob"),)),
        Act(3.1 * DAY_S, "list", ("without rita",)),
        visit(1, at_days=3.2, stick="red", forces="rita"),
        days=4,
        away=1.0,
        power=True,
    ),
)
"""A machine that is never in range, and technicians: whatever they do happens, and its results come by stick alone."""


def test_a_handful_of_seeds_brings_every_machine_home() -> None:
    seen: Counter[str] = Counter()
    steps = 0
    for seed, story in (WORST, CONTAINED, CARRIED, *((seed, None) for seed in SEEDS)):
        played = check(play(seed, story))
        seen.update(played.seen)
        steps += played.steps
        print(f"seed {seed}: {played.days:.1f} days, {played.steps} steps, {played.hash[:12]}: {played.story}")
    print(f"{len(SEEDS)} seeds, {steps} steps looked at, faults: {dict(seen)}")
    # A list of faults that do not happen proves nothing.
    never = [name for name in faults.COUNTED if not seen[name]]
    assert not never, never


def test_the_same_seed_is_the_same_play_in_every_process() -> None:
    here = check(play(REPLAYED)).hash
    assert play(REPLAYED).hash == here
    code = f"from tests.simulation.fleet.play import play; print(play({REPLAYED}).hash)"
    root = Path(__file__).parents[2]
    there = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert there.stdout.strip() == here


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_release_ends_as_it_should(kind: str) -> None:
    played = check(play(1, directed(release(kind), days=0.5)))
    serves = [line for line in played.lines if "serves 2.0.0" in line]
    kept = [line for line in played.lines if "trial -> commit 2.0.0" in line]
    assert len(kept) == (1 if kind in GOOD else 0)
    assert bool(serves) == (kind not in ("golden", "kills-check", "hang", "trial-golden"))


@pytest.mark.parametrize("count", [count for count in faults.ROOTS if count])
def test_any_number_of_roots_is_walked(count: int) -> None:
    both = [Act(HOUR_S, "roots", (repository, count)) for repository in ("image", "director")]
    played = check(play(2, directed(*both, release("good"), days=0.5)))
    assert any("trial -> commit 2.0.0" in line for line in played.lines)


@pytest.mark.parametrize("wall", faults.CLOCKS)
def test_a_winter_in_the_barn_locks_nobody_out_whatever_the_wall_clock_says(wall: str) -> None:
    story = directed(Act(0.3 * DAY_S, "winter"), release("good", at_days=0.5), days=1, clocks=(wall,))
    played = check(play(3, story))
    assert any("trial -> commit 2.0.0" in line for line in played.lines)


def test_winter_keeps_a_machine_off_that_was_off_when_it_came(tmp_path: Path) -> None:
    world = World(1)
    machine = Machine("tractor", tmp_path, world, None, CALM, None)  # type: ignore[arg-type]  # it lives no real life
    lives: list[float] = []

    async def live() -> None:
        lives.append(world.loop.time())

    async def winter() -> None:
        driving = world.loop.create_task(machine.drive())
        await asyncio.sleep(0.1)
        machine.switch_off(WINTER_S)
        await asyncio.sleep(WINTER_S + DAY_S)
        await ended(driving)

    with mock.patch.object(machine, "_live", live):
        world.loop.run_until_complete(winter())
    world.loop.close()
    assert lives[0] == 0 and lives[1] > WINTER_S


def test_a_server_that_holds_its_timestamps_back_stops_installs_once_they_expire_and_inference_never() -> None:
    story = directed(Act(0.5 * DAY_S, "attack", ("tractor", "frozen", 11 * DAY_S)), release("good", at_days=9), days=12)
    played = check(play(4, story))
    judged = [line for line in played.lines if "judged" in line]
    assert any("waits" in line and "/expired" in line for line in judged)
    assert "may install" in judged[-1]


def test_what_is_done_again_and_again_while_no_time_passes_ends_a_play() -> None:
    world = World(1)

    async def spin() -> None:
        while True:  # noqa: ASYNC110  (that it waits for nothing is the point)
            await asyncio.sleep(0)

    with pytest.raises(StuckError, match="no time passes"):
        world.loop.run_until_complete(spin())
    world.loop.close()


@cache
def sound(story: Story) -> None:
    """Without a fault the story ends well."""
    check(play(5, story))


@pytest.mark.parametrize("name", PLANTED | PLANTED_KITS)
def test_a_planted_fault_turns_a_play_red(name: str) -> None:
    planted = (PLANTED | PLANTED_KITS)[name]
    sound(planted.story)
    said = []
    for seed in (7, 5, 6, 8):
        with planted.plant():
            said.append(play(seed, planted.story).wrong)
        if planted.says in said[-1]:
            return
    raise AssertionError(f"nobody saw it: {said}")
