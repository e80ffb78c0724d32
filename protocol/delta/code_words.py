"""Codes what stands in words that were guessed wrong: the difference from the guess, when it is that of a wrong word
just before (tables of addresses move in step); the old word, when it did not move after all; otherwise byte for byte.

Works in both directions over a `Coder`: `new` is given when writing.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.delta.code_asking import CONTEXTS, LOW, RULES, Asker, Ints, fold
from protocol.delta.mixing import Mixer

BYTE_CONTEXT_BITS: Final = 16

_MIXING: Final = np.uint32(0x9E3779B1)


class Wrong(NamedTuple):
    """Words that were guessed wrong, in the order of their stream. All int64 [n].

    Args:
        word: Which words of the stream they are.
        start: Where they begin in the stream, in bytes.
        size: Bytes of each.
        old: What they were in the base.
        guess: What they were taken to become.
        rule: `Rule` of their regions.
        kind: What they are, as far as it shows.
        column: Which words of their regions they are.
    """

    word: Ints
    start: Ints
    size: Ints
    old: Ints
    guess: Ints
    rule: Ints
    kind: Ints
    column: Ints

    def at(self, where: npt.NDArray[np.intp]) -> "Wrong":
        """Some of them."""
        return Wrong(*(column[where] for column in self))


def joined(parts: list[Wrong]) -> Wrong:
    """Parts one after another."""
    return Wrong(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class WordModel:
    """Codes wrong words of a stream.

    Args:
        asker: Of the stream.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._same = Mixer(asker.odds, (CONTEXTS,) * 3, RULES * 4, 255)
        self._masks = Mixer(asker.odds, (CONTEXTS,) * 4, RULES * 4, 255)
        self._bytes = Mixer(asker.odds, (1 << BYTE_CONTEXT_BITS,) * 5, RULES * 8, 127)

    def put_right(self, wrong: Wrong, new: Ints | None) -> Ints:
        """Codes wrong words that follow one another.

        Args:
            wrong: These.
            new: When writing: what they became.

        Returns:
            What they became.
        """
        guess, old, count = wrong.guess, wrong.old, wrong.guess.size
        difference = None if new is None else (new - guess) & LOW
        parent = np.arange(count)
        left = np.arange(count)
        for back in (1, 2):
            asked = left[left >= back]
            truth = None if difference is None else difference[asked] == difference[asked - back]
            gap = np.minimum(wrong.word[asked] - wrong.word[asked - back], 15)
            answers = self._ask(wrong.at(asked), gap, back, truth)
            parent[asked[answers]] -= back
            left = np.concatenate((left[left < back], asked[~answers]))
        asked = left[guess[left] != old[left]]
        truth = None if new is None else new[asked] == old[asked]
        answers = self._ask(wrong.at(asked), np.zeros(asked.size, np.int64), 3, truth)
        found = np.zeros(count, np.int64)
        unmoved = asked[answers]
        found[unmoved] = old[unmoved] - guess[unmoved]
        spelling = np.zeros(count, np.bool_)
        spelling[left] = True
        spelling[unmoved] = False
        left = np.flatnonzero(spelling)
        if left.size:
            spelt = self._spell(wrong.at(left), None if new is None else new[left])
            found[left] = spelt - guess[left]
        while True:  # each round doubles how far back a word looks for the difference that it shares
            further = parent[parent]
            if (further == parent).all():
                break
            parent = further
        return (guess + found[parent]) & LOW

    def _ask(
        self, words: Wrong, gap: Ints, question: int, truth: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.bool_]:
        """Whether a simple difference explains these words: see `put_right`."""
        contexts = np.stack(
            (
                fold(words.rule, gap, question),
                fold(words.kind, question),
                fold(words.rule, words.column % 6, question),
            )
        )
        return self._asker.decide(self._same, contexts, words.rule * 4 + question, truth).astype(np.bool_)

    def _spell(self, words: Wrong, new: Ints | None) -> Ints:
        """Words byte for byte, from the most significant: first which differ from the guess, then what they are."""
        guess, rule, kind, column = words.guess, words.rule, words.kind, words.column % 6
        mask = np.zeros(guess.size, np.int64)
        for byte in (3, 2, 1, 0):
            asked = np.arange(guess.size) if byte else np.flatnonzero(mask)  # one of them differs
            before = mask[asked]
            static = np.stack(
                (
                    fold(rule[asked], before, byte),
                    fold(kind[asked], before, byte),
                    fold(guess[asked], before, byte),
                    fold(rule[asked], column[asked], before, byte),
                )
            )
            truth = None if new is None else (guess[asked] ^ new[asked]) >> (8 * byte) & 0xFF != 0
            answers = self._asker.decide(self._masks, static, rule[asked] * 4 + byte, truth)
            mask *= 2
            mask[asked] += answers
            if byte == 0:
                mask[mask == 0] = 1
        word, place = np.nonzero(mask[:, None] >> np.arange(3, -1, -1) & 1)
        shift = 8 * (3 - place)
        spoken = guess[word] >> shift & 0xFF
        static = np.stack(
            (
                fold(rule[word], place),
                fold(kind[word], mask[word], place),
                fold(rule[word], spoken, place),
                fold(guess[word], place),
                fold(rule[word], place, 9),
            )
        )
        difference = None if new is None else (new[word] >> shift) - spoken & 0xFF
        found = self._spell_bytes(static, rule[word] * 8, np.diff(word, prepend=-1) == 0, difference)
        change = ((spoken + found & 0xFF) - spoken) << shift
        result = guess.copy()
        np.add.at(result, word, change)
        return result

    def _spell_bytes(self, static: Ints, sets: Ints, same_word: npt.NDArray[np.bool_], difference: Ints | None) -> Ints:
        """Differences of bytes, bit for bit; the last context is joined by the byte before in the same word."""
        found = np.zeros(sets.size, np.int64)
        steps, starts = self._asker.steps(sets.size)
        for step in range(steps):
            some = starts[: -(-(sets.size - step) // steps)] + step
            fixed = static[:, some] << 4
            fixed[4] += np.where(same_word[some], found[some - 1], 0) << 24
            fixed = fixed.astype(np.uint32)
            chosen = sets[some]
            node = np.ones(some.size, np.uint32)
            for bit in range(7, -1, -1):
                contexts = (fixed + node) * _MIXING >> (32 - BYTE_CONTEXT_BITS)
                truth = None if difference is None else (difference[some] >> bit & 1).astype(np.uint8)
                places, rows = self._bytes.places(contexts), self._bytes.rows(chosen + bit)
                node = node * 2 + self._bytes.code(self._asker.coder, places, rows, truth)
            found[some] = node & 0xFF
        return found
