"""Gzip members of which the base holds an older one: the tokens of the old stream, with what changed among them.

Text that changed in one line is compressed to other bytes from there to its end. But the encoder's choices hardly
change: the same literals, the same matches. So tokens are copied in runs, new ones are told, and a match whose source
moved within the text is moved with it. Then all is written as zlib and GNU gzip write, checksum and length included.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from protocol.delta.addresses import Places
from protocol.delta.deflate import (
    BLOCK_SHARE,
    MOST_BLOCKS,
    MOST_TOKENS,
    Block,
    Deflated,
    read_deflate,
    write_deflate,
)
from protocol.delta.deflate_read import MOST_DISTANCE, Ints
from protocol.delta.numbers import NumberReader, Numbers
from protocol.errors import Reason, Refused

TRAILER_BYTES: Final = 8
MEMBER_BYTES: Final = 1 << 20  # of a compressed stream, old or new
STREAM_MEMBERS: Final = 1 << 11
OLD_SHARE: Final = 4  # a stream's old members are at most so many times as long as the new ones, and LEAST_OLD bytes
LEAST_OLD: Final = 1 << 16  # together: reading them is slow
LEAST_SAID: Final = 64  # steps and told tokens of a member, and one for each two bytes: with more it pays to send it
FIRST_RUNS: Final = 64  # there is room for; twice as many when they are full
_PIECE_BYTES: Final = 1 << 16
_SHORTEST: Final = 3  # of a match

# Contexts: symbols below, numbers 256 times higher.
_MATCH, _LITERAL, _LENGTH, _KIND = 0, 256, 1024, 1280
_STEPS, _INSERTED, _SKIPPED, _COPIED, _DISTANCE, _BLOCKS, _TOKENS, _OLD = range(256, 264)


class Step(NamedTuple):
    """A part of the new tokens.

    Args:
        inserted: So many new ones are told.
        skipped: So many old ones have no use.
        copied: So many old ones are next.
    """

    inserted: int
    skipped: int
    copied: int


class Moved:
    """Copies tokens of a stream into another one, their matches pointing at the same text.

    Args:
        old: The stream.
    """

    def __init__(self, old: Deflated) -> None:
        self.old = old
        self.starts = np.cumsum(old.lengths, dtype=np.int32) - old.lengths  # of each token in the old text
        self._runs = np.zeros((FIRST_RUNS, 3), np.int64)  # begin and end in the old text, and how far it moved
        self._count = 0

    def values(self, first: int, count: int, place: int) -> Ints:
        """What tokens from `first` on become at `place` of the new text: literals stay, distances are made right."""
        some = slice(first, first + count)
        lengths, values, starts = self.old.lengths[some], self.old.values[some].copy(), self.starts[some]
        low, high, shift = self._runs[: self._count].T
        sources = starts - values
        which = low.searchsorted(sources, "right") - 1
        far = np.flatnonzero((lengths > 1) & (which >= 0) & (sources < starts[:1]))
        far = far[sources[far] < high[which[far]]]
        moved = starts[far] + (place - starts[0]) - (sources[far] + shift[which[far]])
        right = (moved > 0) & (moved <= MOST_DISTANCE)
        values[far[right]] = moved[right]
        return values

    def copied(self, first: int, count: int, place: int) -> int:
        """Notes that tokens were copied. Returns how much text they make."""
        some = slice(first, first + count)
        low = int(self.starts[first])
        length = int(self.old.lengths[some].sum())
        if self._count == len(self._runs):
            self._runs = np.concatenate((self._runs, np.zeros_like(self._runs)))
        self._runs[self._count] = low, low + length, place - low
        self._count += 1
        return length


def code_member(
    numbers: Numbers, length: int, old: Deflated, new: Deflated | None = None, steps: Sequence[Step] = ()
) -> Deflated:
    """Codes one stream given an old one.

    Args:
        numbers: Reader or writer.
        length: Of the new member in bytes: bounds how much may be said of it.
        old: The old stream.
        new: The new one, when writing.
        steps: How it is made, when writing.

    Raises:
        Refused: `LIMIT`, `METADATA`: that cannot be done.
    """
    moved = Moved(old)
    lengths: list[Ints] = []
    values: list[Ints] = []
    at = place = taken = said = 0
    for number in range(numbers.unsigned(_STEPS, len(steps))):
        given = steps[number] if number < len(steps) else Step(0, 0, 0)
        inserted = numbers.unsigned(_INSERTED, given.inserted)
        said += 1 + inserted
        if at + inserted > MOST_TOKENS or said > LEAST_SAID + length // 2:
            raise Refused(Reason.LIMIT, "a patch makes compressed data of too many tokens")
        told = [_code_told(numbers, new, at + which) for which in range(inserted)]
        if told:
            rows = np.array(told, np.int32)
            lengths.append(rows[:, 0])
            values.append(rows[:, 1])
            place += int(rows[:, 0].sum())
        at += inserted
        taken += numbers.unsigned(_SKIPPED, given.skipped)
        copied = numbers.unsigned(_COPIED, given.copied)
        if at + copied > MOST_TOKENS or taken + copied > old.lengths.size:
            raise Refused(Reason.LIMIT, "a patch copies tokens that are not there")
        if copied:
            lengths.append(old.lengths[taken : taken + copied])
            values.append(moved.values(taken, copied, place))
            place += moved.copied(taken, copied, place)
        at += copied
        taken += copied
    blocks = _code_blocks(
        numbers, at, min(MOST_BLOCKS, 2 + length // BLOCK_SHARE), new.blocks if new is not None else ()
    )
    nothing = [np.zeros(0, np.int32)]
    return Deflated(np.concatenate(lengths or nothing), np.concatenate(values or nothing), blocks)


def _code_told(numbers: Numbers, new: Deflated | None, at: int) -> tuple[int, int]:
    return code_token(numbers, *((int(new.lengths[at]), int(new.values[at])) if new is not None else (1, 0)))


def code_token(numbers: Numbers, length: int, value: int) -> tuple[int, int]:
    """Codes a token that nothing is known of: a bit, then a literal, or a length and a distance."""
    if not numbers.symbol(_MATCH, 1, int(length > 1)):
        return 1, numbers.symbol(_LITERAL, 8, value)
    length = _SHORTEST + numbers.symbol(_LENGTH, 8, max(0, length - _SHORTEST))
    value = 1 + numbers.unsigned(_DISTANCE, value - 1)
    if value > MOST_DISTANCE:
        raise Refused(Reason.LIMIT, "a patch makes compressed data with a match from too far")
    return length, value


def _code_blocks(numbers: Numbers, tokens: int, most: int, given: Sequence[Block]) -> tuple[Block, ...]:
    """All tokens in blocks: the last one has what is left."""
    count = 1 + numbers.unsigned(_BLOCKS, max(0, len(given) - 1))
    if count > most:
        raise Refused(Reason.LIMIT, "a patch makes compressed data of too many blocks")
    blocks = []
    for number in range(count):
        kind = 1 + numbers.symbol(_KIND, 1, given[number].kind - 1 if given else 0)
        held = numbers.unsigned(_TOKENS, given[number].tokens if given else 0) if number < count - 1 else tokens
        if held > tokens:
            raise Refused(Reason.LIMIT, "a patch makes compressed data with too long a block")
        tokens -= held
        blocks.append(Block(kind, held))
    return tuple(blocks)


def trailer(body: bytes) -> bytes:
    """What follows a deflate stream in a gzip file: checksum and length of what it holds.

    Raises:
        Refused: `METADATA`: it cannot be inflated.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    checksum = length = 0
    try:
        while not inflater.eof:
            piece = inflater.decompress(body, _PIECE_BYTES)
            if not piece and not inflater.eof:
                raise Refused(Reason.METADATA, "a patch makes compressed data that ends too early")
            body = inflater.unconsumed_tail
            checksum = zlib.crc32(piece, checksum)
            length += len(piece)
    except zlib.error as error:
        raise Refused(Reason.METADATA, f"a patch makes compressed data that cannot be inflated: {error}") from error
    return checksum.to_bytes(4, "little") + (length & 0xFFFFFFFF).to_bytes(4, "little")


def open_deflated(coded: bytes, members: Sequence[tuple[int, int]], read: Callable[[int, int], bytes]) -> bytes:
    """Decodes a stream of members, each a deflate stream and its trailer.

    Args:
        coded: As `server.delta` wrote it.
        members: For each where the old one begins in the base, and the length of the new one.
        read: Reads the base; refuses what lies outside.

    Raises:
        Refused: `LIMIT`, `LENGTH`, `METADATA`.
    """
    if len(members) > STREAM_MEMBERS:
        raise Refused(Reason.LIMIT, f"a patch makes {len(members)} pieces of compressed data at once")
    numbers = NumberReader(coded)
    out = bytearray()
    left = LEAST_OLD + OLD_SHARE * sum(length for _, length in members)
    for offset, length in members:
        old_length = length + code_old_length(numbers)
        left -= old_length
        if not 0 <= old_length <= MEMBER_BYTES or length > MEMBER_BYTES or left < 0:
            raise Refused(Reason.LIMIT, "a patch makes compressed data that is too long, or of much longer data")
        old, _ = read_deflate(read(offset, old_length))
        body = write_deflate(code_member(numbers, length, old))
        if len(body) + TRAILER_BYTES != length:
            raise Refused(Reason.LENGTH, "a patch makes compressed data of another length than it says")
        out += body + trailer(body)
    return bytes(out)


def members_of(places: Places) -> list[tuple[int, int]]:
    """Where each operation of a stream reads the base, and how much it gives."""
    own = np.flatnonzero(places.own)
    return list(zip(places.base[own].tolist(), places.length[own].tolist(), strict=True))


def code_old_length(numbers: Numbers, more: int = 0) -> int:
    """Codes how much longer the old stream is than the new member."""
    return numbers.signed(_OLD, more)
