"""Streams of floats: made from those of the base, or on their own.

All that is known of a stream comes from its kind and its length: the type and the number of its elements. NaNs,
infinities and negative zeros are words like all others.

| part | bytes |
|---|---|
| form | 1: lanes are 2^(low four bits); bit 4: signs are learnt |
| mean | LEB128: what size and exponent together are about, in bits; at most 511 |
| lengths | LEB128 of shapes, factor bits and words |
| shapes | numbers of `lowrank.code_shapes`; empty for floats on their own |
| factor bits | plain bits of the factors |
| words | what `lanes.LaneReader` reads: factors, then elements |
| plain bits | of the elements: the first are hidden in the lanes' states, the others are the rest |
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.lanes import BitReader, Coder, LaneReader, PlainBits, hold_lanes
from protocol.delta.lowrank import FACTOR_BITS, Change, FloatForm, code_shapes, predict, with_factors
from protocol.delta.numbers import NumberReader
from protocol.delta.patch import read_varint
from protocol.delta.residuals import BODY_WINDOW, Offsets, code_bodies, code_sizes, split
from protocol.errors import Reason, Refused

Integers = npt.NDArray[np.int64]

LEARNT_SIGNS: Final = 16
LANES_BITS: Final = 12  # more lanes than this would be no faster
MOST_MEAN: Final = 511  # 16 bits hold it in the units of a running mean
_HEAD_BYTES: Final = 1 + 4 * 9


@dataclass(frozen=True)
class Parts:
    """A coded stream taken apart: see the table above."""

    lanes: int
    learn_signs: bool
    first_mean: int
    shapes: bytes
    factor_bits: memoryview
    words: memoryview
    plain: memoryview


def take_apart(coded: memoryview) -> Parts:
    """Finds the parts of a coded stream.

    Raises:
        Refused: `LENGTH`, `LIMIT`, `METADATA`: they are not all there.
    """
    head = bytes(coded[:_HEAD_BYTES])
    ends = []
    try:
        form, at = head[0], 1
        first_mean, at = read_varint(head, at)
        for _ in range(3):
            length, at = read_varint(head, at)
            ends.append(length)
    except IndexError:
        raise Refused(Reason.LENGTH, "a stream of floats that ends in its head") from None
    if form & ~(LEARNT_SIGNS | 15) or form & 15 > LANES_BITS or first_mean > MOST_MEAN:
        raise Refused(Reason.METADATA, f"a stream of floats of form {form}")
    first = at + ends[0]
    second = first + ends[1]
    third = second + ends[2]
    if third > len(coded):
        raise Refused(Reason.LENGTH, "a stream of floats that ends in its parts")
    return Parts(
        lanes=1 << (form & 15),
        learn_signs=bool(form & LEARNT_SIGNS),
        first_mean=first_mean,
        shapes=bytes(coded[at:first]),
        factor_bits=coded[first:second],
        words=coded[second:third],
        plain=coded[third:],
    )


def open_differences(
    form: FloatForm, coded: memoryview, length_bytes: int, references: Iterable[Iterable[bytes]]
) -> Iterator[bytes]:
    """Decodes a stream of floats that are made from those of the base.

    Args:
        form: Of the elements.
        coded: The stream.
        length_bytes: What it must give: as much as its references.
        references: The old floats, twice.

    Raises:
        Refused: `LENGTH`, `LIMIT`, `METADATA`.
    """
    count = elements(form, length_bytes)
    parts = take_apart(coded)
    hold_lanes(parts.lanes, count)
    coder = LaneReader(parts.words, parts.lanes)
    changes = code_shapes(NumberReader(parts.shapes), count)
    changes = code_factors(coder, BitReader(np.empty(0, np.uint16), parts.factor_bits), changes, None)
    first, second = references
    offsets = exponents(form, first, count)
    sizes = code_sizes(coder, offsets, form.bits, parts.first_mean, learn_signs=parts.learn_signs)
    del offsets  # megabytes that are not needed any more
    bits = BitReader(coder.finish(), parts.plain)
    bodies = code_bodies(bits, sizes, learn_signs=parts.learn_signs)
    for expected, difference in zip(predictions(form, second, changes), bodies, strict=True):
        yield unordered(form, ordered(form, expected) + difference).astype(form.word).tobytes()


def code_factors(coder: Coder, bits: PlainBits, changes: list[Change], given: Integers | None) -> list[Change]:
    """Codes the factors of changes whose shapes are known. `given` are those of all changes when writing."""
    count = sum(change.factors for change in changes)
    if not count:
        return changes
    offsets = np.zeros(count, np.uint8)
    sizes = code_sizes(
        coder,
        offsets,
        FACTOR_BITS,
        FACTOR_BITS // 2,
        learn_signs=False,
        given=split(given) if given is not None else None,
    )
    # Narrow at once: there may be half a million, and sizes of 16 bits fit.
    bodies = (body.astype(np.int32) for body in code_bodies(bits, sizes, learn_signs=False, given=given))
    return with_factors(changes, np.concatenate(list(bodies)))


def exponents(form: FloatForm, references: Iterable[bytes], count: int) -> Offsets:
    """The exponents of the old words: what sizes of differences are compared by."""
    offsets = np.zeros(count, np.uint8)
    at = 0
    for words in windows(form, references):
        room = min(words.size, count - at)
        offsets[at : at + room] = (words >> form.mantissa & form.exponent_mask)[:room]
        at += words.size
    if at != count:
        raise Refused(Reason.LENGTH, f"a stream of {count} floats that is made from {at}")
    return offsets


def predictions(form: FloatForm, references: Iterable[bytes], changes: list[Change]) -> Iterator[Integers]:
    """The words that a stream's elements are expected to become, `BODY_WINDOW` at a time.

    Args:
        form: Of the elements.
        references: The old floats, in pieces of any length.
        changes: With their factors.
    """
    first = 0
    for old in windows(form, references):
        yield predict(form, old, first, changes)
        first += old.size


def windows(form: FloatForm, pieces: Iterable[bytes]) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    """Bytes as words, `BODY_WINDOW` at a time."""
    window_bytes = BODY_WINDOW * form.word.itemsize
    held = bytearray()
    for piece in pieces:
        held += piece
        whole = len(held) - len(held) % window_bytes
        for at in range(0, whole, window_bytes):
            yield np.frombuffer(held[at : at + window_bytes], form.word)
        del held[:whole]
    if held:
        yield np.frombuffer(bytes(held), form.word)


def elements(form: FloatForm, length_bytes: int) -> int:
    """How many elements a stream has.

    Raises:
        Refused: `LENGTH`: no whole number.
    """
    if length_bytes % form.word.itemsize:
        raise Refused(Reason.LENGTH, f"{length_bytes} bytes of floats of {form.bits} bits")
    return length_bytes // form.word.itemsize


def ordered(form: FloatForm, words: Integers) -> Integers:
    """Words as integers in the order of the floats they stand for: neighbours in value are neighbours here.

    Words of a form without exponent are left as they are: integers are in order already, modulo 2^bits.
    """
    if not form.exponent_mask:
        return words
    top = 1 << (form.bits - 1)
    return np.where(words & top, ~words & (2 * top - 1), words | top)


def unordered(form: FloatForm, numbers: Integers) -> Integers:
    """The reverse of `ordered`, of numbers modulo 2^bits."""
    if not form.exponent_mask:
        return numbers & ((1 << form.bits) - 1)
    top = 1 << (form.bits - 1)
    return np.where(numbers & top, numbers & (top - 1), ~numbers & (2 * top - 1))


def differences(form: FloatForm, expected: Integers, words: Integers) -> Integers:
    """How far words are from the expected ones, modulo 2^bits and nearest to zero."""
    top = 1 << (form.bits - 1)
    return (ordered(form, words) - ordered(form, expected) + top & (2 * top - 1)) - top
