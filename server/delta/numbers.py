"""The writing side of `protocol.delta.numbers`."""

from protocol.delta.numbers import RANGE_TOP, NumberShape


class NumberWriter(NumberShape):
    """An adaptive binary range coder: `low` is the lower end of what is left, carries run back into bytes written."""

    def __init__(self) -> None:
        super().__init__()
        self._low = 0
        self._range = 0xFFFFFFFF
        self._out = bytearray()

    def given(self, probability: int, bit: int = 0) -> int:
        """As `NumberShape`."""
        bound = (self._range >> 16) * probability
        if bit:
            self._low += bound
            self._range -= bound
        else:
            self._range = bound
        while self._range < RANGE_TOP:
            self._shift()
        return bit

    def plain(self, bits: int, value: int = 0) -> int:
        """As `NumberShape`."""
        for place in range(bits - 1, -1, -1):
            self._range >>= 1
            if value >> place & 1:
                self._low += self._range
            while self._range < RANGE_TOP:
                self._shift()
        return value

    def finish(self) -> bytes:
        """The bytes: the roundest number in the range that is left, without the zeros at its end."""
        for kept in (8, 16, 24, 32):
            unit = 1 << (32 - kept)
            value = -(-self._low // unit) * unit
            if value < self._low + self._range:
                break
        self._low = value
        for _ in range(4):
            self._shift()
        return bytes(self._out).rstrip(b"\0")

    def _shift(self) -> None:
        if self._low >> 32:
            at = len(self._out) - 1
            while self._out[at] == 0xFF:
                self._out[at] = 0
                at -= 1
            self._out[at] += 1
            self._low &= 0xFFFFFFFF
        self._out.append(self._low >> 24)
        self._low = self._low << 8 & 0xFFFFFFFF
        self._range = self._range << 8
