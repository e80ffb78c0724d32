"""The update machine's shell: it does each state's work and writes the record before the next.

What may happen stands in `states`, what may be installed in `rules`, what a trial shows in `trial`; here is only the
doing, each piece of it safe to repeat after a cut. Workers and the `active` link follow the record: at every start
they converge to it before anything else, without any network.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, overload

from device.retry import backoff_s
from device.state_db import Refusal, StateDb
from device.store import NoSpaceError, Store
from device.transfer import (
    ApplierEndedError,
    OverBudgetError,
    PatchFailedError,
    Purse,
    adopt_finished,
    bases,
    held_bytes,
    part_names,
)
from device.trust.port import Terms
from device.update import rules, states
from device.update.memory import ASSIGNMENT, Memory, floors_of
from device.update.ports import Canary, ReleaseSet, Workers
from device.update.releases import Library
from device.update.sets import Sets
from device.update.states import Event, Held, Offer, State, UpdateRecord
from device.update.telling import Teller, Word, is_told
from device.update.trial import Watch, Watched, find_evidence, is_proven, is_time_up
from device.update.world import Fetcher, Treasury, UpdateSettings, World
from protocol import limits
from protocol.errors import HeadlandError, LinkError, Reason, Refused, StateError
from protocol.ids import Digest
from protocol.messages import Outcome, TransferBytes, VersionReport
from protocol.objects import AssignmentBody, Payload
from protocol.release import ReleaseManifest, parse_manifest
from protocol.wire import encode

log = logging.getLogger(__name__)

PERSIST_S: Final = 10.0  # the most of a trial that a cut forgets; a tenth of a short trial
INTERRUPTIBLE: Final = frozenset({State.IDLE, State.FETCH, State.CHECK, State.WAIT})
DAMAGE: Final = frozenset({Reason.HASH, Reason.LENGTH})  # of a source or of our disk: nothing against the release


@dataclass(frozen=True)
class Progress:
    """For people: where the update is.

    Args:
        state: Of the machine.
        release: The version that is being installed, or empty.
        why: What it waits for, or empty.
        bytes_done: Of the present FETCH, payload bytes received in this process.
        bytes_total: What was to come when it began.
        needs_bytes: It waits for a budget: so much would still have to travel.
        healthy_s: Of the trial.
        healthy_of_s: What it needs.
        damaged: The committed release cannot serve: its files are not what they were, or it does not come up.
    """

    state: State
    release: str = ""
    why: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    needs_bytes: int = 0
    healthy_s: float = 0.0
    healthy_of_s: float = 0.0
    damaged: str = ""


class _Obstacle(Enum):
    """What a paused fetch waits for, as far as somebody may tell us that it is gone."""

    NONE = auto()
    LINK = auto()
    PLAN = (
        auto()
    )  # the server lacks a blob, or planned for what we do not have, what failed here, or what costs too much


@dataclass(frozen=True)
class _Step:
    """What a state's work came to."""

    event: Event
    reason: Reason | None = None
    detail: str = ""
    needs_bytes: int = 0
    offer: Offer | None = None
    facts: Mapping[str, bytes] | None = None


@dataclass(frozen=True)
class _Pending:
    """An offer that the loop has not taken up yet."""

    assignment: AssignmentBody
    manifest: bytes


class Updater:
    """One machine's updates. `start`, then `run_forever` in a task that its owner cancels; all else at any time.

    Args:
        db: The record and what belongs to it.
        store: Artifacts.
        sets: What outside readers see.
        fetcher: Brings blobs.
        treasury: Pays for them.
        canary: Tries candidates.
        workers: Infer, and follow the record.
        machine: Who this is.
        world: Time, chance, signals.
        settings: Intervals.
    """

    def __init__(
        self,
        *,
        db: StateDb,
        store: Store,
        sets: Sets,
        fetcher: Fetcher,
        treasury: Treasury,
        canary: Canary,
        workers: Workers,
        machine: rules.Machine,
        world: World,
        settings: UpdateSettings | None = None,
    ) -> None:
        self._db = db
        self._store = store
        self._sets = sets
        self._fetcher = fetcher
        self._treasury = treasury
        self._canary = canary
        self._workers = workers
        self._machine = machine
        self._world = world
        self._settings = settings or UpdateSettings()
        self._memory = Memory(db)
        self._library = Library(store, machine.inventory)
        self._teller = Teller(db, world.new_id, treasury.of)
        self._record = UpdateRecord()
        self._started = False
        self._progress = Progress(State.IDLE)
        # What others asked for, until the loop takes it up.
        self._pending: _Pending | None = None
        self._withdrawn = False
        self._woken = asyncio.Event()
        self._damaged = ""
        self._link_lags = False
        self._mendings = 0
        self._obstacle = _Obstacle.NONE
        self._fetching = False  # a FETCH is underway, not paused
        self._needs_bytes = 0  # of a FETCH that waits for a budget
        self._delay = False  # whether a paused FETCH waits: not after a start, nor when its obstacle went away

    # What others call

    @property
    def record(self) -> UpdateRecord:
        """The record as it is stored."""
        return self._record

    @property
    def started(self) -> bool:
        """Whether `start` has taken up the record; before that, nothing is known of the update."""
        return self._started

    def progress(self) -> Progress:
        """Where the update is. Cheap."""
        record = self._record
        trial = record.offer.trial if record.offer is not None and record.state is State.TRIAL else None
        return replace(
            self._progress,
            state=record.state,
            release=record.offer.release.version if record.offer is not None else "",
            why=self._progress.why or record.paused,
            needs_bytes=self._needs_bytes if record.state is State.FETCH else 0,
            healthy_s=max(self._progress.healthy_s, record.healthy_s) if trial is not None else 0.0,
            healthy_of_s=trial.healthy_s if trial is not None else 0.0,
            damaged=self._damaged,
        )

    def report(self) -> VersionReport:
        """What the server is told runs. A committed release that cannot serve is not named: it is asked for again."""
        record = self._record
        committed = record.committed if not self._damaged else None
        return VersionReport(
            manifest=committed.digest if committed is not None else None,
            release=committed.version if committed is not None else "",
            trial=record.active if record.state is State.TRIAL else None,
            state=str(record.state),
            transfer=self._transfer(committed),
        )

    def parts(self) -> dict[Digest, int]:
        """Of the payloads that are being fetched, the bytes that need not travel again. Blocking."""
        if self._record.state is not State.FETCH:
            return {}
        try:
            plan = self._memory.assignment().plan
        except StateError:
            return {}
        return {name: held for step in plan.steps for name, held in held_bytes(self._store, step).items()}

    async def start(self) -> None:
        """Takes up the record after a restart and makes workers and `active` follow it. Needs no network.

        Raises:
            StateError: `state.db` cannot be read.
        """
        found = await asyncio.to_thread(self._db.record)
        resumed = states.resume(found)
        if resumed != found:
            await asyncio.to_thread(self._db.write_record, resumed)
        self._record = resumed
        await asyncio.to_thread(self._treasury.settle, self._store.has)  # before anything is deleted
        self._started = True
        if resumed.state is State.TRIAL:
            if not states.is_spent(resumed):
                return  # the trial's own work converges, and judges a release that does not come up
            await self._go(_spent(resumed))
        await self._serve()

    async def offer(
        self, assignment: AssignmentBody, manifest_bytes: bytes, terms: Terms, may_install: bool
    ) -> rules.Accepted | rules.Later | Refused:
        """Judges an assignment and, if it may be installed, has it installed. Repeating it changes nothing.

        Args:
            assignment: Verified by trust.
            manifest_bytes: The manifest that it names; its hash is checked here.
            terms: The newest trusted.
            may_install: Of the verdict: time is sure and nothing needed has expired.

        Returns:
            The verdict; it is returned, not raised. A refusal is reported to the server, once.
        """
        await self.learn(terms)
        if not may_install:
            return rules.Later("trust: time is not sure, or metadata has expired")
        newest = await asyncio.to_thread(self._memory.terms)
        verdict = await self._judge(assignment, manifest_bytes, newest or terms)
        if isinstance(verdict, rules.Accepted):
            await self._accept(verdict.offer, assignment, manifest_bytes)
        elif not self._is_underway(assignment.manifest.sha256):
            await self._tell_refusal(assignment, verdict)
        return verdict

    async def learn(self, terms: Terms) -> None:
        """Keeps what the newest trusted repository says: ACTIVATE looks at it without a network."""
        if terms.product != self._machine.product:
            return
        delists = await asyncio.to_thread(self._memory.learn, terms)
        if delists and self._record.offer is not None:
            self._woken.set()

    def withdraw(self) -> None:
        """The director offers nothing now: what was not activated yet stops. Call it for an answer without assignment.

        A trial goes on: its release is active, and it is local evidence that decides.
        """
        if self._record.state in INTERRUPTIBLE and self._record.offer is not None:
            self._withdrawn = True
            self._woken.set()

    def link_is_up(self) -> None:
        """A contact succeeded: a download that waits for the link goes on now."""
        self._is_gone(_Obstacle.LINK)

    async def run_forever(self) -> None:
        """Drives the machine until it is cancelled. What goes wrong in a state is tried again after a while."""
        failures = 0
        while True:
            try:
                await self._turn()
                failures = 0
            except (HeadlandError, OSError) as error:
                failures += 1
                log.warning("update, state %s: %s", self._record.state, error)
                await self._world.sleep(self._backoff_s(failures))

    # The loop

    async def _turn(self) -> None:
        """One state's work, and what it came to. Before activation, what others ask for interrupts it."""
        if self._record.state not in INTERRUPTIBLE:
            await self._go(await self._work())
            return
        self._woken.clear()
        step = await self._take_up()
        if step is not None:
            await self._go(step)
            return
        work = asyncio.create_task(self._work())
        woken = asyncio.create_task(self._woken.wait())
        try:
            await asyncio.wait({work, woken}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await self._go(work.result())
        finally:
            for task in (work, woken):
                task.cancel()
            await asyncio.gather(work, woken, return_exceptions=True)

    async def _take_up(self) -> _Step | None:
        """What others asked for meanwhile, if it can be done now."""
        offer = self._record.offer
        terms = await asyncio.to_thread(self._memory.terms)
        if offer is not None and terms is not None and offer.release.digest not in terms.listed:
            if self._record.state is State.IDLE:  # its retry
                return _Step(Event.WITHDRAWN)
            return _Step(Event.FORBIDDEN, Reason.DELISTED, f"release {offer.release.version} was delisted")
        withdrawn, self._withdrawn = self._withdrawn, False
        pending = self._pending
        step = None
        if pending is not None and terms is not None:
            # Judged again: a commit may have raised the floor since it came.
            verdict = await self._judge(pending.assignment, pending.manifest, terms)
            if isinstance(verdict, rules.Accepted) and not self._runs(verdict.offer):
                await asyncio.to_thread(self._store.put, pending.manifest)
                step = _Step(Event.OFFERED, offer=verdict.offer, facts={ASSIGNMENT: encode(pending.assignment)})
        if self._pending is pending:  # only now: a full disk must not lose the offer
            self._pending = None
        return step or (_Step(Event.WITHDRAWN) if withdrawn and offer is not None else None)

    async def _work(self) -> _Step:
        self._progress = Progress(self._record.state)
        work = {
            State.IDLE: self._idle,
            State.FETCH: self._fetch,
            State.CHECK: self._check,
            State.WAIT: self._wait,
            State.ACTIVATE: self._activate,
            State.TRIAL: self._trial,
            State.COMMIT: self._commit,
            State.ROLLBACK: self._roll_back,
            State.CLEANUP: self._clean_up,
        }
        return await work[self._record.state]()

    async def _go(self, step: _Step) -> None:
        """Writes what `step` makes of the record, with all that belongs to it, in one transaction."""
        before = self._record
        after = states.advance(before, step.event, offer=step.offer, reason=step.reason, detail=step.detail)
        at_ms, _ = await asyncio.to_thread(self._world.now)
        floors: dict[str, int] = {}
        if step.event is Event.HEALTHY:
            assert after.committed is not None
            floors = floors_of(after.committed)
        refusal = None
        if step.event in (Event.REFUSED, Event.FAILED):
            assert before.offer is not None
            assert step.reason is not None
            release = before.offer.release
            refusal = Refusal(
                manifest=release.digest, release=release.version, reason=step.reason, at_ms=at_ms, detail=step.detail
            )
        statuses = self._teller.of_step(
            before, after, step.event, at_ms, reason=step.reason, detail=step.detail, needs_bytes=step.needs_bytes
        )
        await asyncio.to_thread(
            lambda: self._db.write_record(after, floors=floors, statuses=statuses, refusal=refusal, facts=step.facts)
        )
        self._record = after
        self._needs_bytes = step.needs_bytes
        self._delay = step.event in (Event.PAUSED, Event.CLEAN)
        if before.state is not after.state:
            log.info("update: %s -> %s%s", before.state, after.state, f" ({step.detail})" if step.detail else "")
        if statuses:
            self._world.notify()

    # The states' work

    async def _idle(self) -> _Step:
        """Waits; an update that ended unfinished is tried again, and a release that could not serve is served."""
        if states.will_retry(self._record):
            await self._world.sleep(self._backoff_s(self._record.retries))
            return _Step(Event.AGAIN)
        while self._damaged or self._link_lags:
            self._mendings += 1
            await self._world.sleep(self._backoff_s(self._mendings))
            await self._serve()
        self._mendings = 0
        return await asyncio.Future()  # until something interrupts

    async def _fetch(self) -> _Step:
        record = self._record
        if record.failures and self._delay:
            await self._world.sleep(self._backoff_s(record.failures))
        self._obstacle = _Obstacle.NONE
        self._fetching = True
        try:
            await self._bring()
        except (Refused, PatchFailedError, LinkError, StateError, OSError) as error:
            return self._hindered(error)
        finally:
            self._fetching = False
        return _Step(Event.FETCHED)

    def _hindered(self, error: Refused | PatchFailedError | LinkError | StateError | OSError) -> _Step:
        """What stands in the way of a fetch. Only a rule ends the update; everything else pauses it."""
        match error:
            case Refused(reason=Reason.WRONG_HARDWARE):  # an accelerator was unplugged since the offer came
                return _Step(Event.FORBIDDEN, error.reason, error.message)
            case Refused():  # the source is bad, not the release: nothing is remembered against it
                return _Step(Event.PAUSED, error.reason, error.message)
            case PatchFailedError():
                # Nothing is fetched in its place: the server is told, and its next plan has a price that the budget
                # judges.
                self._obstacle = _Obstacle.PLAN
                return _Step(Event.PAUSED, error.reason, f"patch: {error.message}")
            case ApplierEndedError():
                # After a few of these the machine says that it applies no patches, and the next plan does without.
                self._obstacle = _Obstacle.PLAN
                return _Step(Event.PAUSED, detail=f"applier: {error}")
            case OverBudgetError():
                self._obstacle = _Obstacle.PLAN
                return _Step(Event.PAUSED, Reason.BUDGET, f"budget: {error.message}", needs_bytes=error.needs_bytes)
            case NoSpaceError():
                return _Step(Event.PAUSED, detail=f"space: {error.message}")
            case LinkError():
                self._obstacle = _Obstacle.LINK if error.retryable else _Obstacle.PLAN
                return _Step(Event.PAUSED, detail=f"link: {error.message}")
            case _:
                return _Step(Event.PAUSED, detail=f"disk: {error}")

    async def _bring(self) -> None:
        assignment = await asyncio.to_thread(self._memory.assignment)
        purse = self._treasury.purse(assignment.manifest.sha256, assignment.budget)
        await asyncio.to_thread(self._take_in_finished, assignment, purse)
        await self._collect()
        needed = self._library.needed(await self._manifest(assignment.manifest))
        # Files may have their length and not their bytes: looked at once, not again after each pause.
        find = self._library.missing if self._record.failures else self._library.drop_damaged
        missing = await asyncio.to_thread(find, needed)
        steps = [step for step in assignment.plan.steps if step.artifact in missing]
        total = await asyncio.to_thread(
            lambda: sum(step.travels_bytes() - sum(held_bytes(self._store, step).values()) for step in steps)
        )
        self._progress = Progress(State.FETCH, bytes_total=total)
        await self._fetcher.fetch(assignment.plan, needed, self._received, purse)

    def _take_in_finished(self, assignment: AssignmentBody, purse: Purse) -> None:
        """What another plan finished is taken in before the rest of it, which nothing names any more, is deleted."""
        with contextlib.suppress(StateError, Refused):  # without the manifest nothing is known to be needed
            needed = self._library.needed(self._library.manifest(assignment.manifest.sha256))
            adopt_finished(self._store, needed, purse)

    async def _check(self) -> _Step:
        if states.is_spent(self._record):
            return _spent(self._record)
        try:
            release = await asyncio.to_thread(self._library.load, self._offer().release.digest)
        except (Refused, StateError) as error:
            return _Step(Event.DAMAGED, Reason.HASH, error.message)
        try:
            await self._canary.check(release)
        except Refused as refused:
            event = Event.DAMAGED if refused.reason in DAMAGE else Event.REFUSED
            return _Step(event, refused.reason, refused.message)
        return _Step(Event.CHECKED)

    async def _wait(self) -> _Step:
        while True:
            try:
                later = await asyncio.to_thread(self._look)
            except Refused as refused:
                return _Step(Event.FORBIDDEN, refused.reason, refused.message)
            if later is None:
                return _Step(Event.READY)
            self._progress = Progress(State.WAIT, why=later.why)
            offer = self._offer()
            await self._tell_once(Word(offer.release.digest, offer.rollout, State.WAIT, "deferred", None, later.why))
            await self._world.sleep(self._settings.look_s)

    async def _activate(self) -> _Step:
        """Hashes first, for they take time; then the look at what changes from one second to the next."""
        try:
            release = await asyncio.to_thread(self._library.load, self._offer().release.digest)
            needed = self._library.needed(release.manifest)
            damaged = await asyncio.to_thread(self._library.drop_damaged, needed)
        except (Refused, StateError) as error:
            return _Step(Event.DAMAGED, Reason.HASH, error.message)
        if damaged:
            return _Step(Event.DAMAGED, Reason.HASH, f"{damaged[0][:12]} in the store is not what it was")
        try:
            later = await asyncio.to_thread(self._look)
        except Refused as refused:
            return _Step(Event.FORBIDDEN, refused.reason, refused.message)
        return _Step(Event.NOT_NOW, detail=later.why) if later is not None else _Step(Event.ACTIVATED)

    async def _trial(self) -> _Step:
        if states.is_spent(self._record):
            return _spent(self._record)
        try:
            release = await self._converge(self._offer().release.digest)
        except Refused as refused:
            return _failed(refused)
        except StateError as error:
            return _Step(Event.DAMAGED, Reason.HASH, error.message)
        await asyncio.to_thread(self._show, release)
        self._damaged = ""
        return await self._watch(release)

    async def _watch(self, release: ReleaseSet) -> _Step:
        """Looks at the workers until there is a verdict."""
        record, rule = self._record, release.manifest.trial
        bounds = {name: variant.bounds for name, variant in release.variants.items()}
        watch = Watch(Watched(record.healthy_s, record.inferences, record.errors))
        persist_s = min(PERSIST_S, max(rule.healthy_s / 10, self._settings.watch_s))
        looked_s = self._world.monotonic()
        while True:
            await self._world.sleep(self._settings.watch_s)
            health, now_s = self._workers.health(), self._world.monotonic()
            # A loop that was held up saw nothing meanwhile: it counts for two looks at most.
            passed_s, looked_s = min(now_s - looked_s, 2 * self._settings.watch_s), now_s
            if health.digest != release.digest:
                try:
                    await self._workers.converge(release)
                except Refused as refused:
                    return _failed(refused)
                continue
            watched = watch.take(health, passed_s)
            self._progress = Progress(State.TRIAL, healthy_s=watched.healthy_s)
            found = find_evidence(health, watched, rule, bounds)
            if found is not None:
                return _Step(Event.FAILED, found.reason, found.detail)
            proven = is_proven(watched, rule)
            settles = not self._record.settled and watched.this_start_s >= states.settles_at_s(rule)
            if proven or settles or watched.healthy_s - self._record.healthy_s >= persist_s:
                await self._observe(watched)
            if proven:
                return _Step(Event.HEALTHY)
            if is_time_up(watched, rule) and self._another_waits():
                return _Step(Event.SUPERSEDED, detail="it had no frames to prove itself on, and another offer waits")

    async def _commit(self) -> _Step:
        await self._serve()
        return _Step(Event.COMMITTED)

    async def _roll_back(self) -> _Step:
        await self._serve()
        return _Step(Event.RESTORED)

    async def _clean_up(self) -> _Step:
        await self._collect()
        return _Step(Event.CLEAN)

    # Pieces

    async def _serve(self) -> None:
        """Workers and `active` follow the record; when its release cannot serve, another one does meanwhile."""
        record = self._record
        wanted = [record.active, *(held.digest for held in (record.committed, record.previous) if held is not None)]
        damaged = ""  # told only at the end: this may be interrupted, and nothing is whole that was not seen to be
        for name in dict.fromkeys(wanted):
            try:
                release = await self._converge(name)
            except (Refused, StateError, OSError) as error:
                damaged = damaged or str(error)
                log.warning("release %s cannot serve: %s", (name or "")[:12], error)
                continue
            await self._show_or_later(release)
            break
        else:  # and what was rolled back must not go on either
            await self._converge(None)
            await self._show_or_later(None)
        self._damaged = damaged

    @overload
    async def _converge(self, name: Digest) -> ReleaseSet: ...
    @overload
    async def _converge(self, name: None) -> None: ...
    async def _converge(self, name: Digest | None) -> ReleaseSet | None:
        release = await asyncio.to_thread(self._library.load, name) if name is not None else None
        await self._workers.converge(release)
        return release

    async def _show_or_later(self, release: ReleaseSet | None) -> None:
        """A full disk must not keep a release from serving: `active` follows once it can."""
        try:
            await asyncio.to_thread(self._show, release)
        except OSError as error:
            self._link_lags = True
            log.warning("the link `active` is behind: %s", error)

    def _show(self, release: ReleaseSet | None) -> None:
        if release is None:
            self._sets.hide()
        else:
            self._sets.show(release, self._store.path(release.digest))
        self._link_lags = False

    async def _collect(self) -> None:
        """Deletes what the record does not name."""
        record = self._record
        named = {held.digest for held in (record.committed, record.previous) if held is not None}
        named |= {record.active} if record.active is not None else set()
        goes_on = record.offer is not None and (record.state is not State.CLEANUP or states.will_retry(record))

        def collect() -> None:
            parts: frozenset[Digest] = frozenset()
            patched: frozenset[Digest] = frozenset()
            if goes_on:
                plan = self._memory.assignment().plan
                parts, patched = part_names(plan), bases(plan)
                # While its manifest is fetched again, nothing can be told to be needless.
                named.add(self._offer().release.digest)
            if self._library.collect(named, parts, patched):
                self._sets.collect(named)

        await asyncio.to_thread(collect)

    async def _manifest(self, signed: Payload) -> ReleaseManifest:
        """The manifest from the store, or again from the source when the store lost it."""
        with contextlib.suppress(StateError, Refused):
            return await asyncio.to_thread(self._library.manifest, signed.sha256)
        data = await self._fetcher.small(signed, limits.MANIFEST_BYTES)
        await asyncio.to_thread(self._store.put, data)
        return parse_manifest(data)

    def _look(self) -> rules.Later | None:
        """Blocking."""
        terms = self._memory.terms()
        if terms is None:
            return rules.Later("trust: no terms of the product are known")
        now_ms, sure = self._world.now()
        return rules.look_again(
            self._offer(),
            terms,
            floor=self._memory.floor(),
            record=self._record,
            refused=self._memory.refused(),
            now_ms=now_ms,
            sure_of_time=sure,
            signals_off=self._world.signals_off(),
        )

    async def _judge(
        self, assignment: AssignmentBody, manifest_bytes: bytes, terms: Terms
    ) -> rules.Accepted | rules.Later | Refused:
        def judge() -> rules.Accepted | rules.Later | Refused:
            try:
                return rules.judge_offer(
                    assignment,
                    manifest_bytes,
                    terms,
                    self._machine,
                    floor=self._memory.floor(),
                    record=self._record,
                    refused=self._memory.refused(),
                    delisted=self._memory.delisted(),
                )
            except Refused as refused:
                return refused

        return await asyncio.to_thread(judge)

    async def _accept(self, offer: Offer, assignment: AssignmentBody, manifest_bytes: bytes) -> None:
        record = self._record
        if self._runs(offer):
            self._pending = None
            self.withdraw()  # whatever else was underway
            if record.last is None or record.last.rollout != offer.rollout:
                name, detail = offer.release.digest, "it runs here already"
                await self._tell_once(Word(name, offer.rollout, record.state, "committed", None, detail))
            return
        if record.offer != offer:
            self._pending = _Pending(assignment, manifest_bytes)
            self._woken.set()
            return
        self._pending = None  # what was offered in between is not any more
        if record.state is State.FETCH:
            renewed, differs = await asyncio.to_thread(self._memory.renew_plan, assignment)
            if renewed:
                self._is_gone(_Obstacle.PLAN)
            if differs and self._fetching:
                # It begins anew by the new plan, from the parts that are here.
                self._delay = False
                self._woken.set()

    def _is_gone(self, obstacle: _Obstacle) -> None:
        """What a paused fetch waited for is there: it goes on at once. Other pauses wait their time."""
        if self._record.state is State.FETCH and self._record.failures and self._obstacle is obstacle:
            self._delay = False
            self._woken.set()

    def _transfer(self, release: Held | None) -> TransferBytes | None:
        spent = self._treasury.of(release.digest) if release is not None else TransferBytes()
        return spent if spent != TransferBytes() else None

    def _runs(self, offer: Offer) -> bool:
        """Whether the offer is the committed release, in good order."""
        return not self._damaged and rules.is_repair(offer.release, self._record)

    def _is_underway(self, name: Digest) -> bool:
        offer = self._record.offer
        return offer is not None and offer.release.digest == name and self._record.state is not State.IDLE

    def _another_waits(self) -> bool:
        return self._pending is not None and self._pending.assignment.manifest.sha256 != self._offer().release.digest

    async def _observe(self, watched: Watched) -> None:
        record = states.observed(
            self._record,
            healthy_s=watched.healthy_s,
            inferences=watched.inferences,
            errors=watched.errors,
            this_start_s=watched.this_start_s,
        )
        await asyncio.to_thread(self._db.write_record, record)
        self._record = record

    async def _tell_refusal(self, assignment: AssignmentBody, verdict: rules.Later | Refused) -> None:
        name, rollout, state = assignment.manifest.sha256, assignment.rollout, self._record.state
        if isinstance(verdict, rules.Later):
            await self._tell_once(Word(name, rollout, state, "deferred", None, verdict.why))
        elif not is_told(self._record, name, rollout, verdict.reason):
            outcome: Outcome = "deferred" if verdict.reason in DAMAGE else "refused"
            await self._tell_once(Word(name, rollout, state, outcome, verdict.reason, verdict.message))

    async def _tell_once(self, word: Word) -> None:
        def tell() -> bool:
            at_ms, _ = self._world.now()
            return self._teller.once(word, at_ms)

        if await asyncio.to_thread(tell):
            self._world.notify()

    def _received(self, count: int) -> None:
        self._progress = replace(self._progress, bytes_done=self._progress.bytes_done + count)

    def _offer(self) -> Offer:
        assert self._record.offer is not None
        return self._record.offer

    def _backoff_s(self, failures: int) -> float:
        settings = self._settings
        return backoff_s(
            failures, self._world.random(), first_s=settings.first_backoff_s, longest_s=settings.longest_backoff_s
        )


def _failed(refused: Refused) -> _Step:
    """The workers of a release on trial do not come up."""
    event = Event.DAMAGED if refused.reason in DAMAGE else Event.FAILED
    return _Step(event, refused.reason, refused.message)


def _spent(record: UpdateRecord) -> _Step:
    detail = f"{record.starts} starts in a row ended in state {record.state} before they told anything"
    return _Step(Event.SPENT, Reason.TRIAL_UNFINISHED, detail)
