"""The life of kits on a machine: found, copied, judged, planned, and offered to the update machine or to a person.

Each kit has a state and a sentence, whatever became of it. What is known of a stick goes with the stick; what an update
needs to go on without one stands in the update machine's record. A stick can do nothing to inference: all of this is
one task, and its reading is in threads of their own.
"""

import asyncio
import contextlib
import logging
import math
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from device.kits.choosing import STATES, Choice, Chooser, UnfitError, by_hand
from device.kits.exporting import Exports
from device.kits.finding import Finder, Found
from device.kits.folder import Mark, Stick
from device.kits.shelf import Shelf
from device.kits.shown import KitShown, KitsShown, KitState
from device.state_db import StateDb
from device.trust.port import ROSTER, Complaint, KitVerdict, Terms, Trust
from device.trust.roster import load as load_roster
from device.update import rules
from device.update.memory import TERMS, Memory
from device.update.progress import Progress
from device.update.states import State, UpdateRecord
from protocol import limits
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.ids import DeviceId, Digest, Token, digest
from protocol.kits import KitId
from protocol.messages import Inventory
from protocol.objects import AssignmentBody, TransferPlan
from protocol.wire import decode, encode

_log = logging.getLogger(__name__)

START_S: Final = 0.2  # how often it is looked whether the update machine has started: no event tells it
TURN_S: Final = 120.0  # a person waits no longer for the word on a kit
SIGNERS: Final = "kits/signers"
"""Which keys signed the kits that were offered here: what is under way is given up when they count no more, also after
a restart and without a stick."""
AGAIN_S: Final = 30.0
"""So long a copy that could not be read is left alone: whatever else happens, it costs no more than that."""
_DONE: Final = frozenset({State.IDLE, State.COMMIT, State.ROLLBACK, State.CLEANUP})

Applying = Literal["auto", "ask"]
_Place = tuple[Path, Mark]
"""One copy of a kit: another after it went and came back, or was written anew."""


class Updates(Protocol):
    """The update machine, as `device.update.updater.Updater`."""

    @property
    def record(self) -> UpdateRecord:
        """What runs, and what is under way."""
        ...

    @property
    def inventory(self) -> Inventory:
        """What this machine can run."""
        ...

    @property
    def started(self) -> bool:
        """Whether the record is known."""
        ...

    def progress(self) -> Progress:
        """Where the update is."""
        ...

    async def learn(self, terms: Terms) -> None:
        """Keeps what the newest trusted repository says."""
        ...

    async def offer(
        self,
        assignment: AssignmentBody,
        manifest_bytes: bytes,
        terms: Terms,
        may_install: bool,
        *,
        forced: Token | None = None,
    ) -> rules.Accepted | rules.Later | Refused:
        """Judges an assignment and, if it may be installed, has it installed."""
        ...

    def withdraw_kit(self, kit: KitId) -> None:
        """The kit is no good any more."""
        ...

    def kit_is_there(self, kit: KitId) -> None:
        """A stick with it is at hand."""
        ...


@dataclass
class _Entry:
    """One kit. Two of the same name and other content are two."""

    kit: KitId
    content: Digest
    copies: dict[_Place, Stick] = field(default_factory=dict)
    verdict: KitVerdict | None = None
    trusted: bytes | None = None  # what was when it was judged
    heard: dict[_Place, float] = field(default_factory=dict)  # copies that are no good, and until when
    choice: Choice | None = None
    told: tuple[frozenset[_Place], TransferPlan] | None = None  # to the update machine: what it can go on with
    state: KitState = KitState.READING
    line: str = "it is being read"
    hint: str = ""

    @property
    def is_good(self) -> bool:
        """Whether a copy of it was judged to be."""
        return self.verdict is not None and self.verdict.kit is not None

    def unheard(self, now_s: float) -> list[tuple[_Place, Stick]]:
        """Copies that are still, or again, to be judged."""
        return [(place, stick) for place, stick in self.copies.items() if self.heard.get(place, 0.0) <= now_s]

    def say(self, state: KitState, line: str, hint: str = "") -> None:
        if (state, line) != (self.state, self.line):
            _log.info("%s: %s (%s)", self.kit, line, state)
        self.state, self.line, self.hint = state, line, hint


class Kits:
    """All kits of one machine. Belongs to one event loop.

    Args:
        device: This machine.
        folder: Of our own, for copies; nothing in it outlives a judgement.
        finder: Finds sticks.
        shelf: Is told which are at hand.
        chooser: Says what the machine would take.
        trust: Judges.
        updates: Installs.
        state: Terms, and the list of technicians.
        apply: Whether a kit that fits is installed by itself, or waits for a person.
        exports: Is told which sticks are there; None: nothing is written to them.
    """

    def __init__(
        self,
        *,
        device: DeviceId,
        folder: Path,
        finder: Finder,
        shelf: Shelf,
        chooser: Chooser,
        trust: Trust,
        updates: Updates,
        state: StateDb,
        apply: Applying = "auto",
        exports: Exports | None = None,
    ) -> None:
        self._device = device
        self._folder = folder
        self._finder = finder
        self._shelf = shelf
        self._chooser = chooser
        self._trust = trust
        self._updates = updates
        self._state = state
        self._memory = Memory(state)
        self._apply: Applying = apply
        self._exports = exports
        self._entries: dict[tuple[KitId, Digest], _Entry] = {}
        self._contents: dict[tuple[Path, KitId, Mark], Digest] = {}
        self._wanted: set[KitId] = set()  # by a person
        self._forces: dict[KitId, tuple[Digest, Token]] = {}  # the release, and the request of a technician
        self._turns = 0
        self._in_turn = False
        self._turned = asyncio.Condition()

    async def run(self) -> None:
        """Looks after kits until it is cancelled."""
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        await self._finder.start()
        try:
            while True:
                if self._updates.started:
                    await self._turn()
                    await self._finder.news()
                else:  # nothing is known of what runs
                    await asyncio.sleep(START_S)
        finally:
            await self._finder.close()

    def wake(self) -> None:
        """Something changed that kits depend on."""
        self._finder.wake()

    def shown(self) -> KitsShown:
        """What there is now. Never blocks."""
        progress = self._updates.progress() if self._updates.started else None
        kits = [self._show(entry, progress) for entry in self._entries.values()]
        return KitsShown(
            kits=tuple(sorted(kits, key=lambda one: (one.kit, one.sticks))),
            troubles=tuple(sorted(self._finder.troubles.values())),
            results=self._exports.sentence() if self._exports is not None else "",
        )

    async def look(self, path: Path | None = None) -> KitsShown:
        """A person wants everything looked at again: what was refused before is judged anew.

        Args:
            path: A folder that counts as a stick from now on.

        Raises:
            StateError: Nothing came of it in time.
        """
        if path is not None:
            self._finder.add(path)
        self._shelf.forget()
        self._contents.clear()
        for entry in self._entries.values():
            entry.trusted = entry.told = None
        await self._next_turn()
        return self.shown()

    async def apply(self, kit: KitId) -> KitShown:
        """A person wants a kit installed.

        Raises:
            StateError: There is no such kit, or its stick went meanwhile.
        """
        if kit not in {entry.kit for entry in self._entries.values()}:
            raise StateError(f"there is no kit {kit}", hint="headland-device kit list shows what was found")
        self._wanted.add(kit)
        await self._next_turn()
        shown = [self._show(entry, self._updates.progress()) for entry in self._entries.values() if entry.kit == kit]
        if not shown:
            raise StateError(f"the stick with {kit} is gone", hint="plug it in again")
        return min(shown, key=lambda one: (one.state is not KitState.APPLYING, not one.release))

    async def force(self, kit: KitId, release: Digest, request: Token) -> KitShown:
        """A technician forces a release of a kit: that one, and once.

        Args:
            kit: Its name.
            release: Its manifest.
            request: Verified and kept.

        Raises:
            StateError: There is no such kit.
        """
        self._forces[kit] = (release, request)
        return await self.apply(kit)

    def choice_of(self, offer: str) -> tuple[str, Digest] | None:
        """Version and manifest of what this machine would take of a kit; None: nothing."""
        for entry in self._entries.values():
            if entry.kit == offer and entry.choice is not None:
                return entry.choice.standing.release.release, entry.choice.name
        return None

    async def _next_turn(self) -> None:
        """Waits for a turn that began from now on."""
        until = self._turns + (2 if self._in_turn else 1)
        self._finder.wake()
        try:
            async with asyncio.timeout(TURN_S), self._turned:
                await self._turned.wait_for(lambda: self._turns >= until)
        except TimeoutError as error:
            raise StateError("a stick keeps the agent busy", hint="look at headland-device kit list later") from error

    async def _turn(self) -> None:
        self._in_turn = True
        try:
            found = await self._finder.look()
            self._shelf.show(found)
            await self._sort(found)
            await self._judge_all()
            await self._end_revoked()
            await self._plan_all()
            await self._offer_best()
        except StateError as error:  # a full disk: it is tried again
            _log.warning("kits: %s", error.message)
        finally:
            self._in_turn = False
        if self._exports is not None:
            self._exports.see(self._finder.carriers)
        async with self._turned:
            self._turns += 1
            self._turned.notify_all()

    # Found

    async def _sort(self, found: Iterable[Found]) -> None:
        """Which kits there are now, by their content."""
        contents: dict[tuple[Path, KitId, Mark], Digest] = {}
        here: dict[tuple[KitId, Digest], dict[_Place, Stick]] = {}
        for one in found:
            place = (one.stick.root, one.kit, one.mark)
            content = self._contents.get(place)
            if content is None:
                try:
                    content = digest(await one.stick.read_kit(one.kit))
                except (LinkError, Refused) as error:
                    entry = self._entries.setdefault((one.kit, ""), _Entry(one.kit, ""))
                    entry.say(KitState.UNREADABLE, f"it cannot be read: {error.message}")
                    here.setdefault((one.kit, ""), {})
                    continue
            contents[place] = content
            here.setdefault((one.kit, content), {})[one.stick.root, one.mark] = one.stick
        self._contents = contents
        offer = self._updates.record.offer
        underway = offer.rollout if offer is not None else ""
        for key, entry in list(self._entries.items()):
            if key not in here and not (entry.kit == underway and entry.is_good):
                del self._entries[key]
            else:
                entry.copies = here.get(key, {})
                entry.heard = {place: until_s for place, until_s in entry.heard.items() if place in entry.copies}
        for (kit, content), copies in here.items():
            if (kit, content) not in self._entries:
                self._entries[kit, content] = _Entry(kit, content, copies=copies)
        for kit in (self._wanted | self._forces.keys()) - {entry.kit for entry in self._entries.values()}:
            self._forget_wish(kit)

    def _forget_wish(self, kit: KitId) -> None:
        self._wanted.discard(kit)
        self._forces.pop(kit, None)

    # Judged

    def _trusted(self) -> bytes:
        """The same as long as no newer metadata is trusted here."""
        return (self._state.get(TERMS) or b"") + (self._state.get(ROSTER) or b"")

    async def _judge_all(self) -> None:
        """Until all were held against the newest that one of them brought: nothing else is offered."""
        trusted = None
        while trusted != (newest := await asyncio.to_thread(self._trusted)):
            trusted = newest
            for entry in self._entries.values():
                if entry.copies:
                    await self._judge(entry, trusted)

    async def _judge(self, entry: _Entry, trusted: bytes) -> None:
        """Copies what a kit says of itself, and has the keeper judge the copy: one after the other, until one is good.

        A copy that is damaged, or that somebody changed, must not hide another one.
        """
        if entry.trusted != trusted:
            entry.verdict, entry.choice = None, None
            entry.heard.clear()
        if entry.is_good:
            return
        now_s = asyncio.get_running_loop().time()
        for place, stick in entry.unheard(now_s):
            entry.heard[place] = now_s + AGAIN_S
            try:
                verdict = await self._judge_copy(entry, stick)
            except Refused as error:
                detail = f"it is no kit: {error.message}"
                verdict = KitVerdict(
                    complaint=Complaint(what="kit", reason=error.reason, detail=detail, hint=error.hint)
                )
            except LinkError as error:
                if entry.verdict is None:
                    entry.say(KitState.UNREADABLE, error.message)
                continue
            except OSError as error:
                if entry.verdict is None:
                    entry.say(KitState.UNREADABLE, f"this machine's disk takes no copy of it: {error.strerror}")
                continue
            entry.heard[place] = math.inf
            entry.verdict = verdict
            await self._learn(verdict)
            if verdict.kit is not None:
                break
            self._say_refused(entry, verdict.complaint)
        entry.trusted = await asyncio.to_thread(self._trusted)

    def _say_refused(self, entry: _Entry, complaint: Complaint | None) -> None:
        reason = complaint.reason if complaint is not None else Reason.METADATA
        detail = complaint.detail if complaint is not None else "it was refused"
        entry.say(STATES.get(reason, KitState.REFUSED), detail, complaint.hint if complaint is not None else "")

    async def _judge_copy(self, entry: _Entry, stick: Stick) -> KitVerdict:
        aside = self._folder / secrets.token_hex(8)
        copy = aside / entry.kit
        try:
            await asyncio.to_thread(copy.mkdir, parents=True)
            await stick.copy_metadata(entry.kit, copy, entry.content)
            return await self._trust.judge_kit(str(copy))
        finally:
            await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)

    async def _learn(self, verdict: KitVerdict) -> None:
        if verdict.terms is not None:
            await self._updates.learn(verdict.terms)

    async def _end_revoked(self) -> None:
        """What was begun, and what no copy is left of to be judged again."""
        roster = await asyncio.to_thread(load_roster, self._state)
        if roster is None:
            return
        for kit, signers in (await asyncio.to_thread(self._signers)).items():
            if not roster.takes_kit_of(signers):
                self._updates.withdraw_kit(kit)
        for entry in self._entries.values():
            if entry.verdict is not None and entry.is_good and not roster.takes_kit_of(entry.verdict.signers):
                entry.verdict, entry.choice = None, None
                entry.say(KitState.REFUSED, "the keys of those who signed it count no more")

    def _signers(self) -> dict[KitId, tuple[str, ...]]:
        """By the kits that are here or under way. Blocking."""
        with contextlib.suppress(Refused):
            return decode(self._state.get(SIGNERS) or b"{}", dict[str, tuple[str, ...]], limit=limits.METADATA_BYTES)
        return {}

    def _note_signers(self, kit: KitId, signers: tuple[str, ...]) -> None:
        """Before the kit is offered. Blocking."""
        known = self._signers()
        offer = self._updates.record.offer
        here = {entry.kit for entry in self._entries.values()} | ({offer.rollout} if offer is not None else set())
        if known.get(kit) != signers:
            kept = {name: each for name, each in known.items() if name in here}
            self._state.put(SIGNERS, encode(kept | {kit: signers}))

    # Planned

    async def _plan_all(self) -> None:
        facts = None
        for entry in self._entries.values():
            if entry.verdict is None or entry.verdict.kit is None:
                continue
            facts = facts or await self._chooser.look()
            entry.choice = None
            try:
                entry.choice = await self._chooser.choose(entry.verdict, facts, is_wanted=entry.kit in self._wanted)
            except UnfitError as unfit:
                entry.say(unfit.state, unfit.line, unfit.hint)
                if unfit.state is KitState.INSTALLED:
                    self._forget_wish(entry.kit)

    # Offered

    async def _offer_best(self) -> None:
        """The newest first; among copies of the same, the one that is under way, and what a person asked for."""
        terms = await asyncio.to_thread(self._memory.terms)
        underway = self._underway()
        able = [entry for entry in self._entries.values() if entry.choice is not None]
        able.sort(key=lambda entry: self._order(entry, underway), reverse=True)
        offered: _Entry | None = None
        for entry in able:
            assert entry.choice is not None
            version = entry.choice.standing.release.release
            if self._apply == "ask" and entry.kit not in self._wanted and entry.kit != underway:
                entry.say(KitState.OFFERED, f"release {version} can be installed", by_hand(entry.kit))
                continue
            if offered is not None:
                entry.say(KitState.PASSED_OVER, f"{offered.kit} brings the same or a newer release than its {version}")
                continue
            if underway and underway != entry.kit and self._is_stuck(underway):
                self._updates.withdraw_kit(underway)
            if terms is not None and await self._offer(entry, entry.choice, terms):
                offered = entry

    async def _offer(self, entry: _Entry, choice: Choice, terms: Terms) -> bool:
        assert entry.verdict is not None
        assert entry.verdict.kit is not None
        release = choice.standing.release
        assignment = AssignmentBody(
            device=self._device,
            product=entry.verdict.kit.product,
            rollout=entry.kit,
            release=release.release,
            manifest=release.manifest,
            plan=choice.plan,
            conditions=entry.verdict.kit.conditions,
        )
        release_forced, request = self._forces.get(entry.kit, (None, None))
        forced = request if release_forced == choice.name else None
        await asyncio.to_thread(self._note_signers, entry.kit, entry.verdict.signers)
        verdict = await self._updates.offer(assignment, choice.manifest, terms, True, forced=forced)
        match verdict:
            case rules.Accepted():
                if forced is not None:
                    del self._forces[entry.kit]  # the update machine keeps it from here on
                entry.say(KitState.APPLYING, f"release {release.release} is being installed")
                this = (frozenset(entry.copies), choice.plan)
                if entry.copies and entry.told != this:
                    entry.told = this
                    self._updates.kit_is_there(entry.kit)
                return True
            case rules.Later():
                entry.say(KitState.WAITING, verdict.why)
            case Refused():
                entry.say(STATES.get(verdict.reason, KitState.REFUSED), verdict.message, verdict.hint)
        return False

    def _order(self, entry: _Entry, underway: str) -> tuple[bool, tuple[int, int], bool, bool]:
        assert entry.choice is not None
        standing = entry.choice.standing
        is_wanted_back = standing.is_permitted and entry.kit in self._wanted
        return (is_wanted_back, standing.rank, entry.kit == underway, entry.kit in self._wanted)

    def _underway(self) -> str:
        """The kit whose update is under way, or empty."""
        record = self._updates.record
        if record.offer is None or record.state in _DONE:
            return ""
        return record.offer.rollout if record.offer.rollout in {one.kit for one in self._entries.values()} else ""

    def _is_stuck(self, kit: KitId) -> bool:
        """Whether what the sticks have of it cannot be used: then the next one has its turn."""
        entries = [entry for entry in self._entries.values() if entry.kit == kit]
        return self._updates.record.state is State.FETCH and all(entry.choice is None for entry in entries)

    def _show(self, entry: _Entry, progress: Progress | None) -> KitShown:
        choice = entry.choice
        verdict = entry.verdict
        shown = KitShown(
            kit=entry.kit,
            sticks=tuple(str(stick.root) for stick in entry.copies.values()),
            state=entry.state,
            sentence=entry.line,
            hint=entry.hint,
            release=choice.standing.release.release if choice is not None else "",
            manifest=choice.name if choice is not None else None,
            expires_ms=verdict.expires_ms if verdict is not None else 0,
        )
        if entry.state is not KitState.APPLYING or progress is None:
            can_apply = choice is not None or (entry.state is KitState.OLDER and bool(entry.hint))
            return msgspec.structs.replace(shown, can_apply=can_apply)
        line = entry.line + (f"; it waits: {progress.why}" if progress.why else "")
        return msgspec.structs.replace(shown, sentence=line, forced=bool(progress.forced))
