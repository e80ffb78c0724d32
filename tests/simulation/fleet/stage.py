"""Puts the product on the stage of a play: every door to the real world leads into the play's world instead.

Composition stays the product's own (`device.agent`, `server.app`, `device.trust.keeper`): only what they reach out to
is replaced, by name.
"""

import contextlib
import functools
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest import mock

from device import agent, identity, parts
from device.clock import Clock
from device.containers import keeper as containers
from device.kits import assembling, export, finding, folder, shelf
from device.outbox import box
from device.transfer.fetch import Transfer
from device.trust import keeper
from device.trust.judge import Judge
from device.update.world import World as UpdateWorld
from server import app
from server.storage.blobs import BlobStore
from server.storage.catalog import Catalog
from signing import durable
from signing.stick import StickFolder
from tests.simulation.fleet import house, machine, power, slot, workers
from tests.simulation.fleet.machine import BUILT_MS, current
from tests.simulation.fleet.memo import remembering
from tests.simulation.fleet.world import World

BOOKKEEPING_S = 7200.0
"""What the agent does each few seconds and minutes beside its work is done each two hours: weeks shall pass quickly."""
READ_BYTES = 200_000
"""Of a stick at once: a large blob shall be pulled out in its midst."""


@contextlib.contextmanager
def staged(world: World) -> Iterator[None]:
    """For one play."""

    def monotonic() -> float:
        return world.loop.time()

    def random() -> float:
        return current().random()

    world.loop.set_task_factory(power.task_of_plug)
    clock = SimpleNamespace(monotonic=monotonic)
    chance = SimpleNamespace(random=random)
    replaced = {
        "Link": machine.line_of_current,
        "KeeperTrust": machine.Trust,
        "ProcessWorkers": workers.Workers,
        "SubprocessCanary": workers.Canary,
        "FolderSource": machine.Source,
        "Pump": machine.Pump,
        "LocalLink": machine.LocalLink,
        "open_engine": lambda _: current().open_engine(),
        "is_there": lambda _: True,
        "Clock": lambda state: Clock(state, current().here, BUILT_MS),
        "World": functools.partial(UpdateWorld, monotonic=monotonic),
        "Transfer": functools.partial(Transfer, monotonic=monotonic, random=random),
        "draw_token": lambda: current().draw_token(),
        "time": clock,
        "random": chance,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(remembering())
        for name, value in replaced.items():
            stack.enter_context(mock.patch.object(parts, name, value))
        for target, name, value in (
            (parts.hardware, "probe", machine.probe),
            (box, "Writer", machine.Writer),
            (sqlite3, "connect", power.connect),
            (keeper, "HttpSource", machine.metadata_of_current),
            (keeper, "Judge", _judge),
            (agent, "keep_up", machine.keep_up),
            (agent, "_tell", machine.tell),
            (agent, "STATUS_S", BOOKKEEPING_S),
            (agent, "COUNTS_S", BOOKKEEPING_S),
            (agent, "TEND_S", BOOKKEEPING_S),
            (agent, "CLOCK_S", BOOKKEEPING_S),
            (containers, "CALM_S", BOOKKEEPING_S),
            (assembling, "Transfer", replaced["Transfer"]),
            (assembling, "time", clock),
            (finding, "_Mounts", slot.no_watch),
            (finding, "Observer", slot.no_watch),
            (finding, "LOOK_S", BOOKKEEPING_S),
            (finding, "_look_at", slot.mounted(finding._look_at)),
            (folder, "threading", SimpleNamespace(Thread=slot.Thread)),
            (shelf, "READ_BYTES", READ_BYTES),
            (export, "Hand", slot.Hand),
            (StickFolder, "names", slot.names),
            (StickFolder, "free_bytes", slot.free_bytes),
            (identity.Identity, "bare_tls", machine.bare(identity.Identity.bare_tls)),
            (app, "DeviceDoor", house.device_door),
            (app, "_listen", house.listen),
            (app, "_every", house.Chore),
            (app, "_tasks", house.tasks),
            (app, "open_blobs", _opening(app.open_blobs)),
            (Catalog, "write", power.catalog_write(Catalog.write)),
            (durable.DISK, "before", power.before),
            (os, "fsync", power.fsync),
            (durable, "_forget", power.forgetting(durable._forget)),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, level)
        yield


def _opening(open_blobs: Callable[..., BlobStore]) -> Callable[..., house.AtOnce]:
    return lambda *arguments: house.AtOnce(open_blobs(*arguments))


def _judge(**more: object) -> Judge:
    mine = current()
    return Judge(here=mine.here, built_ms=BUILT_MS, **more)  # type: ignore[arg-type]  # handed through
