"""The agent's end of trust: starts the keeper when there is something to judge, and never loads TUF itself."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from device.damage import StateDamagedError
from device.trust.port import KitVerdict, Verdict
from device.trust.wire import (
    LINE_BYTES,
    Asked,
    Failed,
    JudgeAsked,
    JudgeSaid,
    KitAsked,
    KitSaid,
    ReceiptsAsked,
    ReceiptsSaid,
    Said,
)
from protocol.errors import LinkError, Refused, StateError
from protocol.messages import SyncAnswer
from protocol.objects import ReceiptsBody
from protocol.wire import decode, encode
from signing.child import python_command

ANSWER_S: Final = 1800.0
"""A long chain of roots over a bad link is slow but goes on; a keeper that hangs is ended after this."""

_TRIES: Final = 2  # the keeper may go idle in the very moment of asking, or have been killed for its memory


class KeeperTrust:
    """`device.trust.port.Trust` by way of a keeper process. One request at a time; others wait for it.

    Args:
        state: The state folder.
        server: Instead of the URL of the enrolment.
        command: What is started; for tests.
        answer_s: How long one request may take.
        on_damage: Called when the keeper finds `state.db` damaged.
    """

    def __init__(
        self,
        state: Path,
        *,
        server: str | None = None,
        command: Sequence[str] = python_command("device.trust.keeper"),
        answer_s: float = ANSWER_S,
        on_damage: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._on_damage = on_damage
        self._command = (*command, "--state", str(state), *(("--server", server) if server else ()))
        self._answer_s = answer_s
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def judge(self, answer: SyncAnswer, nonce: str, asked_boot_s: float) -> Verdict:
        """As `Trust.judge`.

        Raises:
            LinkError: As there; also when the keeper died twice over the question.
            StateError: The state folder does not let it work: not enrolled, damaged, full.
        """
        said = await self._ask(JudgeAsked(answer=answer, nonce=nonce, asked_boot_s=asked_boot_s))
        assert isinstance(said, JudgeSaid)
        return said.verdict

    async def receipts(self, texts: tuple[str, ...]) -> tuple[ReceiptsBody, ...]:
        """As `Trust.receipts`.

        Raises:
            LinkError: The keeper died twice over the question.
            StateError: As `judge`.
        """
        said = await self._ask(ReceiptsAsked(texts=texts))
        assert isinstance(said, ReceiptsSaid)
        return said.receipts

    async def judge_kit(self, folder: str) -> KitVerdict:
        """As `Trust.judge_kit`.

        Raises:
            LinkError: The keeper died twice over the question.
            StateError: As `judge`.
        """
        said = await self._ask(KitAsked(folder=folder))
        assert isinstance(said, KitSaid)
        return said.verdict

    async def close(self) -> None:
        """As `Trust.close`."""
        async with self._lock:
            await self._end()

    async def _ask(self, asked: Asked) -> JudgeSaid | ReceiptsSaid | KitSaid:
        line = encode(asked) + b"\n"
        async with self._lock:
            try:
                async with asyncio.timeout(self._answer_s):
                    said = await self._exchange(line)
            except BaseException as error:
                # Whatever ended the exchange, a keeper that still owes an answer would give it to the next question.
                await self._end()
                if isinstance(error, TimeoutError):
                    raise LinkError(f"the trust keeper did not answer in {self._answer_s:.0f} s") from error
                raise
        if not isinstance(said, Failed):
            return said
        if said.kind == "link":
            raise LinkError(said.message, retryable=said.retryable, status=said.status, hint=said.hint)
        if said.kind == "damaged":
            self._on_damage(said.message)
            raise StateDamagedError(said.message, hint=said.hint)
        raise StateError(said.message, hint=said.hint)

    async def _exchange(self, line: bytes) -> Said:
        for _ in range(_TRIES):
            process = await self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(ConnectionError):
                process.stdin.write(line)
                await process.stdin.drain()
            answer = await process.stdout.readline()
            if answer.endswith(b"\n"):
                return _parse(answer)
            await self._end()
        raise LinkError("the trust keeper died over the question")

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            await self._end()
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE_BYTES,
                start_new_session=True,  # a Ctrl-C meant for the agent is not the keeper's
            )
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(ConnectionError):
                await process.stdin.wait_closed()


def _parse(line: bytes) -> Said:
    try:
        return decode(line, Said, limit=LINE_BYTES)  # type: ignore[arg-type]  # a union is a form of type
    except Refused as error:
        raise LinkError(f"the trust keeper spoke nonsense: {error}") from error
