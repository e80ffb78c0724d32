"""What a group does, one operation after the other: the output grows forward, the base is read at any place.

Both directions share `code_operation`, so what is written can be read. Every number is held against the base, the group
and its streams before it is used.
"""

from typing import Final, NamedTuple

from protocol.delta.numbers import Numbers
from protocol.errors import Reason, Refused

COPY: Final = 0  # bytes of the base
FILL: Final = 1  # one byte, many times
TAKE: Final = 8  # from here on: the next bytes of stream `kind - TAKE`
KIND_BITS: Final = 6
OPERATION_NAMES: Final = {COPY: "copy", FILL: "fill"}

# Contexts of the numbers, each a count of its own.
_KIND, _JUMP, _SKIP, _LENGTH, _BYTE = range(5)

FOLLOWS, ALONGSIDE, ELSEWHERE = range(3)
"""Where an operation reads the base: right behind the last one that read it, as far from the output as the last one
was, or somewhere else."""


class Operation(NamedTuple):
    """One operation.

    Args:
        kind: `COPY`, `FILL`, or `TAKE` and the number of a stream.
        length: Of its output, in bytes.
        base: Where it reads the base, or -1 when it does not.
        value: The byte of `FILL`.
    """

    kind: int
    length: int
    base: int = -1
    value: int = 0


class Place:
    """Where the coding of a group's operations stands: what the next one is likely to be.

    Args:
        base_bytes: Length of the base.
        output: Where the group's output begins in the result.
        takes_base: For each stream whether its bytes are made from bytes of the base.
    """

    def __init__(self, base_bytes: int, output: int, takes_base: tuple[bool, ...]) -> None:
        self.base_bytes = base_bytes
        self.takes_base = takes_base
        self.output = output
        self.base_end = output
        self.displacement = 0
        self.last_kind = 0

    def reads_base(self, kind: int) -> bool:
        """Whether an operation of this kind reads the base."""
        return kind == COPY or (kind >= TAKE and self.takes_base[kind - TAKE])

    def after(self, operation: Operation) -> None:
        """Moves on behind an operation."""
        if operation.base >= 0:
            self.base_end = operation.base + operation.length
            self.displacement = operation.base - self.output
        self.output += operation.length
        self.last_kind = operation.kind


def code_operation(numbers: Numbers, place: Place, given: Operation | None = None) -> Operation:
    """Codes one operation and moves `place` behind it.

    Args:
        numbers: Reader or writer.
        place: Where the coding stands.
        given: The operation when writing.

    Raises:
        Refused: `LIMIT`, `METADATA`: it reads outside of the base, or names no stream.
    """
    kind = numbers.symbol(_KIND << 6 | place.last_kind, KIND_BITS, given.kind if given else 0)
    if COPY != kind != FILL and not TAKE <= kind < TAKE + len(place.takes_base):
        raise Refused(Reason.METADATA, f"operation {kind} in a patch")
    base = -1
    if place.reads_base(kind):
        base = _code_base(numbers, place, kind, given.base if given else 0)
    length = 1 + numbers.unsigned(_LENGTH << 6 | kind, given.length - 1 if given else 0)
    value = numbers.symbol(_BYTE << 6, 8, given.value if given else 0) if kind == FILL else 0
    if base >= 0 and base + length > place.base_bytes:
        raise Refused(Reason.LIMIT, "a patch reads behind the end of its base")
    operation = Operation(kind, length, base, value)
    place.after(operation)
    return operation


def _code_base(numbers: Numbers, place: Place, kind: int, given: int) -> int:
    alongside = place.displacement + place.output
    jump = FOLLOWS if given == place.base_end else ALONGSIDE if given == alongside else ELSEWHERE
    jump = numbers.symbol(_JUMP << 6 | kind, 2, jump)
    match jump:
        case 0:
            base = place.base_end
        case 1:
            base = alongside
        case 2:
            base = place.base_end + numbers.signed(_SKIP << 6 | kind, given - place.base_end)
        case _:
            raise Refused(Reason.METADATA, "a patch reads its base in an unknown way")
    if not 0 <= base < place.base_bytes:
        raise Refused(Reason.LIMIT, "a patch reads outside of its base")
    return base
