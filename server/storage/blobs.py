"""Blobs by digest, in a folder or in a bucket. What is here is whole and durable; what failed left nothing."""

import asyncio
import hashlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Protocol

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.ids import Digest
from signing import durable

READ_CHUNK_BYTES: Final = 256 << 10  # what one slow client holds in memory
UPLOAD_PART_BYTES: Final = 5 << 20  # the smallest part that S3 takes


class BlobStore(Protocol):
    """Immutable bytes named by their sha256.

    `put` and `put_now` verify while they write; once they return, the blob is whole and durable, and doing it again
    changes nothing. Readers never see a part of a blob.
    """

    async def length(self, digest: Digest) -> int | None:
        """The blob's length in bytes, or None when it is not here."""
        ...

    async def put(self, digest: Digest, chunks: AsyncIterable[bytes], limit_bytes: int) -> int:
        """Takes in a blob as it comes. Returns its length in bytes.

        Raises:
            Refused: `LENGTH` one byte above `limit_bytes`; `HASH` when the bytes are not those named.
            LinkError: The store does not answer.
        """
        ...

    def put_now(self, digest: Digest, chunks: Iterable[bytes]) -> int:
        """As `put`, from a thread that may block, without a limit: for what the server made itself."""
        ...

    def read(self, digest: Digest, first: int, count: int) -> AsyncIterator[bytes]:
        """The `count` bytes from `first` on, in chunks.

        Raises:
            StateError: It is not here.
            LinkError: The store does not answer.
        """
        ...

    def read_now(self, digest: Digest, chunk_bytes: int) -> Iterator[bytes]:
        """The whole blob, each chunk of exactly `chunk_bytes` but for the last. Blocks. Raises as `read`."""
        ...

    def as_file(self, digest: Digest, scratch: Path) -> AbstractContextManager[Path]:
        """The blob as a file to read, inside the block. Blocks. Its bytes are not looked at. Raises as `read`.

        Args:
            digest: Of the blob.
            scratch: A folder for a copy, where one is needed.
        """
        ...

    def delete_now(self, digest: Digest) -> None:
        """Deletes a blob; one that is not here is none. Blocks.

        Raises:
            LinkError: The store does not answer.
        """
        ...


class ObjectBlobs:
    """A bucket, by URL or in memory. Its store shows an object only once it was written whole.

    Args:
        store: From obstore.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def length(self, digest: Digest) -> int | None:
        """See `BlobStore`."""
        try:
            return int((await obstore.head_async(self._store, _key(digest)))["size"])
        except FileNotFoundError:
            return None
        except obstore.exceptions.BaseError as error:
            raise _unreachable() from error

    async def put(self, digest: Digest, chunks: AsyncIterable[bytes], limit_bytes: int) -> int:
        """See `BlobStore`."""
        if (held := await self.length(digest)) is not None:
            await _check_again(digest, chunks, limit_bytes)
            return held
        check = _Check(digest, limit_bytes)
        try:
            await obstore.put_async(self._store, _key(digest), check.follow(chunks), chunk_size=UPLOAD_PART_BYTES)
        except obstore.exceptions.BaseError as error:
            raise check.failure or _unreachable() from error
        return check.length_bytes

    def put_now(self, digest: Digest, chunks: Iterable[bytes]) -> int:
        """See `BlobStore`."""
        check = _Check(digest, None)
        try:
            obstore.put(self._store, _key(digest), check.follow_now(chunks), chunk_size=UPLOAD_PART_BYTES)
        except obstore.exceptions.BaseError as error:
            raise check.failure or _unreachable() from error
        return check.length_bytes

    async def read(self, digest: Digest, first: int, count: int) -> AsyncIterator[bytes]:
        """See `BlobStore`."""
        if not count:
            return
        try:
            found = await obstore.get_async(self._store, _key(digest), options={"range": (first, first + count)})
            async for chunk in found.stream(min_chunk_size=READ_CHUNK_BYTES):
                yield bytes(chunk)
        except FileNotFoundError:
            raise _absent(digest) from None
        except obstore.exceptions.BaseError as error:
            raise _unreachable() from error

    def read_now(self, digest: Digest, chunk_bytes: int) -> Iterator[bytes]:
        """See `BlobStore`."""
        try:
            pending = bytearray()
            for chunk in obstore.get(self._store, _key(digest)).stream(min_chunk_size=chunk_bytes):
                pending += bytes(chunk)
                while len(pending) >= chunk_bytes:
                    yield bytes(pending[:chunk_bytes])
                    del pending[:chunk_bytes]
            if pending:
                yield bytes(pending)
        except FileNotFoundError:
            raise _absent(digest) from None
        except obstore.exceptions.BaseError as error:
            raise _unreachable() from error

    @contextmanager
    def as_file(self, digest: Digest, scratch: Path) -> Iterator[Path]:
        """See `BlobStore`."""
        with tempfile.NamedTemporaryFile(dir=scratch) as copy:
            for chunk in self.read_now(digest, UPLOAD_PART_BYTES):
                copy.write(chunk)
            copy.flush()
            yield Path(copy.name)

    def delete_now(self, digest: Digest) -> None:
        """See `BlobStore`."""
        try:
            obstore.delete(self._store, _key(digest))
        except FileNotFoundError:
            pass
        except obstore.exceptions.BaseError as error:
            raise _unreachable() from error


class FolderBlobs(ObjectBlobs):
    """A folder. Writes land beside the blobs and are renamed once their bytes are on the disk.

    obstore renames without fsync: after a power cut a blob could be there by name and empty in content.

    Args:
        folder: Made when absent.
    """

    def __init__(self, folder: Path) -> None:
        durable.make_dir(folder)
        self._folder = folder
        self._incoming = folder / "incoming"
        durable.remove_tree(self._incoming)  # what a cut left half
        durable.make_dir(self._incoming)
        super().__init__(LocalStore(str(folder), automatic_cleanup=False))

    async def put(self, digest: Digest, chunks: AsyncIterable[bytes], limit_bytes: int) -> int:
        """See `BlobStore`."""
        if (held := await self.length(digest)) is not None:
            await _check_again(digest, chunks, limit_bytes)
            return held
        check = _Check(digest, limit_bytes)
        name = secrets.token_hex(16)
        try:
            await obstore.put_async(self._store, f"incoming/{name}", check.follow(chunks), chunk_size=UPLOAD_PART_BYTES)
        except obstore.exceptions.BaseError as error:
            raise check.failure or _unreachable() from error
        await asyncio.to_thread(self._adopt, name, digest)
        return check.length_bytes

    def put_now(self, digest: Digest, chunks: Iterable[bytes]) -> int:
        """See `BlobStore`."""
        check = _Check(digest, None)
        name = secrets.token_hex(16)
        try:
            obstore.put(self._store, f"incoming/{name}", check.follow_now(chunks), chunk_size=UPLOAD_PART_BYTES)
        except obstore.exceptions.BaseError as error:
            raise check.failure or _unreachable() from error
        self._adopt(name, digest)
        return check.length_bytes

    async def read(self, digest: Digest, first: int, count: int) -> AsyncIterator[bytes]:
        """See `BlobStore`. obstore reads a file in pieces of 8 KiB, which takes thirty times as long."""
        try:
            file = await asyncio.to_thread(os.open, self._folder / _key(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _absent(digest) from None
        try:
            end = first + count
            while first < end:
                chunk = await asyncio.to_thread(os.pread, file, min(READ_CHUNK_BYTES, end - first), first)
                if not chunk:
                    raise StateError(f"blob {digest} is cut short")
                yield chunk
                first += len(chunk)
        except OSError as error:
            raise _unreachable() from error
        finally:
            os.close(file)  # where a read was cancelled it may still go on: what it gives is thrown away

    @contextmanager
    def as_file(self, digest: Digest, scratch: Path) -> Iterator[Path]:
        """See `BlobStore`."""
        path = self._folder / _key(digest)
        if not path.is_file():
            raise _absent(digest)
        yield path

    def _adopt(self, name: str, digest: Digest) -> None:
        durable.sync_file(self._incoming / name)
        final = self._folder / _key(digest)
        durable.make_dir(final.parent)
        durable.rename(self._incoming / name, final)


def open_blobs(where: str, state: Path) -> BlobStore:
    """The store that the settings name.

    Args:
        where: Empty for the folder `blobs` in the state folder, a path, or a URL (`s3://bucket/prefix`, `gs://`,
            `az://`), whose credentials come from the environment as its vendor names them.
        state: The server's state folder.
    """
    folder = blob_folder(where, state)
    return ObjectBlobs(from_url(where)) if folder is None else FolderBlobs(folder)


def blob_folder(where: str, state: Path) -> Path | None:
    """The folder that the settings name; None: blobs are in a bucket."""
    return None if "://" in where else state / (where or "blobs")


class _Check:
    """Hashes and measures what passes; raises at the end, inside the upload, so that the store drops it."""

    def __init__(self, digest: Digest, limit_bytes: int | None) -> None:
        self._digest = digest
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        self.length_bytes = 0
        self.failure: Exception | None = None

    async def follow(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                self._take(chunk)
                yield chunk
            self._finish()
        except Exception as error:
            self.failure = error
            raise

    def follow_now(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for chunk in chunks:
                self._take(chunk)
                yield chunk
            self._finish()
        except Exception as error:
            self.failure = error
            raise

    def _take(self, chunk: bytes) -> None:
        self.length_bytes += len(chunk)
        if self._limit_bytes is not None and self.length_bytes > self._limit_bytes:
            raise Refused(Reason.LENGTH, f"a blob of more than {self._limit_bytes} bytes")
        self._hash.update(chunk)

    def _finish(self) -> None:
        if self._hash.hexdigest() != self._digest:
            raise Refused(Reason.HASH, f"bytes with another hash than their name {self._digest[:12]}")


async def _check_again(digest: Digest, chunks: AsyncIterable[bytes], limit_bytes: int) -> None:
    """The blob is here: what comes is only looked at, so that a wrong upload is told so."""
    check = _Check(digest, limit_bytes)
    async for _ in check.follow(chunks):
        pass


def _key(digest: Digest) -> str:
    # Two levels, so that a folder on the disk stays of a size that people can list.
    return f"sha256/{digest[:2]}/{digest}"


def _absent(digest: Digest) -> StateError:
    return StateError(f"no blob {digest} here")


def _unreachable() -> LinkError:
    # obstore's own text carries paths, URLs and a debug dump: it is chained for the log, not shown.
    return LinkError("the blob store does not answer")
