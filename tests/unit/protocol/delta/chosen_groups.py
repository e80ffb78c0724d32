"""Groups that no encoder makes: all that is read of them is chosen, and written by the models of the reader itself.

Damage mostly ends where an entropy coder finds that it does not come out even. Here it does: the models that reader and
writer share are run over writers that take their symbols from chance (or from a fuzzer), so all that can be said is
said, and what lies behind is reached.
"""

import copy
import gzip
import lzma
import random
from array import array
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import zstandard

from protocol.delta.addresses import Places, find_places
from protocol.delta.alone import code_exponents, code_rest
from protocol.delta.base import Base
from protocol.delta.code import code_blocks, code_lanes
from protocol.delta.deflate import Deflated, read_deflate, write_deflate
from protocol.delta.deflated import TRAILER_BYTES, code_member, code_old_length
from protocol.delta.edits import CHUNK_BYTES, Edits
from protocol.delta.floats import LEARNT_SIGNS, MOST_MEAN, code_factors, elements, exponents
from protocol.delta.integers import LOUD, QUIET, BySize, ByValue, blocks, code_block
from protocol.delta.lanes import MOST_A_LANE, Contexts, Symbols, Table
from protocol.delta.lowrank import Change, code_shapes
from protocol.delta.operations import (
    CHANGED,
    COPY,
    ELSEWHERE,
    FILL,
    NEW,
    TAKE,
    Operation,
    Place,
    code_operation,
)
from protocol.delta.patch import BEHIND, CODE, EDITS, varint, write_group
from protocol.delta.programs import Exceptional, Program, Region, Rule, Segment, code_programs
from protocol.delta.residuals import code_bodies, code_sizes
from protocol.delta.streams import (
    ALONE,
    DEFLATED,
    DIFFERENCES,
    I8_DIFFERENCE,
    LZMA,
    STORED,
    ZSTD,
    lzma_filter,
    takes_base,
)
from protocol.delta.tar import DIGEST, ENTRIES, HEAD
from protocol.delta.tar import KINDS as TAR_KINDS
from protocol.delta.tar_blocks import BLOCK_BYTES
from protocol.errors import Refused
from server.delta.groups import ViewBase
from server.delta.lanes import BitWriter, LaneWriter
from server.delta.numbers import NumberWriter
from tests.unit.protocol.delta.hostile_groups import MEMBER_HEAD, other_number, program, seeds

KINDS = (STORED, ZSTD, LZMA, BEHIND, *DIFFERENCES, I8_DIFFERENCE, *ALONE, CODE, CODE, CODE, EDITS, DEFLATED)
TRIES = 6  # at something that may be refused while it is chosen
MOST_OPERATIONS = 12
MOST_OUTPUT = 1 << 20
LONGEST = 4096  # bytes of an operation


class Told(random.Random):
    """Chance that is told: it takes its bits from bytes as long as there are some, so a fuzzer chooses with it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data))
        self._data = data
        self._at = 0

    def getrandbits(self, k: int) -> int:
        """As `random.Random`."""
        end = self._at + (k + 7) // 8
        if end > len(self._data):
            return super().getrandbits(k)
        number = int.from_bytes(self._data[self._at : end], "little")
        self._at = end
        return number & ((1 << k) - 1)

    def random(self) -> float:
        """As `random.Random`."""
        return self.getrandbits(32) / (1 << 32)


class ChosenNumbers:
    """A writer of numbers that chooses them itself, unless it obeys.

    Args:
        chance: Chooses.
        said: What comes first, instead.
    """

    def __init__(self, chance: random.Random, said: list[int] | None = None) -> None:
        self._chance = chance
        self.said = list(said or ())
        self._writer = NumberWriter()
        self.wrote: list[int] = []
        self.obeys = False

    def symbol(self, context: int, bits: int, value: int = 0) -> int:
        """As `Numbers`."""
        value = self._choose(value, lambda: self._chance.getrandbits(bits) if self._chance.random() < 0.7 else 0)
        return self._writer.symbol(context, bits, value & ((1 << bits) - 1))

    def unsigned(self, context: int, value: int = 0) -> int:
        """As `Numbers`."""
        return self._writer.unsigned(context, self._choose(value, self._number))

    def signed(self, context: int, value: int = 0) -> int:
        """As `Numbers`."""
        return self._writer.signed(context, self._choose(value, lambda: self._number() * self._chance.choice((1, -1))))

    def plain(self, bits: int, value: int = 0) -> int:
        """As `Numbers`."""
        return self._writer.plain(bits, self._choose(value, lambda: self._chance.getrandbits(bits) if bits else 0))

    def given(self, probability: int, bit: int = 0) -> int:
        """As `Numbers`."""
        return self._writer.given(probability, self._choose(bit, lambda: self._chance.getrandbits(1)))

    def expect(self, context: int, zeros: Mapping[int, int]) -> None:
        """As `Numbers`."""
        self._writer.expect(context, zeros)

    def finish(self) -> bytes:
        """As `NumberWriter`."""
        return self._writer.finish()

    def _number(self) -> int:
        """Small ones mostly; now and then one that is on the edge of something."""
        if self._chance.random() < 0.04:
            return other_number(0, self._chance) >> 1
        return self._chance.getrandbits(self._chance.randrange(12))

    def _choose(self, value: int, choose: Callable[[], int]) -> int:
        if self.said:
            value = self.said.pop(0)
        elif not self.obeys:
            value = choose()
        self.wrote.append(value)
        return value


class ChosenLanes(LaneWriter):
    """A writer of symbols that chooses them itself: one for all lanes, mostly the first one, or any.

    Args:
        chance: Chooses.
        lanes: How many.
    """

    def __init__(self, chance: random.Random, lanes: int) -> None:
        super().__init__(lanes)
        self._chance = np.random.default_rng(chance.getrandbits(32))
        self._quiet = chance.random()

    def code(
        self, table: Table, contexts: Contexts, symbols: Symbols | None, lanes: np.ndarray | None = None
    ) -> Symbols:
        """As `Coder`."""
        count = getattr(table, "symbols", 2)
        chosen = self._chance.integers(0, count, contexts.size).astype(np.uint8)
        if self._chance.random() < self._quiet:
            chosen[self._chance.random(contexts.size) < self._quiet] = self._chance.integers(0, count)
        return super().code(table, contexts, chosen, lanes)


class ChosenBits(BitWriter):
    """A writer of plain bits that chooses them itself."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = np.random.default_rng(chance.getrandbits(32))

    def code(self, widths: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """As `PlainBits`."""
        chosen = self._chance.integers(0, 1 << 32, widths.size, np.uint32).astype(np.uint64)
        return super().code(widths, (chosen & ((np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1))).astype("u4"))


@cache
def mixed_base() -> bytes:
    """A base of everything: floats, programs, archives, compressed members, text."""
    parts = [seed.base for seed in seeds()]
    parts += [program(183, 0), program(62, 0), *(gzip.compress(text, 9, mtime=0) for text in (parts[0], parts[-2]))]
    base = bytearray()
    for part in parts:
        base += bytes(-len(base) % 512) + part
    return bytes(base) + bytes(2 * LONGEST)


@cache
def _headers() -> tuple[int, ...]:
    """Where headers of archives stand in the base."""
    base = mixed_base()
    return tuple(at for at in range(0, len(base), BLOCK_BYTES) if base[at + 257 : at + 262] == b"ustar")


@cache
def _members() -> tuple[tuple[int, int, Deflated], ...]:
    """Where compressed members lie in the base, how long they are, and their tokens."""
    found = []
    base = mixed_base()
    at = base.find(b"\x1f\x8b\x08")
    while at >= 0:
        try:
            stream, length = read_deflate(base[at + MEMBER_HEAD :])
        except Refused:
            pass
        else:
            found.append((at + MEMBER_HEAD, length, stream))
        at = base.find(b"\x1f\x8b\x08", at + 1)
    return tuple(found)


def chosen_group(chance: random.Random) -> bytes:
    """A group against `mixed_base`. It is seldom refused, and then for a bound."""
    base = ViewBase(memoryview(mixed_base()))
    kinds = [chance.choice(KINDS) for _ in range(chance.randrange(4))]
    kinds = [kind for number, kind in enumerate(kinds) if kinds[:number].count(kind) < 2]
    said: dict[int, list[list[int]]] = {number: [] for number in range(len(kinds))}
    numbers = ChosenNumbers(chance)
    place = Place(base, 0, MOST_OUTPUT, tuple(takes_base(kind) for kind in kinds))
    operations: list[Operation] = []
    ahead = False
    takes = range(TAKE, TAKE + len(kinds))
    for number in range(chance.randint(1, MOST_OPERATIONS)):
        files = len(place.tar.contents) // 2
        kind = chance.choice((COPY, FILL, NEW, CHANGED, *TAR_KINDS, *takes, *takes)) if number else FILL
        if ahead or (kind == DIGEST and not files):
            kind, ahead = HEAD, False
        if place.output < place.content_end < place.output + LONGEST and chance.random() < 0.7:
            numbers.obeys = True  # the rest of a file, so that digests find one
            given = Operation(COPY, place.content_end - place.output, chance.randrange(base.length_bytes - LONGEST))
        elif kind in (NEW, CHANGED):
            numbers.obeys = False
            at = chance.randrange(base.length_bytes - LONGEST)
            numbers.said = [kind, *([ELSEWHERE, at - place.base_end] if kind == CHANGED else [])]
            numbers.said += [0] * (place.output < place.content_end) + [
                0,
                chance.randrange(200 if kind == NEW else 2000),
            ]
            given = Operation(COPY, 1, 0)  # not looked at
        elif kind in TAR_KINDS:
            numbers.obeys = False
            numbers.said = [kind]
            if kind in (ENTRIES, HEAD) and chance.random() < 0.7:
                following = place.tar.next_header
                if following < 0:
                    following = place.base_end + -place.base_end % BLOCK_BYTES
                numbers.said += [2, (chance.choice(_headers()) - following) // BLOCK_BYTES]
                numbers.said += [chance.randrange(3)] * (kind == ENTRIES)
            if kind == DIGEST and chance.random() < 0.95:
                ahead = chance.random() < 0.4  # of the file that comes next
                reference = files if ahead else chance.randrange(files)
                numbers.said += [chance.randint(ahead, 2), reference - place.tar._reference]
            given = Operation(COPY, 1, 0)  # not looked at
        else:
            numbers.obeys = True
            given = _operation(kind, kinds, base, said, chance)
        before = copy.deepcopy((numbers, place), {id(kept): kept for kept in (base, chance)})
        try:
            operations.append(code_operation(numbers, place, given))
        except Refused:
            numbers, place = before
            numbers.said = []
            if given.kind >= TAKE and said[given.kind - TAKE]:
                said[given.kind - TAKE].pop()
    streams = []
    for number, stream_kind in enumerate(kinds):
        coded = _stream(stream_kind, operations, TAKE + number, base, said[number], chance)
        length = sum(operation.length for operation in operations if operation.kind == TAKE + number)
        streams.append((stream_kind, length, coded))
    return write_group(place.output, numbers.finish(), streams)


def _operation(
    kind: int, kinds: list[int], base: Base, said: dict[int, list[list[int]]], chance: random.Random
) -> Operation:
    length = 4 * chance.randint(1, 4 << chance.randrange(8))
    if kind == FILL:
        return Operation(FILL, length, -1, chance.randrange(256))
    if kind == COPY:
        return Operation(COPY, length, chance.randrange(base.length_bytes - length))
    stream = kinds[kind - TAKE]
    if stream == DEFLATED:  # the length follows from what is said
        first, old_bytes, old = chance.choice(_members())
        body, wrote = _chosen_member(old_bytes, old, chance)
        said[kind - TAKE].append([old_bytes - body - TRAILER_BYTES, *wrote])
        return Operation(kind, body + TRAILER_BYTES, first)
    if not takes_base(stream):
        return Operation(kind, length)
    at = chance.randrange(base.length_bytes - length)
    return Operation(kind, length, at - at % chance.choice((1, 4, 16)))


def _chosen_member(old_bytes: int, old: Deflated, chance: random.Random) -> tuple[int, list[int]]:
    """The length of a stream made from an old one, and what is said of it."""
    for _ in range(TRIES):
        numbers = ChosenNumbers(chance, [chance.randrange(4)])
        try:
            body = write_deflate(code_member(numbers, old_bytes, old))
        except Refused:
            continue
        return len(body), numbers.wrote
    numbers = ChosenNumbers(chance, [1, 0, 0, old.lengths.size, 0, 1])
    return len(write_deflate(code_member(numbers, old_bytes, old))), numbers.wrote


def _stream(
    kind: int, operations: list[Operation], own: int, base: Base, said: list[list[int]], chance: random.Random
) -> bytes:
    """The coded bytes of one stream."""
    columns = [array("q", column) for column in zip(*operations, strict=True)] or [array("q")] * 4
    kinds, lengths, bases, _ = (np.array(column, np.int64) for column in columns)
    places = find_places(kinds, lengths, bases, 0, own)
    length = sum(operation.length for operation in operations if operation.kind == own)
    reference = b"".join(
        base.read(each.base, each.length) for each in operations if each.kind == own and each.base >= 0
    )
    match kind:
        case 0:
            return chance.randbytes(length)
        case 1:
            return zstandard.ZstdCompressor(level=chance.randint(1, 9)).compress(_dull(length, chance))
        case 3:
            within = zstandard.ZstdCompressionDict(reference, zstandard.DICT_TYPE_RAWCONTENT)
            return zstandard.ZstdCompressor(level=chance.randint(1, 9), dict_data=within).compress(
                _dull(length, chance)
            )
        case 2:
            properties = (chance.randrange(5) * 5 + chance.randrange(3)) * 9 + chance.randrange(3)
            filters = lzma_filter(properties, length)
            return bytes([properties]) + lzma.compress(_dull(length, chance), lzma.FORMAT_RAW, filters=filters)
        case 4 | 5 | 6 | 11:
            return _floats(kind, reference, chance)
        case 7:
            return _integers(reference, chance)
        case 8 | 9 | 10:
            return _alone(kind, length, chance)
        case 16:
            return _code(places, reference, base, chance)
        case 32:
            return _edits(reference, chance)
        case _:
            numbers = ChosenNumbers(chance, [number for each in said for number in each])
            for number in range(len(said)):
                _say_member(numbers, places, number, base)
            return numbers.finish()


def _say_member(numbers: ChosenNumbers, places: Places, which: int, base: Base) -> None:
    own = np.flatnonzero(places.own)[which]
    old_bytes = int(places.length[own]) + code_old_length(numbers)
    old, _ = read_deflate(base.read(int(places.base[own]), old_bytes))
    code_member(numbers, old_bytes, old)


def _dull(length: int, chance: random.Random) -> bytes:
    """Bytes that compress."""
    return (chance.randbytes(40) * (length // 40 + 1))[:length]


def _lanes(count: int, chance: random.Random) -> int:
    """The binary logarithm of a number of lanes that is enough for so many symbols, or nearly so."""
    return max(0, (count // MOST_A_LANE).bit_length() - (chance.random() < 0.02)) + chance.randrange(3)


def _changes(count: int, chance: random.Random) -> tuple[bytes, list[Change]]:
    """The shapes of predicted changes, as they are said."""
    given: list[Change] = []
    end = 0
    for _ in range(chance.randrange(4)):
        first = end + chance.choice((0, chance.randrange(count + 1)))
        rows, columns, rank = (
            (1 << chance.randrange(6)) + chance.randrange(3),
            chance.randint(1, 40),
            chance.randint(1, 3),
        )
        end = first + rows * columns
        if end > count or rank * (rows + columns) > rows * columns:
            break
        empty = np.empty((rank, 0), np.int32)
        shift = chance.choice((0, chance.randint(0, 40), chance.randint(-400, 400)))
        given.append(Change(first, rows, columns, rank, shift, empty, empty))
    numbers = ChosenNumbers(chance)
    numbers.obeys = True
    changes = code_shapes(numbers, count, given)
    return numbers.finish(), changes


def _programs(base: Base, chance: random.Random) -> tuple[Program, ...]:
    """Programs that need not be there, one behind the other."""
    programs = []
    at = 0
    for _ in range(chance.randrange(3)):
        segments, regions, exceptions = [], [], []
        first = at
        for _ in range(chance.randrange(3)):
            at += chance.getrandbits(chance.randrange(12))
            length = chance.getrandbits(chance.randrange(19))
            lies = chance.getrandbits(chance.randrange(32)) - min(at, chance.getrandbits(12))
            segments.append(Segment(at, length, lies, lies + chance.getrandbits(12) - 2048))
            at += length
        behind, at = at, first
        for _ in range(chance.randrange(16)):
            at += chance.getrandbits(chance.randrange(12))
            length = chance.getrandbits(chance.randrange(17))
            regions.append(Region(at, length, Rule(chance.randrange(len(Rule)))))
            at += length
        at = max(at, behind)
        address = 0
        for _ in range(chance.randrange(4)):
            address += chance.getrandbits(chance.randrange(20))
            length = chance.getrandbits(chance.randrange(17))
            exceptions.append(Exceptional(address, length, chance.getrandbits(20) - (1 << 19)))
            address += length
        end = chance.getrandbits(chance.randrange(36))
        programs.append(Program(end, tuple(segments), tuple(regions), tuple(exceptions)))
    return tuple(programs)


def _floats(kind: int, reference: bytes, chance: random.Random) -> bytes:
    form = DIFFERENCES[kind]
    count = elements(form, len(reference))
    lanes_bits, learn_signs = _lanes(count, chance), chance.random() < 0.5
    coder, factor_bits, bits = ChosenLanes(chance, 1 << lanes_bits), ChosenBits(chance), ChosenBits(chance)
    shapes, changes = _changes(count, chance)
    try:
        code_factors(coder, factor_bits, changes, None)
    except Refused:  # a factor that is too large
        shapes, coder, factor_bits = b"", ChosenLanes(chance, 1 << lanes_bits), ChosenBits(chance)
    first_mean = chance.choice((0, chance.randrange(200), MOST_MEAN))
    offsets = exponents(form, [reference], count)
    sizes = code_sizes(coder, offsets, form.bits, first_mean, learn_signs=learn_signs)
    for _ in code_bodies(bits, sizes, learn_signs=learn_signs):
        pass
    hidden, plain = bits.finish(coder.lanes)
    parts = shapes, factor_bits.finish(0)[1], coder.finish(hidden)
    head = bytes([lanes_bits | LEARNT_SIGNS * learn_signs]) + b"".join(map(varint, (first_mean, *map(len, parts))))
    return b"".join((head, *parts, plain))


def _integers(reference: bytes, chance: random.Random) -> bytes:
    lanes_bits, form = _lanes(len(reference), chance), chance.choice((0, QUIET, LOUD))
    coder, factor_bits = ChosenLanes(chance, 1 << lanes_bits), ChosenBits(chance)
    shapes, changes = _changes(len(reference), chance)
    try:
        changes = code_factors(coder, factor_bits, changes, None)
    except Refused:  # a factor that is too large
        shapes, changes = b"", []
        coder, factor_bits = ChosenLanes(chance, 1 << lanes_bits), ChosenBits(chance)
    model = BySize(coder) if form == LOUD else ByValue(coder, quiet=form == QUIET)
    for first, old in blocks([reference]):
        code_block(model, old, first, changes)
    parts = shapes, factor_bits.finish(0)[1]
    words = coder.finish(np.zeros(coder.lanes, np.uint16))
    return b"".join((bytes([lanes_bits | form]), *(varint(len(part)) for part in parts), *parts, words))


def _alone(kind: int, length: int, chance: random.Random) -> bytes:
    form = ALONE[kind]
    lanes_bits = _lanes(elements(form, length), chance)
    coder, bits = ChosenLanes(chance, 1 << lanes_bits), ChosenBits(chance)
    for _ in code_rest(bits, form, *code_exponents(coder, form, elements(form, length))):
        pass
    hidden, plain = bits.finish(coder.lanes)
    words = coder.finish(hidden)
    return b"".join((bytes([lanes_bits]), varint(len(words)), words, plain))


def _code(places: Places, reference: bytes, base: Base, chance: random.Random) -> bytes:
    data = np.frombuffer(bytearray(reference), np.uint8)
    for attempt in range(TRIES):
        numbers = ChosenNumbers(chance)
        numbers.obeys = True
        lanes = code_lanes(numbers, chance.randint(1, 40))
        coder = ChosenLanes(chance, lanes)
        try:
            programs = code_programs(numbers, _programs(base, chance) if attempt + 1 < TRIES else ())
            code_blocks(coder, data.copy(), programs, places)
        except Refused:
            continue
        head = numbers.finish()
        return varint(len(head)) + head + coder.finish(np.zeros(lanes, np.uint16))
    raise AssertionError("a stream of code without programs is not refused")


def _edits(reference: bytes, chance: random.Random) -> bytes:
    for attempt in range(TRIES):
        numbers = ChosenNumbers(chance)
        numbers.obeys = attempt == TRIES - 1  # nothing changes
        edits = Edits(numbers)
        try:
            for at in range(0, len(reference), CHUNK_BYTES):
                edits.code(np.frombuffer(reference[at : at + CHUNK_BYTES], np.uint8), None)
        except Refused:
            continue
        return numbers.finish()
    raise AssertionError("a stream of edits without changes is not refused")
