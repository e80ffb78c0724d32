"""An engine of whatever kind under one handle, so that one suite can hold the contract on all of them."""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from device.containers.engine import Engine, EngineView, Seen, Wish
from device.containers.engine_client import EngineClient
from protocol.ids import digest
from tests.fakes.engine import Behaviour, FakeDaemon, FakeEngine
from tests.fakes.images import SHELL, STAYS, BuiltImage, Images
from tests.fakes.private_engine import PrivateEngine

ENDS = (*SHELL, "echo one; echo two; exit 3")
NO_PROGRAM = ("/bin/nothing-of-that-name",)
SICK = (*SHELL, "echo it is sick; exit 1")
WELL = (*SHELL, "exit 0")


@dataclass
class Bench:
    """See the module."""

    kind: str
    engine: Engine
    images: Images
    owner: str
    socket: Path | None = None

    def wish(self, image: BuiltImage, command: tuple[str, ...] = STAYS, **rest: Any) -> Wish:
        name = rest.pop("name", "app")
        wish = Wish(name=name, spec="", image=image.digest, command=command, environment={}, stop_s=1.0, **rest)
        return replace(wish, spec=digest(repr(wish).encode()))

    async def until(self, seen: Callable[[EngineView], bool], limit_s: float = 30.0) -> EngineView:
        end = time.monotonic() + limit_s
        while not seen(view := await self.engine.view()):
            assert time.monotonic() < end, view
            await asyncio.sleep(0.05)
        return view

    async def only(self) -> Seen:
        (one,) = (await self.engine.view()).containers
        return one

    async def run(self, wish: Wish) -> tuple[int, str]:
        """Lets a container run to its end. Returns how it ended and what it said."""
        await self.engine.start(wish)
        view = await self.until(lambda view: any(c.spec == wish.spec and c.state == "exited" for c in view.containers))
        (one,) = (c for c in view.containers if c.spec == wish.spec)
        said = (await self.engine.log(one.id, "", 1 << 20)).decode()
        await self.engine.remove(one.id)
        return int(one.exit.removeprefix("exit ")) if one.exit.startswith("exit ") else -1, said

    async def clear(self) -> None:
        """Takes away what the test made."""
        for one in (await self.engine.view()).containers:
            await self.engine.stop(one.id, 0.0)
            await self.engine.remove(one.id)
        await self.engine.drop_images(())
        await self.engine.close()


def real_bench(engine: PrivateEngine, folder: Path, owner: str = "") -> Bench:
    owner = owner or secrets.token_hex(8)
    return Bench(engine.kind, EngineClient(lambda: engine.socket, owner), Images(folder), owner, engine.socket)


def fake_bench(folder: Path) -> Bench:
    def behave(wish: Wish) -> Behaviour:
        if wish.command == ENDS:
            return Behaviour(lives_s=0.0, exit="exit 3", says=((0.0, "one"), (0.0, "two")))
        if wish.command == NO_PROGRAM:
            return Behaviour(refuses="no such program")
        if wish.health_command == SICK:
            return Behaviour(healthy_after_s=None, unhealthy_after_s=0.1)
        return Behaviour()

    return Bench("fake", FakeEngine(FakeDaemon(time.monotonic, behave=behave)), Images(folder), "")
