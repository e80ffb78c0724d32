"""The list of faults, and how each is drawn. It is what is worth a review: `tests/simulation/README.md` has it.

A seed has some kinds of faults and lacks others, so that each can be alone and meets each other one: `Ills` says which.
"""

import random
from dataclasses import dataclass, replace

from tests.simulation.fleet.world import DAY_S

YEAR_S = 365 * DAY_S

LINK = ("request-lost", "answer-lost", "delivered-twice", "late", "cut-in-blob", "bytes-changed", "out-of-range")
CLOCKS = ("right", "1970", "minus-a-year", "plus-ten-years", "jumps")
HAPPENS = (
    "overtaken",
    "overtaken-contact",
    "held-up",
    "copy-called",
    "readmitted",
    "gone-on-in-a-blob",
    "clock-jumps-in-update",
    "power-in-check",
    "power-in-trial",
    "rows-lost",
    "labelled",
    "labelled-with-containers",
)
"""What faults lead to, and is counted beside them."""
CARRIED = (
    "stick-pulled",
    "kit-damaged",
    "kit-makers",
    "kit-begun",
    "kit-committed",
    "stepped-back",
    "force-begun",
    "force-refused",
    "brought-home",
    "brought-again",
)
"""What comes of technicians with sticks."""
ATTACKS = ("frozen", "replayed")
ENGINE = ("engine-killed", "engine-full", "image-lost", "container-removed")
ROOTS = (0, 1, 3, 257, 300)
COUNTED = (*LINK, *HAPPENS, *CARRIED, *ATTACKS, *ENGINE, "power", "server-crash", "clock-jumps", "clock-1970")
"""What plays count under these names, and must all happen for a run of them to prove something."""


@dataclass(frozen=True)
class Ills:
    """What can go wrong in one play.

    Args:
        request_lost: Of requests, the share that never arrives; `answer_lost`, `twice` and `late` likewise.
        cut_in_blob: Of streams, the share that breaks off somewhere.
        changed: Of streams, the share in which a byte is another.
        away: Share of the time in which a machine is out of range.
        power: Whether machines lose power before single effects.
        ignition: Whether machines are switched off at any moment.
        server: Whether the server crashes.
        clocks: What wall clocks may say after a boot.
        attacks: What a hostile server does for a while.
        bulky: Whether rows are so large that a handful fills the outbox.
        ttl_s: After which rows of the lane `results` are given up; 0 keeps them.
        when_full: Which of them are given up.
        engine: Whether bad things happen to the engine of containers, and to what it holds.
        keep_layers: As in the settings.
    """

    request_lost: float = 0.0
    answer_lost: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    cut_in_blob: float = 0.0
    changed: float = 0.0
    away: float = 0.0
    power: bool = False
    ignition: bool = False
    server: bool = False
    clocks: tuple[str, ...] = ("right",)
    attacks: tuple[str, ...] = ()
    bulky: bool = False
    ttl_s: float = 0.0
    when_full: str = "drop-oldest"
    engine: bool = False
    keep_layers: str = "while-there-is-room"


CALM = Ills()


def draw_ills(chance: random.Random) -> Ills:
    """Each kind is there in about every second play."""

    def maybe(*values: float) -> float:
        return chance.choice(values) if chance.random() < 0.5 else 0.0

    return Ills(
        request_lost=maybe(0.05, 0.2, 0.5),
        answer_lost=maybe(0.05, 0.2, 0.5),
        twice=maybe(0.1, 0.4),
        late=maybe(0.1, 0.4),
        cut_in_blob=maybe(0.3, 0.7),
        changed=maybe(0.1, 0.3),
        away=maybe(0.2, 0.6),
        power=chance.random() < 0.6,
        ignition=chance.random() < 0.5,
        server=chance.random() < 0.4,
        clocks=CLOCKS if chance.random() < 0.6 else ("right",),
        attacks=ATTACKS if chance.random() < 0.4 else (),
        bulky=chance.random() < 0.3,
        ttl_s=chance.choice((6 * 3600.0, DAY_S)) if chance.random() < 0.25 else 0.0,
        when_full=chance.choice(("drop-oldest", "drop-newest", "keep-one-in")),
        engine=chance.random() < 0.6,
        keep_layers=chance.choice(("while-there-is-room", "never")),
    )


@dataclass(frozen=True)
class Fate:
    """Of one request."""

    before_s: float
    after_s: float
    lost: bool = False
    answer_lost: bool = False
    again_after_s: float | None = None


def draw_fate(chance: random.Random, ills: Ills) -> Fate:
    """How one request fares. Late is up to a minute and a half each way: time statements grow old on it."""
    fate = Fate(before_s=chance.uniform(0.02, 0.5), after_s=chance.uniform(0.02, 0.5))
    if chance.random() < ills.late:
        fate = replace(fate, before_s=chance.uniform(1, 90), after_s=chance.uniform(1, 90))
    return replace(
        fate,
        lost=chance.random() < ills.request_lost,
        answer_lost=chance.random() < ills.answer_lost,
        again_after_s=chance.choice((0.1, 5.0, 600.0, 40_000.0)) if chance.random() < ills.twice else None,
    )


def draw_wall(chance: random.Random, ills: Ills) -> tuple[str, float]:
    """What the wall clock of a boot is off by, in seconds."""
    kind = chance.choice(ills.clocks)
    match kind:
        case "1970":
            return kind, float("-inf")
        case "minus-a-year":
            return kind, -YEAR_S
        case "plus-ten-years":
            return kind, 10 * YEAR_S
        case _:
            return kind, 0.0


def draw_jump(chance: random.Random) -> float:
    """Where a jumping wall clock jumps to, in seconds off."""
    return chance.choice((0.0, -3600.0, 2 * DAY_S, -YEAR_S, 10 * YEAR_S, -20 * YEAR_S))


def draw_life(chance: random.Random, ills: Ills) -> int | None:
    """After how many effects the power goes; None: not by an effect."""
    if not ills.power or chance.random() < 0.35:
        return None
    # An update has some hundreds of effects: many cuts early, some late.
    return int(chance.choice((3, 20, 80, 300)) * chance.random()) + 1
