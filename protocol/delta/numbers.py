"""Entropy coding of few numbers: an adaptive binary range coder in plain Python.

What the operations of a group need: every bit is coded with a probability that its context has learnt. It learns within
a few numbers, which matters when a whole patch is a kilobyte, and it is slow (about a million bits a second), which
does not, as long as numbers are few. `protocol.delta.lanes` is for many.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final, Protocol

from protocol.errors import Reason, Refused

RANGE_TOP: Final = 1 << 24  # the range is renormalised by whole bytes when it falls below
CERTAIN: Final = 1 << 16  # probabilities are in units of 1/65536
LEAST: Final = 48  # no bit is impossible
MOST: Final = CERTAIN - LEAST
RATES: Final = tuple(2 * CERTAIN // (2 * seen + 3) for seen in range(30))
"""How far a probability moves towards the bit just coded: quickly at first, a thirtieth in the end."""
SLOWEST: Final = len(RATES) - 1
UNKNOWN: Final = (CERTAIN // 2, 0)
EXPECTED: Final = 1  # what a context that is told its probability counts as having seen
CLASS_BITS: Final = 5  # most numbers have less than 31 bits
WIDE: Final = 31  # says that the bit length follows
WIDE_BITS: Final = 6  # none has more than 63
LEARNT_BITS: Final = 3  # of a number's bits below its highest one, so many have contexts; the rest are noise


class Numbers(Protocol):
    """One direction: `NumberReader` here, the writer in `server.delta`. Values are ignored when reading."""

    def symbol(self, context: int, bits: int, value: int = 0) -> int:
        """A number of exactly `bits` bits, each in the context of those before it."""
        ...

    def unsigned(self, context: int, value: int = 0) -> int:
        """A number from 0 to 2^62, small ones cheaply. `context` may be any small number: it names what is counted."""
        ...

    def signed(self, context: int, value: int = 0) -> int:
        """A number whose magnitude is less than 2^62."""
        ...

    def plain(self, bits: int, value: int = 0) -> int:
        """A number of exactly `bits` bits that nothing is known about."""
        ...

    def given(self, probability: int, bit: int = 0) -> int:
        """One bit that is a 0 with a probability, in units of 1/65536, that the caller knows better."""
        ...

    def expect(self, context: int, zeros: Mapping[int, int]) -> None:
        """Tells of a symbol's context, before its first use, the probability of a 0 at some of its nodes."""
        ...


class Probabilities:
    """What the contexts have learnt: for each the probability of a 0 and how often it was asked."""

    def __init__(self) -> None:
        self.contexts: dict[int, tuple[int, int]] = {}

    def get(self, context: int) -> tuple[int, int]:
        """Probability of a 0 in units of 1/65536, and how much it has seen."""
        return self.contexts.get(context, UNKNOWN)

    def learn(self, context: int, probability: int, seen: int, bit: int) -> None:
        """Moves a context's probability towards the bit just coded."""
        step = RATES[seen]
        if bit:
            probability -= probability * step >> 16
        else:
            probability += (CERTAIN - probability) * step >> 16
        probability = min(max(probability, LEAST), MOST)
        self.contexts[context] = (probability, min(seen + 1, SLOWEST))


class NumberShape(ABC):
    """How numbers are made of bits; the same in both directions."""

    def __init__(self) -> None:
        self._known = Probabilities()

    @abstractmethod
    def given(self, probability: int, bit: int = 0) -> int:
        """As `Numbers`."""

    def bit(self, context: int, bit: int) -> int:
        """Codes one bit in its context."""
        probability, seen = self._known.get(context)
        bit = self.given(probability, bit)
        self._known.learn(context, probability, seen, bit)
        return bit

    def expect(self, context: int, zeros: Mapping[int, int]) -> None:
        """As `Numbers`."""
        for node, probability in zeros.items():
            self._known.contexts.setdefault(context << 16 | node, (probability, EXPECTED))

    @abstractmethod
    def plain(self, bits: int, value: int = 0) -> int:
        """As `Numbers`."""

    def symbol(self, context: int, bits: int, value: int = 0) -> int:
        """As `Numbers`."""
        node = 1
        for place in range(bits - 1, -1, -1):
            node = node << 1 | self.bit(context << 16 | node, value >> place & 1)
        return node - (1 << bits)

    def unsigned(self, context: int, value: int = 0) -> int:
        """As `Numbers`."""
        width = self.symbol(context << 8, CLASS_BITS, min(value.bit_length(), WIDE))
        if width == WIDE:
            width = self.symbol(context << 8 | WIDE, WIDE_BITS, value.bit_length())
        if width < 2:
            return width
        learnt = min(width - 1, LEARNT_BITS)
        rest = width - 1 - learnt
        top = self.symbol(context << 8 | width, learnt, value >> rest & ((1 << learnt) - 1))
        return ((1 << learnt | top) << rest) | self.plain(rest, value & ((1 << rest) - 1))

    def signed(self, context: int, value: int = 0) -> int:
        """As `Numbers`."""
        size = self.unsigned(context, abs(value))
        return -size if size and self.bit((context << 8 | 0xFF) << 16, int(value < 0)) else size


class NumberReader(NumberShape):
    """Decodes what `server.delta.numbers.NumberWriter` wrote.

    Args:
        data: All of it. Zeros at its end are not sent, so reading on gives zeros, within bounds.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data
        self._next = 4
        self._range = 0xFFFFFFFF
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def given(self, probability: int, bit: int = 0) -> int:
        """As `NumberShape`."""
        bound = (self._range >> 16) * probability
        if self._code < bound:
            self._range = bound
            bit = 0
        else:
            self._code -= bound
            self._range -= bound
            bit = 1
        while self._range < RANGE_TOP:
            self._shift()
        return bit

    def symbol(self, context: int, bits: int, value: int = 0) -> int:
        """As `Numbers`: `bit` for each bit, in one place because this is where the time goes."""
        contexts, rates = self._known.contexts, RATES
        low, left = self._code, self._range
        context <<= 16
        node = 1
        for _ in range(bits):
            key = context | node
            probability, seen = contexts.get(key, UNKNOWN)
            bound = (left >> 16) * probability
            if low < bound:
                left = bound
                node += node
                probability += (CERTAIN - probability) * rates[seen] >> 16
                probability = min(probability, MOST)
            else:
                low -= bound
                left -= bound
                node += node + 1
                probability -= probability * rates[seen] >> 16
                probability = max(probability, LEAST)
            contexts[key] = probability, seen + 1 if seen < SLOWEST else seen
            while left < RANGE_TOP:
                left <<= 8
                low = (low << 8 | self._byte()) & 0xFFFFFFFF
        self._code, self._range = low, left
        return node - (1 << bits)

    def plain(self, bits: int, value: int = 0) -> int:
        """As `NumberShape`."""
        value = 0
        for _ in range(bits):
            self._range >>= 1
            bit = int(self._code >= self._range)
            self._code -= self._range * bit
            value = value << 1 | bit
            while self._range < RANGE_TOP:
                self._shift()
        return value

    def _shift(self) -> None:
        self._range <<= 8
        self._code = (self._code << 8 | self._byte()) & 0xFFFFFFFF

    def _byte(self) -> int:
        at = self._next
        if at >= len(self._data) + 8:  # a writer leaves no more than four zeros away
            raise Refused(Reason.LENGTH, "operations that end too early")
        self._next = at + 1
        return self._data[at] if at < len(self._data) else 0
