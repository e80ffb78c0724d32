"""How one container conducts itself: when it is started again, and what speaks against it in a trial.

Only what was seen from look to look counts: what ended while the engine was away, was started anew, or was told to stop
it says nothing about the container.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from device.containers.engine import Seen
from device.containers.reconcile import is_up
from protocol.container import RunSpec
from protocol.errors import Refused, StateError
from protocol.ids import Digest

UP_S: Final = 30.0  # to be up, beside what its health check may take
LINES: Final = 5
SIGNS: Final = 600
SEES: Final = re.compile(rb"^headland-sees ([0-9a-f]{64})\s*$", re.MULTILINE)


@dataclass
class Conduct:
    """See the module. `now_s` everywhere: seconds that only ever rise.

    Args:
        name: Of the container.
        run: What it is granted.
        since_s: From when on it is wanted.
    """

    name: str
    run: RunSpec
    since_s: float
    seen: Seen | None = None
    ends: int = 0  # by itself, since this release is wanted
    restarts: int = 0
    ending: str = ""  # how it ended the last time
    due_s: float = 0.0  # not started again before
    refused: str = ""  # why the last start did not do, by its own fault
    hindered: Refused | StateError | None = None  # or by that of the machine
    sees: Digest | None = None  # the model that it named last, in this life
    was_heard: bool = False  # its log was looked into, likewise
    unheard: str = ""  # why it could not be, the last time
    last_words: str | None = None  # before a fault; None: nobody asked
    ailed: bool = False  # already before it was wanted anew, and was not steady since: no word against who wants it
    _lives: int = 0
    _runs: bool = False
    _started: str = ""
    _born_s: float = 0.0
    _early: int = 0  # short lives in a row
    _was_killed: bool = False

    def is_wanted_anew(self, now_s: float) -> None:
        """By another release, which has the very same container: its evidence begins, its life goes on."""
        self.ailed = bool(self.trouble) or (self._early > 0 and now_s - self._born_s < self.run.restart.steady_s)
        self._was_killed = False
        self.since_s, self.ends, self.refused, self.hindered, self.last_words = now_s, 0, "", None, None
        self.due_s = min(self.due_s, now_s)

    def was_started(self, now_s: float) -> None:
        """The engine took the start."""
        self.restarts += self._lives > 0
        self._lives += 1
        self._runs, self._started, self._born_s = True, "", now_s
        self.refused, self.hindered, self.last_words = "", None, None
        self.sees, self.was_heard = None, False

    def was_refused(self, why: str, now_s: float) -> None:
        """It cannot be started as it is."""
        self.refused, self.hindered = why, None
        self._wait(0.0, now_s)

    def was_hindered(self, why: Refused | StateError, now_s: float) -> None:
        """It cannot be started on this machine now."""
        self.refused, self.hindered = "", why
        self._wait(0.0, now_s)

    def is_stopped(self, now_s: float) -> None:
        """We are about to stop it for its health: the end says nothing."""
        self.ending = "unhealthy"
        self._wait(now_s - self._born_s, now_s)
        self._runs = False

    def look(self, seen: Seen | None, now_s: float, *, unbroken: bool) -> None:
        """Takes one look in.

        Args:
            seen: The container; None: there is none.
            now_s: The time.
            unbroken: The engine lived and answered since the look before.
        """
        self.seen = seen
        if not unbroken:
            self.since_s = now_s
        if seen is not None and seen.state == "running":
            if not self._runs or self._started not in ("", seen.started):
                self._born_s, self.sees, self.was_heard = now_s, None, False
            self._runs, self._started, self.refused, self.hindered = True, seen.started, "", None
            self._lives = max(self._lives, 1)
            if self.ailed and is_up(seen) and now_s - self._born_s >= self.run.restart.steady_s:
                self.ailed, self.ends = False, 0
            return
        if not self._runs:
            return
        self._runs = False
        if seen is None or seen.state != "exited" or not unbroken:  # removed or paused by hand, or the engine's end
            self.due_s = now_s
            return
        self.ending = seen.exit or "ended"
        # As with workers, one SIGKILL alone is no word against it: by a person, or for the memory that others took.
        if self.ending == "SIGKILL" and not self._was_killed:
            self._was_killed = True
        else:
            self.ends += 1
        self._wait(now_s - self._born_s, now_s)

    def hears(self, log: bytes) -> None:
        """Takes in the newest lines of its log in this life."""
        self.was_heard, self.unheard = True, ""
        for found in SEES.finditer(log):
            self.sees = found[1].decode("ascii")

    def is_well(self, models: Collection[Digest]) -> bool:
        """Whether it is up and sees a model of the release, where it is to say so."""
        return is_up(self.seen) and (not self.run.sees_model or self.sees in models)

    def fault(self, models: Collection[Digest], switched_s: float | None, now_s: float) -> str:
        """What it does that speaks against it; empty when nothing does.

        Args:
            models: Of the release.
            switched_s: Since when these serve; None: they do not yet.
            now_s: The time.
        """
        who = f"container {self.name}"
        if self.ailed:
            return ""
        if self.refused:
            return self.refused
        if self.hindered is not None:
            return ""
        if self.ends > self.run.restart.in_trial:
            return f"{who} ended by itself {_times(self.ends)}: {self.ending}"
        if self.is_sick:
            return f"{who} is {self.trouble}"
        if self.sees is not None and self._sees_late(models, switched_s, now_s):
            return f"{who} sees model {self.sees[:12]} {self._after_the_change}"
        return ""

    def lag(self, models: Collection[Digest], switched_s: float | None, now_s: float) -> str:
        """What it has not done in its time; empty when there is nothing. For `fault`'s arguments.

        It speaks against a release that never served, and not against one that did: at a boot all comes up at once.
        """
        if self.ailed or self.refused or self.hindered is not None:
            return ""
        if not is_up(self.seen) and now_s - max(self.since_s, self._born_s, self.due_s) > self.up_limit_s:
            return f"container {self.name} did not come up within {self.up_limit_s:.0f} s"
        if self.sees is None and self._sees_late(models, switched_s, now_s):
            return f"container {self.name} told of no model {self._after_the_change}"
        return ""

    @property
    def is_sick(self) -> bool:
        """Whether it runs and its health check fails."""
        return self.seen is not None and self.seen.state == "running" and self.seen.health == "unhealthy"

    @property
    def trouble(self) -> str:
        """Why it does not run, or is not healthy, for people."""
        if is_up(self.seen):
            return ""
        if self.refused or self.hindered is not None:
            return self.refused or str(self.hindered)
        if self.is_sick and self.seen is not None:
            said = words(self.seen.health_detail)
            return f"unhealthy{f': {said}' if said else ''}"
        return self.ending

    @property
    def up_limit_s(self) -> float:
        """How long it may take from its start until it is up."""
        health = self.run.health
        return UP_S + (health.start_s + health.retries * (health.interval_s + health.timeout_s) if health else 0.0)

    def _sees_late(self, models: Collection[Digest], switched_s: float | None, now_s: float) -> bool:
        if switched_s is None or not self.run.sees_model or not self._runs or self.sees in models or self.unheard:
            return False
        return now_s - max(switched_s, self.since_s, self._born_s) > self.run.sees_within_s

    @property
    def _after_the_change(self) -> str:
        return f"{self.run.sees_within_s:.0f} s after the change: it was to see one of the release"

    def _wait(self, lived_s: float, now_s: float) -> None:
        restart = self.run.restart
        self._early = 1 if lived_s >= restart.steady_s else self._early + 1
        wait_s = min(restart.longest_s, restart.first_s * 2.0 ** min(self._early - 1, 30))
        self.due_s = now_s + wait_s


def words(said: str) -> str:
    """The last lines of what a container said, in one line that is safe to show and to send."""
    lines = ["".join(c if c.isprintable() else " " for c in line).strip() for line in said.splitlines()]
    return " / ".join([line for line in lines if line][-LINES:])[-SIGNS:]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
