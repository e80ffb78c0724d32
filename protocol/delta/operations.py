"""What a group does, one operation after the other: the output grows forward, the base is read at any place.

Both directions share `code_operation`, so what is written can be read. Every number is held against the base, the group
and its streams before it is used.
"""

from typing import Final, NamedTuple

import numpy as np

from protocol import limits
from protocol.delta.base import Base
from protocol.delta.edits import CHUNK_BYTES, Edits
from protocol.delta.literals import AROUND_BYTES, Literals
from protocol.delta.numbers import Numbers
from protocol.delta.tar import DIGEST, ENTRIES, HEAD, PAD, STAMP, TarPlace
from protocol.delta.tar import KINDS as TAR_KINDS
from protocol.delta.tar_blocks import BLOCK_BYTES, STAMP_BYTES
from protocol.errors import Reason, Refused

COPY: Final = 0  # bytes of the base
FILL: Final = 1  # one byte, many times
NEW: Final = 7  # few new bytes, coded where they stand
TAKE: Final = 8  # from here on: the next bytes of stream `kind - TAKE`
CHANGED: Final = 40  # bytes of the base with few changes, coded where they stand
INLINE: Final = (NEW, CHANGED)
KIND_BITS: Final = 6
AGAIN_BITS: Final = 4
OPERATION_NAMES: Final = {
    COPY: "copy",
    FILL: "fill",
    NEW: "new",
    CHANGED: "changed",
    ENTRIES: "tar entries",
    HEAD: "tar header",
    STAMP: "tar stamp",
    DIGEST: "tar digest",
    PAD: "tar padding",
}

# Contexts of the numbers, each a count of its own.
_KIND, _JUMP, _SKIP, _LENGTH, _BYTE, _TO_END, _HEADER, _AGAIN, _BACK = range(9)
_NEAR: Final = 256  # a base that is read so much further off has been left for another place
_EDITS: Final = 1 << 16  # added to those of changed bytes
_SAID_BYTES: Final = 4  # a longer number of a length in the base is not looked for
_LIKELY_KINDS: Final = {1: 55000}
_NO_CONTENT, _IN_CONTENT, _BEHIND_CONTENT = range(3)  # where the output stands in the file behind a tar header

FOLLOWS, ALONGSIDE, ELSEWHERE, BACK = range(4)
"""Where an operation reads the base: right behind the last one that read it, as far from the output as the last one
was, somewhere else, or near to where it was read before it was read somewhere else."""


SAID, AS_AFTER, TO_END, AS_BEFORE, RECENT = range(5)
"""How a length is said: in full, as the one after the last one was the time before, up to the end of the group, as the
number says that stands in the base before the bytes that are read (files of protocol buffers have the length of a
tensor there), or so many back."""


class Operation(NamedTuple):
    """One operation.

    Args:
        kind: `COPY`, `FILL`, one of `protocol.delta.tar`, or `TAKE` and the number of a stream.
        length: Of its output, in bytes.
        base: Where it reads the base, or -1 when it does not.
        value: The byte of `FILL`, how many `ENTRIES`; for `DIGEST` see `digest_value`; for `NEW` and `CHANGED` where
            their bytes stand among those of the group.
    """

    kind: int
    length: int
    base: int = -1
    value: int = 0


def digest_value(reference: int, form: int) -> int:
    """The value of a `DIGEST`: number of the file behind a header, in the order of the group, and `Form`."""
    return reference << 2 | form


def read_digest(value: int) -> tuple[int, int]:
    """What `digest_value` put together."""
    return value >> 2, value & 3


class Lengths:
    """Lengths that were there before: what lies between changes repeats itself where layers and tables do."""

    def __init__(self) -> None:
        self._recent: dict[int, list[int]] = {}
        self._next: dict[tuple[int, int], int] = {}

    def way(self, kind: int, length: int) -> int:
        """How to say a length of an operation of this kind: `SAID` for one that has to be said in full."""
        recent = self._recent.get(kind, [])
        if recent and self._next.get((kind, recent[0])) == length:
            return AS_AFTER
        return RECENT + recent.index(length) if length in recent else SAID

    def get(self, kind: int, way: int) -> int:
        """The length that was meant.

        Raises:
            Refused: `METADATA`: there is none.
        """
        recent = self._recent.get(kind, [])
        if way == AS_AFTER and recent and (kind, recent[0]) in self._next:
            return self._next[kind, recent[0]]
        if not 0 <= way - RECENT < len(recent):
            raise Refused(Reason.METADATA, "a patch repeats a length that was not there")
        return recent[way - RECENT]

    def add(self, kind: int, length: int) -> None:
        """Remembers a length, the last one first."""
        recent = self._recent.setdefault(kind, [])
        if recent:
            self._next[kind, recent[0]] = length
        if length in recent:
            recent.remove(length)
        recent.insert(0, length)
        del recent[(1 << AGAIN_BITS) - RECENT :]


class Place:
    """Where the coding of a group's operations stands: what the next one is likely to be.

    Args:
        base: The old file.
        output: Where the group's output begins in the result.
        end: Where it ends.
        takes_base: For each stream whether its bytes are made from bytes of the base.
    """

    def __init__(self, base: Base, output: int, end: int, takes_base: tuple[bool, ...]) -> None:
        self.base = base
        self.base_bytes = base.length_bytes
        self.inline = bytearray()
        self.literals: Literals | None = None
        self.edits: Edits | None = None
        self.takes_base = takes_base
        self.output = output
        self.end = end
        self.content_end = -1
        self.tar = TarPlace(base)
        self.base_end = output
        self.displacement = 0
        self.left = 0
        self.last_kind = 0
        self.lengths = Lengths()

    def reads_base(self, kind: int) -> bool:
        """Whether an operation of this kind reads the base."""
        return kind in (COPY, STAMP, CHANGED) or (kind >= TAKE and self.takes_base[kind - TAKE])

    @property
    def in_content(self) -> int:
        """Where the output stands in the file behind the last header."""
        if self.output == self.content_end:
            return _BEHIND_CONTENT
        return _IN_CONTENT if self.output < self.content_end else _NO_CONTENT

    def after(self, operation: Operation) -> None:
        """Moves on behind an operation."""
        if operation.base >= 0:
            self.base_end = operation.base + operation.length
            displacement = operation.base - self.output
            if abs(displacement - self.displacement) > _NEAR:
                self.left = self.displacement
            self.displacement = displacement
        self.output += operation.length
        self.last_kind = operation.kind


def code_operation(
    numbers: Numbers, place: Place, given: Operation | None = None, target: memoryview | None = None
) -> Operation:
    """Codes one operation and moves `place` behind it.

    Args:
        numbers: Reader or writer.
        place: Where the coding stands.
        given: The operation when writing.
        target: What it gives, when writing.

    Raises:
        Refused: `LIMIT`, `METADATA`: it reads outside of the base, or names no stream.
    """
    context = place.in_content << 12 | _KIND << 6 | place.last_kind
    numbers.expect(context, _LIKELY_KINDS)
    kind = numbers.symbol(context, KIND_BITS, given.kind if given else 0)
    if kind in TAR_KINDS:
        operation = _code_tar(numbers, place, kind, given, target)
        place.after(operation)
        return operation
    if kind not in (COPY, FILL, *INLINE) and not TAKE <= kind < TAKE + len(place.takes_base):
        raise Refused(Reason.METADATA, f"operation {kind} in a patch")
    base = -1
    if place.reads_base(kind):
        base = _code_base(numbers, place, kind, given.base if given else 0)
    length = _code_length(numbers, place, kind, given, base)
    value = numbers.symbol(_BYTE << 6, 8, given.value if given else 0) if kind == FILL else 0
    if place.output + length > place.end:
        raise Refused(Reason.LENGTH, "a group of a patch whose operations give more than it says")
    if base >= 0 and base + length > place.base_bytes:
        raise Refused(Reason.LIMIT, "a patch reads behind the end of its base")
    if kind in INLINE:
        value = len(place.inline)
        code_inline = _code_new if kind == NEW else _code_changed
        place.inline += code_inline(numbers, place, length, base, target)
    operation = Operation(kind, length, base, value)
    place.after(operation)
    return operation


def _code_new(numbers: Numbers, place: Place, length: int, base: int, target: memoryview | None) -> bytes:
    """New bytes, from what stands in the base around the place where it was read last."""
    if place.literals is None:
        place.literals = Literals(numbers)
    if place.literals.done_bytes + length > limits.GROUP_NEW_BYTES:
        raise Refused(Reason.LIMIT, "a group of a patch with too many new bytes among its operations")
    middle = min(place.base_end, place.base_bytes)
    start, end = max(middle - AROUND_BYTES, 0), min(middle + AROUND_BYTES, place.base_bytes)
    before, after = place.base.read(start, middle - start), place.base.read(middle, end - middle)
    return place.literals.code(before, after, length, bytes(target) if target is not None else None)


def _code_changed(numbers: Numbers, place: Place, length: int, base: int, target: memoryview | None) -> bytes:
    """Bytes of the base with few changes."""
    if place.edits is None:
        place.edits = Edits(numbers, _EDITS)
    if len(place.inline) + length > limits.GROUP_NEW_BYTES + limits.GROUP_CHANGED_BYTES:
        raise Refused(Reason.LIMIT, "a group of a patch with too many changed bytes among its operations")
    old = np.frombuffer(place.base.read(base, length), np.uint8)
    new = np.frombuffer(target, np.uint8) if target is not None else None
    output = bytearray()
    for at in range(0, length, CHUNK_BYTES):
        chunk = slice(at, at + CHUNK_BYTES)
        output += place.edits.code(old[chunk], new[chunk] if new is not None else None).tobytes()
    return bytes(output)


def _code_length(numbers: Numbers, place: Place, kind: int, given: Operation | None, base: int) -> int:
    if place.in_content == _IN_CONTENT:
        left = place.content_end - place.output
        if numbers.symbol(_TO_END << 6 | kind, 1, int(given is not None and given.length == left)):
            return left
    way = _way_of_length(place, kind, given.length, base) if given else 0
    match numbers.symbol(_AGAIN << 6 | kind, AGAIN_BITS, way):
        case 0:
            length = 1 + numbers.unsigned(_LENGTH << 6 | kind, given.length - 1 if given else 0)
        case 2:
            return place.end - place.output
        case 3:
            length = _said_before(place, base)
        case way:
            length = place.lengths.get(kind, way)
    place.lengths.add(kind, length)
    return length


def _way_of_length(place: Place, kind: int, length: int, base: int) -> int:
    if length == place.end - place.output:
        return TO_END
    return AS_BEFORE if length == _said_before(place, base) else place.lengths.way(kind, length)


def _said_before(place: Place, base: int) -> int:
    """The LEB128 that ends in front of a place in the base; at least 1."""
    number = 1
    if base > 0:
        *rest, last = place.base.read(max(base - _SAID_BYTES, 0), min(base, _SAID_BYTES))
        number = last & 0x7F
        while rest and rest[-1] > 0x7F:
            number = number << 7 | rest.pop() & 0x7F
    return max(number, 1)


def _code_tar(
    numbers: Numbers, place: Place, kind: int, given: Operation | None, target: memoryview | None
) -> Operation:
    tar = place.tar
    if kind == PAD:
        length = -place.output % BLOCK_BYTES
        if not length:
            raise Refused(Reason.METADATA, "a patch pads what is a multiple of a block")
        place.base_end += -place.base_end % BLOCK_BYTES
        return Operation(PAD, length)
    if kind == DIGEST:
        reference, form = read_digest(given.value) if given else (0, 0)
        reference, form, length = tar.code_digest(numbers, reference, form, place.output)
        place.base_end += length
        return Operation(DIGEST, length, -1, digest_value(reference, form))
    if kind == STAMP:
        base = _code_base(numbers, place, kind, given.base if given else 0)
        if base + STAMP_BYTES > place.base_bytes:
            raise Refused(Reason.LIMIT, "a patch reads behind the end of its base")
        tar.code_stamp(numbers, base, target)
        return Operation(STAMP, STAMP_BYTES, base)
    base = _code_header(numbers, place, kind, given.base if given else 0)
    if kind == HEAD:
        place.content_end = place.output + BLOCK_BYTES + tar.code_head(numbers, base, place.output, target)
        return Operation(HEAD, BLOCK_BYTES, base)
    count = 1 + numbers.unsigned(_LENGTH << 6 | kind, given.value - 1 if given else 0)
    length = tar.code_entries(numbers, base, count, place.end - place.output, target)
    place.content_end = -1
    return Operation(ENTRIES, length, base, count)


def _code_header(numbers: Numbers, place: Place, kind: int, given: int) -> int:
    """Where a header is read: behind the last entry, where the last one was read, or so many blocks from there.

    Returns:
        Offset in the base, or -1 for the header that was made last.
    """
    tar = place.tar
    following = tar.next_header if tar.next_header >= 0 else place.base_end + -place.base_end % BLOCK_BYTES
    way = 0 if given == following else 1 if given == tar.template else 2 if given >= 0 else 3
    match numbers.symbol(_HEADER << 6 | kind, 2, way):
        case 0:
            base = following
        case 1:
            base = tar.template
        case 2:
            base = following + BLOCK_BYTES * numbers.signed(_HEADER << 6, (given - following) // BLOCK_BYTES)
        case _:
            if kind == ENTRIES or not tar.contents:
                raise Refused(Reason.METADATA, "a patch makes a header of one that is not there")
            return -1
    if not 0 <= base <= place.base_bytes - BLOCK_BYTES:
        raise Refused(Reason.LIMIT, "a patch reads a header outside of its base")
    return base


def _code_base(numbers: Numbers, place: Place, kind: int, given: int) -> int:
    alongside = place.displacement + place.output
    back = place.left + place.output
    jump = FOLLOWS if given == place.base_end else ALONGSIDE if given == alongside else ELSEWHERE
    if jump == ELSEWHERE and abs(given - back) < abs(given - place.base_end):
        jump = BACK
    match numbers.symbol(_JUMP << 6 | kind, 2, jump):
        case 0:
            base = place.base_end
        case 1:
            base = alongside
        case 2:
            base = place.base_end + numbers.signed(_SKIP << 6 | kind, given - place.base_end)
        case _:
            base = back + numbers.signed(_BACK << 6 | kind, given - back)
    if not 0 <= base < place.base_bytes:
        raise Refused(Reason.LIMIT, "a patch reads outside of its base")
    return base
