"""Asks bits of many words at once: what the two parts of the model of changed code share."""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.lanes import Coder
from protocol.delta.mixing import Mixer, Odds
from protocol.delta.programs import Rule
from protocol.errors import Reason, Refused

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.uint8]
State = Callable[[npt.NDArray[np.int32], npt.NDArray[np.intp], Ints], None]
"""Adds to contexts [inputs, n] what the last bits of the lanes [n] say for the items [n]."""

RULES: Final = len(Rule)
STATES: Final = 16  # of what was just coded; each context is kept apart by them
FOLDED: Final = 1 << 12  # contexts of many values are folded into so many
CONTEXTS: Final = FOLDED * STATES
ENOUGH_LANES: Final = 256  # the encoder makes no more, however much there is to ask
MOST_ASKED: Final = 1 << 14  # bits or bytes of a lane, as long as lanes are few; an encoder makes a tenth of it
RECENT: Final = 8  # bits that a lane remembers
LOW: Final = 0xFFFFFFFF
FACTORS: Final = tuple(np.arange(1, 8) * 0x2545F4914F6CDD1D | 1)  # odd, of 64 bits, all bits in use
HALF: Final = (1 << 62) - 1
MIXING: Final = np.uint64(0x9E3779B97F4A7C15)


def fold(*values: Ints | int) -> Ints:
    """Many values as a context: those that fall together share it."""
    folded = np.zeros(1, np.int64)
    for value, factor in zip(values, FACTORS, strict=False):
        folded = folded + (value * factor if isinstance(value, np.ndarray) else (value * int(factor)) & HALF)
    mixed = folded.view(np.uint64)
    return ((mixed ^ mixed >> np.uint64(32)) * MIXING >> np.uint64(52)).astype(np.int64) * STATES


def last_bits(contexts: npt.NDArray[np.int32], some: npt.NDArray[np.intp], recent: Ints) -> None:
    """The last four bits of each lane."""
    contexts += recent & (STATES - 1)


def _in_steps(values: Ints | Flags, steps: int, lanes: int) -> npt.NDArray[np.int32]:
    """Items [..., n], of which each lane has neighbours, as [steps, ..., lanes]: those of a step side by side."""
    laid = np.zeros((steps, *values.shape[:-1], lanes), np.int32)
    by_lane = np.moveaxis(laid, 0, -1)
    whole = values.shape[-1] // max(steps, 1)
    by_lane[..., :whole, :] = values[..., : whole * steps].reshape(*values.shape[:-1], whole, steps)
    if whole < lanes:
        by_lane[..., whole, : values.shape[-1] - whole * steps] = values[..., whole * steps :]
    return laid


class Asker:
    """Codes the bits of a stream.

    Args:
        coder: Reader or writer.
    """

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self.odds = Odds()
        self._asked = 0

    def decide(
        self,
        mixer: Mixer,
        contexts: Ints,
        sets: Ints,
        truth: npt.NDArray[np.bool_] | None,
        state: State = last_bits,
    ) -> Flags:
        """Codes a bit for each item. Each lane works through a run of neighbours.

        Args:
            mixer: For this kind of bits.
            contexts: [inputs, items], without the state.
            sets: Which weights, [items].
            truth: When writing: the bits.
            state: Of what was just coded.

        Raises:
            Refused: `LENGTH`, `LIMIT`.
        """
        steps, starts = self.steps(sets.size)
        places = _in_steps(mixer.places(contexts), steps, starts.size)
        rows = _in_steps(mixer.rows(sets), steps, starts.size)
        given = None if truth is None else _in_steps(truth.view(np.uint8), steps, starts.size).astype(np.uint8)
        answers = np.zeros((steps, starts.size), np.uint8)
        recent = np.zeros(starts.size, np.int64)
        for step in range(steps):
            some = starts[: -(-(sets.size - step) // steps)] + step
            lanes = some.size
            recent = recent[:lanes]
            asked = places[step, :, :lanes]
            state(asked, some, recent)
            bits = mixer.code(self.coder, asked, rows[step, :, :lanes], None if given is None else given[step, :lanes])
            answers[step, :lanes] = bits
            recent = (recent << 1 | bits) & ((1 << RECENT) - 1)
        return answers.T.ravel()[: sets.size]

    def steps(self, count: int) -> tuple[int, npt.NDArray[np.intp]]:
        """How many steps it takes to code so many items, and at which of them each lane begins.

        Raises:
            Refused: `LIMIT`: they are too many for so few lanes.
        """
        self._asked += count
        if self.coder.lanes < ENOUGH_LANES and self._asked > self.coder.lanes * MOST_ASKED:
            raise Refused(Reason.LIMIT, "too much changed code for so few lanes")
        steps = -(-count // self.coder.lanes)
        return steps, np.arange(0, count, max(steps, 1))
