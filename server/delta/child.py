"""The encoder's process: makes one patch within limits, applies it, and says on its standard output what it made.

`server.delta.process` starts it. Its order is the first line of its standard input, which stays open as long as
somebody waits for the answer: when it ends, this process and those that it started end too.
"""

import contextlib
import hashlib
import os
import resource
import signal
import sys
import threading
from pathlib import Path

import msgspec

from protocol import limits
from protocol.delta.apply import apply_group
from protocol.delta.patch import PatchFile
from protocol.errors import HeadlandError, Reason, Refused
from server.delta.applying import read_groups
from server.delta.encode import Encoded, EncodeOptions, encode
from server.delta.gzip_file import FileBase
from server.delta.order import Answer, Order


def main() -> None:
    """Does one order."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    os.nice(order.nice)
    _confine(order.memory_mib)
    try:
        answer = _make(order)
    except MemoryError:
        answer = Answer(error=f"it needs more than {order.memory_mib} MiB")
    except HeadlandError as error:
        answer = Answer(error=error.message)
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()
    # Not through the interpreter's end: the watching thread waits on, and nothing is left to tidy.
    os._exit(0)


def _make(order: Order) -> Answer:
    options = EncodeOptions(processes=order.processes, seconds=order.seconds)
    with Path(order.payload).open("wb") as payload:
        made = encode(Path(order.old), Path(order.new), payload, options=options)
        payload.flush()
        os.fsync(payload.fileno())
    if made.index is not None:
        Path(order.index).write_bytes(made.index)
    _check(order, made)
    return Answer(
        base=made.base_sha256,
        result=made.output_sha256,
        payload=made.payload_sha256,
        payload_bytes=made.payload_bytes,
        index=None if made.index is None else hashlib.sha256(made.index).hexdigest(),
        index_bytes=len(made.index or b""),
    )


def _check(order: Order, made: Encoded) -> None:
    """Applies the patch as a machine would: what does not give the result here is not offered to anybody."""
    whole = hashlib.sha256()
    done = 0

    def take(data: bytes) -> None:
        nonlocal done
        whole.update(data)
        done += len(data)

    head = PatchFile(b"", b"", made.index or b"", 0)
    with Path(order.payload).open("rb") as payload, Path(order.old).open("rb", buffering=0) as old:
        base = FileBase(old)
        for _, group in read_groups(payload, head):
            apply_group(group, base, done, take)
    if done != made.output_bytes or whole.hexdigest() != made.output_sha256:
        raise Refused(Reason.HASH, "the patch that was made does not give its result")


def _confine(memory_mib: int) -> None:
    """Limits this process's own memory, and that of each that it starts. Files that are mapped to read do not count:
    they may be larger than any memory, and the kernel takes their pages back."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = memory_mib * limits.MIB
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with(stdin: int) -> None:
    # Not through the buffered file: its lock would be held for ever in the processes that the encoder forks.
    while os.read(stdin, limits.KIB):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
