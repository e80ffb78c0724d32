"""New bytes where there are few: each bit is predicted by what stood behind the same bytes before.

A stream of a few bytes teaches no compressor anything, but the base does: around the place, and in the new bytes so
far, the last few bytes stood before, and what followed them there is likely to follow again. So is the byte of the base
that the new one stands in place of, the same moved as the last such byte was (a length in front of a name that grew),
and the byte at the same place of the new bytes before these. What each of these says is weighed by weights that learn
which of them to trust.

All is integers, and slow (about ten thousand bytes a second): it is for a few kilobytes in a group at most.
"""

from bisect import bisect_left
from typing import Final

import numpy as np

from protocol.delta.mixing import MOST_ODDS, Odds
from protocol.delta.numbers import CERTAIN, Numbers

AROUND_BYTES: Final = 4096  # of the base before a place, and behind it
REMEMBERED: Final = 4096  # new bytes of the group
ORDERS: Final = (6, 3, 2, 1)  # so many bytes in front are looked for
PLACES: Final = 32  # of each are looked at, the latest
_INPUTS: Final = len(ORDERS) + 4
_PATIENCE_BITS: Final = 14
_MANY: Final = 15  # of followers, which contexts tell no further apart
_LIKELY_BYTES: Final = bytes(range(32, 127)) + bytes(8) + b"\n  " + b"0123456789abcdefghijklmnopqrstuvwxyz" * 2
"""How often each byte was there before any was: in most files it is text, numbers and zeros."""


class Literals:
    """What is learnt over a group.

    Args:
        numbers: Reader or writer.
    """

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._text = bytearray()
        self._last = b""  # the new bytes before these
        self._moves: list[int] = []  # by how much each was above the byte of the base in its place
        self.done_bytes = 0
        odds = Odds()
        self._chance: list[int] = odds.chance.tolist()
        self._odds: list[int] = odds.of_chance[8::16].tolist()
        self._cells: dict[int, int] = {}
        self._weights = [[CERTAIN * 5 // 16] * _INPUTS for _ in range(len(ORDERS) + 1)]

    def code(self, before: bytes, after: bytes, length: int, given: bytes | None = None) -> bytes:
        """Codes new bytes.

        Args:
            before: Of the base, up to where the last operation stopped to read it: most likely what the output ends in.
            after: Of the base, from there on: what the new bytes most likely stand in place of.
            length: How many there are.
            given: They, when writing.

        Returns:
            They.
        """
        known = after + bytes(self._text) + before
        start = len(known)
        history = bytearray(known)
        counts = np.bincount(np.frombuffer(known + _LIKELY_BYTES, np.uint8), minlength=256)
        below: list[int] = [0, *np.cumsum(counts).tolist()]
        hits = [0, 0, 0]  # for each guess how often it was right lately; -1 when it was wrong last
        last, moves = self._last, self._moves
        self._moves = []
        for at in range(length):
            followers = [sorted(_followers(history, order)) for order in ORDERS]
            old = after[at] if at < len(after) else -1
            moved = old + moves[at] & 0xFF if old >= 0 and at < len(moves) else -1
            again = last[at] if at < len(last) else -1
            guesses = (old, moved, again)
            byte = self._code_byte(followers, below, guesses, hits, given[at] if given is not None else 0)
            history.append(byte)
            for number, guess in enumerate(guesses):
                hits[number] = min(max(hits[number], 0) + 1, 3) if byte == guess else -1
            self._moves.append(byte - old & 0xFF if old >= 0 else 0)
        output = bytes(history[start:])
        self._last = output
        self.done_bytes += length
        self._text += output
        del self._text[:-REMEMBERED]
        return output

    def _code_byte(
        self, followers: list[list[int]], below: list[int], guesses: tuple[int, ...], hits: list[int], given: int
    ) -> int:
        """Codes one byte; `followers` are sorted, so those that begin as its bits so far are a run of them."""
        cells, odds_of, weights_of = self._cells, self._odds, self._weights
        runs = [(order, behind, 0, len(behind)) for order, behind in enumerate(followers) if behind]
        guessed = [(number, guess | 256) for number, guess in enumerate(guesses) if guess >= 0]
        node = 1
        for place in range(7, -1, -1):
            low = node << place + 1 & 0xFF
            middle, high = low + (1 << place), low + (2 << place)
            ones, both = below[high] - below[middle], below[high] - below[low]
            told = [(0, odds_of[(ones * 32 + 16) * 4096 // (both * 32 + 32)])]  # what says something, and its odds
            learning = []
            halves = []
            for order, behind, first, end in runs:
                half = bisect_left(behind, middle, first, end)
                halves.append(half)
                zeros, ones = half - first, end - half
                key = order << 8 | (ones if ones < _MANY else _MANY) << 4 | (zeros if zeros < _MANY else _MANY)
                chance = cells.get(key, -1)
                if chance < 0:
                    chance = (ones * 3 + 1) * CERTAIN // ((ones + zeros) * 3 + 2)
                learning.append((key, chance))
                told.append((1 + order, odds_of[chance >> 4]))
            for number, guess in guessed:
                if guess >> place + 1 == node:
                    key = (8 + number) << 8 | hits[number] + 1 << 4 | (place < 7) << 1 | guess >> place & 1
                    chance = cells.get(key, CERTAIN // 2)
                    learning.append((key, chance))
                    told.append((1 + len(ORDERS) + number, odds_of[chance >> 4]))
            weights = weights_of[len(ORDERS) - runs[0][0] if runs else 0]
            mixed = 0
            for index, odds in told:
                mixed += weights[index] * odds
            chance_of_one = self._chance[min(max(mixed >> 16, -MOST_ODDS), MOST_ODDS) + MOST_ODDS]
            bit = self._numbers.given(CERTAIN - chance_of_one, given >> place & 1)
            error = (bit << 16) - chance_of_one
            for index, odds in told:
                weights[index] += odds * error >> _PATIENCE_BITS
            target = CERTAIN - 16 if bit else 16
            for key, chance in learning:
                cells[key] = chance + ((target - chance) * 5 >> 5)
            if bit:
                runs = [(run[0], run[1], half, run[3]) for run, half in zip(runs, halves, strict=True) if half < run[3]]
            else:
                runs = [(run[0], run[1], run[2], half) for run, half in zip(runs, halves, strict=True) if run[2] < half]
            node = node << 1 | bit
        return node & 0xFF


def _followers(history: bytearray, order: int) -> list[int]:
    """The bytes behind the latest places where the last bytes stood before."""
    last = bytes(history[-order:])
    found: list[int] = []
    end = len(history) - 1
    while len(last) == order and len(found) < PLACES:
        at = history.rfind(last, 0, end)
        if at < 0:
            break
        found.append(history[at + order])
        end = at + order - 1
    return found
