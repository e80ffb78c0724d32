"""What comes out of inference for one frame."""

from dataclasses import dataclass
from typing import Literal

from device.inference.finding import Finding
from protocol.ids import Digest
from protocol.release import Model


@dataclass(frozen=True)
class ModelReply:
    """One model's word on one frame.

    Args:
        model: From the manifest.
        model_digest: sha256 of the bytes that the worker had loaded.
        accelerator: What really ran it.
        kind: `finding`; `unreadable`, the frame is broken; `error`, the model failed; `given-up`, the frame ended two
            workers.
        latency_ms: Preprocessing, model and task.
        finding: Of kind `finding`.
        message: Of the other kinds.
    """

    model: Model
    model_digest: Digest
    accelerator: str
    kind: Literal["finding", "unreadable", "error", "given-up"]
    latency_ms: float = 0.0
    finding: Finding | None = None
    message: str = ""


@dataclass(frozen=True)
class FrameReply:
    """Every model's word on one frame, all of one release.

    Args:
        manifest: Of the release; None while the set was mixed or incomplete.
        replies: One of each model that takes the frame.
    """

    manifest: Digest | None
    replies: tuple[ModelReply, ...]
