"""The engine child: a process beside the agent that holds the Docker SDK and its memory while containers are asked for.

`python -m device.containers.engine_child --socket PATH --owner OWNER` reads one question a line from standard input
and writes one answer a line to standard output (`engine_wire`), in the order in which they are ready: a load of minutes
does not hold up a look. It ends by itself when nothing was asked for a while, or at once when the agent is gone. It
knows nothing that is not in the engine, so it may die at any moment.
"""

import argparse
import os
import queue
import select
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from device.containers.engine import EngineAwayError, EngineError, MissingLayersError
from device.containers.engine_docker import DockerEngine
from device.containers.engine_wire import (
    LINE_BYTES,
    LOG_BYTES,
    Answer,
    Asked,
    DoneSaid,
    DropAsked,
    ExportAsked,
    Failed,
    LoadAsked,
    LogAsked,
    LogSaid,
    RemoveAsked,
    Said,
    StartAsked,
    StopAsked,
    ViewAsked,
    ViewSaid,
)
from device.store import NoSpaceError
from protocol.errors import HeadlandError, Refused
from protocol.wire import decode, encode

NOWHERE: Final = "/nonexistent"
IDLE_S: Final = 60.0
"""Longer than the pauses between two looks at containers that run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until idle or until standard input ends."""
    parser = argparse.ArgumentParser(prog="device.containers.engine_child")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--owner", required=True)
    parser.add_argument("--idle-s", type=float, default=IDLE_S)
    options = parser.parse_args(arguments)
    # A file of their own for the answers: a stray print must not end up among them.
    out = os.dup(1)
    os.dup2(2, 1)
    # The SDK reads the settings of whoever's home this is, and stumbles over what is wrong in them.
    os.environ["HOME"] = NOWHERE
    os.environ.pop("DOCKER_CONFIG", None)
    serve(0, out, options.idle_s, DockerEngine(options.socket, options.owner))
    # Whoever asked is gone, or nothing is under way: no thread is waited for.
    os._exit(0)


def serve(asked: int, said: int, idle_s: float, engine: DockerEngine) -> None:
    """Answers line by line, each question in a thread of its own."""
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_write, args=(said, answers), daemon=True).start()
    under_way: list[threading.Thread] = []
    rest = b""
    while True:
        under_way = [thread for thread in under_way if thread.is_alive()]
        if not select.select([asked], [], [], idle_s)[0]:
            if under_way:
                continue
            return
        piece = os.read(asked, 1 << 16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > LINE_BYTES:
            return
        for line in lines:
            question = decode(line, Asked, limit=LINE_BYTES)
            thread = threading.Thread(target=_serve_one, args=(engine, question, answers), daemon=True)
            thread.start()
            under_way.append(thread)


def _write(said: int, answers: "queue.SimpleQueue[bytes]") -> None:
    with os.fdopen(said, "wb") as out:
        while True:
            out.write(answers.get())
            out.flush()


def _serve_one(engine: DockerEngine, asked: Asked, answers: "queue.SimpleQueue[bytes]") -> None:
    try:
        line = encode(Answer(number=asked.number, said=_said(engine, asked)))
    except Exception as error:
        # Whoever asked waits for an answer: neither for a bug of ours, nor for what an engine says that no JSON holds.
        failed = Failed(kind="engine", message=f"the engine child failed: {error!r}")
        line = encode(Answer(number=asked.number, said=failed))
    answers.put(line + b"\n")


def _said(engine: DockerEngine, asked: Asked) -> Said:
    try:
        return _answer(engine, asked)
    except MissingLayersError as error:
        return Failed(kind="missing", message=error.message, layers=error.layers)
    except NoSpaceError as error:
        return Failed(kind="no-space", message=error.message, hint=error.hint)
    except EngineAwayError as error:
        return Failed(kind="away", message=error.message, hint=error.hint)
    except EngineError as error:
        return Failed(kind="engine", message=error.message, hint=error.hint)
    except Refused as error:
        return Failed(kind="refused", message=error.message, hint=error.hint, reason=error.reason)
    except HeadlandError as error:
        return Failed(kind="state", message=error.message, hint=error.hint)


def _answer(engine: DockerEngine, asked: Asked) -> Said:
    match asked.ask:
        case ViewAsked():
            view = engine.view()
            return ViewSaid(
                life=view.life,
                version=view.version,
                folder=str(view.folder),
                images=view.images,
                containers=view.containers,
            )
        case LoadAsked(image=image, files=files):
            engine.load(image, {name: Path(path) for name, path in files.items()})
        case ExportAsked(image=image_digest, layers=layers, lengths=lengths):
            engine.export(image_digest, {name: Path(path) for name, path in layers.items()}, lengths)
        case StartAsked(wish=wish):
            engine.start(wish)
        case StopAsked(id=id, limit_s=limit_s):
            engine.stop(id, limit_s)
        case RemoveAsked(id=id):
            engine.remove(id)
        case DropAsked(keep=keep):
            engine.drop_images(keep)
        case LogAsked(id=id, since=since, limit_bytes=limit_bytes):
            return LogSaid(data=engine.log(id, since, min(limit_bytes, LOG_BYTES)))
    return DoneSaid()


if __name__ == "__main__":
    sys.exit(main())
