"""The update machine's shell: it does each state's work and writes the record before the next.

What may happen stands in `states`, what may be installed in `rules`, what a trial shows in `trial`; here is only the
doing, each piece of it safe to repeat after a cut, and the long work stands alone: `fetching`, `watching`, `serving`.
At every start workers and the `active` link follow the record before anything else, without any network.
"""

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Final

import msgspec

from device.containers.stock import Stock
from device.state_db import StateDb
from device.store import Store
from device.threads import to_its_end
from device.trust.port import Terms
from device.update import rules, states
from device.update.cleaning import clean, collect
from device.update.fetching import Fetching, Obstacle
from device.update.gate import Gate
from device.update.hardware import Hardware
from device.update.judging import Judge
from device.update.memory import ASSIGNMENT, Memory, floors_of
from device.update.offers import FORCIBLE, SERVER, Offers, Waiting, goes_before, is_same, source_of
from device.update.ports import Canary, HinderedError, Workers
from device.update.progress import Progress, shown
from device.update.releases import Library
from device.update.serving import Serving
from device.update.sets import Sets
from device.update.states import Event, Offer, State, UpdateRecord
from device.update.steps import Step, delisted, failed, refusal_of, spent
from device.update.telling import Teller, Word, report_of, word_of
from device.update.trial import Watched
from device.update.watching import Watcher
from device.update.world import Fetcher, Treasury, UpdateSettings, World
from protocol.errors import HeadlandError, Reason, Refused, StateError
from protocol.ids import Digest, Name, Token
from protocol.kits import KitId
from protocol.messages import Inventory, VersionReport
from protocol.objects import AssignmentBody
from protocol.wire import encode

log = logging.getLogger(__name__)

CLEANINGS: Final = 8  # ten minutes by the first waits: what a rollback ends is gone by then, and its image may go
INTERRUPTIBLE: Final = frozenset({State.IDLE, State.FETCH, State.CHECK, State.WAIT})


class Updater:
    """One machine's updates. `start`, then `run_forever` in a task that its owner cancels; all else at any time.

    Args:
        db: The record and what belongs to it.
        store: Artifacts.
        sets: What outside readers see.
        stock: Images in the engine.
        fetcher: Brings blobs over the air.
        kit_fetcher: Brings those of kits, whose bytes cost nothing; None: no kits are used here.
        treasury: Pays for what comes over the air.
        canary: Tries candidates.
        workers: What serves: it follows the record.
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
        stock: Stock,
        fetcher: Fetcher,
        treasury: Treasury,
        canary: Canary,
        workers: Workers,
        machine: rules.Machine,
        world: World,
        settings: UpdateSettings | None = None,
        kit_fetcher: Fetcher | None = None,
    ) -> None:
        self._db = db
        self._store = store
        self._sets = sets
        self._stock = stock
        self._treasury = treasury
        self._world = world
        self._settings = settings = settings or UpdateSettings()
        self._memory = memory = Memory(db)
        self._hardware = hardware = Hardware(machine, world)
        self._library = library = Library(store, hardware, stock)
        self._judge = Judge(memory, hardware, world)
        self._fetching = Fetching(
            memory=memory,
            store=store,
            library=library,
            sets=sets,
            stock=stock,
            fetcher=fetcher,
            kit_fetcher=kit_fetcher,
            treasury=treasury,
            world=world,
            settings=settings,
        )
        self._gate = Gate(
            judge=self._judge, canary=canary, library=library, stock=stock, world=world, settings=settings
        )
        self._serving = Serving(
            workers=workers,
            library=library,
            store=store,
            sets=sets,
            stock=stock,
            memory=memory,
            hardware=hardware,
            world=world,
            settings=settings,
        )
        self._watcher = Watcher(workers, world, settings)
        self._teller = Teller(db, world.new_id, treasury.of)
        self._record = UpdateRecord()
        self._resumed = False  # `start` is repeated after an error: that is no other start of the machine
        self._started = False
        self._is_clean = True
        self._progress = Progress(State.IDLE)
        # What others asked for, until the loop takes it up.
        self._offers = Offers()
        self._withdrawn: set[Name] = set()  # the server, or a kit
        self._hurry = False  # the next try of an unfinished update does not wait
        self._writing = asyncio.Lock()  # of the record: the loop, and whoever forces an update
        self._woken = asyncio.Event()
        self._needs_bytes = 0  # of a FETCH that waits for a budget
        self._verdict: Step | None = None  # of a trial that failed, while the disk does not take it

    # What others call

    @property
    def record(self) -> UpdateRecord:
        """The record as it is stored."""
        return self._record

    @property
    def inventory(self) -> Inventory:
        """What this machine can run, as it was last looked at."""
        return self._hardware.inventory

    @property
    def started(self) -> bool:
        """Whether `start` has taken up the record; before that, nothing is known of the update."""
        return self._started

    def progress(self) -> Progress:
        """Where the update is. Cheap."""
        return shown(self._progress, self._record, needs_bytes=self._needs_bytes, damaged=self._serving.damaged)

    def report(self) -> VersionReport:
        """What the server is told runs. A committed release that cannot serve is not named: it is asked for again."""
        return report_of(self._record, is_damaged=bool(self._serving.damaged), spent=self._treasury.of)

    def parts(self) -> dict[Digest, int]:
        """Of the payloads that are being fetched, the bytes that need not travel again. Blocking."""
        return self._fetching.parts() if self._record.state is State.FETCH else {}

    async def start(self) -> None:
        """Takes up the record after a restart and makes workers and `active` follow it. Needs no network.

        Repeated after an error, it goes on: it counts one start. While `state.db` takes no write, what is committed
        serves: a trial whose starts cannot be counted does not go on.

        Raises:
            StateError: `state.db` cannot be read or written.
        """
        found = self._record if self._resumed else await asyncio.to_thread(self._db.record)
        try:
            await self._resume(found)
        except (HeadlandError, OSError):
            await self._serving.follow(states.without_trial(found))
            raise
        if self._record.state is State.TRIAL:
            return  # the trial's own work converges, and judges a release that does not come up
        await self._serving.follow(self._record)
        if self._record.state is State.IDLE:
            # A link that was behind at the end of an update kept a release whose turn to go it was.
            with contextlib.suppress(HeadlandError, OSError):
                images = await to_its_end(collect, self._record, self._memory, self._library, self._sets)
                self._is_clean = images is None  # a start that knows too little to delete anything cleans nowhere

    async def _resume(self, found: UpdateRecord) -> None:
        if not self._resumed:
            self._record = states.resume(found)
            if self._record != found:
                await asyncio.to_thread(self._db.write_record, self._record)
            self._resumed = True
        await asyncio.to_thread(self._treasury.settle, self._store.has)  # before anything is deleted
        self._started = True
        if self._record.state is State.TRIAL and states.is_spent(self._record):
            await self._go(spent(self._record))

    async def offer(
        self,
        assignment: AssignmentBody,
        manifest_bytes: bytes,
        terms: Terms,
        may_install: bool,
        *,
        forced: Token | None = None,
    ) -> rules.Accepted | rules.Later | Refused:
        """Judges an assignment and, if it may be installed, has it installed. Repeating it changes nothing.

        Args:
            assignment: Verified by trust; of a kit where its rollout is called like one.
            manifest_bytes: The manifest that it names; its hash is checked here.
            terms: The newest trusted.
            may_install: Of the verdict: time is sure and nothing needed has expired.
            forced: The technician's request that forces it.

        Returns:
            The verdict; it is returned, not raised. A refusal is reported to the server, once. What has to wait is to
            be offered again.
        """
        await self.learn(terms)
        if not may_install:
            return rules.Later("trust: time is not sure, or metadata has expired")
        newest = await asyncio.to_thread(self._memory.terms)
        waiting = Waiting(assignment, manifest_bytes, forced)
        verdict = await self._judged(waiting, newest or terms)
        if isinstance(verdict, rules.Accepted):
            verdict = await self._accept(verdict, waiting)
        if not isinstance(verdict, rules.Accepted) and not self._is_underway(assignment.manifest.sha256):
            await self._tell_once(word_of(verdict, assignment, self._record))
        return verdict

    async def learn(self, terms: Terms) -> None:
        """Keeps what the newest trusted repository says: ACTIVATE looks at it without a network."""
        if terms.product != self._hardware.machine.product:
            return
        await asyncio.to_thread(self._memory.learn, terms)
        offer = self._record.offer
        if offer is not None and offer.release.digest not in terms.listed:
            self._woken.set()

    def withdraw(self) -> None:
        """The director offers nothing now: what was not activated yet stops. Call it for an answer without assignment.

        A trial goes on: its release is active, and it is local evidence that decides.
        """
        self._end(SERVER)

    def withdraw_kit(self, kit: KitId) -> None:
        """A kit was revoked, or a person gave it up: what it brought and was not activated yet stops."""
        self._end(kit)

    async def force(self, release: Digest, request: Token) -> None:
        """Forces what is under way: see `rules.look_again`. It goes on at once. Durable on return; again does no harm.

        What only waits to be taken up is forced with it, and kept once it is.

        Args:
            release: Its manifest.
            request: Verified, of a technician who may.

        Raises:
            StateError: It is not under way, or its trial has begun: nothing is left to force. Or `state.db` takes no
                write.
        """
        waits = self._offers.force(release, request)
        async with self._writing:
            record = self._record
            is_it = record.offer is not None and record.offer.release.digest == release
            if not is_it or record.state not in FORCIBLE:
                if waits:
                    return
                raise StateError(f"release {release[:12]} does not wait for anything here: it cannot be forced")
            forced = states.forced(record, request)
            if forced != record:
                at_ms, _ = await asyncio.to_thread(self._world.now)
                told = self._teller.of_force(forced, at_ms)
                await asyncio.to_thread(lambda: self._db.write_record(forced, statuses=told))
                self._record = forced
                self._world.notify()
        self._hurry = record.state is State.IDLE
        self._fetching.delay(False)
        self._woken.set()

    def link_is_up(self) -> None:
        """A contact succeeded: a download that waits for the link goes on now."""
        self._is_gone(Obstacle.LINK)

    def kit_is_there(self, kit: KitId) -> None:
        """A stick with this kit is there: what waits for it goes on now."""
        if self._record.offer is not None and self._record.offer.rollout == kit:
            self._is_gone(Obstacle.STICK)

    async def run_forever(self) -> None:
        """Drives the machine until it is cancelled. What goes wrong in a state is tried again after a while."""
        failures = 0
        try:
            while True:
                try:
                    await self._turn()
                    failures = 0
                except (HeadlandError, OSError) as error:
                    failures += 1
                    self._progress = replace(self._progress, why=str(error))  # a full disk: no end, not to be silent
                    log.warning("update, state %s: %s", self._record.state, error)
                    await self._world.sleep(self._settings.backoff_s(failures, self._world.random()))
        finally:
            await self._serving.stop_mending()

    # The loop

    async def _turn(self) -> None:
        """One state's work, and what it came to. Before activation, what others ask for interrupts it."""
        if self._record.state not in INTERRUPTIBLE:
            await self._serving.stop_mending()  # from here on the record says anew what serves
            await self._go(await self._work())
            return
        self._serving.start_mending(self._record)
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

    async def _take_up(self) -> Step | None:
        """What others asked for meanwhile, if it can be done now."""
        offer = self._record.offer
        terms = await asyncio.to_thread(self._memory.terms)
        forbidden = delisted(offer, terms)
        if forbidden is not None:
            return Step(Event.WITHDRAWN) if self._record.state is State.IDLE else forbidden  # IDLE: its retry
        withdrawn, self._withdrawn = self._withdrawn, set()
        while (waiting := self._offers.next()) is not None:
            step = await self._taken(waiting, terms)
            self._offers.done(waiting)  # only now: a full disk must not lose the offer
            if step is not None:
                return step
        return Step(Event.WITHDRAWN) if offer is not None and source_of(offer.rollout) in withdrawn else None

    async def _taken(self, waiting: Waiting, terms: Terms | None) -> Step | None:
        """Of an offer that waited. It is judged again: a commit may have raised the floor since it came."""
        if terms is None:
            return None
        verdict = await self._judged(waiting, terms)
        if not isinstance(verdict, rules.Accepted) or self._runs(verdict.offer):
            return None
        new, current = verdict.offer, self._record.offer
        if current is not None and (is_same(current, new) or not self._gives_way(new)):
            if current.release == new.release and new.forced is not None:  # while it was being taken up
                with contextlib.suppress(StateError):
                    await self.force(new.release.digest, new.forced)
            return None
        if current is not None and current.release == new.release and new.forced is None:
            new = msgspec.structs.replace(new, forced=current.forced)  # who forced a release did not care for the way
        await asyncio.to_thread(self._store.put, waiting.manifest)
        return Step(Event.OFFERED, offer=new, facts={ASSIGNMENT: encode(waiting.assignment)})

    async def _work(self) -> Step:
        self._progress = Progress(self._record.state)
        work = {
            State.IDLE: self._idle,
            State.FETCH: lambda: self._fetching.fetch(self._record, self._show),
            State.CHECK: lambda: self._gate.check(self._record),
            State.WAIT: lambda: self._gate.wait(self._record, self._tell_why),
            State.ACTIVATE: lambda: self._gate.activate(self._record),
            State.TRIAL: self._trial,
            State.COMMIT: self._commit,
            State.ROLLBACK: self._roll_back,
            State.CLEANUP: self._clean_up,
        }
        return await work[self._record.state]()

    async def _go(self, step: Step) -> None:
        """Writes what `step` makes of the record, with all that belongs to it, in one transaction."""
        async with self._writing:
            await self._write(step)

    async def _write(self, step: Step) -> None:
        before = self._record
        after = states.advance(before, step.event, offer=step.offer, reason=step.reason, detail=step.detail)
        at_ms, _ = await asyncio.to_thread(self._world.now)
        kept = self._offer() if step.event is Event.HEALTHY else None
        floors = floors_of(kept.release, kept.permit_ms) if kept is not None else {}
        refusal = refusal_of(before, step, at_ms)
        statuses = self._teller.of_step(
            before, after, step.event, at_ms, reason=step.reason, detail=step.detail, needs_bytes=step.needs_bytes
        )
        try:
            await asyncio.to_thread(
                lambda: self._db.write_record(
                    after, floors=floors, statuses=statuses, refusal=refusal, facts=step.facts
                )
            )
        except (HeadlandError, OSError):
            if after.state is State.ROLLBACK:
                # A full disk must not keep what failed serving: the committed release does until this is written.
                self._verdict = step
                await self._serving.follow(after)
            raise
        self._record = after
        self._verdict = None
        self._needs_bytes = step.needs_bytes
        # What this disk damaged a moment ago it may damage again: a plan of data is not spent at full speed on that.
        self._fetching.delay(step.event in (Event.PAUSED, Event.DAMAGED))
        if before.state is not after.state:
            log.info("update: %s -> %s%s", before.state, after.state, f" ({step.detail})" if step.detail else "")
        if statuses:
            self._world.notify()

    # The states' work

    async def _idle(self) -> Step:
        """Waits; an update that ended unfinished is tried again."""
        retries, times = states.will_retry(self._record), 0
        while not self._is_clean and times < (1 if retries else CLEANINGS):
            # Beside what serves: an engine that was away may have kept what it was to let go of.
            if times:
                await self._world.sleep(self._settings.backoff_s(times, self._world.random()))
            times += 1
            with contextlib.suppress(HeadlandError, OSError):
                await self._clean_up()
        self._is_clean = True
        if retries:
            hurry, self._hurry = self._hurry, False
            if not hurry:
                await self._world.sleep(self._settings.backoff_s(self._record.retries, self._world.random()))
            return Step(Event.AGAIN)
        return await asyncio.Future()  # until something interrupts

    async def _trial(self) -> Step:
        if self._verdict is not None:
            return self._verdict
        if states.is_spent(self._record):
            return spent(self._record)
        self._woken.set()  # what was delisted before this start counts too
        forbidden = await self._forbidden()
        if forbidden is not None:
            return forbidden
        try:
            return await self._watch()
        except (HeadlandError, OSError):
            # A full disk must not leave it serving with nobody looking: the committed release does until it goes on.
            await self._serving.follow(states.without_trial(self._record))
            raise

    async def _watch(self) -> Step:
        try:
            release = await self._serving.bring_up(self._offer().release.digest)
        except (Refused, HinderedError) as error:
            return failed(error, self._record)
        except StateError as error:
            return Step(Event.DAMAGED, Reason.HASH, error.message)
        await self._serving.show(release)
        return await self._watcher.watch(
            release,
            self._record,
            keep=self._keep,
            show=self._show,
            another_waits=self._another_waits,
            forbidden=self._forbidden,
        )

    async def _commit(self) -> Step:
        await self._serving.follow(self._record)
        return Step(Event.COMMITTED)

    async def _roll_back(self) -> Step:
        await self._serving.follow(self._record)
        return Step(Event.RESTORED)

    async def _clean_up(self) -> Step:
        self._is_clean = await clean(self._record, self._memory, self._library, self._sets, self._stock)
        return Step(Event.CLEAN)

    # Pieces

    async def _judged(self, waiting: Waiting, terms: Terms) -> rules.Accepted | rules.Later | Refused:
        return await asyncio.to_thread(
            self._judge.offer, waiting.assignment, waiting.manifest, terms, self._record, waiting.forced
        )

    async def _accept(self, accepted: rules.Accepted, waiting: Waiting) -> rules.Accepted | rules.Later:
        record, offer = self._record, accepted.offer
        current = record.offer
        if self._runs(offer):
            self._end(source_of(offer.rollout))  # whatever else it had underway
            if record.last is None or record.last.rollout != offer.rollout:
                name, detail = offer.release.digest, "it runs here already"
                await self._tell_once(Word(name, offer.rollout, record.state, "committed", None, detail))
            return accepted
        is_it = current is not None and current.release == offer.release
        if current is None or not (is_same(current, offer) or not self._gives_way(offer)):
            self._offers.put(waiting)
            self._woken.set()
            return accepted
        self._offers.drop(source_of(offer.rollout))  # what was offered in between is not any more
        if not is_it:
            return rules.Later(f"another: release {current.release.version} of {current.rollout} goes first")
        if waiting.forced is not None:
            with contextlib.suppress(StateError):  # its trial has begun
                await self.force(offer.release.digest, waiting.forced)
        if record.state is State.FETCH and is_same(current, offer):
            renewed, differs = await asyncio.to_thread(self._memory.renew_plan, waiting.assignment)
            if renewed:
                self._is_gone(Obstacle.PLAN)
            if differs and self._fetching.underway:
                # It begins anew by the new plan, from the parts that are here.
                self._fetching.delay(False)
                self._woken.set()
        return accepted

    def _gives_way(self, comes: Offer) -> bool:
        waits_for_stick = self._record.failures > 0 and self._fetching.obstacle is Obstacle.STICK
        return goes_before(comes, self._record, waits_for_stick=waits_for_stick)

    def _end(self, source: Name) -> None:
        """The server, or a kit, offers nothing now."""
        waited = self._offers.drop(source)
        current = self._record.offer
        if self._record.state in INTERRUPTIBLE:
            self._withdrawn.add(source)  # also of an offer that is being taken up at this moment
            if waited or (current is not None and source_of(current.rollout) == source):
                self._woken.set()

    def _is_gone(self, obstacle: Obstacle) -> None:
        """What a paused fetch waited for is there: it goes on at once. Other pauses wait their time."""
        if self._record.state is State.FETCH and self._record.failures and self._fetching.obstacle is obstacle:
            self._fetching.delay(False)
            self._woken.set()

    def _runs(self, offer: Offer) -> bool:
        """Whether the offer is the committed release, in good order."""
        return not self._serving.damaged and rules.is_repair(offer.release, self._record)

    def _is_underway(self, name: Digest) -> bool:
        offer = self._record.offer
        return offer is not None and offer.release.digest == name and self._record.state is not State.IDLE

    def _another_waits(self) -> bool:
        return self._offers.another(self._offer().release.digest)

    async def _forbidden(self) -> Step | None:
        """Of a trial, when something may have been delisted: its release must not be kept."""
        if not self._woken.is_set():
            return None
        self._woken.clear()
        return delisted(self._record.offer, await asyncio.to_thread(self._memory.terms))

    async def _keep(self, watched: Watched) -> UpdateRecord:
        """Writes what was seen of the trial."""
        record = states.observed(
            self._record,
            healthy_s=watched.healthy_s,
            inferences=watched.inferences,
            errors=watched.errors,
            this_start_s=watched.this_start_s,
        )
        await asyncio.to_thread(self._db.write_record, record)
        self._record = record
        return record

    async def _tell_why(self, later: rules.Later) -> None:
        """Why what is under way cannot be activated yet."""
        self._progress = Progress(State.WAIT, why=later.why)
        offer = self._offer()
        await self._tell_once(Word(offer.release.digest, offer.rollout, State.WAIT, "deferred", None, later.why))

    async def _tell_once(self, word: Word | None) -> None:
        def tell() -> bool:
            at_ms, _ = self._world.now()
            return word is not None and self._teller.once(word, at_ms)

        if await asyncio.to_thread(tell):
            self._world.notify()

    def _show(self, progress: Progress) -> None:
        self._progress = progress

    def _offer(self) -> Offer:
        assert self._record.offer is not None
        return self._record.offer
