"""Bytes of the base with few changes, as in compiled modules and other serialised data.

What changes there are numbers behind a mark: an index grew by one because an object or a name came before it. Where the
same number stood behind the same mark before, it most likely changed alike. So places behind busy marks are asked one
by one, each by what its number became before; changes at other places are counted from one to the next.

Numbers in text are names of things that were counted, in models that were exported again above all: all that come
after a new one grew by one. Where a chunk has such numbers, each is asked first; the rest is said of what they give.

The bytes are worked on in chunks. In a chunk without changes, which is the rule, no place is looked at.
"""

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.numbers import NumberReader, Numbers
from protocol.errors import Reason, Refused

Bytes = npt.NDArray[np.uint8]

CHUNK_BYTES: Final = 1 << 12
BUSY_MARKS: Final = b"rde|jtZ}"
"""What is busy at first: in CPython's modules a reference to an object, and instructions that take an index."""
BUSY_SHARE: Final = 64  # a mark is busy as long as one place in so many changes
_REMEMBERED: Final = 1 << 14  # numbers; then it begins anew, so that memory is bounded

# Contexts: symbols below, numbers 256 times higher.
_CHANGED, _ASKED, _MARK, _SAME_STEP, _STEP, _COUNTED, _AS_EXPECTED = (1024 * field for field in range(7))
_OTHERS, _SKIPPED, _SHIFT = 256, 512, 768

_NUMBER: Final = re.compile(rb"[0-9]{1,9}")
_NAME_BYTES: Final = 3  # in front of a number, that tell what it counts


class Edits:
    """What is learnt over a stream.

    Args:
        numbers: Reader or writer.
        context: Of the first number; the others are above.
    """

    def __init__(self, numbers: Numbers, context: int = 0) -> None:
        self._numbers = numbers
        self._context = context
        self._before = 0  # the last byte of the base in the chunk before
        self._chunk_changed = 0
        self._changes = [0] * 256  # of each mark, and its places in chunks with changes; halved now and then
        self._places = [0] * 256
        for mark in BUSY_MARKS:
            self._changes[mark] = 1
        self._flags = [0] * 256  # of each mark whether the last place asked changed
        self._steps = [1] * 256  # of each mark by how much the last one changed
        self._became: dict[int, int] = {}  # by mark and number: by how much it changed last, 0 if it did not
        self._pairs: dict[int, int] = {}  # the same with the byte behind the number
        self._counted = 0  # whether the last chunk with changes had numbers in text
        self._shifts: dict[bytes, int] = {}  # by what is in front of a number, and by both: how it changed last

    def code(self, reference: Bytes, target: Bytes | None) -> Bytes:
        """Codes a chunk.

        Args:
            reference: At most `CHUNK_BYTES` of the base.
            target: What it becomes, when writing.

        Returns:
            What it becomes.
        """
        before = self._before
        self._before = int(reference[-1])
        changed = int(target is not None and not np.array_equal(reference, target))
        self._chunk_changed = self._numbers.symbol(self._context + (_CHANGED | self._chunk_changed), 1, changed)
        if not self._chunk_changed:
            return reference.copy()
        if len(self._shifts) > _REMEMBERED:
            self._shifts.clear()
        reference = self._code_counted(reference, target)
        marks = np.empty_like(reference)
        marks[0] = before
        marks[1:] = reference[:-1]
        output = reference.copy()
        pairs = zip(self._changes, self._places, strict=True)
        asked = np.array([changes * BUSY_SHARE > places for changes, places in pairs])[marks]
        self._code_busy(np.flatnonzero(asked), marks, reference, target, output)
        self._code_others(asked, marks, reference, target, output)
        self._learn(marks, reference, output)
        return output

    def _code_counted(self, reference: Bytes, target: Bytes | None) -> Bytes:
        """Numbers in text. Gives the chunk with what became of them."""
        old = reference.tobytes()
        new = target.tobytes() if target is not None else old
        found = list(_NUMBER.finditer(old))
        worth = False
        if target is not None:
            changed = [
                new[each.start() : each.end()] for each in found if new[each.start() : each.end()] != each.group()
            ]
            worth = 2 * sum(number.isdigit() for number in changed) > len(changed)
        self._counted = self._numbers.symbol(self._context + (_COUNTED | self._counted), 1, int(worth))
        if not self._counted:
            return reference
        output = bytearray(old)
        for each in found:
            start, end = each.span()
            name = old[max(start - _NAME_BYTES, 0) : start] + b"#"
            whole = name + each.group()
            known = 2 if whole in self._shifts else int(name in self._shifts)
            expected = self._shifts.get(whole, self._shifts.get(name, 0))
            became = new[start:end]
            shift = int(became) - int(each.group()) if became.isdigit() else 0
            context = self._context + (_AS_EXPECTED | known << 1 | (expected != 0))
            if self._numbers.symbol(context, 1, int(shift != expected)):
                expected = self._numbers.signed(self._context + _SHIFT, shift)
            self._shifts[name] = self._shifts[whole] = expected
            if expected:
                moved = (int(each.group()) + expected) % 10 ** (end - start)
                output[start:end] = b"%0*d" % (end - start, moved)
        return np.frombuffer(bytes(output), np.uint8)

    def _code_busy(
        self, places: npt.NDArray[np.intp], marks: Bytes, reference: Bytes, target: Bytes | None, output: Bytes
    ) -> None:
        numbers, flags, steps = self._numbers, self._flags, self._steps
        became, pairs = self._became, self._pairs
        old = reference.tolist()
        new = target.tolist() if target is not None else old
        old.append(0)
        if len(became) + len(pairs) > _REMEMBERED:
            became.clear()
            pairs.clear()
        for place, mark in zip(places.tolist(), marks[places].tolist(), strict=True):
            number = old[place]
            one = mark << 8 | number
            two = one << 8 | old[place + 1]
            step_one, step_two = became.get(one, -1), pairs.get(two, -1)
            known = (min(step_one, 1) + 1) * 3 + min(step_two, 1) + 1
            step = new[place] - number & 0xFF
            flag = numbers.symbol(self._context + (_ASKED | known << 1 | flags[mark]), 1, int(step != 0))
            flags[mark] = flag
            if flag:
                likely = step_two if step_two > 0 else step_one if step_one > 0 else steps[mark]
                if numbers.symbol(self._context + (_SAME_STEP | known), 1, int(step != likely)):
                    likely = numbers.symbol(self._context + _STEP, 8, step)
                step = likely
                steps[mark] = step
                output[place] = number + step & 0xFF
            else:
                step = 0
            became[one] = pairs[two] = step

    def _code_others(
        self, asked: npt.NDArray[np.bool_], marks: Bytes, reference: Bytes, target: Bytes | None, output: Bytes
    ) -> None:
        """Changes at places that were not asked, by the count of such places between them."""
        others = np.flatnonzero(~asked)
        changed = np.flatnonzero(reference[others] != target[others]) if target is not None else np.empty(0, np.intp)
        at = 0
        for number in range(self._numbers.unsigned(self._context + _OTHERS, len(changed))):
            given = int(changed[number]) if target is not None else 0
            at += self._numbers.unsigned(self._context + _SKIPPED, given - at)
            if at >= others.size:
                raise Refused(Reason.LENGTH, "a patch changes bytes behind the end of what it reads")
            place = int(others[at])
            at += 1
            mark, old = int(marks[place]), int(reference[place])
            step = int(target[place]) - old & 0xFF if target is not None else 0
            likely = self._steps[mark]
            if self._numbers.symbol(self._context + (_SAME_STEP | 16), 1, int(step != likely)):
                likely = self._numbers.symbol(self._context + (_STEP | 256), 8, step)
            self._steps[mark] = likely
            output[place] = old + likely & 0xFF

    def _learn(self, marks: Bytes, reference: Bytes, output: Bytes) -> None:
        changes = np.bincount(marks[reference != output], minlength=256).tolist()
        places = np.bincount(marks, minlength=256).tolist()
        for mark in range(256):
            self._changes[mark] += changes[mark]
            self._places[mark] += places[mark]
            if self._places[mark] > 4096:
                self._changes[mark] = self._changes[mark] + 1 >> 1
                self._places[mark] >>= 1


def open_edits(coded: bytes, references: Iterable[bytes]) -> bytes:
    """Decodes a stream.

    Args:
        coded: As `server.delta` wrote it.
        references: The bytes of the base, in pieces.

    Returns:
        What they become.

    Raises:
        Refused: `LENGTH`: it ends too early, or a change lies outside.
    """
    edits = Edits(NumberReader(coded))
    output = bytearray()
    held = bytearray()
    for piece in references:
        held += piece
        whole = len(held) // CHUNK_BYTES * CHUNK_BYTES
        for at in range(0, whole, CHUNK_BYTES):
            output += edits.code(np.frombuffer(bytes(held[at : at + CHUNK_BYTES]), np.uint8), None).tobytes()
        del held[:whole]
    if held:
        output += edits.code(np.frombuffer(bytes(held), np.uint8), None).tobytes()
    return bytes(output)
