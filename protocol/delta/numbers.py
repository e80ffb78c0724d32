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
Node = tuple[int, int]
"""What a node of a context has learnt: the probability of a 0 in units of 1/65536, and how many bits it has seen."""
UNKNOWN: Final[Node] = (CERTAIN // 2, 0)
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


class NumberShape(ABC):
    """How numbers are made of bits; the same in both directions."""

    def __init__(self) -> None:
        self._contexts: dict[int, list[Node]] = {}

    @abstractmethod
    def given(self, probability: int, bit: int = 0) -> int:
        """As `Numbers`."""

    def expect(self, context: int, zeros: Mapping[int, int]) -> None:
        """As `Numbers`."""
        if context not in self._contexts:
            nodes = self._nodes(context, max(zeros).bit_length())
            for node, probability in zeros.items():
                nodes[node] = probability, EXPECTED

    @abstractmethod
    def plain(self, bits: int, value: int = 0) -> int:
        """As `Numbers`."""

    def symbol(self, context: int, bits: int, value: int = 0) -> int:
        """As `Numbers`."""
        nodes = self._nodes(context, bits)
        node = 1
        for place in range(bits - 1, -1, -1):
            probability, seen = nodes[node]
            bit = self.given(probability, value >> place & 1)
            nodes[node] = _learnt(probability, seen, bit)
            node = node << 1 | bit
        return node - (1 << bits)

    def unsigned(self, context: int, value: int = 0) -> int:
        """As `Numbers`."""
        context <<= 8
        width = self.symbol(context, CLASS_BITS, min(value.bit_length(), WIDE))
        if width == WIDE:
            width = self.symbol(context | WIDE, WIDE_BITS, value.bit_length())
        if width < 2:
            return width
        learnt = min(width - 1, LEARNT_BITS)
        rest = width - 1 - learnt
        top = 1 << learnt | self.symbol(context | width, learnt, value >> rest & ((1 << learnt) - 1))
        return top << rest | self.plain(rest, value & ((1 << rest) - 1)) if rest else top

    def signed(self, context: int, value: int = 0) -> int:
        """As `Numbers`."""
        size = self.unsigned(context, abs(value))
        return -size if size and self.symbol(context << 8 | 0xFF, 1, int(value < 0)) else size

    def _nodes(self, context: int, bits: int) -> list[Node]:
        """What a context has learnt for symbols of so many bits, or of more."""
        nodes = self._contexts.setdefault(context, [])
        nodes.extend([UNKNOWN] * ((1 << bits) - len(nodes)))
        return nodes


def _learnt(probability: int, seen: int, bit: int) -> Node:
    """A node behind a bit: its probability moved towards it."""
    step = RATES[seen]
    if bit:
        probability -= probability * step >> 16
    else:
        probability += (CERTAIN - probability) * step >> 16
    return min(max(probability, LEAST), MOST), min(seen + 1, SLOWEST)


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
            self._range <<= 8
            self._code = (self._code << 8 | self._byte()) & 0xFFFFFFFF
        return bit

    def symbol(self, context: int, bits: int, value: int = 0) -> int:
        """As `Numbers`: all in one place, with few names to look up, because this is where the time goes."""
        end = 1 << bits
        nodes = self._contexts.get(context)
        if nodes is None or len(nodes) < end:
            nodes = self._nodes(context, bits)
        low, left, rates = self._code, self._range, RATES
        node = 1
        while node < end:
            probability, seen = nodes[node]
            bound = (left >> 16) * probability
            if low < bound:
                left = bound
                probability += (CERTAIN - probability) * rates[seen] >> 16
                if probability > MOST:  # noqa: PLR1730 - a call takes as long as the rest
                    probability = MOST
                nodes[node] = probability, seen + 1 if seen < SLOWEST else seen
                node += node
            else:
                low -= bound
                left -= bound
                probability -= probability * rates[seen] >> 16
                if probability < LEAST:  # noqa: PLR1730 - as above
                    probability = LEAST
                nodes[node] = probability, seen + 1 if seen < SLOWEST else seen
                node += node + 1
            while left < RANGE_TOP:
                left <<= 8
                low = (low << 8 | self._byte()) & 0xFFFFFFFF
        self._code, self._range = low, left
        return node - end

    def plain(self, bits: int, value: int = 0) -> int:
        """As `NumberShape`."""
        low, left = self._code, self._range
        value = 0
        for _ in range(bits):
            left >>= 1
            value += value
            if low >= left:
                low -= left
                value += 1
            while left < RANGE_TOP:
                left <<= 8
                low = (low << 8 | self._byte()) & 0xFFFFFFFF
        self._code, self._range = low, left
        return value

    def _byte(self) -> int:
        at = self._next
        if at >= len(self._data) + 8:  # a writer leaves no more than four zeros away
            raise Refused(Reason.LENGTH, "operations that end too early")
        self._next = at + 1
        return self._data[at] if at < len(self._data) else 0
