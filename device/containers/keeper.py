"""Keeps the containers of one release running, and nothing else of ours: one task looks, and does what follows from it.

That task alone speaks to the engine. What is to run comes in as an aim; each look makes of the aim and of what the
engine shows the next steps (`reconcile`), so a cut of the agent or of the engine at any point costs a repetition. The
engine itself starts nothing (see adr/): after a power cut that runs which the update record names, not what ran before.

An engine that is away, or that does not do what it is asked for, is asked again for ever, more and more rarely. It says
nothing about a container, and no frame waits for it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final, Protocol

from device.cancelling import cancel
from device.containers.aim import Aim, make_aim
from device.containers.bringing import Bringing, ComingError
from device.containers.conduct import Conduct, words
from device.containers.engine import Engine, EngineAwayError, EngineError, EngineView, Seen, Wish
from device.containers.reconcile import Wanted, is_alive, is_complete, is_up, mine, steps
from device.store import NoSpaceError
from device.threads import to_its_end
from device.update.ports import HinderedError, ReleaseSet
from protocol.container import Image
from protocol.errors import Reason, Refused, StateError
from protocol.ids import Digest
from protocol.wire import Message

_log = logging.getLogger(__name__)

AFTER_STEPS_S: Final = 0.05
SOON_S: Final = 0.25  # between looks while something changes
TRIAL_S: Final = 1.0
CALM_S: Final = 5.0
AWAY_S: Final = (0.5, 1.0, 2.0, 5.0, 15.0)  # the last one again and again
HINDERED_S: Final = 60.0  # how long an update asks an engine that does not do it
LATE_S: Final = 30.0  # an engine that shows nothing for so long may run anything: rows name no release then
ANSWER_S: Final = 400.0  # how long a look is waited for: the client gives up on an engine after three minutes
LOG_BYTES: Final = 64 * 1024  # of a log, at each look
FIRST_LOG_BYTES: Final = 1024 * 1024  # at the first look into it: much may have been said since its first line


class Stock(Protocol):
    """What brings images into the engine: `device.containers.stock.Stock`, which see."""

    async def bring(self, image: Image) -> None:
        """Makes sure that the engine holds an image, whatever became of it there."""
        ...

    def saw(self, view: EngineView) -> None:
        """What the engine holds now."""
        ...


class Trace(Protocol):
    """Remembers that an engine was used: `device.containers.owner.Owner`, which see. Blocking."""

    @property
    def has_used(self) -> bool:
        """Whether an engine may hold something of ours."""
        ...

    @property
    def may_run(self) -> bool:
        """Whether something of ours may run, as long as the engine does not show it."""
        ...

    def uses(self) -> None:
        """An engine is about to get something; durable on return."""
        ...


class ContainerStatus(Message, omit_defaults=False):
    """One container, for `status`."""

    image: Digest
    state: str  # running, paused, exited, created; absent
    health: str = "none"
    restarts: int = 0
    sees: Digest | None = None  # the model that it named last
    trouble: str = ""


class EngineStatus(Message, omit_defaults=False):
    """The engine and what it runs, for `status`. `version` is empty before it has answered."""

    version: str = ""
    complete: bool = True  # exactly the containers of the release run
    trial: bool = False
    trouble: str = ""
    containers: dict[str, ContainerStatus] = {}


class ContainerKeeper:
    """See the module. Belongs to one event loop; `close` must be awaited.

    Args:
        engine: Runs them.
        stock: Brings lost images back.
        trace: See there.
        make_wish: What the engine is asked for, on this machine: see `wishes`. Blocking.
        clock: Seconds that only ever rise.
        give_data: Gives a container its data folders: see `wishes`. Blocking.
    """

    def __init__(
        self,
        engine: Engine,
        stock: Stock,
        trace: Trace,
        make_wish: Callable[[Wanted], Wish],
        *,
        clock: Callable[[], float],
        give_data: Callable[[Wanted], None] = lambda _: None,
    ) -> None:
        self._engine = engine
        self._stock = stock
        self._trace = trace
        self._make_wish = make_wish
        self._clock = clock
        self._give_data = give_data
        self._aim = Aim()
        self._conducts: dict[Digest, Conduct] = {}  # by spec
        self._is_concerned: bool | None = None  # None: not looked yet
        self._is_traced = False  # what the engine holds of ours is remembered
        self._may_run = True  # something of ours, whether or not it is wanted
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._bringing = Bringing(stock.bring, self._wake.set)
        self._looked = asyncio.Condition()
        self._begun = 0  # looks
        self._ended = 0  # the number of the last one that ended
        self._answers = False
        self._life = ""
        self._version = ""
        self._failed: StateError | None = None  # what the last look ended with
        self._seen_s = 0.0  # when the engine last showed what runs, and its logs what they say
        self._stuck: set[str] = set()  # ids of what could not be removed: said once
        self._whole = False  # the aim is reached, as far as the last look showed
        self._changes = 0

    # What others call

    async def recall(self) -> None:
        """To be awaited before anything is asked of it; again changes nothing."""
        if self._is_concerned is None:
            self._is_concerned = await asyncio.to_thread(lambda: self._trace.has_used)
            self._may_run = await asyncio.to_thread(lambda: self._trace.may_run)

    @property
    def is_concerned(self) -> bool:
        """Whether there are containers, or may be some of a release before."""
        return self._is_concerned is not False

    def whole(self) -> tuple[int, frozenset[Digest]] | None:
        """The specs of the containers that run, and a number that changes with each change of them; None while the set
        is mixed, incomplete, or unknown."""
        if not self.is_concerned:
            return self._changes, frozenset()
        return (self._changes, self._aim.specs) if self._whole else None

    def aim(self, release: ReleaseSet | None, *, trial: bool = False) -> None:
        """From now on the containers of this release are to run, and nothing else of ours. Follows in its own time.

        Args:
            release: Its workers serve; None for none.
            trial: See `Aim`.
        """
        self._take_aim(make_aim(release, self._clock(), trial=trial))

    async def bring_up(self, release: ReleaseSet) -> None:
        """Brings the containers of a release on trial up, before its workers serve; what it follows is kept.

        On an error whoever called says what is to run instead.

        Raises:
            Refused: `TRIAL_CONTAINER`, `WRONG_HARDWARE`.
            EngineAwayError: Away.
            HinderedError: The engine does not do it.
            StateError: What an image is made of is not here.
        """
        self._take_aim(make_aim(release, self._clock(), trial=True, held=True))
        hindered_s: float | None = None  # since when
        if not self.is_concerned:
            return
        while True:
            await self._next_look()
            if not self._answers:
                raise EngineAwayError(self.hindered())
            obstacle = self._obstacle()  # which keeps all of them from being started: none is late for that
            if found := (*self._told(Conduct.fault), *(() if obstacle else self._told(Conduct.lag))):
                raise Refused(Reason.TRIAL_CONTAINER, found[0])
            match obstacle:
                case Refused(reason=Reason.WRONG_HARDWARE):
                    raise obstacle
                case Refused() | EngineError() | NoSpaceError():
                    hindered_s = self._clock() if hindered_s is None else hindered_s
                    if self._clock() - hindered_s > HINDERED_S:
                        raise HinderedError(self.hindered())
                case ComingError():
                    hindered_s = None
                case StateError():
                    raise obstacle
                case None:
                    hindered_s = None
                    if all(is_up(one.seen) or one.ailed for one in self._conducts.values()):
                        return

    def switched(self) -> None:
        """The workers of the release that was brought up serve now."""
        self._aim = replace(self._aim, held=False, switched_s=self._clock())
        self._wake.set()

    async def bring_back(self, release: ReleaseSet | None) -> None:
        """Has run again what ran before a release that did not come up. Waits for it a while, and never fails."""
        self.aim(release)
        limit_s = max((one.up_limit_s for one in self._conducts.values()), default=0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.is_concerned and not self._whole:
                    await self._next_look()
                    if not self._answers:
                        return  # it follows when the engine is back

    async def look(self) -> None:
        """Looks again now; on return all that is told is as new as the engine answers. Of one that does not answer in
        a while, nothing is known to be whole."""
        if self.is_concerned:
            self._wake.set()
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._next_look()
            except TimeoutError:
                self._lost_sight()

    def is_well(self) -> bool:
        """Whether all are up, and see a model of the release where they are to say so. Never blocks."""
        return all(self._conducts[one.spec].is_well(self._aim.models) for one in self._aim.wanted.values())

    def faults(self) -> tuple[str, ...]:
        """What speaks against a release on trial. Never blocks."""
        return self._told(Conduct.fault) if self._aim.trial else ()

    def lags(self) -> tuple[str, ...]:
        """What of a release on trial is not there in its time. Never blocks."""
        return self._told(Conduct.lag) if self._aim.trial else ()

    def hindered(self) -> str:
        """Why nothing can be told or done now; empty when it can. Never blocks."""
        obstacle = self._obstacle()
        if obstacle is not None:
            return f"engine: {obstacle}"
        ailing = (one for one in self._conducts.values() if self._aim.trial and one.ailed and one.trouble)
        unheard = (f"engine: {one.unheard}" for one in self._conducts.values() if one.unheard)
        before = (f"container {one.name} was not well before either: {one.trouble}" for one in ailing)
        return next(chain(unheard, before), "")

    def status(self) -> EngineStatus | None:
        """All there is to show; None where there are no containers. Never blocks."""
        if not self.is_concerned:
            return None
        found = {}
        for name, one in self._aim.wanted.items():
            conduct = self._conducts[one.spec]
            found[name] = ContainerStatus(
                image=one.image.config.sha256,
                state=conduct.seen.state if conduct.seen is not None else "absent",
                health=conduct.seen.health if conduct.seen is not None else "none",
                restarts=conduct.restarts,
                sees=conduct.sees,
                trouble=conduct.trouble,
            )
        return EngineStatus(
            version=self._version,
            complete=self._whole,
            trial=self._aim.trial,
            trouble=self.hindered(),
            containers=found,
        )

    async def close(self) -> None:
        """Looks no more. Containers run on."""
        task, self._task = self._task, None
        if task is not None:
            await cancel(task)
        await self._bringing.only(())

    # The aim

    def _take_aim(self, aim: Aim) -> None:
        before, self._aim = self._aim, aim
        if not aim.wanted and not self.is_concerned:
            return
        self._is_concerned = True
        if aim.specs != before.specs or self._task is None:
            self._changed()
            self._whole = not (aim.wanted or self._may_run)
        shared = self._conducts
        self._conducts = {}
        for one in aim.wanted.values():
            if (conduct := shared.get(one.spec)) is not None:
                conduct.is_wanted_anew(aim.since_s)
            self._conducts[one.spec] = conduct or Conduct(one.container.name, one.container.run, aim.since_s)
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep(), name="containers")

    def _changed(self) -> None:
        """What runs changes, or is not known: no result is one of a release until a look says so."""
        self._whole = False
        self._changes += 1

    def _lost_sight(self) -> None:
        """The engine shows nothing. Where nothing is to run and nothing can, there is nothing to see: an engine that is
        gone for good takes neither a label nor a release from the models."""
        if self._aim.wanted or self._may_run:
            self._changed()

    # The task

    async def _keep(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            self._begun += 1
            try:
                await self._bringing.only({one.image.config.sha256 for one in self._aim.wanted.values()})
                acted = await self._seen_in_time()
                failures, self._failed = 0, None
                wait_s = AFTER_STEPS_S if acted else self._pace_s()
            except StateError as error:
                self._answers = self._answers and not isinstance(error, EngineAwayError)
                failures += 1
                wait_s = self._fail(error, failures)
            except Exception as error:
                # A bug: nobody else would look again, and what serves would stay without a label for ever.
                _log.exception("the containers cannot be looked after")
                failures += 1
                wait_s = self._fail(StateError(str(error)), failures)
            self._ended = self._begun
            async with self._looked:
                self._looked.notify_all()
            if not self.is_concerned:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)

    def _fail(self, error: StateError, failures: int) -> float:
        if str(error) != str(self._failed):
            _log.warning("engine: %s", error)
        self._failed = error
        self._lost_sight()
        return AWAY_S[min(failures, len(AWAY_S)) - 1]

    def _pace_s(self) -> float:
        now_s, aim = self._clock(), self._aim
        young = now_s - aim.since_s < HINDERED_S
        if any(isinstance(one.hindered, ComingError) for one in self._conducts.values()):
            pace_s = TRIAL_S  # the engine has enough to do
        elif aim.held or (young and not (self._whole and self.is_well())):
            pace_s = SOON_S
        else:
            pace_s = TRIAL_S if aim.trial else CALM_S
        due_s = [self._conducts[one.spec].due_s - now_s for one in aim.wanted.values()]
        return min([pace_s, *(max(wait_s, AFTER_STEPS_S) for wait_s in due_s if wait_s > 0)])

    async def _seen_in_time(self) -> bool:
        late = asyncio.get_running_loop().call_later(LATE_S, self._lost_sight)
        try:
            return await self._look()
        finally:
            late.cancel()

    async def _look(self) -> bool:
        """One look, and what follows from it; tells whether anything was done."""
        aim = self._aim
        try:
            view = await self._engine.view()
        except StateError:
            self._answers = False
            raise
        unbroken = self._answers and view.life == self._life
        self._life, self._version = view.life, view.version
        self._answers = True
        self._stock.saw(view)
        self._may_run = any(is_alive(one) for one in view.containers)
        if not self._is_traced and (view.containers or view.images):
            # A machine that lost `state.db` runs what it ran: a later release without containers has to find that.
            with contextlib.suppress(StateError):  # on a full disk at a later look
                await to_its_end(self._trace.uses)
                self._is_traced = True
        if aim is not self._aim:
            return True
        now_s, found = self._clock(), mine(aim.wanted, view.containers)
        conducts = {name: self._conducts[one.spec] for name, one in aim.wanted.items()}
        for name, conduct in conducts.items():
            conduct.look(found.get(name), now_s, unbroken=unbroken)
        self._set_whole(is_complete(aim.wanted, view.containers))
        if not aim.wanted and not view.containers:
            self._is_concerned = False
            return False
        for conduct in conducts.values():
            await self._hear(conduct, aim)
        self._seen_s = now_s
        return aim is not self._aim or await self._step(aim, view, conducts)

    def _set_whole(self, whole: bool) -> None:
        if self._whole and not whole:
            self._changed()
        self._whole = whole

    async def _hear(self, conduct: Conduct, aim: Aim) -> None:
        """Its log: which model it sees, and what it said before it did what speaks against it."""
        seen = conduct.seen
        if seen is None:
            return
        if conduct.run.sees_model and seen.state == "running" and (aim.trial or conduct.sees not in aim.models):
            limit_bytes = LOG_BYTES if conduct.was_heard else FIRST_LOG_BYTES
            try:
                conduct.hears(await self._engine.log(seen.id, seen.started, limit_bytes))
            except EngineError as error:  # one log that cannot be read keeps nobody from being looked after
                conduct.unheard = str(error)
        speaks = [told(conduct, aim.models, aim.switched_s, self._clock()) for told in (Conduct.fault, Conduct.lag)]
        if conduct.last_words is None and any(speaks):
            conduct.last_words = ""
            with contextlib.suppress(EngineError):
                conduct.last_words = words((await self._engine.log(seen.id, "", LOG_BYTES)).decode(errors="replace"))

    async def _step(self, aim: Aim, view: EngineView, conducts: Mapping[str, Conduct]) -> bool:
        now_s = self._clock()
        waiting = {name for name, one in conducts.items() if one.due_s > now_s}
        if aim.trial:
            # A fault in a trial is told, not mended: its rollback follows.
            waiting |= {name for name, one in conducts.items() if one.fault(aim.models, aim.switched_s, now_s)}
        todo = steps(aim.wanted, view.containers, beside=self._stays_beside(aim), waiting=waiting)
        sick = [one for one in conducts.values() if one.is_sick and (one.ailed or not aim.trial)]
        wishes = []
        for one in todo.start:
            if (wish := await self._prepare(one, conducts[one.container.name], view)) is not None:
                wishes.append(wish)
        if aim.held and any(one.hindered is not None for one in conducts.values()):
            return False  # what served before goes on, untouched
        if aim is not self._aim:
            return True
        if todo.stop or wishes or sick:
            self._changed()
        if wishes:
            self._may_run = True
            await to_its_end(self._trace.uses)
        for conduct in sick:
            conduct.is_stopped(self._clock())
        await self._stop([*todo.stop, *(one.seen for one in sick if one.seen is not None)])
        # Only now, and at each look: whoever ran until now may have owned them, and a rollback may start nothing anew.
        for one in aim.wanted.values():
            try:
                await asyncio.to_thread(self._give_data, one)
            except StateError as error:
                if one.spec in {wish.spec for wish in wishes}:  # one that runs goes on as it is
                    self._hinder(conducts[one.container.name], error)
        for wish in wishes:
            if aim is self._aim and conducts[wish.name].hindered is None:
                await self._start(wish, conducts[wish.name])
        # Last: it is in nobody's way.
        gone = [await self._remove(seen) for seen in todo.remove if aim is self._aim]
        return bool(todo.stop or wishes or sick or any(gone))

    def _stays_beside(self, aim: Aim) -> bool:
        """Whether what the aim follows may go on: until the workers have switched, or else until it is up itself, but
        not for ever."""
        conducts = [self._conducts[one.spec] for one in aim.wanted.values()]
        if aim.held:
            return True
        limit_s = max((one.up_limit_s for one in conducts), default=0.0)
        return not all(is_up(one.seen) for one in conducts) and self._clock() - aim.since_s < limit_s

    async def _prepare(self, one: Wanted, conduct: Conduct, view: EngineView) -> Wish | None:
        """All that can fail before anything is stopped."""
        try:
            if all(held.image != one.image.config.sha256 for held in view.images):
                self._bringing.need(one.image)
            wish = await asyncio.to_thread(self._make_wish, one)
        except EngineAwayError:
            raise
        except ComingError as error:
            conduct.hindered = conduct.hindered or error  # what it failed with stands until it has come
            return None
        except (Refused, StateError) as error:
            self._hinder(conduct, error)
            return None
        conduct.hindered = None
        return wish

    async def _start(self, wish: Wish, conduct: Conduct) -> None:
        try:
            await self._engine.start(wish)
        except EngineAwayError:
            raise
        except Refused as refused:
            if refused.reason is Reason.TRIAL_CONTAINER:
                conduct.was_refused(refused.message, self._clock())
            else:
                self._hinder(conduct, refused)
        except StateError as error:
            self._hinder(conduct, error)
        else:
            conduct.was_started(self._clock())

    def _hinder(self, conduct: Conduct, error: Refused | StateError) -> None:
        if str(conduct.hindered) != str(error):
            _log.warning("container %s: %s", conduct.name, error)
        conduct.was_hindered(error, self._clock())

    def _obstacle(self) -> Refused | StateError | None:
        """What keeps the aim from being reached, which says nothing about its release."""
        hindered = [one.hindered for one in self._conducts.values() if one.hindered is not None]
        return self._failed or min(hindered, key=lambda one: isinstance(one, ComingError), default=None)

    async def _stop(self, all_seen: Sequence[Seen]) -> None:
        """All at once: each may take its time to end, and the machine is without them meanwhile."""
        stops = [self._engine.stop(seen.id, seen.stop_s) for seen in all_seen]
        for outcome in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _remove(self, seen: Seen) -> bool:
        """Tells whether it is gone. What the engine cannot get rid of does not run: the set is whole all the same."""
        try:
            await self._engine.remove(seen.id)
        except EngineError as error:
            if seen.id not in self._stuck:
                _log.warning("container %s stays for now: %s", seen.name, error)
            self._stuck.add(seen.id)
            return False
        return True

    def _told(self, of: Callable[[Conduct, Collection[Digest], float | None, float], str]) -> tuple[str, ...]:
        aim, found = self._aim, []
        for one in aim.wanted.values():
            conduct = self._conducts[one.spec]
            # By the time of the look: while an engine hangs nobody sees what comes up, or hears what is said.
            if said := of(conduct, aim.models, aim.switched_s, self._seen_s):
                found.append(said + (f"; it said: {conduct.last_words}" if conduct.last_words else ""))
        return tuple(found)

    async def _next_look(self) -> None:
        """Waits for the end of one that begins from now on, when it is due."""
        wanted = self._begun + 1
        async with self._looked:
            await self._looked.wait_for(lambda: self._ended >= wanted or not self.is_concerned)
