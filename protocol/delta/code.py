"""The stream of changed machine code, and of whatever else resembles its base: new bytes given old ones.

Words that name addresses are first made what they become when these move (`follow`): in a program that was built again,
that explains nearly all changes. What the guesses got wrong is then coded (`code_model`).

| coded bytes | |
|---|---|
| varint | length of the numbers |
| numbers | lanes less 1, then the programs: see `protocol.delta.programs` |
| the rest | entropy code of all blocks |
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.addresses import Addresses, Places
from protocol.delta.code_model import CodeModel
from protocol.delta.follow import follow
from protocol.delta.lanes import Coder, LaneReader
from protocol.delta.numbers import NumberReader, Numbers
from protocol.delta.patch import read_varint
from protocol.delta.programs import Program, code_programs
from protocol.delta.words import Block, cut_blocks
from protocol.errors import Reason, Refused

MOST_LANES: Final = 1 << 11

_LANES = 0x400  # context of the number


def code_lanes(numbers: Numbers, lanes: int = 1) -> int:
    """Codes how many lanes a stream has.

    Raises:
        Refused: `LIMIT`.
    """
    lanes = numbers.unsigned(_LANES, lanes - 1) + 1
    if lanes > MOST_LANES:
        raise Refused(Reason.LIMIT, f"{lanes} lanes of entropy code")
    return lanes


def open_code(coded: memoryview, length_bytes: int, pieces: Iterator[bytes], places: Places) -> bytearray:
    """Decodes a stream.

    Args:
        coded: Its bytes.
        length_bytes: What it gives: as much as its operations read.
        pieces: What they read.
        places: The operations of the group that read the base.

    Raises:
        Refused: `LENGTH`, `LIMIT`, `METADATA`.
    """
    try:
        numbers_bytes, at = read_varint(bytes(coded[:9]), 0)
    except IndexError:
        raise Refused(Reason.LENGTH, "a stream of changed code that ends in its head") from None
    numbers = NumberReader(bytes(coded[at : at + numbers_bytes]))
    lanes = code_lanes(numbers)
    programs = code_programs(numbers)
    coder = LaneReader(coded[at + numbers_bytes :], lanes)
    output = bytearray(length_bytes)
    filled = 0
    for piece in pieces:
        output[filled : filled + len(piece)] = piece
        filled += len(piece)
    code_blocks(coder, np.frombuffer(output, np.uint8), programs, places)
    if coder.finish().any():
        raise Refused(Reason.LENGTH, "a stream of changed code with something behind its end")
    return output


def code_blocks(
    coder: Coder,
    data: npt.NDArray[np.uint8],
    programs: tuple[Program, ...],
    places: Places,
    new: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Codes all blocks of a stream, in either direction.

    Args:
        coder: Reader or writer.
        data: The old bytes; the new ones are put in their place.
        programs: What is said about the base.
        places: The operations of the group that read the base.
        new: When writing: the new bytes.
    """
    addresses = Addresses(programs, places)
    model = CodeModel(coder)
    own = places.own
    for block in cut_blocks(places.base[own], places.output[own], places.length[own]):
        _code_block(model, block, addresses, data[block.start : block.end], new)


def _code_block(
    model: CodeModel,
    block: Block,
    addresses: Addresses,
    data: npt.NDArray[np.uint8],
    new: npt.NDArray[np.uint8] | None,
) -> None:
    """A function of its own, so that what it holds is let go before the next one."""
    known = addresses.words(block.base, block.output)
    old = block.gather(data)
    guess, _ = follow(old, block.sizes, known, addresses)
    rule, behind = known.rule, known.behind
    del known
    wanted = None if new is None else block.gather(new[block.start : block.end])
    result = model.code(old, guess, rule, behind, wanted)
    block.scatter(data, result, np.flatnonzero(result != old))
