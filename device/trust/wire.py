"""What agent and keeper say to each other: one JSON object a line, one answer to each request, in order."""

from typing import Final, Literal

from device.trust.port import KitVerdict, Verdict
from protocol import limits
from protocol.messages import SyncAnswer
from protocol.objects import ReceiptsBody
from protocol.wire import Message

LINE_BYTES: Final = max(2 * limits.ANSWER_BYTES, limits.KIT_BYTES + 2 * limits.METADATA_BYTES) + 64 * limits.KIB
"""An answer travels inside a request, its quotes escaped once more at the worst; a kit travels beside what a product's
role and a list of technicians say."""


class JudgeAsked(Message, tag="judge", tag_field="ask"):
    """`Trust.judge`."""

    answer: SyncAnswer
    nonce: str
    asked_boot_s: float


class ReceiptsAsked(Message, tag="receipts", tag_field="ask"):
    """`Trust.receipts`."""

    texts: tuple[str, ...]


class KitAsked(Message, tag="kit", tag_field="ask"):
    """`Trust.judge_kit`."""

    folder: str


Asked = JudgeAsked | ReceiptsAsked | KitAsked


class JudgeSaid(Message, tag="verdict", tag_field="said"):
    """To `JudgeAsked`."""

    verdict: Verdict


class ReceiptsSaid(Message, tag="receipts", tag_field="said"):
    """To `ReceiptsAsked`."""

    receipts: tuple[ReceiptsBody, ...]


class KitSaid(Message, tag="kit", tag_field="said"):
    """To `KitAsked`."""

    verdict: KitVerdict


class Failed(Message, tag="failed", tag_field="said"):
    """To any: the error that the port names. `link`: `LinkError`; `state`: `StateError`; `damaged`: its subclass."""

    kind: Literal["link", "state", "damaged"]
    message: str
    hint: str = ""
    retryable: bool = True
    status: int | None = None


Said = JudgeSaid | ReceiptsSaid | KitSaid | Failed
