"""Explains a gzip file by an older one: which tokens of the old stream are those of the new one."""

import zlib
from typing import Final, NamedTuple

import numpy as np

from protocol.delta.deflate import Deflated, read_deflate, write_deflate
from protocol.delta.deflate_read import Ints
from protocol.delta.deflated import MEMBER_BYTES, TRAILER_BYTES, Moved, Step, code_member, code_old_length, trailer
from protocol.errors import Refused
from server.delta.gzip_file import header_bytes
from server.delta.matching import MatchLimits, find_covers
from server.delta.numbers import NumberWriter

SHORTEST_RUN: Final = 2  # tokens; a step costs as much as one or two told ones
MOST_COVERS: Final = 2000  # that are put in order: the longest ones
WORTH: Final = 0.8  # of the new bytes: what the told tokens may take at most, at two bytes each
FIRST_LOOK: Final = 32  # tokens compared at first, four times as many at each further look


class Member(NamedTuple):
    """The compressed part of a gzip file.

    Args:
        start: Where it begins in the file.
        length: Of the deflate stream, in bytes.
        stream: Its tokens.
    """

    start: int
    length: int
    stream: Deflated


def read_member(data: memoryview) -> Member | None:
    """The one member of a gzip file whose bytes its tokens give again, or None."""
    start = header_bytes(bytes(data[:1024]))
    if start is None or len(data) > MEMBER_BYTES:
        return None
    body = bytes(data[start : len(data) - TRAILER_BYTES])
    try:
        stream, length = read_deflate(body)
        same = length == len(body) and write_deflate(stream) == body and trailer(body) == data[start + length :]
    except Refused:
        return None
    return Member(start, length, stream) if same else None


def is_worth(old: Member, new: Member, old_data: memoryview, new_data: memoryview) -> bool:
    """Whether the old tokens explain most of the new ones."""
    steps = find_steps(old.stream, new.stream, _covers(old_data[old.start :], new_data[new.start :]))
    told = sum(step.inserted for step in steps)
    return 2 * (told + len(steps)) < WORTH * (new.length + TRAILER_BYTES)


def encode_members(pairs: list[tuple[memoryview, memoryview]]) -> bytes:
    """Codes the stream of all members of a group.

    Args:
        pairs: For each the base from where the old stream begins, and the new member with its trailer.
    """
    writer = NumberWriter()
    for old_data, new_data in pairs:
        old, old_length = read_deflate(bytes(old_data[:MEMBER_BYTES]))
        new, _ = read_deflate(bytes(new_data))
        code_old_length(writer, old_length - len(new_data))
        code_member(writer, len(new_data), old, new, find_steps(old, new, _covers(old_data, new_data)))
    return writer.finish()


def find_steps(old: Deflated, new: Deflated, covers: Ints) -> list[Step]:
    """How the new tokens are made of the old ones.

    Args:
        old: The old stream.
        new: The new one.
        covers: Where the texts are alike, as `find_covers` gives them.
    """
    moved = Moved(old)
    starts = np.cumsum(new.lengths) - new.lengths
    candidates = _candidates(moved.starts, starts, _in_order(covers)).tolist()
    steps: list[Step] = []
    told = at = taken = 0
    while at < len(candidates):
        first = candidates[at]
        count = _run(moved, new, first, at, int(starts[at])) if first >= taken else 0
        if count < SHORTEST_RUN:
            told += 1
            at += 1
            continue
        steps.append(Step(told, first - taken, count))
        moved.copied(first, count, int(starts[at]))
        at += count
        taken = first + count
        told = 0
    return [*steps, Step(told, 0, 0)] if told else steps


def _in_order(covers: Ints) -> Ints:
    """The covers that go forward in both texts and explain most."""
    if len(covers) > MOST_COVERS:
        covers = covers[np.sort(np.argsort(-covers[:, 2], kind="stable")[:MOST_COVERS])]
    sources, lengths = covers[:, 1], covers[:, 2]
    best = lengths.copy()
    before = np.full(len(covers), -1, np.int64)
    for number in range(1, len(covers)):
        reached = np.where(sources[:number] < sources[number], best[:number], 0)
        most = int(reached.argmax())
        if reached[most]:
            best[number] += reached[most]
            before[number] = most
    chain: list[int] = []
    at = int(best.argmax()) if len(covers) else -1
    while at >= 0:
        chain.append(at)
        at = int(before[at])
    return covers[chain[::-1]]


def _candidates(old_starts: Ints, new_starts: Ints, covers: Ints) -> Ints:
    """For each new token the old one at the same place of the text, or -1."""
    if not len(covers) or not old_starts.size:
        return np.full(new_starts.size, -1, np.int64)
    which = np.maximum(covers[:, 0].searchsorted(new_starts, "right") - 1, 0)
    start, source, length = covers[which].T
    place = new_starts - start + source
    inside = (new_starts >= start) & (new_starts < start + length)
    token = np.minimum(old_starts.searchsorted(place), old_starts.size - 1)
    return np.where(inside & (old_starts[token] == place), token, -1)


def _run(moved: Moved, new: Deflated, first: int, at: int, place: int) -> int:
    """How many tokens from `first` of the old stream on are those from `at` of the new one on."""
    most = min(moved.old.lengths.size - first, new.lengths.size - at)
    look = FIRST_LOOK
    while True:
        count = min(look, most)
        same = moved.old.lengths[first : first + count] == new.lengths[at : at + count]
        same &= moved.values(first, count, place) == new.values[at : at + count]
        if not same.all():
            return int(same.argmin())
        if count == most:
            return most
        look *= 4


def _covers(old: memoryview, new: memoryview) -> Ints:
    return find_covers(_text(old), _text(new), limits=MatchLimits())


def _text(data: memoryview) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data)
