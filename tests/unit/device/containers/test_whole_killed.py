"""Whoever is killed, at whichever call or write of an update: in the end one of the two sets runs, whole."""

import random

import pytest

from tests.fakes.engine import Behaviour
from tests.fakes.whole_sets import Field, make_releases, play
from tests.fakes.whole_updates import Updates

SICK = Behaviour(unhealthy_after_s=0.6)  # sooner than a trial can be proven, also by two starts
ENDS = Behaviour(lives_s=0.6)


def one_update(
    folder, releases, new: str, broken: dict[str, Behaviour], prepare=lambda field, updates: None
) -> Updates:
    """One update from `old`, and what is to be true after it."""
    told: list[Updates] = []

    async def story() -> None:
        field = Field(folder, releases)
        for name, behaviour in broken.items():
            field.behaves(new, name, behaviour)
        updates = Updates(field, "old")
        await updates.serve()
        prepare(field, updates)
        committed = await updates.update(new)
        last = updates.record.last
        assert last is not None
        if broken:
            assert committed == "old"
            assert last.outcome in ("rolled-back", "unfinished")
        else:
            assert committed == new, f"a good release was not kept: {last}"
        await field.end()
        told.append(updates)

    play(story)
    return told[0]


MOMENTS = {
    "view": ("before",),  # without an effect, all moments are one
    "log": ("before",),
    "stop": ("before", "after"),
    "remove": ("before", "after"),
    "load": ("before", "after"),
    "start": ("before", "half", "after"),
}
STORIES = {
    "change": ("new", {}),
    "model-only": ("same", {}),
    "other-containers": ("other", {}),
    "no-containers": ("none", {}),
    "sick": ("new", {"gateway": SICK}),
    "ends": ("new", {"driver": ENDS}),
}


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("who", ["engine", "living-engine", "agent"])
def test_killed_at_any_call_to_the_engine(tmp_path, story, who):
    releases, (new, broken) = make_releases(tmp_path), STORIES[story]
    calls = one_update(tmp_path, releases, new, broken).calls
    assert len(calls) > 3
    for number, call in enumerate(calls, start=1):
        for moment in MOMENTS[call]:

            def prepare(field: Field, _: Updates, number=number, moment=moment) -> None:
                field.daemon.live_restore = who == "living-engine"
                (field.daemon.cuts_at if who == "agent" else field.daemon.dies_at)[number] = moment

            one_update(tmp_path, releases, new, broken, prepare)


@pytest.mark.parametrize("story", STORIES)
def test_killed_at_any_write_of_the_record(tmp_path, story):
    releases, (new, broken) = make_releases(tmp_path), STORIES[story]
    for number in range(1, one_update(tmp_path, releases, new, broken).writes + 1):
        for when in ("before", "after"):

            def prepare(_: Field, updates: Updates, number=number, when=when) -> None:
                updates.cuts_at_write[updates.writes + number] = when

            one_update(tmp_path, releases, new, broken, prepare)


@pytest.mark.parametrize("seed", range(8))
def test_fifty_updates_in_which_engine_and_agent_are_killed_again_and_again(tmp_path, seed):
    """Also over the recovery from the kill before."""
    chance = random.Random(seed)

    async def story() -> None:
        field = Field(tmp_path, make_releases(tmp_path))
        field.behaves("new", "gateway", SICK)
        updates = Updates(field, "old")
        await updates.serve()
        for _ in range(50):
            field.daemon.live_restore = chance.random() < 0.3
            field.daemon.dies_at = {1 + chance.randrange(60): chance.choice(["before", "half", "after"])}
            field.daemon.cuts_at = {1 + chance.randrange(60): chance.choice(["before", "half", "after"])}
            before = updates.names[updates.record.active]
            new = chance.choice([name for name in field.releases if name != before])
            assert await updates.update(new) in (before, new)
        await field.end()

    play(story)
