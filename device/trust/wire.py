"""What agent and keeper say to each other: one JSON object a line, one answer to each request, in order."""

from typing import Final, Literal

from device.trust.port import Verdict
from protocol import limits
from protocol.messages import SyncAnswer
from protocol.objects import ReceiptsBody
from protocol.wire import Message

LINE_BYTES: Final = 2 * limits.ANSWER_BYTES + 64 * limits.KIB
"""An answer travels inside a request, its quotes escaped once more at the worst."""


class JudgeAsked(Message, tag="judge", tag_field="ask"):
    """`Trust.judge`."""

    answer: SyncAnswer
    nonce: str
    asked_boot_s: float


class ReceiptsAsked(Message, tag="receipts", tag_field="ask"):
    """`Trust.receipts`."""

    texts: tuple[str, ...]


Asked = JudgeAsked | ReceiptsAsked


class JudgeSaid(Message, tag="verdict", tag_field="said"):
    """To `JudgeAsked`."""

    verdict: Verdict


class ReceiptsSaid(Message, tag="receipts", tag_field="said"):
    """To `ReceiptsAsked`."""

    receipts: tuple[ReceiptsBody, ...]


class Failed(Message, tag="failed", tag_field="said"):
    """To any: the error that the port names. `link`: `LinkError`; `state`: `StateError`; `damaged`: its subclass."""

    kind: Literal["link", "state", "damaged"]
    message: str
    hint: str = ""
    retryable: bool = True
    status: int | None = None


Said = JudgeSaid | ReceiptsSaid | Failed
