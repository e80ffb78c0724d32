"""Contacts and kits in any order, while keys rotate, releases and technicians come and go, and links and power fail.

What holds at every step: no number that is kept as a floor falls, no release that the newest trusted role delisted is
on the list again, nobody who was taken from the technicians' list comes back, and what honest managers and their
server say is taken.
"""

import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from device.trust.port import ROSTER, KitVerdict, Roster, Verdict
from protocol.errors import LinkError
from protocol.kits import Technician
from tests.fakes.field import Field, ms

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
STEPS: Final = 40
MAKERS: Final = (("alice", "bob", "carol"), ("carol",), ("alice", "bob"))


class CutError(Exception):
    pass


class Play:
    """One machine, its managers, and the kits that they have made so far."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.draws = random.Random(seed)
        self.field = Field(folder, NOW)
        self.kits: list[tuple[Path, datetime, tuple[str, ...]]] = []
        self.makers: tuple[str, ...] = MAKERS[0]
        self.may_know = {self.makers}  # whom the director that the machine trusts may delegate to by now
        self.counter = 0
        self.said: list[str] = []
        self.rotated = self.heard = NOW
        self.is_cut = self.is_lost = False
        self.taken = self.refused = 0
        self.role_versions = (0, 0)
        self.floors: dict[str, int] = {}
        self.lists: list[tuple[str, ...]] = [()]
        self.seen_list = 0

    def step(self) -> None:
        field = self.field
        acts = [self.release, self.delist, self.rotate, self.take_makers, self.list_technicians, self.make_kit]
        act = self.draws.choice([*acts, self.contact, self.contact, self.bring, self.bring, self.bring, self.cut])
        self.said.append(act.__name__)
        act()
        for name, value in self.floors.items():
            assert field.floors.read(name) >= value, f"the floor {name} fell"
        self.floors = dict(field.floors._values)
        field.passes(hours=self.draws.choice([1, 5, 30, 100, 400]))
        field.house.resign()  # honest managers sign in time
        if self.draws.random() < 0.3:
            field.reboots()
            field.wall_off = timedelta(days=self.draws.choice([-4000, 0, 4000]))

    def release(self) -> None:
        self.counter += 1
        self.field.house.release(f"1.{self.counter}.0", self.counter, f"manifest {self.counter}".encode())

    def delist(self) -> None:
        if self.counter:
            self.field.house.delist(f"1.{self.draws.randint(1, self.counter)}.0")

    def rotate(self) -> None:
        self.rotated = self.field.now
        kind = self.draws.choice(["image", "director"])
        roles = ["snapshot", "timestamp"] + (["clock", "receipts"] if kind == "director" else [])
        for _ in range(self.draws.choice([1, 1, 5])):
            self.field.house.rotate_online(kind, *self.draws.sample(roles, 2))  # type: ignore[arg-type]

    def take_makers(self) -> None:
        self.makers = self.field.house.kit_makers = self.draws.choice(MAKERS)
        self.may_know.add(self.makers)
        self.field.house.delegate_online("director", "clock")

    def list_technicians(self) -> None:
        names = tuple(name for name in ("eva", "finn", "gus") if self.draws.random() < 0.5)
        entries = (
            Technician(name=name, public_key=f"{number}" * 64, expires_ms=ms(NOW + timedelta(days=9000)))
            for number, name in enumerate(names, 1)
        )
        self.field.house.technicians(*entries)
        self.lists.append(names)

    def make_kit(self) -> None:
        name = f"kit-{len(self.kits)}"
        by = self.makers[:2]
        self.kits.append((self.field.kit(name, by=by), self.field.now, by))

    def contact(self) -> None:
        verdict = self.field.contact()
        wrong = [complaint for complaint in verdict.complaints if complaint.what != "wall-clock"]
        assert (wrong, verdict.may_install) == ([], True), "locked out of the server"
        self.may_know = {self.makers}
        self.heard = self.field.now
        self.is_cut = self.is_lost = False
        self.look(verdict)
        assert verdict.roster is not None
        assert names_of(verdict.roster) == self.lists[-1]

    def bring(self) -> None:
        if not self.kits:
            return self.make_kit()
        folder, made, by = self.draws.choice([*self.kits, self.kits[-1]])
        before = self.field.trusted()
        verdict = self.field.bring(folder)
        if verdict.kit is None:
            assert verdict.complaint is not None
            after = self.field.trusted()
            if self.is_cut:  # it may have caught up with what was trusted before
                before[ROSTER] = after[ROSTER]
            assert after == before
            is_revoked = any(len(set(by) & set(makers)) < min(2, len(makers)) for makers in self.may_know)
            is_over = self.field.now - made > timedelta(days=180)
            # Where the folder was lost, floors keep out what is older.
            is_outdated = self.is_lost and made <= max(self.rotated, self.heard)
            assert is_revoked or is_over or is_outdated, f"locked out of {folder.name}: {verdict.complaint}"
            self.refused += 1
        else:
            self.taken += 1
        self.look(verdict)
        return None

    def cut(self) -> None:
        """Power or link goes in the middle of a contact or of a kit."""
        self.is_cut = True
        self.heard = self.field.now
        left = self.draws.randint(0, 15)

        def before(effect: str, path: Path) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise CutError

        field = self.field
        if self.draws.random() < 0.3:
            field.serve()
            field.image_shelf.cut_after = left
        else:
            field.disk.before = before
        try:
            if self.kits and self.draws.random() < 0.5:
                field.bring(self.draws.choice(self.kits)[0])
            else:
                field.contact()
        except (CutError, LinkError):
            pass
        finally:
            field.disk.before = lambda effect, path: None
            field.image_shelf.cut_after = None
        if self.draws.random() < 0.2:
            self.is_lost = True
            shutil.rmtree(field.folder / self.draws.choice(["image", "director"]), ignore_errors=True)

    def look(self, verdict: Verdict | KitVerdict) -> None:
        if verdict.terms is not None:
            version = verdict.terms.role_version
            assert version >= self.role_versions[0], "an older list of releases, which names what was delisted"
            self.role_versions = (version, 0)
        if verdict.roster is not None and verdict.roster.technicians:
            created = [at for at, names in enumerate(self.lists) if names == names_of(verdict.roster)]
            assert max(created) >= self.seen_list, "who was taken from the list is on it again"
            self.seen_list = max(self.seen_list, min([at for at in created if at >= self.seen_list]))


def names_of(roster: Roster) -> tuple[str, ...]:
    return tuple(technician.name for technician in roster.technicians)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 25, 35, 43, 58])
def test_contacts_and_kits_in_any_order_go_neither_back_nor_lock_out(tmp_path: Path, seed: int) -> None:
    play = Play(tmp_path, seed)
    try:
        for _ in range(STEPS):
            play.step()
        play.contact()
    except AssertionError as error:
        error.add_note(f"seed {seed}: {' '.join(play.said)}")
        raise
