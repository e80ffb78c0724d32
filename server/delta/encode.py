"""Makes a patch's payload from two files: a front-end says what the new file is made of, the groups are coded.

Memory: both files are mapped, never loaded; what is held is a group for each process (its pieces' bytes and their coded
forms, about twelve times `GROUP_CODED_BYTES`), the front-end's tables (see `matching`) and the list of pieces.
"""

import hashlib
import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from protocol import limits
from protocol.delta.patch import PatchIndex
from protocol.wire import pack
from server.delta.checked import encode_checked
from server.delta.front import find_pieces
from server.delta.groups import GroupPlan, cut_groups

Progress = Callable[[int, int], None]
"""Told of the output bytes that are coded, and of all."""


@dataclass(frozen=True)
class EncodeOptions:
    """How much an encoding may take.

    Args:
        processes: That code groups side by side.
        seconds: For looking for what resembles what; when it is over, the rest is coded more simply. None: no limit.
    """

    processes: int = 1
    seconds: float | None = None


@dataclass(frozen=True)
class Encoded:
    """What was made. All digests are sha256 in hexadecimal.

    Args:
        index: MessagePack of a `PatchIndex`, or None for a payload of at most 1 MiB.
    """

    output_bytes: int
    payload_bytes: int
    base_sha256: str
    output_sha256: str
    payload_sha256: str
    index: bytes | None


def encode(
    old: Path,
    new: Path,
    payload: BinaryIO,
    *,
    options: EncodeOptions = EncodeOptions(),
    progress: Progress = lambda done, total: None,
) -> Encoded:
    """Writes the payload of a patch from `old` to `new`. Blocks.

    Args:
        old: The base.
        new: The result.
        payload: Open for writing at the payload's beginning; written forward.
        options: Limits.
        progress: Told how far it is.

    Raises:
        OSError: A file cannot be read or written.
    """
    with _mapped(old) as base, _mapped(new) as output:
        plans = list(cut_groups(find_pieces(base, output, options.seconds)))
        hashes: list[bytes] = []
        whole = hashlib.sha256()
        open_segment = bytearray()
        done = payload_bytes = 0
        progress(0, len(output))
        for plan, group in zip(plans, _encode_all(plans, (old, new), options.processes), strict=True):
            payload.write(group)
            whole.update(group)
            payload_bytes += len(group)
            open_segment += group
            while len(open_segment) >= limits.PATCH_SEGMENT_BYTES:
                hashes.append(hashlib.sha256(open_segment[: limits.PATCH_SEGMENT_BYTES]).digest())
                del open_segment[: limits.PATCH_SEGMENT_BYTES]
            done += plan.output_bytes
            progress(done, len(output))
        if open_segment:
            hashes.append(hashlib.sha256(open_segment).digest())
        index = None
        if payload_bytes > limits.UNINDEXED_PAYLOAD_BYTES:
            index = pack(
                PatchIndex(
                    format=2,
                    output_bytes=len(output),
                    payload_bytes=payload_bytes,
                    segment_bytes=limits.PATCH_SEGMENT_BYTES,
                    segments=tuple(hashes),
                )
            )
        return Encoded(
            output_bytes=len(output),
            payload_bytes=payload_bytes,
            base_sha256=hashlib.sha256(base).hexdigest(),
            output_sha256=hashlib.sha256(output).hexdigest(),
            payload_sha256=whole.hexdigest(),
            index=index,
        )


def _encode_all(plans: list[GroupPlan], files: tuple[Path, Path], processes: int) -> Iterator[bytes]:
    if processes == 1 or len(plans) < 2:
        with _mapped(files[0]) as base, _mapped(files[1]) as output:
            for plan in plans:
                yield encode_checked(plan, base, output)
        return
    with ProcessPoolExecutor(min(processes, len(plans))) as pool:
        yield from pool.map(_encode_one, plans, [files] * len(plans))


def _encode_one(plan: GroupPlan, files: tuple[Path, Path]) -> bytes:
    """In a process of its own."""
    with _mapped(files[0]) as base, _mapped(files[1]) as output:
        return encode_checked(plan, base, output)


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """A file's bytes, read when they are looked at."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield memoryview(b"")
            return
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(mapped)
        try:
            yield view
        finally:
            # What failed still holds parts of it, and is what must be told: the file goes when they go.
            with suppress(BufferError):
                view.release()
                mapped.close()
