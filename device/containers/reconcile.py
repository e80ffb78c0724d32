"""What is to be done so that exactly the containers of one release run. Pure.

It follows from what the engine shows now and from what is wanted, never from what was done before: so it is the same
after a cut at any point, and after a person changed something by hand.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from device.containers.engine import Seen
from protocol.container import Container, Image
from protocol.ids import Digest


@dataclass(frozen=True)
class Wanted:
    """A container of the release that is to run.

    Args:
        container: As signed.
        image: The one for this machine.
        spec: Its identity: see `protocol.container.spec_digest`.
    """

    container: Container
    image: Image
    spec: Digest


@dataclass(frozen=True)
class Steps:
    """What to do now: first what is to stop, last what is to be removed, which is in nobody's way."""

    stop: tuple[Seen, ...] = ()
    remove: tuple[Seen, ...] = ()
    start: tuple[Wanted, ...] = ()


def steps(wanted: Mapping[str, Wanted], seen: Sequence[Seen], *, beside: bool, waiting: Collection[str] = ()) -> Steps:
    """What to do now.

    Args:
        wanted: By container name.
        seen: All of ours.
        beside: The new ones are not up yet: what a `start-then-stop` one follows goes on meanwhile, and what was
            stopped is kept, so that it can be started again as it was. Otherwise nothing else of ours stays.
        waiting: Names of those whose next start is not due yet.
    """
    others = strangers(wanted, seen)
    up = {one.name for one in mine(wanted, seen).values() if one.state == "running"}
    stays = {name for name, one in wanted.items() if beside and one.container.run.strategy == "start-then-stop"}
    return Steps(
        stop=tuple(one for one in others if is_alive(one) and one.name not in stays),
        remove=() if beside else tuple(others),
        start=tuple(one for name, one in wanted.items() if name not in up and name not in waiting),
    )


def mine(wanted: Mapping[str, Wanted], seen: Sequence[Seen]) -> dict[str, Seen]:
    """The containers that are as they are wanted, by name: of two that are, the one that runs."""
    found: dict[str, Seen] = {}
    for one in seen:
        want = wanted.get(one.name)
        if want is None or one.spec != want.spec or one.image != want.image.config.sha256:
            continue
        if one.name not in found or (one.state == "running" and found[one.name].state != "running"):
            found[one.name] = one
    return found


def strangers(wanted: Mapping[str, Wanted], seen: Sequence[Seen]) -> list[Seen]:
    """What is ours and not as it is wanted."""
    right = {one.id for one in mine(wanted, seen).values()}
    return [one for one in seen if one.id not in right]


def is_complete(wanted: Mapping[str, Wanted], seen: Sequence[Seen]) -> bool:
    """Whether exactly the wanted containers run."""
    running = {name for name, one in mine(wanted, seen).items() if one.state == "running"}
    return running == set(wanted) and not any(is_alive(one) for one in strangers(wanted, seen))


def is_alive(one: Seen) -> bool:
    """Whether it has processes, and with them its ports and devices."""
    return one.state in ("running", "paused")


def is_up(one: Seen | None) -> bool:
    """Whether it runs, and is healthy if it tells."""
    return one is not None and one.state == "running" and one.health in ("none", "healthy")
