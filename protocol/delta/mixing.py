"""Predicts bits from several contexts at once: a small context mixer in plain numpy, over the lanes' entropy coder.

Each bit is seen in several contexts. Each context has counted the bits it saw; what they say is weighed by weights that
learn which of them to trust, and the weighed chance drives the coder. One numpy call serves all lanes; what the lanes
learn in a step is added up, so the order within a step does not matter. Integers only: the same on every processor.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.lanes import Coder, Contexts, States, Symbols, Table

Cells = npt.NDArray[np.int64]
Places = Cells | npt.NDArray[np.int32]

CHANCE_BITS: Final = 16  # chances are in units of 1/65536
ODDS_UNIT: Final = 256  # logarithms of odds are in units of 1/256
MOST_ODDS: Final = 12 * ODDS_UNIT
LEAST_CHANCE: Final = 3  # no bit is impossible
WEIGHT_UNIT: Final = 1 << 16
COUNT_UNIT: Final = 1 << 16  # a cell: bits seen in its upper half, ones among them in its lower
PATIENCE_BITS: Final = 17  # weights move by odds times error, shifted right by so much

_HALF: Final = COUNT_UNIT // 2
_ONES: Final = COUNT_UNIT - 1
_BOTH_HALVES: Final = 0x7FFF7FFF  # what stays of a cell whose halves were shifted together
_SEEN: Final = np.array([COUNT_UNIT, COUNT_UNIT + 1], np.int32)  # what a bit adds to a cell
_CHANCE_BITS: Final = np.uint32(CHANCE_BITS)
_CHANCES: Final = np.uint32((1 << CHANCE_BITS) - 1)


def _chances() -> npt.NDArray[np.int64]:
    """The chance for each logarithm of odds from -MOST_ODDS to MOST_ODDS, by integer arithmetic."""
    one = 1 << 64
    step, term, number = 0, one, 0
    while term:  # e to the power of -1/256, as a series
        step += -term if number % 2 else term
        number += 1
        term //= ODDS_UNIT * number
    power = one
    upper = []
    for _ in range(MOST_ODDS + 1):
        upper.append(min((one << CHANCE_BITS) // (one + power), (1 << CHANCE_BITS) - LEAST_CHANCE))
        power = power * step >> 64
    above = np.array(upper, np.int64)
    return np.concatenate(((1 << CHANCE_BITS) - above[:0:-1], above))


class _Given(Table):
    """No table: the chance of a 0 is given in place of a context."""

    bits = CHANCE_BITS

    def __init__(self) -> None:
        pass

    def read(self, contexts: Contexts, states: States) -> tuple[Symbols, States]:
        """As `Table`, without learning."""
        zeros = contexts.astype(np.uint32)
        slots = states & _CHANCES
        whole = states >> _CHANCE_BITS
        whole *= zeros
        bits = slots >= zeros
        # A 1 has the slots that a 0 has not.
        states = np.where(bits, states - whole - zeros, whole + slots)
        return bits.view(np.uint8), states

    def ranges(self, contexts: Contexts, symbols: Symbols) -> tuple[States, States]:
        """As `Table`, without learning."""
        first = np.where(symbols, contexts, 0).astype(np.uint32)
        frequency = np.where(symbols, (1 << CHANCE_BITS) - contexts, contexts).astype(np.uint32)
        return frequency, first


class Odds:
    """What all mixers of a stream share: tables from chances to logarithms of odds and back."""

    def __init__(self) -> None:
        self.chance = _chances()
        self.of_chance = (np.searchsorted(self.chance, np.arange(1 << CHANCE_BITS)) - MOST_ODDS).astype(np.int16)
        self.given = _Given()


class Mixer:
    """Codes bits of one kind.

    Args:
        odds: Shared.
        sizes: For each of its inputs how many contexts there are.
        sets: How many sets of weights.
        memory: A context's counts are halved when it has seen more bits: small forgets fast. At most 2^14.
    """

    def __init__(self, odds: Odds, sizes: tuple[int, ...], sets: int, memory: int) -> None:
        self._odds = odds
        self._cells = np.zeros(sum(sizes), np.int32)
        self._first = np.cumsum((0, *sizes[:-1]), dtype=np.int64)[:, None]
        self._inputs = len(sizes)
        self._weights = np.full(sets * self._inputs, WEIGHT_UNIT * 7 // (5 * self._inputs), np.int64)
        self._input = np.arange(self._inputs)[:, None]
        self._full = memory * COUNT_UNIT

    def places(self, contexts: Cells) -> Cells:
        """Where the cells of contexts [inputs, n] are."""
        return contexts + self._first

    def rows(self, sets: Cells) -> Cells:
        """Where the weights of sets [n] are: [inputs, n]."""
        return sets * self._inputs + self._input

    def code(self, coder: Coder, places: Places, rows: Places, bits: Symbols | None) -> Symbols:
        """Codes a bit in each of the first n lanes.

        Args:
            coder: Reader or writer.
            places: Of the contexts, [inputs, n].
            rows: Of the sets, [inputs, n].
            bits: When writing, [n].
        """
        places, rows = places.astype(np.intp).ravel(), rows.astype(np.intp).ravel()
        cells = self._cells.take(places)
        full = (cells > self._full).nonzero()[0]
        if full.size:
            halved = cells.take(full) >> 1 & _BOTH_HALVES
            cells[full] = halved
            self._cells[places.take(full)] = halved
        # Floats divide five times as fast; of numbers below 2^31 the integer part of their quotient is exact.
        chance = ((cells & _ONES) << CHANCE_BITS | _HALF) / ((cells >> CHANCE_BITS) + 1)
        odds = self._odds.of_chance.take(chance.astype(np.intp))
        mixed = np.add.reduce((self._weights.take(rows) * odds).reshape(self._inputs, -1)) >> 16
        chance_of_one = self._odds.chance.take(mixed + MOST_ODDS, mode="clip")
        bits = coder.code(self._odds.given, (1 << CHANCE_BITS) - chance_of_one, bits)
        error = (bits.astype(np.int64) << CHANCE_BITS) - chance_of_one
        moves = odds.reshape(self._inputs, -1) * error >> PATIENCE_BITS
        np.add.at(self._weights, rows, moves.ravel())
        np.add.at(self._cells, places, np.concatenate((_SEEN.take(bits),) * self._inputs))
        return bits
