"""Makes a patch in a child process: low priority, bounded memory and time, gone when the server is.

The encoder reads files that strangers may have made. Whatever it does with them, it does here.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec

from protocol import limits
from protocol.errors import StateError
from server.delta.order import Answer, Order
from server.settings import Patches
from signing.child import python_command

BEAT_S: Final = 0.25
ENDS_S: Final = 10.0  # from closing its output to its end
ANSWER_BYTES: Final = 64 * limits.KIB
SAID_CHARACTERS: Final = 500  # of a child that fell: the end of what it said

Beat = Callable[[], bool]
"""Called several times a second while a patch is being made. False: nobody wants it any more."""


class EncoderFailedError(StateError):
    """No patch came of it. Trying again may help, or not."""


class InterruptedEncodingError(Exception):
    """It was ended because nobody wanted it any more."""


@dataclass(frozen=True)
class Made:
    """A patch in two files. Digests are sha256; `base` and `result` are those of the files as they were read."""

    base: str
    result: str
    payload: str
    payload_bytes: int
    index: str | None
    index_bytes: int


class Encoder(Protocol):
    """Makes patches, and checks that each gives its result."""

    def __call__(self, old: Path, new: Path, payload: Path, index: Path, beat: Beat) -> Made:
        """Makes one. Blocks.

        Args:
            old: The base.
            new: The result.
            payload: Where to write the payload.
            index: Where to write the index, when there is one.
            beat: See there.

        Raises:
            EncoderFailedError: It fell, took too long or too much, or its patch does not give the result.
            InterruptedEncodingError: `beat` said so.
        """
        ...


class ProcessEncoder:
    """An `Encoder` in a child process.

    Args:
        settings: Its limits.
        monotonic: A clock in seconds.
        module: What the child runs.
    """

    def __init__(
        self, settings: Patches, *, monotonic: Callable[[], float] = time.monotonic, module: str = "server.delta.child"
    ) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._module = module

    def __call__(self, old: Path, new: Path, payload: Path, index: Path, beat: Beat) -> Made:
        """See `Encoder`."""
        settings = self._settings
        order = Order(
            old=str(old),
            new=str(new),
            payload=str(payload),
            index=str(index),
            processes=settings.processes,
            seconds=settings.seconds,
            nice=settings.nice,
            memory_mib=settings.memory_mib,
        )
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen(
                python_command(self._module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                # A group of its own: it is ended with all that it started, and a terminal's Ctrl-C is the server's.
                start_new_session=True,
                # One thread in each process: `processes` says how many cores it takes.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
            try:
                answer = self._follow(child, msgspec.json.encode(order) + b"\n", beat)
            finally:
                _end(child)
            if answer is None:
                said.seek(0, os.SEEK_END)
                said.seek(max(0, said.tell() - SAID_CHARACTERS))
                words = said.read().decode(errors="replace").strip()
                raise EncoderFailedError(f"the encoder fell ({_how(child.returncode)}): {words}")
        if answer.error:
            raise EncoderFailedError(f"the encoder: {answer.error}")
        return Made(
            base=answer.base,
            result=answer.result,
            payload=answer.payload,
            payload_bytes=answer.payload_bytes,
            index=answer.index,
            index_bytes=answer.index_bytes,
        )

    def _follow(self, child: "subprocess.Popen[bytes]", order: bytes, beat: Beat) -> Answer | None:
        """The child's answer, or None when it ended without one."""
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(order)
            child.stdin.flush()
        except BrokenPipeError:
            child.wait(ENDS_S)
            return None
        os.set_blocking(child.stdout.fileno(), False)
        heard = b""
        end_s = self._monotonic() + 2 * self._settings.seconds
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while not heard.endswith(b"\n"):
                if ready.select(BEAT_S):
                    more = child.stdout.read(ANSWER_BYTES)
                    heard += more or b""
                    if more == b"" or len(heard) > ANSWER_BYTES:
                        child.wait(ENDS_S)
                        return None
                if not beat():
                    raise InterruptedEncodingError
                if self._monotonic() > end_s:
                    raise EncoderFailedError(f"the encoder took longer than {2 * self._settings.seconds:g} seconds")
        return msgspec.json.decode(heard, type=Answer)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Ends the child and all that it started, and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
