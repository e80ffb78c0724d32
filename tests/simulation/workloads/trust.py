"""Trust on the real judge, stores and floors: refreshes, new keys, several roots at once, a new era, a delisting.

The contacts are made in `prepare`, so that the server needs no keys afterwards; each is a folder of `world`.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from device.clock import Moment
from device.state_db import StateDb
from device.trust.judge import Judge, Sources
from device.trust.keeper import StateFloors
from device.trust.port import Verdict
from protocol.limits import MIB
from protocol.messages import SyncAnswer
from protocol.wire import decode, encode
from signing import durable
from signing.trust_store import DirectorStore, ImageStore
from tests.fakes.field import DEVICE, NONCE, PRODUCT, Field, ms
from tests.fakes.repository_server import Shelf
from tests.simulation.workload import Promises, leftovers
from tests.simulation.workloads.start import started

START = datetime(2026, 6, 1, tzinfo=UTC)
BUILT_MS = ms(START) - 30 * 86_400_000
REPOSITORIES = ("image", "director")


class Trusting:
    """Three contacts, each with something newer than the one before."""

    name = "trust"

    def prepare(self, home: Path) -> None:
        state, world = home / "state", home / "world"
        state.mkdir(mode=0o700)
        field = Field(home / "unused", START)
        for name, root in field.first_roots.items():
            (world / f"{name}.root.json").write_bytes(root)
        for number, change in enumerate(_changes(field)):
            change()
            field.serve()
            _keep(field, world / str(number))
            field.passes(hours=6)
        with opened(home, "boot-1") as judge:
            meet(judge, world / "0")

    def act(self, home: Path, promise: Promises) -> None:
        with opened(home, "boot-1") as judge:
            for contact in contacts(home)[1:]:
                verdict = meet(judge, contact)
                assert trouble(verdict) == []
                for role, version in verdict.versions.items():
                    promise(f"trusts {role} {version}")
                promise(f"time {verdict.time_ms}")

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        floors, time_ms = _promised(promised)
        oldest, *others = contacts(home)
        newest = others[-1]
        past = [contact for contact in others if floors and _holds(floors, versions(contact))]
        with opened(home, "boot-2") as judge:
            assert judge.reading().ms >= time_ms, "time went back"
            for contact in (oldest, *past[-2:-1]):  # an attacker is quicker than the server
                verdict = meet(judge, contact)
                assert _holds(verdict.versions, floors), f"a replay of contact {contact.name} set trust back"
                old = verdict.terms is not None and verdict.terms.role_version < floors.get(f"image/{PRODUCT}", 0)
                assert not old, f"the terms of contact {contact.name} were believed"
            verdict = meet(judge, newest)
            assert trouble(verdict) == []

    def check(self, home: Path, promised: Sequence[str]) -> None:
        oldest, *_, newest = contacts(home)
        with opened(home, "boot-3") as judge:
            assert judge.reading().ms >= _promised(promised)[1]
            again = meet(judge, newest)
        assert trouble(again) == []
        assert again.versions == versions(newest), "the newest is what is trusted"
        assert leftovers(home / "state") == []
        # What the floors are for: the folder of the metadata comes back older, or not at all.
        with tempfile.TemporaryDirectory() as empty, opened(home, "boot-4", Path(empty)) as judge:
            verdict = meet(judge, oldest)
            assert {complaint.what for complaint in verdict.complaints} >= {"image", "director"}, "nothing is a floor"
            assert verdict.terms is None, "a replay was believed"


def meet(judge: Judge, contact: Path) -> Verdict:
    """One contact with what the server said then."""
    for shelf, name in ((judge._sources.image, "image"), (judge._sources.director, "director")):
        assert isinstance(shelf, Shelf)
        shelf.files = {path.name: path.read_bytes() for path in (contact / name).iterdir()}
    answer = decode((contact / "answer.json").read_bytes(), SyncAnswer, limit=MIB)
    return judge.judge(answer, NONCE, judge._here().boot_ms / 1000)


def trouble(verdict: Verdict) -> list[str]:
    """What was wrong with an answer, besides the clock on this machine's wall."""
    found = [f"{each.what}: {each.detail}" for each in verdict.complaints if "wall clock" not in each.detail]
    return found if verdict.time_ms is not None else [*found, "no time"]


@contextlib.contextmanager
def opened(home: Path, boot_id: str, trust: Path | None = None) -> Iterator[Judge]:
    """As the keeper opens it: a boot whose wall clock stands at 1970.

    Args:
        home: Of the workload.
        boot_id: Of this boot.
        trust: Instead of the state folder's own.
    """
    state, world = home / "state", home / "world"
    folder = trust or state / "trust"
    with contextlib.ExitStack() as stack:
        stack.enter_context(started(state))
        durable.make_dir(folder)
        for name in REPOSITORIES:
            durable.sweep(folder / name)
            durable.sweep(folder / name / "root_history")
        database = StateDb(state / "state.db")
        stack.callback(database.close)
        floors = StateFloors(database)
        first = {name: (world / f"{name}.root.json").read_bytes() for name in REPOSITORIES}
        yield Judge(
            device=DEVICE,
            product=PRODUCT,
            image=ImageStore(folder / "image", first["image"], floors, product=PRODUCT),
            director=DirectorStore(folder / "director", first["director"], floors),
            sources=Sources(image=Shelf(), director=Shelf()),
            facts=database,
            here=lambda: Moment(boot_id=boot_id, boot_ms=60_000, wall_ms=0),
            built_ms=BUILT_MS,
        )


def contacts(home: Path) -> list[Path]:
    """All of them, the oldest first."""
    return sorted(path for path in (home / "world").iterdir() if path.is_dir())


def versions(contact: Path) -> dict[str, int]:
    """What there was to trust at a contact."""
    return decode((contact / "versions.json").read_bytes(), dict[str, int], limit=MIB)


def workloads() -> list[Trusting]:
    return [Trusting()]


def _changes(field: Field):
    """What the managers do before each contact."""
    house = field.house
    yield lambda: None
    yield lambda: (house.release("1.0.0", 1, b"a manifest"), house.rotate_online("director", "clock", "snapshot"))
    yield lambda: [house.rotate_online("image", "timestamp", "snapshot") for _ in range(3)] + [house.era(1)]
    yield lambda: (house.release("1.1.0", 1, b"another", era=1), house.delist("1.0.0", floor=1))


def _keep(field: Field, contact: Path) -> None:
    for name, shelf in (("image", field.image_shelf), ("director", field.director_shelf)):
        (contact / name).mkdir(parents=True)
        for file, data in shelf.files.items():
            (contact / name / file).write_bytes(data)
    (contact / "answer.json").write_bytes(encode(field.answer()))
    with tempfile.TemporaryDirectory() as folder:
        there = Field(Path(folder), field.now)
        there.house, there.first_roots = field.house, field.first_roots
        there.built_ms = BUILT_MS
        verdict = there.contact()
        assert not verdict.complaints, verdict.complaints
        (contact / "versions.json").write_bytes(encode(verdict.versions))


def _promised(promised: Sequence[str]) -> tuple[dict[str, int], int]:
    """The newest version of each role, and the latest time."""
    floors: dict[str, int] = {}
    time_ms = 0
    for line in promised:
        said, *rest = line.split()
        if said == "trusts":
            floors[rest[0]] = max(floors.get(rest[0], 0), int(rest[1]))
        elif said == "time":
            time_ms = max(time_ms, int(rest[0]))
    return floors, time_ms


def _holds(found: dict[str, int], floors: dict[str, int]) -> bool:
    """Whether nothing went back. Between a new root and what its new keys sign, only the root is trusted."""
    return all(found.get(role, version) >= version for role, version in floors.items()) and all(
        role in found for role in floors if role.endswith("/root")
    )
