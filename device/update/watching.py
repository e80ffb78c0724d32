"""Looks at what serves of a release on trial until there is a verdict; what the looks mean stands in `trial`."""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from device.update import states
from device.update.ports import HinderedError, ReleaseSet, Workers
from device.update.progress import Progress
from device.update.states import Event, State, UpdateRecord
from device.update.steps import Step, failed
from device.update.trial import Watch, Watched, find_evidence, is_proven, is_time_up, why_no_verdict
from device.update.world import UpdateSettings, World
from protocol.errors import Reason, Refused

HINDERED_S: Final = 900.0  # how long a trial bears what is no evidence; then it is tried again later
PERSIST_S: Final = 10.0  # the most of a trial that a cut forgets; a tenth of a short trial


class Watcher:
    """Watches trials.

    Args:
        workers: What serves.
        world: Time.
        settings: How often it looks.
    """

    def __init__(self, workers: Workers, world: World, settings: UpdateSettings) -> None:
        self._workers = workers
        self._world = world
        self._settings = settings

    async def watch(
        self,
        release: ReleaseSet,
        record: UpdateRecord,
        *,
        keep: Callable[[Watched], Awaitable[UpdateRecord]],
        show: Callable[[Progress], None],
        another_waits: Callable[[], bool],
        forbidden: Callable[[], Awaitable[Step | None]],
    ) -> Step:
        """Goes on with a trial.

        Args:
            release: It serves.
            record: In TRIAL.
            keep: Writes what was seen into the record, and returns it.
            show: Told of each look.
            another_waits: Whether a trial without frames should give way.
            forbidden: The step when a rule forbids the release since.
        """
        rule = release.manifest.trial
        if not release.manifest.models:  # nothing of it infers: there are no frames to prove it on
            rule = msgspec.structs.replace(rule, min_inferences=0)
        bounds = {name: variant.bounds for name, variant in release.variants.items()}
        watch = Watch(Watched(record.healthy_s, record.inferences, record.errors))
        persist_s = min(PERSIST_S, max(rule.healthy_s / 10, self._settings.watch_s))
        looked_s = self._world.monotonic()
        while True:
            await self._world.sleep(self._settings.watch_s)
            if (step := await forbidden()) is not None:
                return step
            health, now_s = self._workers.health(), self._world.monotonic()
            # A loop that was held up saw nothing meanwhile: it counts for two looks at most.
            passed_s, looked_s = min(now_s - looked_s, 2 * self._settings.watch_s), now_s
            if health.digest != release.digest:
                try:
                    await self._workers.converge(release, trial=True)
                except (Refused, HinderedError) as error:
                    return failed(error, record)
                continue
            watched = watch.take(health, passed_s)
            hindered = why_no_verdict(health, watched.healthy_s)
            show(Progress(State.TRIAL, why=hindered, healthy_s=watched.healthy_s))
            if is_proven(watched, rule):  # a verdict is about what is so now, not what was so at the last look
                try:
                    await self._workers.converge(release, trial=True)
                except (Refused, HinderedError) as error:
                    return failed(error, record)
                health = self._workers.health()
            found = find_evidence(health, watched, rule, bounds)
            if found is not None:
                return Step(Event.FAILED, found.reason, found.detail)
            if hindered and watched.hindered_s > HINDERED_S:
                return Step(Event.SPENT, Reason.TRIAL_UNFINISHED, hindered)
            proven = is_proven(watched, rule) and health.digest == release.digest and health.serving
            settles = not record.settled and watched.this_start_s >= states.settles_at_s(rule)
            if proven or settles or watched.healthy_s - record.healthy_s >= persist_s:
                record = await keep(watched)
            if proven:
                return Step(Event.HEALTHY)
            if is_time_up(watched, rule) and another_waits():
                return Step(Event.SUPERSEDED, detail="it had no frames to prove itself on, and another offer waits")
