"""Codes which words of changed code were guessed wrong: flags over ever smaller runs of words, so that runs without
any cost next to nothing. What stands in the wrong words is for `code_words`.

Works in both directions over a `Coder`: `wrong` is given when writing.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.code_asking import CONTEXTS, RECENT, RULES, STATES, Asker, Flags, Ints, fold
from protocol.delta.mixing import Mixer
from protocol.delta.programs import Rule

LEVELS: Final = (1024, 64, 8, 1)  # words that one flag speaks of
RUN_CONTEXTS: Final = RULES * 16 * STATES


class Guessed:
    """A block's words before anything of it is coded.

    Args:
        old: Words of the base.
        guess: What they were taken to become.
        rule: `Rule` of their regions.
        behind: How far behind its region's beginning each lies, in bytes.
    """

    def __init__(self, old: Ints, guess: Ints, rule: Flags, behind: Ints) -> None:
        self.old = old
        self.guess = guess
        self.size = guess.size
        self._rule = rule
        self._behind = behind
        self.followed = (guess != old).view(np.uint8)
        counts = self.followed
        self.run_followed: list[Ints] = []  # for each level but the last: how many words of each run
        for words in (LEVELS[2], LEVELS[1] // LEVELS[2], LEVELS[0] // LEVELS[1]):
            counts = np.pad(counts, (0, -counts.size % words)).reshape(-1, words).sum(axis=1, dtype=np.int64)
            self.run_followed.insert(0, counts)

    def rules(self, where: npt.NDArray[np.intp]) -> Ints:
        """Rules of some words."""
        return self._rule[where].astype(np.int64)

    def kinds(self, where: npt.NDArray[np.intp]) -> Ints:
        """What some words are, as far as it shows: of instructions their upper byte, of others their column."""
        rule = self.rules(where)
        arm = rule == Rule.ARM64
        kinds: Ints = np.where(arm, self.guess[where] >> 24, self.columns(where) & 7) + (rule << 8)
        return kinds

    def columns(self, where: npt.NDArray[np.intp]) -> Ints:
        """Which words of their regions they are."""
        return self._behind[where] >> 2 & 0xFFFFFFF


class CodeModel:
    """Codes which words are wrong, over the blocks of a stream.

    Args:
        asker: Of the stream.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._runs = [Mixer(asker.odds, (RUN_CONTEXTS,) * 3, RULES, 1023) for _ in LEVELS[:-1]]
        self._words = Mixer(asker.odds, (CONTEXTS,) * 5, RULES * STATES, 1023)

    def find(self, block: Guessed, wrong: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.intp]:
        """Which words of a block are wrong.

        Args:
            block: Its words.
            wrong: When writing: which are.
        """
        items = np.arange(-(-block.size // LEVELS[0]))
        for level, words in enumerate(LEVELS):
            size = -(-block.size // words)
            items = items[items < size]
            truth = None if wrong is None else np.maximum.reduceat(wrong, np.arange(0, block.size, words))[items]
            flags = self._flag(block, level, items, truth)
            items = items[flags.astype(np.bool_)]
            if words > 1:
                finer = words // LEVELS[level + 1]
                items = (items[:, None] * finer + np.arange(finer)).ravel()
        return items

    def _flag(
        self, block: Guessed, level: int, items: npt.NDArray[np.intp], truth: npt.NDArray[np.bool_] | None
    ) -> Flags:
        place = items & 7  # in the run above, of which at least one word is wrong
        family = np.where(level > 1, (1 << place) - 1, 0)
        last = np.where((level > 1) & (place == 7), 2, 0)
        order = np.arange(items.size)
        begins = np.maximum.accumulate(np.where(np.diff(items, prepend=-2) == 1, 0, order))
        near = (1 << np.minimum(order - begins, RECENT)) - 1  # of the last bits those of items directly before

        of_words = level == len(LEVELS) - 1

        def state(contexts: npt.NDArray[np.int32], some: npt.NDArray[np.intp], recent: Ints) -> None:
            before = recent & near[some]
            forced = np.where(recent & family[some], 1, last[some]) * 4
            contexts += before & 3 | forced
            if of_words:  # tables of six words a row: see how the row before went
                contexts[-1] += (before >> 5 & 1) - (before & 1)

        static = _word_contexts(block, items) if of_words else _run_contexts(block, level, items)
        rule = block.rules(items * LEVELS[level])
        if of_words:
            return self._asker.decide(self._words, static, rule * STATES, truth, state)
        return self._asker.decide(self._runs[level], static, rule, truth, state)


def _word_contexts(block: Guessed, items: npt.NDArray[np.intp]) -> Ints:
    rule, kind, guess = block.rules(items), block.kinds(items), block.guess[items]
    around = np.concatenate((block.followed, np.zeros(1, np.uint8)))
    followed = around[items].astype(np.int64)
    around = around[items - 1] | around[items] << 1 | around[items + 1] << 2
    return np.stack(
        (
            fold(kind, followed),
            fold(guess, followed),
            fold(rule, around, 1),
            fold(block.kinds(items - 1), followed, rule, 2),
            fold(rule, block.columns(items) % 6, followed, 3),
        )
    )


def _run_contexts(block: Guessed, level: int, items: npt.NDArray[np.intp]) -> Ints:
    followed = np.minimum(block.run_followed[level][items], 15)
    rule = block.rules(items * LEVELS[level])
    return np.stack((rule * 16 + followed, rule * 16 + (items & 7), rule)) * STATES
