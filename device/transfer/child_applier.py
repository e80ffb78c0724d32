"""The agent's side of the patch child: one child a patch, started with the first group, killed at the end.

How a child ends tells whose fault it was. A crash, an error of its own or a loop is the patch's, when it comes again on
the same group. Killed by somebody else (the kernel for want of memory, the supervisor, a person), stuck without using
the processor, or without memory while the machine has none: those come from outside, and say nothing about the patch.
"""

import contextlib
import os
import selectors
import signal
import subprocess
from pathlib import Path
from typing import Final

from device.inference.spawning import worker_environment
from device.transfer.applier import ApplierEndedError, Write
from device.transfer.patch_wire import (
    DONE,
    GROUP,
    HEAD,
    NO_MEMORY,
    OFFSET,
    OUTPUT,
    READY,
    REFUSED,
    VERDICT_BYTES,
    Verdict,
)
from protocol import limits
from protocol.errors import Reason, Refused
from protocol.wire import decode
from signing.child import python_command

SILENCE_S: Final = 600.0  # streams are decoded before anything is written: minutes, where a slow card is busy as well
START_S: Final = 60.0  # a cold numpy on a slow card
TRIES: Final = 2  # of each kind: dying once is chance
BUSY: Final = 0.5  # of its silence: a child that computed for so long loops
CRASHES: Final = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS})
"""What a decoder brings on itself. Not SIGBUS: that is a disk that does not read a library's page."""
ANSWER_BYTES: Final = limits.MIB + VERDICT_BYTES


class _EndedError(Exception):
    """The child is gone, hangs, or says what no child of ours does.

    Args:
        message: For people.
        is_own: Whether that is its own fault; None: its exit tells.
    """

    def __init__(self, message: str, *, is_own: bool | None = None) -> None:
        super().__init__(message)
        self.is_own = is_own


class ChildApplier:
    """Implements `device.transfer.applier.Applier`.

    Args:
        base: Path of the base.
        silence_s: A child that says nothing for so long hangs.
    """

    def __init__(self, base: Path, silence_s: float = SILENCE_S) -> None:
        self._base = base
        self._silence_s = silence_s
        self._child: _Child | None = None
        self._cancelled = False

    def apply(self, group: bytearray, output_offset: int, write: Write) -> None:
        """As `Applier`."""
        written = 0
        ended = ""
        ends = {True: 0, False: 0}  # by whether it was the child's own fault
        while max(ends.values()) < TRIES:
            if self._cancelled:
                raise OSError("no more is applied")
            skip = written
            try:
                if self._child is None:
                    self._child = _Child(self._base)
                self._child.send(GROUP, OFFSET.pack(output_offset), group, patience_s=self._silence_s)
                while True:
                    kind, content = self._child.receive(self._silence_s)
                    if kind != OUTPUT:
                        _judge(kind, content)
                        return
                    # A second child makes the same bytes again: what is written already is passed over.
                    passed = min(skip, len(content))
                    skip -= passed
                    if passed < len(content):
                        write(content[passed:])
                        written += len(content) - passed
            except _EndedError as error:
                how, is_own = self._end()
                ended = f"{error}, {how}"
                ends[is_own if error.is_own is None else error.is_own] += 1
            except BaseException:
                self._end()
                raise
        if self._cancelled:
            raise OSError("no more is applied")
        if ends[True] < TRIES:
            raise ApplierEndedError(f"the process that applies patches is ended from outside: {ended}")
        raise Refused(Reason.LIMIT, f"the process that applies it does not survive it: {ended}")

    def cancel(self) -> None:
        """As `Applier`."""
        self._cancelled = True
        child = self._child
        if child is not None:
            child.kill()

    def close(self) -> None:
        """As `Applier`."""
        self._end()

    def _end(self) -> tuple[str, bool]:
        child, self._child = self._child, None
        return child.end() if child is not None else ("it never ran", False)


_SETTINGS: Final = {
    # Arithmetic in threads of its own would take what inference needs, and address space, which is bounded.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # Large blocks go back to the system when they are free: glibc would keep up to four megabytes of them.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
}


class _Child:
    """A running `device.transfer.patch_child`."""

    def __init__(self, base: Path) -> None:
        self._process = subprocess.Popen(
            [*python_command("device.transfer.patch_child"), str(base), str(os.getpid())],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**worker_environment(os.environ), **_SETTINGS},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        try:
            kind, _ = self.receive(START_S)
        except _EndedError as error:
            raise ApplierEndedError(
                f"the process that applies patches does not start: {error}, {self.end()[0]}"
            ) from error
        assert kind == READY

    def send(self, kind: bytes, *pieces: bytes | bytearray, patience_s: float) -> None:
        for piece in (HEAD.pack(kind, sum(map(len, pieces))), *pieces):
            view = memoryview(piece)
            while view:
                self._await(self._in, selectors.EVENT_WRITE, patience_s)
                try:
                    view = view[os.write(self._in, view) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise _EndedError("it took no group") from error

    def receive(self, patience_s: float) -> tuple[bytes, bytes]:
        kind, length = HEAD.unpack(self._read(HEAD.size, patience_s))
        if length > ANSWER_BYTES:
            raise _EndedError("it says what no process of ours does", is_own=True)
        return kind, bytes(self._read(length, patience_s))

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> tuple[str, bool]:
        """Kills it if it lives, and says how it ended, and whether that was its own fault."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        code = self._process.returncode
        return f"exit code {code}", -code in CRASHES or (code > 0 and code != NO_MEMORY)

    def _read(self, length: int, patience_s: float) -> bytearray:
        found = bytearray(length)
        view = memoryview(found)
        while view:
            self._await(self._out, selectors.EVENT_READ, patience_s)
            count = os.readv(self._out, [view])
            if not count:
                raise _EndedError("it ended")
            view = view[count:]
        return found

    def _await(self, fd: int, event: int, patience_s: float) -> None:
        before_s = self._computed_s()
        with selectors.DefaultSelector() as selector:
            selector.register(fd, event)
            if not selector.select(patience_s):
                is_busy = self._computed_s() - before_s >= BUSY * patience_s
                raise _EndedError(f"it said nothing for {patience_s:.0f} s", is_own=is_busy)

    def _computed_s(self) -> float:
        """Processor seconds that it used so far; 0 when nobody tells."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return 0.0
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _judge(kind: bytes, content: bytes) -> None:
    """What an answer that is no output means."""
    if kind == DONE:
        return
    if kind == REFUSED:
        verdict = decode(content, Verdict, limit=VERDICT_BYTES)
        raise Refused(verdict.reason, verdict.message)
    raise OSError(content.decode(errors="replace"))
