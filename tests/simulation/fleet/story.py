"""What happens in one play besides faults: releases, rotations, a winter. Drawn from the seed before it begins."""

import random
from dataclasses import dataclass

from tests.simulation.fleet.faults import ROOTS, Ills, draw_ills
from tests.simulation.fleet.releases import EVIDENCE, GOOD, KILLERS
from tests.simulation.fleet.template import COUNTERS, NAMES
from tests.simulation.fleet.world import DAY_S

HOUR_S = 3600.0
WINTER_S = 243 * DAY_S


@dataclass(frozen=True)
class Act:
    """Something that people or enemies do, so many seconds after the beginning.

    `kind`: `release` (number, kind, error_percent, floor), `delist` (number), `roots` (repository, count), `winter`,
    `attack` (machine, attack, seconds), `copied` (machine), `readmit` (machine), `crash` (effects).
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

    def kinds(self) -> list[str]:
        """What is in it, for the count of what has happened."""
        found = [f"release-{act.what[1]}" if act.kind == "release" else act.kind for act in self.acts]
        return found if "roots" in found else [*found, "roots-0"]

    def told(self) -> str:
        """In a line, for people."""
        acts = ", ".join(f"{act.kind}{act.what or ''}" for act in self.acts)
        return f"{len(self.machines)} machines, {self.lasts_s / DAY_S:.1f} days: {acts}"


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
