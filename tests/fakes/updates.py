"""Small releases with their plans and payloads, and a source of blobs that can fail: what updates are tested with."""

import random
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field

from device.trust.port import Listed, Terms
from device.update.rules import Machine
from protocol import limits
from protocol.artifact import Artifact
from protocol.errors import LinkError
from protocol.ids import digest
from protocol.kits import PermitTerms
from protocol.messages import Inventory
from protocol.objects import AssignmentBody, Conditions, Payload, Step, TransferPlan
from protocol.release import (
    Bounds,
    Classify,
    Config,
    Golden,
    Model,
    ReleaseManifest,
    Tensor,
    TensorPreprocessing,
    TrialRules,
    Variant,
)
from protocol.transfer import SegmentIndex, cut
from protocol.wire import encode, pack
from tests.fakes.container_sets import Packed

PRODUCT = "pest-detector"
DEVICE = "tractor-1"
INVENTORY = Inventory(agent="0.1.0", platform="linux-x86_64", accelerators=("cpu",))
MACHINE = Machine(device=DEVICE, product=PRODUCT, inventory=INVENTORY)
QUICK = TrialRules(healthy_s=3.0, min_healthy_s=1.0, max_failed_starts=3, min_inferences=10, max_retries=2)


def noise(length: int, seed: int) -> bytes:
    """Bytes that hardly compress."""
    return random.Random(seed).randbytes(length)


def compressed(content: bytes) -> tuple[bytes, bytes]:
    """The payload of `content` and its index."""
    step = limits.SEGMENT_OUTPUT_BYTES
    pieces = list(cut((content[at : at + step] for at in range(0, len(content), step)), level=1))
    index = SegmentIndex(
        format=1, output_bytes=len(content), segment_bytes=step, segments=tuple(segment for _, segment in pieces)
    )
    return b"".join(payload for payload, _ in pieces), pack(index)


def signed(content: bytes) -> Payload:
    return Payload(sha256=digest(content), length_bytes=len(content))


@dataclass
class Release:
    """A release with everything that travels for it."""

    version: str
    counter: int
    model: bytes
    era: int = 0
    trial: TrialRules = QUICK
    config: bytes = b""
    accelerator: str = "cpu"
    hardware: tuple[str, ...] = ()
    min_agent: str = "0.1.0"
    latency_ms: float = 100.0
    containers: tuple[Packed, ...] = ()
    blobs: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config or f"version = '{self.version}'\n".encode()
        golden = (b"input of " + self.version.encode(), b"expected of " + self.version.encode())
        for content in (self.model, config, *golden):
            self.artifacts[digest(content)] = content
        for one in self.containers:
            self.artifacts |= one.contents
        variant = Variant(
            name="main",
            runtime="onnxruntime",
            accelerator=self.accelerator,
            artifact=_artifact(self.model, "application/onnx"),
            inputs=(Tensor(name="x", shape=(1, 4), dtype="float32"),),
            outputs=(Tensor(name="y", shape=(1, 2), dtype="float32"),),
            golden=(
                Golden(
                    name="one",
                    input=_artifact(golden[0], "application/x-npz"),
                    expected=_artifact(golden[1], "application/x-npz"),
                ),
            ),
            bounds=Bounds(latency_ms=self.latency_ms),
        )
        model = Model(
            name="pests",
            task=Classify(output="y"),
            preprocessing=TensorPreprocessing(),
            labels=("leaf", "pest"),
            variants=(variant,),
        )
        self.manifest = ReleaseManifest(
            format=1,
            product=PRODUCT,
            version=self.version,
            release_counter=self.counter,
            created_ms=1,
            models=(model,),
            era=self.era,
            min_agent=self.min_agent,
            hardware=self.hardware,
            configs=(Config(name="camera.toml", artifact=_artifact(config, "application/toml")),),
            containers=tuple(one.container for one in self.containers),
            trial=self.trial,
        )
        self.manifest_bytes = encode(self.manifest)
        self.digest = digest(self.manifest_bytes)
        self.blobs[self.digest] = self.manifest_bytes
        self.plan = TransferPlan(steps=tuple(self._step(content) for content in self.artifacts.values()), full_bytes=0)

    def _step(self, content: bytes) -> Step:
        payload, index = compressed(content)
        self.blobs[digest(payload)] = payload
        indexed = len(payload) > limits.UNINDEXED_PAYLOAD_BYTES
        if indexed:
            self.blobs[digest(index)] = index
        return Step(
            artifact=digest(content),
            length_bytes=len(content),
            method="full",
            payload=signed(payload),
            index=signed(index) if indexed else None,
        )

    @property
    def travels_bytes(self) -> int:
        return self.plan.travels_bytes()

    @property
    def listed(self) -> Listed:
        return Listed(
            version=self.version,
            release_counter=self.counter,
            era=self.era,
            length_bytes=len(self.manifest_bytes),
        )

    def assignment(
        self, rollout: str = "spring", conditions: Conditions | None = None, device: str = DEVICE
    ) -> AssignmentBody:
        return AssignmentBody(
            device=device,
            product=PRODUCT,
            rollout=rollout,
            release=self.version,
            manifest=signed(self.manifest_bytes),
            plan=self.plan,
            conditions=conditions or Conditions(),
        )


def _artifact(content: bytes, media_type: str) -> Artifact:
    return Artifact(sha256=digest(content), length_bytes=len(content), media_type=media_type)


def permit(release: Release, *, created_ms: int, days: float = 30, device: str = DEVICE) -> PermitTerms:
    return PermitTerms(
        kind="permit",
        permit=f"{created_ms:032x}",
        device=device,
        release=release.version,
        manifest=release.digest,
        created_ms=created_ms,
        expires_ms=created_ms + int(days * 86_400_000),
        reason="1.1.0 takes leaves for pests",
    )


def terms(*releases: Release, role_version: int = 1, era: int = 0, floor: int = 0) -> Terms:
    return Terms(
        product=PRODUCT,
        role_version=role_version,
        era=era,
        floor=floor,
        listed={release.digest: release.listed for release in releases},
    )


class BlobSource:
    """Serves blobs, chunk by chunk, and drops the link where the test wants.

    Args:
        chunk_bytes: Of one chunk.
    """

    def __init__(self, *releases: Release, chunk_bytes: int = 64 * limits.KIB) -> None:
        self.blobs: dict[str, bytes] = {}
        self.add(releases)
        self.chunk_bytes = chunk_bytes
        self.asked: list[tuple[str, int, int]] = []
        self.sent = 0
        self.up = True
        self.drops_at: set[int] = set()  # totals of sent bytes at which the link drops once

    def add(self, releases: Iterable[Release]) -> None:
        for release in releases:
            self.blobs.update(release.blobs)

    async def stream(self, path: str, *, first: int, length: int) -> AsyncGenerator[bytes, None]:
        name = path.rsplit("/", 1)[-1]
        self.asked.append((name, first, length))
        if not self.up:
            raise LinkError("the link is down")
        blob = self.blobs.get(name)
        if blob is None:
            raise LinkError("404", retryable=False, status=404)
        at, end = first, first + length
        while at < end:
            step = min(self.chunk_bytes, end - at)
            drop = min((total for total in self.drops_at if self.sent <= total <= self.sent + step), default=None)
            if drop is not None:
                step = drop - self.sent
            if step:
                piece = blob[at : at + step]
                self.sent += len(piece)
                yield piece
                at += len(piece)
                if len(piece) < step:
                    raise LinkError("the answer ended early")
            if drop is not None:
                self.drops_at.remove(drop)
                raise LinkError("the link dropped")
            if not self.up:
                raise LinkError("the link is down")
