"""What happens in one play besides faults: releases, rotations, a winter. Drawn from the seed before it begins."""

import random
from dataclasses import dataclass, replace

from protocol import limits
from tests.simulation.fleet.faults import ROOTS, Ills, draw_ills
from tests.simulation.fleet.field import DAMAGES, LISTS, PERSONS, PULLED_AFTER, STICKS, Visit
from tests.simulation.fleet.releases import EVIDENCE, GOOD, KILLERS
from tests.simulation.fleet.slot import NEVER, ROOM_BYTES
from tests.simulation.fleet.template import COUNTERS, NAMES
from tests.simulation.fleet.world import DAY_S

HOUR_S = 3600.0
WINTER_S = 243 * DAY_S
FIELD = ("kit", "makers", "list", "permit", "visit")
"""Acts of those who make kits and carry them."""


@dataclass(frozen=True)
class Act:
    """Something that people or enemies do, so many seconds after the beginning.

    `kind`: `release` (number, kind, error_percent or None: it comes by kit only, floor), `delist` (number), `roots`
    (repository, count), `winter`, `attack` (machine, attack, seconds), `copied` (machine), `readmit` (machine), `crash`
    (effects), `kit` (number, counters, days, machines, window), `makers` (names), `list` (which), `permit` (machine,
    counter, days), `visit` (machine, `Visit`), `rollout` (number) of what came by kit only.
    """

    at_s: float
    kind: str
    what: tuple[object, ...] = ()


@dataclass(frozen=True)
class Story:
    """One play.

    Args:
        machines: Who is in it.
        lasts_s: Of bad weather, without the winter.
        ills: What goes wrong.
        acts: In order.
        poll_s: How often machines call.
    """

    machines: tuple[str, ...]
    lasts_s: float
    ills: Ills
    acts: tuple[Act, ...]
    poll_s: float

    @property
    def has_kits(self) -> bool:
        """Whether technicians are in it."""
        return any(act.kind in FIELD for act in self.acts)

    def kinds(self) -> list[str]:
        """What is in it, for the count of what has happened."""
        acts = [act for act in self.acts if act.kind not in FIELD]
        found = [f"release-{act.what[1]}" if act.kind == "release" else act.kind for act in acts]
        return found if "roots" in found else [*found, "roots-0"]

    def told(self) -> str:
        """In a line, for people."""
        acts = ", ".join(f"{act.kind}{act.what or ''}" for act in self.acts)
        return f"{len(self.machines)} machines, {self.lasts_s / DAY_S:.1f} days: {acts}"


def draw_kits(chance: random.Random, story: Story) -> Story:
    """Half of the stories go on with technicians, who carry kits between machines that also have links."""
    if chance.random() < 0.5:
        return story

    def between(begin_s: float) -> float:
        return chance.uniform(begin_s, 0.95 * story.lasts_s)

    releases = [act for act in story.acts if act.kind == "release"]
    acts = [Act(0.0, "list", ("all",))]
    for number in range(1, chance.choice((1, 2, 3)) + 1):
        made_s = between(chance.choice(releases).at_s if chance.random() < 0.9 else 0.0)
        listed = [1, *(act.what[0] for act in releases if act.at_s <= made_s)]
        of = tuple(listed[-chance.choice((1, 1, 2, 3)) :]) if chance.random() < 0.8 else (chance.choice(listed),)
        machines = chance.choice((None, None, None, (chance.choice(story.machines),), ("elsewhere",)))
        begins = chance.randrange(1440)
        window = (begins, (begins + 120) % 1440) if chance.random() < 0.4 else None
        days = chance.choice((0.3, 30.0, 180.0))
        acts.append(Act(made_s, "kit", (min(number, 2), of, days, machines, window)))
        for _ in range(chance.choice((2, 3, 5))):
            acts.append(
                Act(between(made_s), "visit", (chance.choice(story.machines), draw_visit(chance, min(number, 2))))
            )
        if 1 in of or len(of) > 1:
            for _ in range(chance.choice((0, 1, 2))):
                days = chance.choice((1.0, 29.0))
                acts.append(Act(made_s * chance.random(), "permit", (chance.choice(story.machines), of[0], days)))
    if chance.random() < 0.3:
        names = ("carol", "bob", "alice") if chance.random() < 0.3 else ("carol", "bob")
        acts.append(Act(between(0.0), "makers", (names,)))
    for _ in range(chance.choice((0, 1, 2))):
        acts.append(Act(between(0.0), "list", (chance.choice(LISTS),)))
    kept = [
        replace(act, what=(*act.what[:2], None, act.what[3]))
        if act.kind == "release" and chance.random() < 0.6
        else act
        for act in story.acts
    ]
    return replace(story, acts=tuple(sorted((*kept, *acts), key=lambda act: act.at_s)))


def draw_visit(chance: random.Random, number: int) -> Visit:
    """A technician comes with the kit of this number, and mostly in good order."""
    return Visit(
        kits=chance.choice(((number,), (number,), (1, 2), ())),
        stick=chance.choice(STICKS),
        damage=chance.choice(DAMAGES) if chance.random() < 0.6 else "",
        stays_s=chance.choice((600.0, HOUR_S, 6 * HOUR_S, DAY_S)) * chance.uniform(0.5, 1.5),
        left=chance.choice(PULLED_AFTER) + chance.randrange(10) if chance.random() < 0.4 else NEVER,
        room_bytes=limits.MIB + 20_000 if chance.random() < 0.15 else ROOM_BYTES,
        by_hand=chance.random() < 0.5,
        forces=chance.choice(PERSONS) if chance.random() < 0.6 else "",
        home_s=chance.choice((60.0, HOUR_S, DAY_S, None)),
        is_copied=chance.random() < 0.2,
    )


def draw_story(chance: random.Random) -> Story:
    machines = NAMES[: chance.choices((1, 2, 3), weights=(5, 4, 1))[0]]
    lasts_s = chance.uniform(1, 3) * DAY_S
    ills = draw_ills(chance)
    acts: list[Act] = []
    for counter in COUNTERS[: chance.choice((1, 1, 2, 3))]:
        kind = chance.choice((*GOOD, *GOOD, *GOOD, *EVIDENCE, *KILLERS))
        floor = counter if kind in GOOD and chance.random() < 0.2 else None
        at_s = chance.uniform(0, lasts_s * 0.8)
        acts.append(Act(at_s, "release", (counter, kind, chance.choice((10.0, 100.0)), floor)))
        if chance.random() < 0.15:
            acts.append(Act(at_s + chance.expovariate(1 / DAY_S), "delist", (counter,)))
    # Releases come in the order of their counters.
    times = sorted(act.at_s for act in acts if act.kind == "release")
    releases = [act for act in acts if act.kind == "release"]
    ordered = [Act(at_s, act.kind, act.what) for at_s, act in zip(times, releases, strict=True)]
    acts = [act for act in acts if act.kind != "release"] + ordered
    count = chance.choices(ROOTS, weights=(60, 18, 18, 2, 2))[0]
    if count:
        for repository in chance.choice((("image",), ("director",), ("image", "director"))):
            acts.append(Act(chance.uniform(0, lasts_s), "roots", (repository, count)))
    for _ in range(chance.choice((1, 2, 4)) if ills.server else 0):
        acts.append(Act(chance.uniform(0, lasts_s), "crash", (int(chance.expovariate(1 / 40)),)))
    if chance.random() < 0.2:
        acts.append(Act(chance.uniform(0.1, 0.8) * lasts_s, "winter"))
    ends_s = lasts_s
    for attack in ills.attacks:
        if chance.random() < 0.7:
            at_s, length_s = chance.uniform(0, lasts_s * 0.6), chance.choice((0.5, 3.0, 9.0)) * DAY_S
            acts.append(Act(at_s, "attack", (chance.choice(machines), attack, length_s)))
            if chance.random() < 0.5:  # as long as it lasts, which may be until what it holds has expired
                ends_s = max(ends_s, at_s + length_s)
    for _ in range(chance.choice((1, 1, 3)) if chance.random() < 0.3 else 0):
        # A person vouches for it soon, or only when all is over.
        name, at_s = chance.choice(machines), chance.uniform(0.1, 0.9) * lasts_s
        acts.append(Act(at_s, "copied", (name,)))
        acts.append(Act(at_s + chance.choice((HOUR_S, DAY_S / 2, DAY_S)) * chance.random(), "readmit", (name,)))
    return Story(
        machines=machines,
        lasts_s=ends_s,
        ills=ills,
        acts=tuple(sorted(acts, key=lambda act: act.at_s)),
        poll_s=chance.choice((8.0, 16.0, 24.0)) * 3600,
    )
