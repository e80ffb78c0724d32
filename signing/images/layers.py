"""Takes a layer into the workspace: fetched, hashed as it is named, unfolded within bounds, hashed as its diff id.

Memory is bounded whatever comes. What a link broke off is kept and gone on with; all else that fails leaves nothing.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import zstandard

from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import Digest
from signing import durable
from signing.images import bounds
from signing.images.content import Blob, Content, Say
from signing.images.tar_entries import begins_as_tar
from signing.workspace import Workspace

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_FORMS: Final = "layers are tar archives, compressed once with gzip or zstd, or not at all"
_FETCH_STEPS: Final = 20  # lines about a layer that comes over a link, which may be slow
_TOLD_BYTES: Final = 64 * limits.MIB  # between two lines about one that is unfolded


def take_layer(workspace: Workspace, content: Content, blob: Blob, diff_id: Digest, say: Say) -> int:
    """Brings a layer into the workspace, uncompressed; one that is there is only looked at. Returns its length.

    Args:
        workspace: Where it goes.
        content: Where it comes from.
        blob: What it is there.
        diff_id: What it must become.
        say: Hears how far it is.

    Raises:
        Refused: `HASH`, `LENGTH`: other bytes than are named, or than the image's config names. `LIMIT`: a bomb.
            `IMAGE`: no tar archive.
        LinkError: The link failed; the next try goes on.
    """
    place = workspace.blob(diff_id)
    if place.exists() and _hash(place) == diff_id:
        say("    it is here already")
        return place.stat().st_size
    spool = workspace.spool(f"layer {diff_id} {blob.place}")
    unfolded = workspace.spool(f"unfolded {diff_id}")
    durable.unlink(unfolded)
    try:
        _fetch_checked(content, blob, spool, say)
        got, whole = _unfolded(spool, unfolded, say)
        _check(got == diff_id, f"layer {blob.place[:12]!r} is not the {diff_id[:12]} that the image's config names")
        _check_tar(whole)  # what is none is genuine, but no engine would load it
        length = whole.stat().st_size
        durable.rename(whole, place)
    except (LinkError, KeyboardInterrupt):
        raise  # the next try goes on
    except BaseException:
        durable.unlink(spool)
        durable.unlink(unfolded)
        raise
    durable.unlink(spool)
    return length


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise Refused(Reason.HASH, text)


def _check_tar(path: Path) -> None:
    with path.open("rb") as file:
        if not begins_as_tar(file):
            raise Refused(Reason.IMAGE, "a layer that is no tar archive", hint=_FORMS)


def _fetch_checked(content: Content, blob: Blob, spool: Path, say: Say) -> None:
    """The blob as it lies there, hashed before anything looks at it."""
    resumed = blob.sha256 is not None and spool.exists()
    if not resumed:
        durable.unlink(spool)
    got = _fetch(content, blob, spool, say)
    if resumed and got != blob.sha256:  # a power cut may have torn what was there
        durable.unlink(spool)
        got = _fetch(content, blob, spool, say)
    _check(blob.sha256 in (None, got), f"layer {blob.place[:12]!r} came with other bytes than its name says")


def _unfolded(spool: Path, unfolded: Path, say: Say) -> tuple[Digest, Path]:
    """Digest and place of the uncompressed layer."""
    unfold = _decoder(spool)
    return (_hash(spool), spool) if unfold is None else (_unfold(spool, unfold, unfolded, say), unfolded)


def _fetch(content: Content, blob: Blob, spool: Path, say: Say) -> Digest:
    hasher = hashlib.sha256()
    with durable.open_part(spool) as part:
        if part.length_bytes > blob.length_bytes:
            part.truncate(0)
        if part.length_bytes:
            _feed(spool, hasher.update)
        told = part.length_bytes
        if part.length_bytes < blob.length_bytes:
            with content.open(blob, part.length_bytes) as chunks:
                for chunk in chunks:
                    if part.length_bytes + len(chunk) > blob.length_bytes:
                        raise Refused(Reason.LENGTH, f"layer {blob.place[:12]!r} is longer than the bytes named")
                    hasher.update(chunk)
                    part.append(chunk)
                    if part.length_bytes - told >= max(limits.MIB, blob.length_bytes // _FETCH_STEPS):
                        told = part.length_bytes
                        say(f"    {_mib(told)} of {_mib(blob.length_bytes)} MiB")
        if part.length_bytes != blob.length_bytes:
            raise Refused(Reason.LENGTH, f"layer {blob.place[:12]!r} ended after {part.length_bytes} bytes")
        part.sync()
    return hasher.hexdigest()


def _unfold(folded: Path, unfold: "Unfold", unfolded: Path, say: Say) -> Digest:
    most = min(bounds.LAYER_BYTES, bounds.LAYER_FREE_BYTES + bounds.LAYER_RATIO * folded.stat().st_size)
    hasher = hashlib.sha256()
    told = 0
    with durable.open_part(unfolded) as part:
        for chunk in unfold(folded):
            if part.length_bytes + len(chunk) > most:
                raise Refused(
                    Reason.LIMIT, f"a layer of {folded.stat().st_size} bytes that unfolds to more than {most}"
                )
            hasher.update(chunk)
            part.append(chunk)
            if part.length_bytes - told >= _TOLD_BYTES:
                told = part.length_bytes
                say(f"    unfolded {_mib(told)} MiB")
        part.sync()
    return hasher.hexdigest()


Unfold = Callable[[Path], Iterator[bytes]]


def _decoder(path: Path) -> Unfold | None:
    """By the first bytes: what a manifest says of a layer's form may be wrong, and its diff id tells in the end."""
    with path.open("rb") as file:
        head = file.read(len(_ZSTD))
    if head.startswith(_GZIP):
        return _gunzip
    return _unzstd if head == _ZSTD else None


def _gunzip(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        member: zlib._Decompress | None = None
        rest = b""
        # Little at a time: what is left behind a stream is copied, and streams may be twenty bytes long.
        while rest or (rest := file.read(64 * limits.KIB)):
            if member is None:
                member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                chunk = member.decompress(rest, bounds.CHUNK_BYTES)
            except zlib.error as error:
                raise Refused(Reason.HASH, f"a layer that is no gzip stream: {error}") from error
            rest = member.unconsumed_tail
            if chunk:
                yield chunk
            # What the decoder holds back comes before more is read.
            while not rest and not member.eof and (chunk := member.decompress(b"", bounds.CHUNK_BYTES)):
                yield chunk
            if member.eof:  # streams follow one another where several cores compressed it
                rest, member = member.unused_data, None
        if member is not None:
            raise Refused(Reason.LENGTH, "a layer whose gzip stream ends early")


def _unzstd(path: Path) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=bounds.ZSTD_WINDOW_BYTES)
    with path.open("rb") as file, decompressor.stream_reader(file, read_across_frames=True) as reader:
        try:
            while chunk := reader.read(bounds.CHUNK_BYTES):
                yield chunk
        except zstandard.ZstdError as error:
            raise Refused(Reason.LIMIT, f"a layer that no zstd decoder within bounds reads: {error}") from error


def _hash(path: Path) -> Digest:
    hasher = hashlib.sha256()
    _feed(path, hasher.update)
    return hasher.hexdigest()


def _feed(path: Path, take: Callable[[bytes], object]) -> None:
    with path.open("rb") as file:
        while chunk := file.read(bounds.CHUNK_BYTES):
            take(chunk)


def _mib(count: int) -> int:
    return count // limits.MIB
