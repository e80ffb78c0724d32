#!/usr/bin/env python3
"""Times field kits beside a plain copy of the same bytes with hashing, in one run on one disk.

Build: `headland kit build`, the whole command, from a real server on this computer, against a copy of the kit's blobs;
and, since its bytes come over TLS, against a bare client that fetches them from the same server: what the link allows
where server and tool share the cores. Apply: a machine's transfer from a stick into its store, every byte verified and
synced, against a copy of the blobs that it read. Copies and the bare client hash (SHA-256), write and sync each file.
Goal: at least 0.8 of the copy's speed.

Started by any Python, it goes on in `.venv`, made where it is not there yet.
"""

import argparse
import asyncio
import hashlib
import http.client
import json
import os
import random
import shutil
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
MANAGER = "alice"
VERSION = "1.1.0"
MIB = 1 << 20
COPY = "a copy with hashing"


@dataclass(frozen=True)
class Timed:
    """What was done, beside a peer that moves the same bytes. `share`: of the peer's speed, from the medians."""

    what: str
    peer: str
    size_bytes: int
    seconds: float
    peer_seconds: float
    share: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1000, help="of its largest file, below 1024 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be used; a temporary one unless given")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="headland-bench-kit-", dir=arguments.folder))
    try:
        found = bench(root, arguments.mib, arguments.rounds)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if arguments.json:
        print(json.dumps({"kit": [asdict(one) for one in found]}))
        return 0
    for one in found:
        print(
            f"{one.what:6} {one.size_bytes / 1e6:8.1f} MB in {one.seconds:6.2f} s; {one.peer} takes "
            f"{one.peer_seconds:6.2f} s: {one.share:.2f} of its speed"
        )
    return 0


def bench(root: Path, mib: int, rounds: int) -> list[Timed]:
    """Both, in turns with their peers."""
    from scripts.cast import Manager, Server

    server, managers = Server(root / "server", root), Manager(root / "workspace", root / "passphrases")
    say(f"a release with a file of {mib} MiB: built, signed, pushed")
    # Nothing compresses noise, so that the level costs time only here.
    server.init(poll_s=1.0, busy_poll_s=1.0, more="\n[transfers]\ncompression_level = 1\n")
    server.start()
    stick, work = root / "stick", root / "work"
    try:
        publish(root, server, managers, mib)
        build(managers, stick)  # the server makes the payloads first
        say("building")
        builds = in_turns(
            "build",
            stick,
            rounds,
            lambda: build(managers, work),
            {
                COPY: lambda: copy_blobs(stick, work),
                "a bare client with hashing": lambda: fetch_blobs(server, stick, work),
            },
        )
    finally:
        server.stop()
    say("applying")
    applies = in_turns("apply", stick, rounds, lambda: apply(stick, work), {COPY: lambda: copy_blobs(stick, work)})
    return [*builds, *applies]


def in_turns(
    what: str, stick: Path, rounds: int, ours: Callable[[], float], peers: dict[str, Callable[[], float]]
) -> list[Timed]:
    """One after the other, each round beginning with the next of them: what comes first may find a disk or memory
    that is colder. Each leaves its files in a folder `work` beside the stick."""
    every = [ours, *peers.values()]
    times: list[list[float]] = [[] for _ in every]
    for number in range(rounds):
        for turn in range(len(every)):
            which = (number + turn) % len(every)
            read_all(stick)
            times[which].append(every[which]())
            shutil.rmtree(stick.with_name("work"))
    seconds, *others = (statistics.median(column) for column in times)
    size = sum(path.stat().st_size for path in blobs(stick))
    return [
        Timed(what, peer, size, round(seconds, 3), round(took, 3), round(took / seconds, 3))
        for peer, took in zip(peers, others, strict=True)
    ]


def publish(root: Path, server: Any, managers: Any, mib: int) -> None:
    from scripts.cast import MODELS, PRODUCT

    managers("keys", "add", MANAGER, person=MANAGER)
    state = server.state
    where = ("--server", state / "operator.json", "--online-keys", state / "online-keys.json")
    managers("keys", "init", "--product", PRODUCT, "--threshold", "1", *where)
    sign_and_push(managers)
    folder = root / "release"
    shutil.copytree(MODELS, folder)
    with (folder / "map.txt").open("wb") as file:  # nothing compresses it: payload and file are the same bytes
        generator = random.Random(7)
        for _ in range(mib):
            file.write(generator.randbytes(MIB))
    description = folder / f"{PRODUCT}-{VERSION}.toml"
    with description.open("a") as text:
        text.write('\n[[configs]]\nname = "map.txt"\nfile = "map.txt"\n')
    managers("release", "build", description)
    sign_and_push(managers)


def sign_and_push(managers: Any) -> None:
    managers("release", "sign", "--as", MANAGER, "--yes", person=MANAGER)
    managers("release", "push")


def build(managers: Any, stick: Path) -> float:
    """The whole command, its start included."""
    from scripts.cast import PRODUCT

    stick.mkdir()
    began = time.perf_counter()
    managers("kit", "build", stick, "--product", PRODUCT, "--as", MANAGER, "--yes", person=MANAGER)
    return time.perf_counter() - began


def apply(stick: Path, folder: Path) -> float:
    """What a machine's FETCH does: all blobs of the kit's release into an empty store."""
    return asyncio.run(_apply(stick, folder, next(stick.glob("headland-kits/*/kit.json")).read_bytes()))


async def _apply(stick: Path, folder: Path, kit: bytes) -> float:
    from device.kits.bringing import STICK, SYNC_BYTES
    from device.kits.finding import Finder
    from device.kits.shelf import Shelf
    from device.store import Store
    from device.transfer.child_applier import ChildApplier
    from device.transfer.fetch import Transfer
    from protocol.artifact import Artifact
    from protocol.kits import KitBody
    from protocol.objects import TransferPlan
    from protocol.wire import decode, encode

    finder, shelf = Finder(()), Shelf()
    finder.add(stick)
    shelf.show(await finder.look())
    body = decode(encode(json.loads(kit)["signed"]["headland"]), KitBody, limit=MIB)
    steps = tuple(step for step in body.releases[0].steps if step.method == "full")
    artifacts = [Artifact(sha256=step.artifact, length_bytes=step.length_bytes, media_type="any") for step in steps]
    plan = TransferPlan(steps=steps, full_bytes=sum(step.travels_bytes() for step in steps))
    began = time.perf_counter()
    transfer = Transfer(shelf, Store(folder), STICK, count=lambda _: None, appliers=ChildApplier, sync_bytes=SYNC_BYTES)
    await transfer.fetch(plan, artifacts)
    return time.perf_counter() - began


def fetch_blobs(server: Any, stick: Path, folder: Path) -> float:
    """Fetches the kit's blobs over the people's door, as plainly as the standard library does, and hashes them."""
    access = json.loads((server.state / "operator.json").read_text())
    address = urlsplit(access["url"])
    trusted = ssl.create_default_context(cadata=access["ca_pem"])
    folder.mkdir()
    began = time.perf_counter()
    link = http.client.HTTPSConnection(str(address.hostname), address.port, context=trusted)
    for path in blobs(stick):
        link.request("GET", f"/api/v1/blobs/{path.name}", headers={"Authorization": f"Bearer {access['token']}"})
        answer = link.getresponse()
        assert answer.status == http.client.OK, answer.status
        write_hashed(pieces_of(answer), folder / path.name)
    link.close()
    return time.perf_counter() - began


def copy_blobs(stick: Path, folder: Path) -> float:
    """Reads, hashes, writes and syncs each blob, and holds its hash against its name."""
    folder.mkdir()
    began = time.perf_counter()
    for path in blobs(stick):
        with path.open("rb", buffering=0) as old:
            write_hashed(pieces_of(old), folder / path.name)
    return time.perf_counter() - began


def read_all(stick: Path) -> None:
    """So that all read from the same cache."""
    for path in blobs(stick):
        with path.open("rb", buffering=0) as file:
            for _ in pieces_of(file):
                pass


def pieces_of(file: Any) -> Iterator[bytes]:
    while piece := file.read(MIB):
        yield piece


def write_hashed(pieces: Iterator[bytes], path: Path) -> None:
    """Writes and syncs a file that is named after its hash."""
    found = hashlib.sha256()
    with path.open("wb", buffering=0) as new:
        for piece in pieces:
            found.update(piece)
            new.write(piece)
        os.fsync(new.fileno())
    assert found.hexdigest() == path.name, path


def blobs(stick: Path) -> Iterable[Path]:
    return sorted(stick.glob("headland-kits/*/blobs/*"))


def say(words: str) -> None:
    print(words, file=sys.stderr)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from scripts.bench_delta import in_our_environment

    in_our_environment(__file__)
    sys.exit(main())
