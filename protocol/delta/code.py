"""The stream of changed machine code, and of whatever else resembles its base: new bytes given old ones.

Words that name addresses are first made what they become when these move (`follow`): in a program that was built again,
that explains nearly all changes. Which guesses are wrong is then coded (`code_model`), and
what stands there (`code_words`).

| coded bytes | |
|---|---|
| varint | length of the numbers |
| numbers | lanes less 1, then the programs: see `protocol.delta.programs` |
| the rest | entropy code of all blocks |
"""

import mmap
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.addresses import Addresses, Places
from protocol.delta.code_asking import Asker
from protocol.delta.code_model import CodeModel, Guessed
from protocol.delta.code_words import WordModel, Wrong, joined
from protocol.delta.follow import follow
from protocol.delta.lanes import Coder, LaneReader
from protocol.delta.numbers import NumberReader, Numbers
from protocol.delta.patch import read_varint
from protocol.delta.programs import Program, code_programs
from protocol.delta.words import Block, cut_blocks, gather_at, scatter_at
from protocol.errors import Reason, Refused

MOST_LANES: Final = 1 << 11
ENOUGH_WORDS: Final = 1 << 12  # wrong ones, that are put right together

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


def open_code(coded: memoryview, length_bytes: int, pieces: Iterator[bytes], places: Places) -> memoryview:
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
    # Memory of its own, that goes back to the system with the group: in a heap the next group's would not fit its hole.
    output = memoryview(mmap.mmap(-1, max(length_bytes, 1)))[:length_bytes]
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
    _Blocks(coder, data, programs, places, new).code()


class _Blocks:
    """The blocks of a stream, one after the other. What was guessed wrong waits until there is enough of it for all
    lanes: a step takes as long for a few of them."""

    def __init__(
        self,
        coder: Coder,
        data: npt.NDArray[np.uint8],
        programs: tuple[Program, ...],
        places: Places,
        new: npt.NDArray[np.uint8] | None,
    ) -> None:
        self._data = data
        self._new = new
        self._own = places.base[places.own], places.output[places.own], places.length[places.own]
        self._addresses = Addresses(programs, places)
        asker = Asker(coder)
        self._model = CodeModel(asker)
        self._words = WordModel(asker)
        self._waiting: list[Wrong] = []
        self._waiting_words = 0

    def code(self) -> None:
        at = 0
        for block in cut_blocks(*self._own):
            self._find(block, at)
            at += block.sizes.size
            del block  # before the next one is made
            if self._waiting_words >= ENOUGH_WORDS:
                self._put_right()
        if self._waiting:
            self._put_right()

    def _find(self, block: Block, at: int) -> None:
        """Puts guesses in the place of the words of a block that begins with the stream's word `at`."""
        some = slice(block.start, block.end)
        known = self._addresses.words(*block.offsets())
        old = block.gather(self._data[some])
        guess, _ = follow(old, block.sizes, known, self._addresses)
        guessed = Guessed(old, guess, known.rule, known.behind)
        del known
        wrong = self._model.find(guessed, None if self._new is None else guess != block.gather(self._new[some]))
        block.scatter(self._data[some], guess, np.flatnonzero(guess != old))
        if wrong.size:
            found = Wrong(
                wrong + at,
                block.first[wrong] + block.start,
                block.sizes[wrong].astype(np.int64),
                old[wrong],
                guess[wrong],
                guessed.rules(wrong),
                guessed.kinds(wrong),
                guessed.columns(wrong),
            )
            self._waiting.append(found)
            self._waiting_words += wrong.size

    def _put_right(self) -> None:
        wrong = joined(self._waiting)
        new = None if self._new is None else gather_at(self._new, wrong.start, wrong.size)
        scatter_at(self._data, wrong.start, wrong.size, self._words.put_right(wrong, new))
        self._waiting.clear()
        self._waiting_words = 0
