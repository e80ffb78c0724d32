"""`python -m device.inference.worker FD PARENT`: one model in a process of its own.

Loads, holds the golden inputs, says that it is ready, then answers frames until the socket closes. What a model does
to this process, the agent survives.
"""

import contextlib
import socket
import sys
import time
from pathlib import Path
from typing import Final

from device.inference.backends import choose
from device.inference.dialogue import HEAD_BYTES, PREFIX, Answer, Failed, Order, Ready, Task
from device.inference.frames import FRAME_BYTES
from device.inference.loaded import LoadedModel, load_model, read_golden
from device.inference.preprocess import UnreadableFrame
from device.inference.rlimits import confine, die_with
from protocol.errors import Reason, Refused
from protocol.release import Variant
from protocol.wire import Message, pack, unpack

_OOM_SCORE: Final = "500"  # when memory runs out, a worker is restarted more easily than an agent


def serve(channel: socket.socket) -> None:
    """Takes one order and then frames, until the other side closes."""
    head, _ = _receive(channel)
    order = unpack(head, Order, limit=HEAD_BYTES, reason=Reason.MANIFEST)
    try:
        loaded, ready = _load(order)
    except Refused as error:
        _send(channel, Failed(reason=error.reason, message=error.message))
        return
    except MemoryError:
        _send(channel, Failed(reason=Reason.BOUNDS, message="the model needs more memory than its bounds allow"))
        return
    _send(channel, ready)
    while True:
        try:
            head, body = _receive(channel)
        except EOFError:
            break
        task = unpack(head, Task, limit=HEAD_BYTES, reason=Reason.METADATA)
        _send(channel, _answer(loaded, task, body))
    loaded.close()


def _load(order: Order) -> tuple[LoadedModel, Ready]:
    variant: Variant = next(variant for variant in order.model.variants if variant.name == order.variant)
    files = {digest: Path(path) for digest, path in order.files.items()}
    if variant.artifact.sha256 not in files:
        raise Refused(Reason.HASH, f"model {order.model.name}: its file is not there")
    backend = choose(variant.runtime, variant.accelerator)  # imported before the limit counts what is there
    confine(memory_mib=variant.bounds.memory_mib if order.limit_memory else None, cpu_s=None)
    began = time.perf_counter()
    loaded = load_model(order.model, variant, files[variant.artifact.sha256], threads=order.threads, backend=backend)
    goldens = variant.golden if order.goldens == "all" else variant.golden[:1]
    for golden in goldens:
        loaded.hold(golden, *read_golden(golden, files))
    return loaded, Ready(
        model_digest=loaded.model_digest,
        accelerator=loaded.session.accelerator,
        fallback=loaded.session.fallback,
        load_ms=(time.perf_counter() - began) * 1000.0,
    )


def _answer(loaded: LoadedModel, task: Task, body: bytes) -> Answer:
    began = time.perf_counter()
    try:
        inferred = loaded.infer(body, task.media_type)
    except UnreadableFrame as error:
        return Answer(id=task.id, kind="unreadable", latency_ms=_since(began), message=str(error)[:500])
    except Refused as error:
        return Answer(id=task.id, kind="error", latency_ms=_since(began), message=f"{error.reason}: {error.message}")
    except MemoryError:
        return Answer(id=task.id, kind="error", latency_ms=_since(began), message=f"{Reason.BOUNDS}: no memory left")
    return Answer(id=task.id, kind="finding", latency_ms=inferred.latency_ms, finding=inferred.finding)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000.0


def _send(channel: socket.socket, message: Message) -> None:
    head = pack(message)
    channel.sendall(PREFIX.pack(len(head), 0) + head)


def _receive(channel: socket.socket) -> tuple[bytes, bytes]:
    head_bytes, body_bytes = PREFIX.unpack(_exactly(channel, PREFIX.size))
    if head_bytes > HEAD_BYTES or body_bytes > FRAME_BYTES:
        raise EOFError("a message over the limit: the other side is not ours")
    return bytes(_exactly(channel, head_bytes)), bytes(_exactly(channel, body_bytes))


def _exactly(channel: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    got = 0
    while got < length:
        more = channel.recv_into(view[got:])
        if more == 0:
            raise EOFError("the agent closed the socket")
        got += more
    return data


def main() -> None:
    """The command."""
    if len(sys.argv) != 3:
        sys.stderr.write("started by the agent only\n")
        raise SystemExit(2)
    die_with(int(sys.argv[2]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    with (
        socket.socket(fileno=int(sys.argv[1])) as channel,
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
    ):
        serve(channel)


if __name__ == "__main__":
    main()
