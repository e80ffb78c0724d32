"""Codes what guesses got wrong: which words of a block, and what stands there.

Which: flags over ever smaller runs of words, so that equal runs cost next to nothing. What: the difference from the
guess, when it is that of a wrong word just before (tables of addresses move in step); otherwise byte for byte.

Works in both directions over a `Coder`: `new` is given when writing.
"""

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
State = Callable[[Ints, npt.NDArray[np.intp], Ints], None]
"""Adds to contexts [inputs, n] what the last bits of the lanes [n] say for the items [n]."""

LEVELS: Final = (1024, 64, 8, 1)  # words that one flag speaks of
RULES: Final = len(Rule)
STATES: Final = 16  # of what was just coded; each context is kept apart by them
FOLDED: Final = 1 << 12  # contexts of many values are folded into so many
CONTEXTS: Final = FOLDED * STATES
RUN_CONTEXTS: Final = RULES * 16 * STATES
BYTE_CONTEXT_BITS: Final = 16
ENOUGH_LANES: Final = 256  # the encoder makes no more, however much there is to ask
MOST_ASKED: Final = 1 << 14  # bits or bytes of a lane, as long as lanes are few; an encoder makes a tenth of it
RECENT: Final = 8  # bits that a lane remembers
LOW: Final = 0xFFFFFFFF
FACTORS: Final = tuple(np.arange(1, 8) * 0x2545F4914F6CDD1D | 1)  # odd, of 64 bits, all bits in use
HALF: Final = (1 << 62) - 1
MIXING: Final = np.uint64(0x9E3779B97F4A7C15)


def _fold(*values: Ints | int) -> Ints:
    """Many values as a context: those that fall together share it."""
    folded = np.zeros(1, np.int64)
    for value, factor in zip(values, FACTORS, strict=False):
        folded = folded + (value * factor if isinstance(value, np.ndarray) else (value * int(factor)) & HALF)
    mixed = folded.view(np.uint64)
    return ((mixed ^ mixed >> np.uint64(32)) * MIXING >> np.uint64(52)).astype(np.int64) * STATES


def _last_bits(contexts: Ints, some: npt.NDArray[np.intp], recent: Ints) -> None:
    contexts += recent & (STATES - 1)


class _Block:
    """What is known of a block's words before anything of it is coded."""

    def __init__(self, old: Ints, guess: Ints, rule: Flags, behind: Ints) -> None:
        self.old = old
        self.guess = guess
        self.rule = rule
        self.followed = (guess != old).view(np.uint8)
        self.column = (behind >> 2 & 0xFFFFFFF).astype(np.int32)
        arm = rule == Rule.ARM64
        self.kind = np.where(arm, guess >> 24, self.column & 7).astype(np.int16) + (rule.astype(np.int16) << 8)
        self.size = guess.size

    def rules(self, where: npt.NDArray[np.intp]) -> Ints:
        """Rules of some words."""
        return self.rule[where].astype(np.int64)

    def kinds(self, where: npt.NDArray[np.intp]) -> Ints:
        """What some words are, as far as it shows: of instructions their upper byte, of others their column."""
        return self.kind[where].astype(np.int64)

    def columns(self, where: npt.NDArray[np.intp]) -> Ints:
        """Where some words stand in a table whose rows are six words."""
        return self.column[where].astype(np.int64) % 6


class CodeModel:
    """Codes the blocks of a stream.

    Args:
        coder: Reader or writer.
    """

    def __init__(self, coder: Coder) -> None:
        self._coder = coder
        self._asked = 0
        odds = Odds()
        self._runs = [Mixer(odds, (RUN_CONTEXTS,) * 3, RULES, 1023) for _ in LEVELS[:-1]]
        self._words = Mixer(odds, (CONTEXTS,) * 5, RULES * STATES, 1023)
        self._same = Mixer(odds, (CONTEXTS,) * 3, RULES * 4, 255)
        self._masks = Mixer(odds, (CONTEXTS,) * 4, RULES * 4, 255)
        self._bytes = Mixer(odds, (1 << BYTE_CONTEXT_BITS,) * 5, RULES * 8, 127)

    def code(self, old: Ints, guess: Ints, rule: Flags, behind: Ints, new: Ints | None) -> Ints:
        """Codes a block.

        Args:
            old: Words of the base.
            guess: What they were taken to become.
            rule: `Rule` of their regions.
            behind: How far behind its region's beginning each lies, in bytes.
            new: When writing: what they became.

        Returns:
            What they became.
        """
        block = _Block(old, guess, rule, behind)
        wrong = self._find(block, None if new is None else guess != new)
        result = guess.copy()
        if wrong.size:
            result[wrong] = self._put_right(block, wrong, None if new is None else new[wrong])
        return result

    def _find(self, block: _Block, wrong: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.intp]:
        """Which words are wrong."""
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
        self, block: _Block, level: int, items: npt.NDArray[np.intp], truth: npt.NDArray[np.bool_] | None
    ) -> Flags:
        place = items & 7  # in the run above, of which at least one word is wrong
        family = np.where(level > 1, (1 << place) - 1, 0)
        last = np.where((level > 1) & (place == 7), 2, 0)
        near = np.zeros(items.size, np.int64)
        for back in range(1, RECENT + 1):
            near[back:] |= (items[back:] - items[:-back] == back).astype(np.int64) << (back - 1)

        of_words = level == len(LEVELS) - 1

        def state(contexts: Ints, some: npt.NDArray[np.intp], recent: Ints) -> None:
            before = recent & near[some]
            forced = np.where(recent & family[some], 1, last[some]) * 4
            contexts += before & 3 | forced
            if of_words:  # tables of six words a row: see how the row before went
                contexts[-1] += (before >> 5 & 1) - (before & 1)

        static = self._word_contexts(block, items) if of_words else _run_contexts(block, level, items)
        rule = block.rules(items * LEVELS[level])
        if of_words:
            return self._decide(self._words, static, rule * STATES, truth, state)
        return self._decide(self._runs[level], static, rule, truth, state)

    @staticmethod
    def _word_contexts(block: _Block, items: npt.NDArray[np.intp]) -> Ints:
        rule, kind, guess = block.rules(items), block.kinds(items), block.guess[items]
        around = np.concatenate((block.followed, np.zeros(1, np.uint8)))
        followed = around[items].astype(np.int64)
        around = around[items - 1] | around[items] << 1 | around[items + 1] << 2
        return np.stack(
            (
                _fold(kind, followed),
                _fold(guess, followed),
                _fold(rule, around, 1),
                _fold(block.kinds(items - 1), followed, rule, 2),
                _fold(rule, block.columns(items), followed, 3),
            )
        )

    def _put_right(self, block: _Block, wrong: npt.NDArray[np.intp], new: Ints | None) -> Ints:
        """What the wrong words became."""
        guess, old = block.guess[wrong], block.old[wrong]
        difference = None if new is None else (new - guess) & LOW
        parent = np.arange(wrong.size)
        left = np.arange(wrong.size)
        for back in (1, 2):
            asked = left[left >= back]
            truth = None if difference is None else difference[asked] == difference[asked - back]
            gap = np.minimum(wrong[asked] - wrong[asked - back], 15)
            answers = self._ask(block, wrong[asked], gap, back, truth)
            parent[asked[answers]] -= back
            left = np.concatenate((left[left < back], asked[~answers]))
        asked = left[guess[left] != old[left]]
        truth = None if new is None else new[asked] == old[asked]
        answers = self._ask(block, wrong[asked], np.zeros(asked.size, np.int64), 3, truth)
        found = np.zeros(wrong.size, np.int64)
        unmoved = asked[answers]
        found[unmoved] = old[unmoved] - guess[unmoved]
        left = np.setdiff1d(left, unmoved)
        if left.size:
            spelt = self._spell(block, wrong[left], None if new is None else new[left])
            found[left] = spelt - guess[left]
        while True:  # each round doubles how far back a word looks for the difference that it shares
            further = parent[parent]
            if (further == parent).all():
                break
            parent = further
        return (guess + found[parent]) & LOW

    def _ask(
        self,
        block: _Block,
        where: npt.NDArray[np.intp],
        gap: Ints,
        question: int,
        truth: npt.NDArray[np.bool_] | None,
    ) -> npt.NDArray[np.bool_]:
        """Whether a simple difference explains these words: see `_put_right`."""
        rule = block.rules(where)
        contexts = np.stack(
            (
                _fold(rule, gap, question),
                _fold(block.kinds(where), question),
                _fold(rule, block.columns(where), question),
            )
        )
        return self._decide(self._same, contexts, rule * 4 + question, truth).astype(np.bool_)

    def _spell(self, block: _Block, where: npt.NDArray[np.intp], new: Ints | None) -> Ints:
        """Words byte for byte, from the most significant: first which differ from the guess, then what they are."""
        guess, rule, kind, column = block.guess[where], block.rules(where), block.kinds(where), block.columns(where)
        mask = np.zeros(where.size, np.int64)
        for byte in (3, 2, 1, 0):
            asked = np.arange(where.size) if byte else np.flatnonzero(mask)  # one of them differs
            before = mask[asked]
            static = np.stack(
                (
                    _fold(rule[asked], before, byte),
                    _fold(kind[asked], before, byte),
                    _fold(guess[asked], before, byte),
                    _fold(rule[asked], column[asked], before, byte),
                )
            )
            truth = None if new is None else (guess[asked] ^ new[asked]) >> (8 * byte) & 0xFF != 0
            answers = self._decide(self._masks, static, rule[asked] * 4 + byte, truth)
            mask *= 2
            mask[asked] += answers
            if byte == 0:
                mask[mask == 0] = 1
        word, place = np.nonzero(mask[:, None] >> np.arange(3, -1, -1) & 1)
        shift = 8 * (3 - place)
        spoken = guess[word] >> shift & 0xFF
        static = np.stack(
            (
                _fold(rule[word], place),
                _fold(kind[word], mask[word], place),
                _fold(rule[word], spoken, place),
                _fold(guess[word], place),
                _fold(rule[word], place, 9),
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
        steps, starts = self._steps(sets.size)
        for step in range(steps):
            some = starts[starts < sets.size - step] + step
            node = np.ones(some.size, np.int64)
            fixed = static[:, some] << 4
            fixed[4] += np.where(same_word[some], found[some - 1], 0) << 24
            for bit in range(7, -1, -1):
                contexts = ((fixed + node) * 0x9E3779B1 & LOW) >> (32 - BYTE_CONTEXT_BITS)
                truth = None if difference is None else (difference[some] >> bit & 1).astype(np.uint8)
                node = node * 2 + self._bytes.code(self._coder, contexts, sets[some] + bit, truth)
            found[some] = node & 0xFF
        return found

    def _decide(
        self,
        mixer: Mixer,
        contexts: Ints,
        sets: Ints,
        truth: npt.NDArray[np.bool_] | None,
        state: State = _last_bits,
    ) -> Flags:
        """Codes a bit for each item. Each lane works through a run of neighbours.

        Args:
            mixer: For this kind of bits.
            contexts: [inputs, items], without the state.
            sets: Which weights, [items].
            truth: When writing: the bits.
            state: Of what was just coded.
        """
        count = sets.size
        answers = np.zeros(count, np.uint8)
        given = None if truth is None else truth.astype(np.uint8)
        steps, starts = self._steps(count)
        recent = np.zeros(starts.size, np.int64)
        for step in range(steps):
            some = starts[starts < count - step] + step
            recent = recent[: some.size]
            asked = contexts[:, some]
            state(asked, some, recent)
            bits = mixer.code(self._coder, asked, sets[some], None if given is None else given[some])
            answers[some] = bits
            recent = (recent << 1 | bits) & ((1 << RECENT) - 1)
        return answers

    def _steps(self, count: int) -> tuple[int, npt.NDArray[np.intp]]:
        """How many steps it takes to code so many items, and at which of them each lane begins."""
        self._asked += count
        if self._coder.lanes < ENOUGH_LANES and self._asked > self._coder.lanes * MOST_ASKED:
            raise Refused(Reason.LIMIT, "too much changed code for so few lanes")
        steps = -(-count // self._coder.lanes)
        return steps, np.arange(0, count, max(steps, 1))


def _run_contexts(block: _Block, level: int, items: npt.NDArray[np.intp]) -> Ints:
    words = LEVELS[level]
    starts = np.arange(0, block.size, words)
    followed = np.minimum(np.add.reduceat(block.followed, starts, dtype=np.int64)[items], 15)
    rule = block.rules(items * words)
    return np.stack((rule * 16 + followed, rule * 16 + (items & 7), rule)) * STATES
