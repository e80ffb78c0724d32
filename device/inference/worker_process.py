"""One life of one worker process, seen from the agent: its socket, its answers, its end."""

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Mapping
from typing import Final

from device.cancelling import cancel
from device.inference.dialogue import HEAD_BYTES, PREFIX, Answer, Failed, FromWorker, Order, Ready, Task
from device.inference.endings import ending_of, verdict_of
from device.inference.frames import Frame
from device.inference.spawning import end_process, start_process
from protocol.errors import Reason, Refused
from protocol.wire import pack, unpack

_log = logging.getLogger(__name__)

_SOCKET_BYTES: Final = 1 << 20  # a camera's JPEG goes over in one write
_TAIL_BYTES: Final = 400
_STOP_S: Final = 2.0  # a worker that is idle ends at once when its socket closes; a busy one is killed
HANG: Final = "hang"


class WorkerDied(Exception):  # noqa: N818  (an event that the keeper handles; it never leaves this room)
    """The process ended while a frame waited for its answer.

    Args:
        suspect: The frame was the one being inferred; else it only waited behind that one.
    """

    def __init__(self, *, suspect: bool) -> None:
        super().__init__("the worker died")
        self.suspect = suspect


class _Waiting:
    def __init__(self, answer: asyncio.Future[Answer]) -> None:
        self.answer = answer


class WorkerProcess:
    """A worker that is ready. Made by `start`; belongs to one event loop.

    Args:
        process: Running.
        reader: Of the socket to it.
        writer: As above.
        ready: What it said when it was.
        tail: Of its error output.
        frame_limit_s: A frame that takes longer is a hang, and the process is killed.
    """

    def __init__(
        self,
        *,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ready: Ready,
        tail: "_Tail",
        frame_limit_s: float,
    ) -> None:
        self.ready = ready
        self._process = process
        self._reader = reader
        self._writer = writer
        self._tail = tail
        self._frame_limit_s = frame_limit_s
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._next_id = 0
        self._hung = False
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self._listener = self._loop.create_task(self._listen())

    @classmethod
    async def start(
        cls, order: Order, *, environ: Mapping[str, str], load_limit_s: float, frame_limit_s: float
    ) -> "WorkerProcess":
        """Spawns a worker and waits until it is warm.

        Raises:
            Refused: What the worker said; `MODEL_CRASH` or `BOUNDS` by the way it ended; `MODEL_LOAD` when it did not
                come up within `load_limit_s`.
            OSError: The machine has no memory, process or descriptor left.
        """
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        try:
            ours.setblocking(False)
            process = await start_process(
                "device.inference.worker",
                str(theirs.fileno()),
                str(os.getpid()),
                environ=environ,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        tail = _Tail(process)
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            head = pack(order)
            writer.write(PREFIX.pack(len(head), 0) + head)
            try:
                ready = await asyncio.wait_for(_first(reader), load_limit_s)
            except TimeoutError:
                raise Refused(
                    Reason.MODEL_LOAD, f"model {order.model.name} did not come up within {load_limit_s:.0f} s"
                ) from None
            except (EOFError, ConnectionError):
                await end_process(process)
                code = process.returncode or 0
                raise verdict_of(
                    code,
                    f"model {order.model.name} ended its worker: {ending_of(code)}; {await tail.text()}",
                ) from None
        except BaseException:
            await end_process(process)
            if writer is None:
                ours.close()
            else:
                await _close(writer)
            await tail.close()
            raise
        return cls(process=process, reader=reader, writer=writer, ready=ready, tail=tail, frame_limit_s=frame_limit_s)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def stopping(self) -> bool:
        """Whether its end is our wish."""
        return self._stopping

    async def infer(self, frame: Frame) -> Answer:
        """Hands over a frame; answers come in the order of the calls.

        Raises:
            WorkerDied: It ended first.
        """
        if self.ended.done() or self._stopping:
            raise WorkerDied(suspect=False)
        entry = _Waiting(self._loop.create_future())
        self._waiting.append(entry)
        if len(self._waiting) == 1:
            self._watch_head()
        head = pack(Task(id=self._next_id, media_type=frame.media_type))
        self._next_id += 1
        # Both writes stand without an await between them, so that frames cannot interleave.
        self._writer.write(PREFIX.pack(len(head), len(frame.data)) + head)
        self._writer.write(frame.data)
        return await entry.answer

    async def stop(self) -> None:
        """Ends the process, politely when it is idle, and waits until it is gone. Safe to repeat."""
        self._stopping = True
        await _close(self._writer)
        await self._listener
        await self._tail.close()

    async def last_words(self) -> str:
        """The end of what it wrote to its error output."""
        return await self._tail.text()

    async def _listen(self) -> None:
        try:
            await self._take_answers()
        except (EOFError, ConnectionError, Refused):
            pass
        except Exception:
            # Here and nowhere else: without this, whatever a bug raised would leave the frames waiting for ever.
            _log.exception("a worker is ended, as nobody can listen to it")
        if self._timer is not None:
            self._timer.cancel()
        if not (self._stopping and self._waiting):
            # The socket closes a moment before the process has ended: its own exit status is the evidence. And an idle
            # one that is told to stop may let its accelerator go in order.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _STOP_S)
        await end_process(self._process)
        code = self._process.returncode
        self.ended.set_result(HANG if self._hung else ending_of(code if code is not None else 0))
        for place, entry in enumerate(self._waiting):
            if not entry.answer.done():
                entry.answer.set_exception(WorkerDied(suspect=place == 0 and not self._stopping))
        self._waiting.clear()

    async def _take_answers(self) -> None:
        """Until the worker speaks out of turn: it is broken then, and is ended."""
        while True:
            message = await _receive(self._reader)
            if not isinstance(message, Answer) or not self._waiting:
                return
            entry = self._waiting.popleft()
            self._watch_head()
            if not entry.answer.done():
                entry.answer.set_result(message)

    def _watch_head(self) -> None:
        """The time limit is of the frame being inferred; those behind it have not begun."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._timer = self._loop.call_later(self._frame_limit_s, self._hang)

    def _hang(self) -> None:
        self._hung = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        # A process that hangs in a driver outlives a kill, and its socket stays open: nobody waits for it.
        self._writer.transport.abort()


class _Tail:
    """Keeps the end of a process's error output, so that a crash can be told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        self._stream = process.stderr
        self._kept = b""
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def text(self) -> str:
        """What is kept; waits a moment for the end of the stream."""
        await asyncio.wait([self._task], timeout=1.0)
        return self._kept.decode(errors="replace").strip()

    async def close(self) -> None:
        """Ends the reading."""
        # The stream ends with the process; a grandchild that holds it open must not hold us.
        await asyncio.wait([self._task], timeout=1.0)
        await cancel(self._task)

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._stream.read(4096):
                self._kept = (self._kept + data)[-_TAIL_BYTES:]


async def _first(reader: asyncio.StreamReader) -> Ready:
    match await _receive(reader):
        case Ready() as ready:
            return ready
        case Failed(reason=reason, message=message):
            raise Refused(reason, message)
        case _:
            raise EOFError("an answer before any question")


async def _receive(reader: asyncio.StreamReader) -> FromWorker:
    head_bytes, body_bytes = PREFIX.unpack(await reader.readexactly(PREFIX.size))
    if head_bytes > HEAD_BYTES or body_bytes:
        raise EOFError("a message over the limit")
    head = await reader.readexactly(head_bytes)
    message: FromWorker = unpack(head, FromWorker, limit=HEAD_BYTES, reason=Reason.METADATA)  # type: ignore[arg-type]  # a union is no type to mypy
    return message


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError, TimeoutError):
        await asyncio.wait_for(writer.wait_closed(), _STOP_S)
