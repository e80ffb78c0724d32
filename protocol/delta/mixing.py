"""Predicts bits from several contexts at once: a small context mixer in plain numpy, over the lanes' entropy coder.

Each bit is seen in several contexts. Each context has counted the bits it saw; what they say is weighed by weights that
learn which of them to trust, and the weighed chance drives the coder. One numpy call serves all lanes; what the lanes
learn in a step is added up, so the order within a step does not matter. Integers only: the same on every processor.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.lanes import Coder, Contexts, States, Symbols, Table, read_flags

Cells = npt.NDArray[np.int64]

CHANCE_BITS: Final = 16  # chances are in units of 1/65536
ODDS_UNIT: Final = 256  # logarithms of odds are in units of 1/256
MOST_ODDS: Final = 12 * ODDS_UNIT
LEAST_CHANCE: Final = 3  # no bit is impossible
WEIGHT_UNIT: Final = 1 << 16
COUNT_UNIT: Final = 1 << 16  # a cell: bits seen in its upper half, ones among them in its lower
PATIENCE_BITS: Final = 17  # weights move by odds times error, shifted right by so much


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
        return read_flags(contexts.astype(np.uint32), states, self.bits)

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

    def code(
        self,
        coder: Coder,
        contexts: Cells,
        sets: Cells,
        bits: Symbols | None,
        lanes: npt.NDArray[np.intp] | None = None,
    ) -> Symbols:
        """Codes a bit in each lane.

        Args:
            coder: Reader or writer.
            contexts: int64 [inputs, n].
            sets: Which weights, [n].
            bits: When writing, [n].
            lanes: As `Coder`.
        """
        where = (contexts + self._first).ravel()
        cells = self._cells[where]
        if cells.max(initial=0) > self._full:
            over = cells > self._full
            cells[over] = (cells[over] >> 17 << 16) | ((cells[over] & (COUNT_UNIT - 1)) >> 1)
            self._cells[where] = cells
        # Floats divide five times as fast; of numbers below 2^31 the integer part of their quotient is exact.
        chance = (((cells & (COUNT_UNIT - 1)) << 1 | 1) << 15) / ((cells >> 16) + 1)
        odds = self._odds.of_chance[chance.astype(np.intp)].reshape(self._inputs, -1)
        weighed = sets * self._inputs + self._input
        mixed = (self._weights[weighed] * odds).sum(axis=0) >> 16
        chance_of_one = self._odds.chance[np.minimum(np.maximum(mixed, -MOST_ODDS), MOST_ODDS) + MOST_ODDS]
        bits = coder.code(self._odds.given, (1 << CHANCE_BITS) - chance_of_one, bits, lanes)
        error = (bits.astype(np.int64) << CHANCE_BITS) - chance_of_one
        np.add.at(self._weights, weighed.ravel(), (odds * error >> PATIENCE_BITS).ravel())
        seen = bits.astype(np.int32) + np.int32(COUNT_UNIT)
        np.add.at(self._cells, where, np.concatenate((seen,) * self._inputs))
        return bits
