"""Finds rows in the ruins of a database: wherever their bytes lie, whatever became of the tree around them.

SQLite stores a row as a short header (lengths and types) with the values behind it. Ours always has the same shape, so
it can be looked for in any page, of the file and of its log; the key stands just before it, and a row of more than a
page goes on in a chain of pages. Nothing that is found is believed before its seal holds, so that what
comes out is exactly what was put in. Rows that were deleted may come out too, and a row may come out twice.

The record's format: https://www.sqlite.org/fileformat2.html, sections 1.5 (cells), 1.6 (overflow), 2.1 (records), 4.1
(the log).
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device.outbox.keys import lane_prefix, place_of, row_seal
from device.outbox.schema import PAGE_BYTES
from protocol import limits

_LOG_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_LOCAL_MOST: Final = PAGE_BYTES - 35  # of a record in its own page; a longer one leaves `_local` bytes there
_LOCAL_LEAST: Final = (PAGE_BYTES - 12) * 32 // 255 - 23
_CHAIN_BYTES: Final = PAGE_BYTES - 4
# Length of the header, the key's place (NULL), type of the seal (an integer), of the body (a varint: its length).
# Looked for without taking the bytes, so that what looks like one by chance hides none.
_SHAPE: Final = re.compile(rb"(?=[\x04-\x06]\x00([\x01-\x06])([\x80-\xff]{0,3}[\x00-\x7f]))", re.DOTALL)
_INTEGER_BYTES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


@dataclass(frozen=True)
class Found:
    """A row as it was put in.

    Args:
        epoch: The number of its epoch in the damaged file.
        lane: Its lane.
        seq: Its number.
        body: Its bytes.
    """

    epoch: int
    lane: str
    seq: int
    body: bytes


def carve(path: Path, epochs: Mapping[int, str]) -> Iterator[Found]:
    """All rows that are whole in a database file and its log, as far as the disk can read them.

    Args:
        path: Of the database; its log lies beside it. Either may be missing.
        epochs: Tokens by number: rows of others are not known.
    """
    with _Pages(path) as pages:
        for page in pages:
            for match in _SHAPE.finditer(page):
                found = _row(pages, page, match, epochs)
                if found is not None:
                    yield found


class _Pages:
    """The pages of a database and of its log, each as it lies there."""

    def __init__(self, path: Path) -> None:
        self._file = _open(path)
        self._log = _open(path.with_name(f"{path.name}-wal"))
        self._frames: dict[int, int] = {}  # where in the log the newest form of a page lies

    def __enter__(self) -> "_Pages":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._file, self._log):
            if descriptor is not None:
                os.close(descriptor)

    def __iter__(self) -> Iterator[bytes]:
        frame = _FRAME_HEADER_BYTES + PAGE_BYTES
        log_bytes = _length(self._log)
        for begin in range(_LOG_HEADER_BYTES, log_bytes, frame):
            number = int.from_bytes(_read(self._log, begin, 4), "big")
            self._frames[number] = begin + _FRAME_HEADER_BYTES
        for begin in range(_LOG_HEADER_BYTES, log_bytes, frame):
            yield _read(self._log, begin + _FRAME_HEADER_BYTES, PAGE_BYTES)
        for begin in range(0, _length(self._file), PAGE_BYTES):
            yield _read(self._file, begin, PAGE_BYTES)

    def chain(self, number: int, length: int, *, from_log: bool) -> bytes:
        """What a chain of pages holds, from the log where it has a page, or from the file alone; short if it breaks."""
        parts: list[bytes] = []
        missing = length
        while missing > 0 and number:
            if from_log and number in self._frames:
                page = _read(self._log, self._frames[number], PAGE_BYTES)
            else:
                page = _read(self._file, (number - 1) * PAGE_BYTES, PAGE_BYTES)
            if len(page) < PAGE_BYTES:
                break
            number = int.from_bytes(page[:4], "big")
            parts.append(page[4 : 4 + missing])
            missing -= _CHAIN_BYTES
        return b"".join(parts)


def _row(pages: _Pages, page: bytes, match: re.Match[bytes], epochs: Mapping[int, str]) -> Found | None:
    begin = match.start()
    body_type = _varint(match[2])
    header_bytes = page[begin]
    if body_type < 12 or body_type % 2 or header_bytes != 3 + len(match[2]):
        return None
    body_bytes = (body_type - 12) // 2
    if body_bytes > limits.ROW_BYTES:
        return None
    seal_bytes = _INTEGER_BYTES[match[1][0]]
    record_bytes = header_bytes + seal_bytes + body_bytes
    local = _local(record_bytes)
    if begin + local > len(page):
        return None
    wholes = [page[begin : begin + local]]
    if local < record_bytes:
        first = int.from_bytes(page[begin + local : begin + local + 4], "big")
        rest = record_bytes - local
        wholes = [wholes[0] + pages.chain(first, rest, from_log=from_log) for from_log in (True, False)]
    for record in wholes:
        if len(record) < record_bytes:
            continue
        seal = int.from_bytes(record[header_bytes : header_bytes + seal_bytes], "big", signed=True)
        body = record[header_bytes + seal_bytes : record_bytes]
        for key in _keys_before(page, begin):
            place = place_of(key)
            if place is None or place[0] not in epochs:
                continue
            epoch, lane, seq = place
            if row_seal(lane_prefix(epochs[epoch], lane), seq, body) == seal:
                return Found(epoch, lane, seq, body)
    return None


def _local(record_bytes: int) -> int:
    """How much of a record lies in its own page."""
    if record_bytes <= _LOCAL_MOST:
        return record_bytes
    local = _LOCAL_LEAST + (record_bytes - _LOCAL_LEAST) % _CHAIN_BYTES
    return local if local <= _LOCAL_MOST else _LOCAL_LEAST


def _keys_before(page: bytes, end: int) -> Iterator[int]:
    """The integers that may end here: where one begins cannot be told from its end."""
    for length in range(9, 0, -1):
        part = page[end - length : end] if end >= length else b""
        if len(part) == length and all(byte & 0x80 for byte in part[:-1]) and (length == 9 or part[-1] < 0x80):
            yield _varint(part)


def _varint(part: bytes) -> int:
    value = 0
    for byte in part[:8]:
        value = value << 7 | (byte & 0x7F)
    return value << 8 | part[8] if len(part) == 9 else value


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _length(descriptor: int | None) -> int:
    return 0 if descriptor is None else os.fstat(descriptor).st_size


def _read(descriptor: int | None, offset: int, length: int) -> bytes:
    """What can be read: a bad sector costs its page and no other."""
    if descriptor is None or offset < 0:
        return b""
    try:
        return os.pread(descriptor, length, offset)
    except OSError:
        return b""
