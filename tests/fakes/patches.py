"""Patches made by hand, with a codec so plain that a test can say what each group gives, and a rig to apply them."""

import functools
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from device.state_db import StateDb
from device.store import Store
from device.transfer import OverBudgetError, Transfer, TransferSettings
from device.transfer.applier import in_process
from device.transfer.patch_book import PatchBook
from device.transfer.purse import Unlimited
from protocol import limits
from protocol.artifact import Artifact
from protocol.delta.patch import CODEC, PatchIndex, read_group_header, write_group
from protocol.ids import digest
from protocol.objects import Payload, Step, TransferPlan
from protocol.wire import pack
from signing.durable import DISK, Disk
from tests.fakes.updates import INVENTORY, BlobSource, noise

COPY = struct.Struct("<QQ")  # a group's control: offset and length in the base; its one stream is what follows the copy
SEGMENT = limits.PATCH_SEGMENT_BYTES


def group(base: bytes, offset: int, length: int, literal: bytes) -> tuple[bytes, bytes]:
    """A group that copies and then writes, and its output."""
    output = base[offset : offset + length] + literal
    return write_group(len(output), COPY.pack(offset, length), [(0, len(literal), literal)]), output


def apply_plainly(data, base, output_offset, write):
    """The plain codec, as `protocol.delta.apply.apply_group`."""
    header = read_group_header(data)
    control = data[header.header_bytes : header.header_bytes + header.control_bytes]
    offset, length = COPY.unpack(control)
    while length:
        piece = base.read(offset, min(length, 65536))
        write(piece)
        offset, length = offset + len(piece), length - len(piece)
    literal = data[header.header_bytes + header.control_bytes :]
    for at in range(0, len(literal), 65536):
        write(literal[at : at + 65536])
    return header.output_bytes


@dataclass
class PlainPatch:
    """A patch with everything that travels for it.

    Args:
        groups: Of each what it copies (offset, length) and how many new bytes follow.
        is_indexed: Although it is short.
    """

    groups: list[tuple[int, int, int]]
    base: bytes = field(default_factory=lambda: noise(500_000, 1))
    seed: int = 2
    full_bytes: int = 0
    is_indexed: bool = False

    def __post_init__(self) -> None:
        made = [
            group(self.base, offset, length, noise(new, self.seed + number))
            for number, (offset, length, new) in enumerate(self.groups)
        ]
        self.pack([data for data, _ in made], b"".join(output for _, output in made))

    def pack(self, groups: list[bytes], result: bytes, length: int | None = None) -> "PlainPatch":
        """Signs these groups as the patch for `result`, whatever they give."""
        self.group_bytes = groups
        self.result = result
        self.payload = b"".join(groups)
        segments = tuple(
            bytes.fromhex(digest(self.payload[at : at + SEGMENT])) for at in range(0, len(self.payload), SEGMENT)
        )
        self.length = len(result) if length is None else length
        self.index = pack(
            PatchIndex(
                format=2,
                output_bytes=self.length,
                payload_bytes=len(self.payload),
                segment_bytes=SEGMENT,
                segments=segments,
            )
        )
        indexed = self.is_indexed or len(self.payload) > limits.UNINDEXED_PAYLOAD_BYTES
        self.blobs = {digest(self.payload): self.payload, **({digest(self.index): self.index} if indexed else {})}
        self.artifact = Artifact(sha256=digest(result), length_bytes=self.length, media_type="application/onnx")
        self.step = Step(
            artifact=self.artifact.sha256,
            length_bytes=self.length,
            method="delta",
            payload=Payload(sha256=digest(self.payload), length_bytes=len(self.payload)),
            index=Payload(sha256=digest(self.index), length_bytes=len(self.index)) if indexed else None,
            base=digest(self.base),
            codec=CODEC,
            full_bytes=self.full_bytes,
        )
        self.plan = TransferPlan(steps=(self.step,), full_bytes=self.full_bytes)
        return self

    @property
    def travels_bytes(self) -> int:
        return self.plan.travels_bytes()

    @property
    def group_ends(self) -> list[int]:
        ends, at = [], 0
        for data in self.group_bytes:
            at += len(data)
            ends.append(at)
        return ends


@functools.cache
def empty_state() -> bytes:
    """A new `state.db`: its tables take longer to make than a patch to apply."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db"
        StateDb(path).close()
        return path.read_bytes()


class Rig:
    """One life of a machine that patches.

    Args:
        folder: Its state; a second rig on it is the life after a cut.
        patch: Whose base is put there.
        agent: The version that lives this life.
    """

    def __init__(
        self,
        folder: Path,
        source,
        patch: PlainPatch,
        *,
        disk: Disk = DISK,
        apply=apply_plainly,
        agent: str = INVENTORY.agent,
        **settings,
    ):
        self.patch = patch
        self.applied: list[int] = []  # output offsets of the groups that were begun
        self.counted = 0
        folder.mkdir(exist_ok=True)
        if not (folder / "state.db").exists():
            (folder / "state.db").write_bytes(empty_state())
        self.db = StateDb(folder / "state.db")
        self.store = Store(folder / "store", disk=DISK)
        if not self.store.has(digest(patch.base)):
            self.store.put(patch.base)
        self.store.disk = disk
        self.book = PatchBook(self.db, agent)
        self.on_apply = lambda: None

        def noting(data, base, output_offset, write):
            self.applied.append(output_offset)
            self.on_apply()
            return apply(data, base, output_offset, write)

        options = {"attempts": 1, "first_retry_s": 0.01, "longest_retry_s": 0.02, **settings}
        self.transfer = Transfer(
            source,
            self.store,
            TransferSettings(**options),
            count=self.count,
            notes=self.book,
            appliers=in_process(noting),
            random=lambda: 0.5,
        )

    def count(self, more: int) -> None:
        self.counted += more

    async def fetch(self, purse=None) -> None:
        await self.transfer.fetch(self.patch.plan, [self.patch.artifact], purse=purse)

    def is_complete(self) -> bool:
        return self.store.is_whole(self.patch.artifact.sha256)

    def parts(self) -> list[str]:
        return sorted(path.name for path in self.store.part("x").parent.iterdir())


# 1.3 MiB of payload in six segments, and groups that begin and end anywhere in them; one has no new bytes at all.
BIG = PlainPatch([(0, 1000, 300_000), (5, 400_000, 0), (7, 10, 500_000), (0, 0, 10), (100, 300_000, 600_000)])
SMALL = PlainPatch([(0, 400_000, 20), (1000, 0, 300_000), (9, 400_000, 100)])


def source_of(*patches, chunk_bytes=4096):
    """Serves all that travels for these patches."""
    source = BlobSource(chunk_bytes=chunk_bytes)
    for patch in patches:
        source.blobs.update(patch.blobs)
    return source


def renamed(patch, groups, result=None, length=None):
    """A copy of the patch with other groups, signed as they are."""
    other = PlainPatch(patch.groups, base=patch.base, seed=patch.seed)
    return other.pack(groups, patch.result if result is None else result, length)


def sum_of_outputs(patch, groups):
    """Where in the result the group with this number begins."""
    return sum(length + new for _, length, new in patch.groups[:groups])


class Purse(Unlimited):
    """Pays up to a sum, and remembers for what."""

    def __init__(self, allowed):
        super().__init__(lambda _: None)
        self.allowed = allowed
        self.spent = []
        self.saved = 0
        self.promised = None

    def check(self, needs_bytes):
        left = self.allowed - sum(count for count, _ in self.spent)
        if needs_bytes > left:
            raise OverBudgetError("too much", needs_bytes)

    def spend(self, count, way):
        self.spent.append((count, way))

    def promise(self, artifact, length_bytes, saves_bytes):
        self.promised = artifact, length_bytes, saves_bytes

    def settle(self, is_here):
        if self.promised is not None and is_here(*self.promised[:2]):
            self.saved += self.promised[2]
        self.promised = None
