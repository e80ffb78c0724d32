"""Results, their lanes, and the signed batches in which they travel, by network and by stick alike.

A row is identified by (device, epoch, lane, seq) and its exact bytes. A batch is a signed envelope around one zstd
frame; the signature is checked before anything is decompressed.
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec
import zstandard

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.ids import Count, DeviceId, Digest, Millis, Name, Token
from protocol.wire import Message, pack, unpack

LANES: Final = ("alarms", "results")
"""In the order of their priority."""

SIGNING_CONTEXT: Final = b"headland batch 1\x00"
"""Put before the signed bytes, so that a batch's signature is good for nothing else."""


class Detection(Message):
    """A box in pixels of the frame."""

    label: str
    score: float
    box: tuple[float, float, float, float]  # x0, y0, x1, y1


class Score(Message):
    """A label with its score."""

    label: str
    score: float


class ResultRow(Message):
    """What one model said of one frame.

    Args:
        model: Digest of the file that the worker had loaded.
        manifest: The release, when all of it served, its containers too; None while a set was mixed or incomplete.
    """

    at_ms: Millis
    model: Digest
    manifest: Digest | None
    frame: str
    task: Literal["classify", "detect", "anomaly"]
    accelerator: str
    latency_ms: float
    scores: tuple[Score, ...] = ()
    detections: tuple[Detection, ...] = ()
    anomaly: float | None = None
    alarm: bool = False
    sure_of_time: bool = True


class Loss(Message):
    """Rows `first` to `last` of a lane are gone: counted, with the reason. `exact` is false for "at most"."""

    lane: Name
    first: Count
    last: Count
    reason: Literal["budget", "ttl", "damage"]
    at_ms: Millis
    exact: bool = True


class LaneRows(Message):
    """Consecutive rows of a lane from `first` on, each the exact bytes that were enqueued."""

    lane: Name
    first: Count
    rows: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=limits.BATCH_ROWS)]


class BatchBody(Message):
    """What the device signs. Losses are their encoded `Loss` records, so that receipts can name exact bytes."""

    device: DeviceId
    epoch: Token
    lanes: tuple[LaneRows, ...]
    losses: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=limits.BATCH_ROWS)] = ()


class SignedBatch(Message):
    """`payload` is one zstd frame of a packed `BatchBody`; `signature` is ECDSA P-256 with SHA-256 (DER) over
    `SIGNING_CONTEXT + payload` by the key of the device's certificate."""

    device: DeviceId
    body_bytes: Annotated[int, msgspec.Meta(ge=0, le=limits.BATCH_BODY_BYTES)]
    payload: bytes
    signature: bytes


def rows_sha256(rows: Iterable[bytes]) -> Digest:
    """What a receipt says of consecutive rows: see `RowRange`."""
    outer = hashlib.sha256()
    for row in rows:
        outer.update(hashlib.sha256(row).digest())
    return outer.hexdigest()


def compress_body(body: BatchBody) -> tuple[bytes, int]:
    """Returns the payload to sign, and the length of the packed body in bytes."""
    packed = pack(body)
    return zstandard.ZstdCompressor(level=9).compress(packed), len(packed)


def inflate(payload: bytes, body_bytes: int) -> bytes:
    """Decompresses one zstd frame, bounded by the length that its envelope says and its reader checked.

    Raises:
        Refused: `BATCH` or `LENGTH`: it does not decompress, or not to exactly `body_bytes`.
    """
    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=limits.ZSTD_WINDOW_BYTES)
        with decompressor.stream_reader(payload, read_across_frames=False) as reader:
            packed = reader.read(body_bytes + 1)
    except zstandard.ZstdError as error:
        raise Refused(Reason.BATCH, f"a batch that does not decompress: {error}") from error
    if len(packed) != body_bytes:
        raise Refused(Reason.LENGTH, f"a batch of another length than the {body_bytes} bytes of its envelope")
    return packed


def open_batch(batch: SignedBatch) -> BatchBody:
    """Decompresses and reads a batch whose signature was checked before.

    Raises:
        Refused: `BATCH` or `LENGTH`: not exactly `body_bytes`, malformed, for another device, or rows too large.
    """
    packed = inflate(batch.payload, batch.body_bytes)
    body = unpack(packed, BatchBody, limit=limits.BATCH_BODY_BYTES, reason=Reason.BATCH)
    if body.device != batch.device:
        raise Refused(Reason.WRONG_DEVICE, f"a batch of {body.device} in the envelope of {batch.device}")
    for lane in body.lanes:
        if any(len(row) > limits.ROW_BYTES for row in lane.rows):
            raise Refused(Reason.LIMIT, f"a row of more than {limits.ROW_BYTES} bytes")
    return body
