"""What is measured, each in a process of its own: `python -m scripts.device_bench.parts WHAT ...` prints JSON.

A process of its own, for its memory is its own, and nothing that ran before it warms anything for it.
"""

import asyncio
import gc
import inspect
import json
import resource
import sqlite3
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from device.inference.frames import Frame
from device.inference.workers import ProcessWorkers
from device.outbox.batch import sign_batch
from device.outbox.box import Outbox
from device.update.ports import ReleaseSet
from protocol import limits
from protocol.ids import digest
from protocol.objects import ReceiptsBody, RowRange
from protocol.release import ReleaseManifest
from protocol.results import SIGNING_CONTEXT, SignedBatch, open_batch, rows_sha256
from protocol.selection import needed_artifacts
from protocol.wire import encode, unpack
from scripts.device_bench.agent import NAME
from scripts.device_bench.queues import BIG_BYTES, Bare, opened
from scripts.device_bench.readers import READERS, alarm
from scripts.device_bench.rows import rows
from signing.checker import SubprocessChecker
from signing.release_description import read_description
from signing.release_gather import Gathering
from signing.workspace import Workspace

TOGETHER = 1000
GENERATION = "9" * 32


async def latency(name: str, folder: str, packages: str, rate: str, seconds: str) -> dict[str, Any]:
    """Each row's time until it is durable, in microseconds, at a steady rate."""
    queue = await opened(name, Path(folder), Path(packages))
    count = int(float(rate) * float(seconds))
    bodies = list(rows(count))
    gc.freeze()
    took = []
    begin = time.perf_counter()
    for number, row in enumerate(bodies):
        ahead = begin + number / float(rate) - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        start = time.perf_counter()
        done = queue.put(row)
        if done is not None:
            await done
        took.append(round((time.perf_counter() - start) * 1e6))
    await _closed(queue)
    return {"took_us": took}


async def rate(name: str, folder: str, packages: str, count: str) -> dict[str, Any]:
    """Rows a second, a thousand in each call."""
    queue = await opened(name, Path(folder), Path(packages))
    bodies = list(rows(int(count)))
    gc.freeze()
    start = time.perf_counter()
    for first in range(0, len(bodies), TOGETHER):
        done = queue.put_many(bodies[first : first + TOGETHER])
        if done is not None:
            await done
    took_s = time.perf_counter() - start
    await _closed(queue)
    return {"rows_s": len(bodies) / took_s}


async def callers(folder: str, count: str, many: str) -> dict[str, Any]:
    """Rows a second where so many callers wait for one row each."""
    box = await _box(Path(folder) / "outbox.db")
    bodies = iter(list(rows(int(count))))
    start = time.perf_counter()

    async def caller() -> None:
        for body in bodies:
            await box.enqueue("results", body)

    await asyncio.gather(*(caller() for _ in range(int(many))))
    took_s = time.perf_counter() - start
    await box.close()
    return {"rows_s": int(count) / took_s}


async def fill(path: str, count: str) -> dict[str, Any]:
    """Queues so many rows."""
    box = await _box(Path(path))
    left = rows(int(count))
    while some := list(islice(left, TOGETHER)):
        await box.enqueue_all([("results", row) for row in some])
    await box.close()
    return {"rows": int(count)}


async def drain(path: str) -> dict[str, Any]:
    """Sends all that is queued to a server in this process; its share of the time is told apart."""
    key = ec.generate_private_key(ec.SECP256R1())
    opening = time.perf_counter()
    box = await _box(Path(path))
    opened_s = time.perf_counter() - opening
    await box.meet_generation(GENERATION)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count, server_s, start = 0, 0.0, time.perf_counter()
    while (batch := await box.next_batch()) is not None:
        sent = await asyncio.to_thread(sign_batch, batch, key)
        del batch
        taking = time.perf_counter()
        receipt = _receipt(sent, key)
        server_s += time.perf_counter() - taking
        count += await box.apply_receipt(receipt)
    took_s = time.perf_counter() - start
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await box.close()
    return {
        "rows": count,
        "rows_s": count / (took_s - server_s),
        "opened_s": opened_s,
        "grew_mib": (peak_kib - before_kib) / 1024,
        "peak_mib": peak_kib / 1024,
    }


async def fill_bare(path: str, count: str) -> dict[str, Any]:
    """Queues so many rows in bare SQLite."""
    queue = Bare(Path(path).parent)
    left = rows(int(count))
    while some := list(islice(left, TOGETHER)):
        queue.put_many(some)
    queue.close()
    return {"rows": int(count)}


async def drain_bare(path: str, together: str) -> dict[str, Any]:
    """The same from bare SQLite: read so many, delete them."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    count, start = 0, time.perf_counter()
    while found := connection.execute("SELECT id, body FROM queue ORDER BY id LIMIT ?", (int(together),)).fetchall():
        connection.execute("DELETE FROM queue WHERE id BETWEEN ? AND ?", (found[0][0], found[-1][0]))
        count += len(found)
    took_s = time.perf_counter() - start
    connection.close()
    return {"rows_s": count / took_s}


async def infer(description: str, scratch: str) -> None:
    """Has the agent's own worker process infer a picture without a pause until this is killed; prints once it does."""
    release, picture = _release(Path(description), Path(scratch))
    workers = ProcessWorkers(clock=time.monotonic)
    await workers.converge(release)

    async def again_and_again() -> None:
        frame = Frame(name="picture.jpg", media_type="image/jpeg", data=picture, arrived_s=0.0)
        while True:
            await workers.infer(frame)

    print("{}", flush=True)
    # Two, so that a frame waits in the worker's socket whenever one is done.
    await asyncio.gather(again_and_again(), again_and_again())


def _release(description: Path, scratch: Path) -> tuple[ReleaseSet, bytes]:
    """A described release as it would lie in a machine's store, in the form for onnxruntime, and a picture for it."""
    folder, described = read_description(description)
    [model] = described.models
    [form] = [variant for variant in model.variants if variant.file.endswith(".onnx")]
    workspace = Workspace.create(scratch)
    gathering = Gathering(workspace, folder, SubprocessChecker(), lambda _: None)
    gathered = gathering.model(msgspec.structs.replace(model, variants=(form,)))
    [variant] = gathered.variants
    manifest = ReleaseManifest(
        format=1,
        product=described.product,
        version=described.version,
        release_counter=described.counter,
        created_ms=0,
        models=(gathered,),
    )
    chosen = {gathered.name: variant}
    files = {one.sha256: workspace.blob(one.sha256) for one in needed_artifacts(manifest, chosen, {})}
    picture = files[variant.golden[0].input.sha256].read_bytes()
    return ReleaseSet(digest=digest(encode(manifest)), manifest=manifest, variants=chosen, files=files), picture


def _receipt(sent: bytes, key: ec.EllipticCurvePrivateKey) -> ReceiptsBody:
    batch = unpack(sent, SignedBatch, limit=limits.BATCH_BYTES)
    key.public_key().verify(batch.signature, SIGNING_CONTEXT + batch.payload, ec.ECDSA(hashes.SHA256()))
    body = open_batch(batch)
    return ReceiptsBody(
        device=body.device,
        epoch=body.epoch,
        generation=GENERATION,
        rows=tuple(
            RowRange(
                lane=part.lane,
                first=part.first,
                last=part.first + len(part.rows) - 1,
                rows_sha256=rows_sha256(part.rows),
            )
            for part in body.lanes
        ),
    )


async def _box(path: Path, device: str = NAME) -> Outbox:
    return await Outbox.opened(path, device, budget_bytes=BIG_BYTES, now_ms=lambda: 0, draw_token=lambda: "a" * 32)


async def _closed(queue: Any) -> None:
    done = queue.close()
    if inspect.isawaitable(done):
        await done


WHAT = {
    "latency": latency,
    "rate": rate,
    "callers": callers,
    "fill": fill,
    "fill_bare": fill_bare,
    "drain": drain,
    "drain_bare": drain_bare,
    "alarm": alarm,
}


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "infer":
        asyncio.run(infer(*arguments))
    elif what in READERS:
        print(json.dumps(READERS[what](*arguments)))
    else:
        print(json.dumps(asyncio.run(WHAT[what](*arguments))))


if __name__ == "__main__":
    main()
