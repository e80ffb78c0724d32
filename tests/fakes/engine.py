"""A container engine in memory, under the contract of `device.containers.engine`: its processes do what the test says.

`FakeDaemon` is the engine with its disk: it can die, be away, run out of space, lie. `FakeEngine` is one agent's way to
it, and is cut when that agent is killed: an agent that was killed asks nothing more, and gets no answer.
"""

import asyncio
import hashlib
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from device.containers.engine import (
    EngineAwayError,
    EngineError,
    EngineView,
    HeldImage,
    MissingLayersError,
    Seen,
    Wish,
)
from device.store import NoSpaceError
from protocol.container import Image
from protocol.errors import Reason, Refused, StateError
from protocol.ids import Digest

Moment = Literal["before", "half", "after"]
"""Of a call: before it had any effect; with what the engine can leave half done; after it, unanswered."""


@dataclass(frozen=True)
class Behaviour:
    """What a container's process does, in seconds after each of its starts.

    Args:
        lives_s: It ends by itself then; None: it runs until it is stopped.
        exit: How it ends by itself.
        healthy_after_s: Its check succeeds from then on; None: never.
        unhealthy_after_s: Its check fails from then on: after `healthy_after_s`, or without ever having succeeded.
        says: Lines of its log, and when.
        refuses: Why it cannot be started at all.
        ends_on_term: Otherwise it waits to be killed.
    """

    lives_s: float | None = None
    exit: str = "exit 1"
    healthy_after_s: float | None = 0.0
    unhealthy_after_s: float | None = None
    says: tuple[tuple[float, str], ...] = ()
    refuses: str = ""
    ends_on_term: bool = True


@dataclass(frozen=True)
class _Fate:
    """When over a call something dies, and whether it is the engine or the agent."""

    moment: Moment | None
    is_engines: bool


@dataclass
class _Made:
    """A container on the engine's disk."""

    id: str
    wish: Wish
    started_s: float | None = None
    started: str = ""
    checked_s: float = 0.0  # its health, from then on
    ended: tuple[float, str] | None = None  # when, and what ended it
    paused: bool = False
    log: list[tuple[float, str]] = field(default_factory=list)


class FakeDaemon:
    """See the module.

    Args:
        clock: Seconds that only ever rise.
        behave: What the process of a container does; by default it runs and is healthy.
        live_restore: Whether containers outlive the engine; otherwise they end with it.
        room_bytes: What layers may take; None does not limit.
        sleep: Waits by that clock.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        behave: Callable[[Wish], Behaviour] = lambda _: Behaviour(),
        live_restore: bool = False,
        room_bytes: int | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.clock = clock
        self.behave = behave
        self.live_restore = live_restore
        self.room_bytes = room_bytes
        self.sleep = sleep
        self.up = True
        self.lives = 1
        self.version = "fake 1.0"
        self.calls: list[str] = []
        self.dies_at: dict[int, Moment] = {}  # by the number of the call, from 1; the engine is away until `restart`
        self.cuts_at: dict[int, Moment] = {}  # likewise; the agent whose call it is
        self.loads_as: dict[Digest, Digest] = {}  # an engine that makes another image of what it is given
        self.images: dict[Digest, tuple[Digest, ...]] = {}
        self.marked: set[Digest] = set()
        self.layers: dict[Digest, bytes] = {}
        self.lengths: dict[Digest, int] = {}
        self.made: dict[str, _Made] = {}
        self._ids = itertools.count(1)

    # What a test does to it

    def put(self, image: Image, contents: Mapping[Digest, bytes] | None = None) -> None:
        """The image is there and ours, as after a load."""
        layers = tuple(layer.artifact for layer in image.layers)
        self.images[image.config.sha256] = tuple(layer.sha256 for layer in layers)
        self.marked.add(image.config.sha256)
        for layer in layers:
            self.lengths[layer.sha256] = layer.length_bytes
            self.layers[layer.sha256] = (contents or {}).get(layer.sha256, b"")

    def lose(self, image: Digest) -> None:
        """Somebody deleted the image by hand."""
        self.images.pop(image, None)
        self.marked.discard(image)
        kept = {layer for layers in self.images.values() for layer in layers}
        self.layers = {name: data for name, data in self.layers.items() if name in kept}

    def die(self) -> None:
        """`kill -9` of the engine: away until `restart`. Without live-restore its containers end."""
        self.up = False
        if not self.live_restore:
            for made in self.made.values():
                self._end(made, "SIGKILL")

    def restart(self) -> None:
        """The engine is started anew; it starts no container, and checks the health of those that lived on anew."""
        self.up = True
        self.lives += 1
        for made in self.made.values():
            made.checked_s = self.clock()

    def end(self, name: str, exit: str = "exit 1") -> None:
        """The processes of the containers of this name end by themselves."""
        for made in self.made.values():
            if made.wish.name == name:
                self._end(made, exit)

    def pause(self, name: str) -> None:
        """Somebody pauses the containers of this name by hand."""
        for made in self.made.values():
            made.paused |= made.wish.name == name and self._state(made) == "running"

    def alive(self, name: str) -> list[Digest]:
        """Specs of the containers of this name that have processes, paused or not."""
        return [made.wish.spec for made in self.made.values() if made.wish.name == name and self._is_alive(made)]

    def _is_alive(self, made: _Made) -> bool:
        return self._state(made) in ("running", "paused")

    def running(self) -> dict[str, list[Digest]]:
        """Specs of what runs, by name: how the test sees it, without a call."""
        found: dict[str, list[Digest]] = {}
        for made in self.made.values():
            if self._state(made) == "running":
                found.setdefault(made.wish.name, []).append(made.wish.spec)
        return {name: sorted(specs) for name, specs in sorted(found.items())}

    def wish_of(self, name: str) -> Wish:
        """What the one container of this name that runs was made from."""
        (wish,) = (
            made.wish for made in self.made.values() if made.wish.name == name and self._state(made) == "running"
        )
        return wish

    # What its containers do

    def _state(self, made: _Made) -> Literal["created", "running", "paused", "exited"]:
        if made.started_s is None:
            return "created"
        lives_s = self.behave(made.wish).lives_s
        if made.ended is None and lives_s is not None and self.clock() >= made.started_s + lives_s:
            made.ended = (made.started_s + lives_s, self.behave(made.wish).exit)
        if made.ended is not None:
            return "exited"
        return "paused" if made.paused else "running"

    def _end(self, made: _Made, why: str) -> None:
        if self._is_alive(made):
            made.ended, made.paused = (self.clock(), why), False

    def _start(self, made: _Made) -> None:
        made.started_s, made.ended, made.paused = self.clock(), None, False
        made.checked_s = made.started_s
        made.started = stamp(made.started_s)
        made.log += [(made.started_s + at_s, line) for at_s, line in self.behave(made.wish).says]

    def _seen(self, made: _Made) -> Seen:
        state = self._state(made)
        health: Literal["none", "starting", "healthy", "unhealthy"] = "none"
        if made.wish.health_command:
            health = self._health(made)
        return Seen(
            id=made.id,
            name=made.wish.name,
            spec=made.wish.spec,
            image=made.wish.image,
            state=state,
            started=made.started,
            exit=made.ended[1] if made.ended is not None else "",
            health=health,
            health_detail="the check failed" if health == "unhealthy" else "",
            stop_s=made.wish.stop_s,
        )

    def _health(self, made: _Made) -> Literal["starting", "healthy", "unhealthy"]:
        behaviour, age_s = self.behave(made.wish), self.clock() - made.checked_s
        if made.started_s is None:
            return "starting"
        if behaviour.unhealthy_after_s is not None and age_s >= behaviour.unhealthy_after_s:
            return "unhealthy"
        if behaviour.healthy_after_s is not None and age_s >= behaviour.healthy_after_s:
            return "healthy"
        return "starting"


class FakeEngine:
    """`device.containers.engine.Engine` for one agent.

    Args:
        daemon: What it speaks to.
    """

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon
        self._is_cut = False
        self.was_cut = asyncio.Event()
        self.closed = False

    def cut(self) -> None:
        """The agent is killed: nothing that it asks for has an effect any more, and nothing answers it."""
        self._is_cut = True
        self.was_cut.set()

    async def view(self) -> EngineView:
        fate = await self._enter("view")
        daemon = self._daemon
        view = EngineView(
            life=f"life {daemon.lives}",
            version=daemon.version,
            folder=Path("/"),
            images=tuple(HeldImage(image, daemon.images[image]) for image in sorted(daemon.marked)),
            containers=tuple(daemon._seen(made) for made in daemon.made.values()),
        )
        await self._leave(fate)
        return view

    async def load(self, image: Image, files: Mapping[Digest, Path]) -> None:
        fate = await self._enter("load")
        if fate.moment == "half":  # an engine that is killed over a load has nothing of it
            await self._leave(fate)
        daemon = self._daemon
        if image.config.sha256 not in daemon.images:
            missing = [
                layer.artifact.sha256 for layer in image.layers if layer.artifact.sha256 not in {*files, *daemon.layers}
            ]
            if missing:
                raise MissingLayersError(missing)
            fresh = {
                layer.artifact.sha256: layer.artifact
                for layer in image.layers
                if layer.artifact.sha256 not in daemon.layers
            }
            need_bytes = sum(artifact.length_bytes for artifact in fresh.values())
            taken_bytes = sum(daemon.lengths[name] for name in daemon.layers)
            if daemon.room_bytes is not None and taken_bytes + need_bytes > daemon.room_bytes:
                raise NoSpaceError("the engine's disk is full")
            contents = {name: await asyncio.to_thread(files[name].read_bytes) for name in fresh}
            config = await asyncio.to_thread(files[image.config.sha256].read_bytes)
            if not _fits(config, image):
                raise Refused(Reason.IMAGE, "the layers are not those of the config")
            made = daemon.loads_as.get(image.config.sha256, image.config.sha256)
            if made != image.config.sha256:
                raise Refused(Reason.IMAGE, f"the engine made image {made[:12]} of {image.config.sha256[:12]}")
            daemon.put(image, {**daemon.layers, **contents})
        daemon.marked.add(image.config.sha256)
        await self._leave(fate)

    async def export(self, image: Digest, layers: Mapping[Digest, Path], lengths: Mapping[Digest, int]) -> None:
        fate = await self._enter("export")
        if fate.moment == "half":
            await self._leave(fate)
        held = self._daemon.images.get(image, ())
        for name, path in layers.items():
            if name not in held:
                raise StateError(f"the engine does not hold {name[:12]}")
            data = self._daemon.layers[name]
            if hashlib.sha256(data).hexdigest() != name:
                raise StateError(f"the engine gives other bytes for {name[:12]}")
            await asyncio.to_thread(path.write_bytes, data)
        await self._leave(fate)

    async def start(self, wish: Wish) -> None:
        fate = await self._enter("start")
        daemon = self._daemon
        if wish.image not in daemon.images:
            raise EngineError(f"the engine does not hold image {wish.image[:12]}")
        same = [made for made in daemon.made.values() if (made.wish.name, made.wish.spec) == (wish.name, wish.spec)]
        made = same[0] if same else _Made(f"{next(daemon._ids):064x}", wish)
        if (refuses := daemon.behave(wish).refuses) and fate.moment != "half":
            daemon.made.pop(made.id, None)
            raise Refused(Reason.TRIAL_CONTAINER, f"container {wish.name} cannot be started: {refuses}")
        daemon.made[made.id] = made
        if fate.moment != "half" and daemon._state(made) != "running":
            daemon._start(made)
        await self._leave(fate)

    async def stop(self, id: str, limit_s: float) -> None:
        fate = await self._enter("stop")
        made = self._daemon.made.get(id)
        if made is not None and fate.moment != "half":
            if not self._daemon.behave(made.wish).ends_on_term:
                await self._daemon.sleep(limit_s)
            self._daemon._end(made, "exit 0" if self._daemon.behave(made.wish).ends_on_term else "SIGKILL")
        await self._leave(fate)

    async def remove(self, id: str) -> None:
        fate = await self._enter("remove")
        made = self._daemon.made.get(id)
        if made is not None and fate.moment != "half":
            if self._daemon._is_alive(made):
                raise EngineError("the container runs")
            del self._daemon.made[id]
        await self._leave(fate)

    async def drop_images(self, keep: Sequence[Digest]) -> None:
        fate = await self._enter("drop")
        daemon = self._daemon
        used = {made.wish.image for made in daemon.made.values()}
        for image in sorted(daemon.marked - set(keep) - used):
            daemon.lose(image)
            if fate.moment == "half":
                break
        await self._leave(fate)

    async def log(self, id: str, since: str, limit_bytes: int) -> bytes:
        fate = await self._enter("log")
        made, now_s = self._daemon.made.get(id), self._daemon.clock()
        lines = [] if made is None else [(at_s, line) for at_s, line in made.log if at_s <= now_s]
        if made is not None and made.ended is not None:
            lines = [(at_s, line) for at_s, line in lines if at_s <= made.ended[0]]
        text = "".join(f"{line}\n" for at_s, line in lines if not since or stamp(at_s) >= since).encode()
        await self._leave(fate)
        return text[-limit_bytes:]

    async def close(self) -> None:
        self.closed = True

    async def _enter(self, call: str) -> "_Fate":
        daemon = self._daemon
        if self._is_cut:
            await asyncio.Event().wait()
        daemon.calls.append(call)
        number = len(daemon.calls)
        await asyncio.sleep(0)
        fate = _Fate(daemon.dies_at.get(number) or daemon.cuts_at.get(number), number in daemon.dies_at)
        if daemon.up and fate.moment == "before":
            await self._leave(fate)
        if not daemon.up:
            raise EngineAwayError("the engine does not answer")
        return fate

    async def _leave(self, fate: "_Fate") -> None:
        if fate.moment is None:
            return
        if fate.is_engines:
            self._daemon.die()
            raise EngineAwayError("the engine ended over the question")
        self.cut()
        await asyncio.Event().wait()


def stamp(at_s: float) -> str:
    """RFC 3339, as engines tell times; the fake's clock begins with the year 2026."""
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=at_s)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _fits(config: bytes, image: Image) -> bool:
    try:
        ids = json.loads(config)["rootfs"]["diff_ids"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(ids == [f"sha256:{layer.artifact.sha256}" for layer in image.layers])
