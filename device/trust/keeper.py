"""The keeper: a process beside the agent that holds TUF and its memory only while an answer is judged.

`python -m device.trust.keeper --state DIR` reads one request a line from standard input and writes one answer a line to
standard output (`device.trust.wire`). It ends by itself when nothing was asked for a while, or when the agent is gone.
All that it knows is on the disk, so it may die at any moment.
"""

import argparse
import contextlib
import fcntl
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from device import identity
from device.damage import StateDamagedError
from device.layout import Layout
from device.recovery import FLOORS_DUE
from device.state_db import StateDb
from device.trust.judge import Judge, Sources
from device.trust.wire import LINE_BYTES, Asked, Failed, JudgeAsked, JudgeSaid, KitAsked, KitSaid, ReceiptsSaid, Said
from protocol.errors import HeadlandError, LinkError, Refused, StateError
from protocol.wire import decode, encode
from signing import durable
from signing.trust_store import DirectorStore, HttpSource, ImageStore

IDLE_S: Final = 20.0
"""Longer than a contact's pauses between its requests, much shorter than the pause between contacts."""


class StateFloors:
    """The floors of `state.db` as the trust store wants them."""

    def __init__(self, database: StateDb) -> None:
        self._database = database

    def read(self, name: str) -> int:
        """As `Floors.read`."""
        return self._database.floor(name)

    def rise(self, name: str, value: int) -> None:
        """As `Floors.rise`."""
        self._database.raise_floor(name, value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until idle or until standard input ends."""
    parser = argparse.ArgumentParser(prog="device.trust.keeper", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--server", help="instead of the URL of the enrolment")
    parser.add_argument("--idle-s", type=float, default=IDLE_S)
    options = parser.parse_args(arguments)
    # A file of their own for the answers: a stray print must not end up among them.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, out, options.idle_s, lambda: _lazily(options.state, options.server))
    return 0


def serve(asked: BinaryIO, said: BinaryIO, idle_s: float, open_judge: Callable[[], "_Opened"]) -> None:
    """Answers line by line. The one who asks waits for each answer, so that no request ever stands in a buffer."""
    with contextlib.ExitStack() as stack:
        judge: Judge | None = None
        while select.select([asked], [], [], idle_s)[0]:
            line = asked.readline(LINE_BYTES + 1)
            if not line.endswith(b"\n"):
                return
            try:
                if judge is None:
                    judge = stack.enter_context(open_judge())
                answer = _answer(judge, decode(line, Asked, limit=LINE_BYTES))  # type: ignore[arg-type]  # a union
            except LinkError as error:
                answer = Failed(
                    kind="link",
                    message=error.message,
                    hint=error.hint,
                    retryable=error.retryable,
                    status=error.status,
                )
            except StateDamagedError as error:
                answer = Failed(kind="damaged", message=error.message, hint=error.hint)
            except HeadlandError as error:
                answer = Failed(kind="state", message=error.message, hint=error.hint)
            except OSError as error:
                answer = Failed(kind="state", message=f"the trust folder cannot be written: {error}")
            said.write(encode(answer) + b"\n")
            said.flush()


_Opened = contextlib.AbstractContextManager[Judge]


@contextlib.contextmanager
def _lazily(state: Path, server: str | None) -> Iterator[Judge]:
    """Opens everything at the first request, so that what is wrong is told to the one who asks."""
    layout = Layout(state)
    me = identity.load(layout.identity)
    folder = state / "trust"
    durable.make_dir(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(folder / "keeper.lock"))
        database = StateDb(layout.state_db, create=False)
        stack.callback(database.close)
        floors = StateFloors(database)
        base = (server or me.enrolment.server).rstrip("/")
        context = me.tls() if base.startswith("https:") else None
        image = HttpSource(f"{base}/v1/tuf/image/", context)
        stack.callback(image.close)
        director = HttpSource(f"{base}/v1/tuf/director/", context)
        stack.callback(director.close)
        for name in ("image", "director"):
            durable.sweep(folder / name)
            durable.sweep(folder / name / "root_history")
        product = me.enrolment.product
        image_store = ImageStore(folder / "image", _first_root(layout, "image"), floors, product=product)
        director_store = DirectorStore(folder / "director", _first_root(layout, "director"), floors)
        if database.get(FLOORS_DUE) is not None:
            for store in (image_store, director_store):
                with contextlib.suppress(Refused):  # a folder that holds nothing raises nothing
                    store.recover_floors()
            database.remove(FLOORS_DUE)
        yield Judge(
            device=me.enrolment.device,
            product=product,
            image=image_store,
            director=director_store,
            sources=Sources(image=image, director=director),
            facts=database,
            seal=database.seal,
        )


def _first_root(layout: Layout, name: str) -> bytes:
    path = layout.identity / f"{name}.root.json"
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"the first root of the {name} repository is missing: {error}") from error


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until the keeper of an agent that was killed is gone: two must not write one trust folder."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _answer(judge: Judge, asked: Asked) -> Said:
    if isinstance(asked, JudgeAsked):
        return JudgeSaid(verdict=judge.judge(asked.answer, asked.nonce, asked.asked_boot_s))
    if isinstance(asked, KitAsked):
        return KitSaid(verdict=judge.judge_kit(Path(asked.folder)))
    return ReceiptsSaid(receipts=judge.receipts(asked.texts))


if __name__ == "__main__":
    sys.exit(main())
