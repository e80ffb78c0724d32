"""What agent and worker say to each other over their socket pair.

A message is eight bytes (lengths of head and body, little endian), the head as MessagePack, and the body: a frame's
bytes as they are, so that an image is copied and not encoded. The agent sends an `Order` first, then `Task`s; the
worker answers the order with `Ready` or `Failed`, and each task with one `Answer`, in order.
"""

import struct
from typing import Final, Literal

from device.inference.finding import Finding
from protocol import limits
from protocol.errors import Reason
from protocol.ids import Count, Digest
from protocol.release import Model
from protocol.wire import Message

PREFIX: Final = struct.Struct("<II")
HEAD_BYTES: Final = 4 * limits.MIB  # a model with a hundred thousand labels


class Order(Message):
    """Load this, prove it, and serve."""

    model: Model
    variant: str
    files: dict[Digest, str]
    threads: Count
    goldens: Literal["all", "first"]  # all before the first frame; after a crash the first is warm-up enough
    limit_memory: bool


class Ready(Message, tag="ready"):
    """Loaded and warm. `model_digest` is the sha256 of the bytes that were loaded."""

    model_digest: Digest
    accelerator: str
    fallback: str
    load_ms: float


class Failed(Message, tag="failed"):
    """It does not come up."""

    reason: Reason
    message: str


class Task(Message):
    """Infer the body."""

    id: Count
    media_type: str


class Answer(Message, tag="answer"):
    """`unreadable`: the frame is broken. `error`: the model or its manifest is."""

    id: Count
    kind: Literal["finding", "unreadable", "error"]
    latency_ms: float = 0.0
    finding: Finding = Finding()
    message: str = ""


FromWorker = Ready | Failed | Answer
