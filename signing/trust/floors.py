"""Version floors: numbers that never go down, kept outside the metadata folder.

A metadata folder can come back in an older state (a power cut, a restored image of the disk); a floor in the state
database then still refuses what is older than what was once verified.
"""

from collections.abc import Collection
from typing import Protocol


class Floors(Protocol):
    """Durable numbers by name."""

    def read(self, name: str) -> int:
        """The floor; 0 when never set."""
        ...

    def rise(self, name: str, value: int) -> None:
        """Raises the floor to `value`, durable on return. A lower value changes nothing."""
        ...


class MemoryFloors:
    """Floors that last as long as the process: for the conformance client, whose only state is the metadata folder."""

    def __init__(self) -> None:
        self._values: dict[str, int] = {}

    def read(self, name: str) -> int:
        """As `Floors.read`."""
        return self._values.get(name, 0)

    def rise(self, name: str, value: int) -> None:
        """As `Floors.rise`, but not durable."""
        self._values[name] = max(value, self.read(name))


class KeyedFloor:
    """One role's floor under its key set.

    The number is kept once for each key of the set. What holds under a set of keys with threshold t is the t-th highest
    of their numbers: as long as t keys of the old set are left, old signatures could still reach the threshold, so the
    old floor holds; once fewer are left, nothing that was signed under the old set verifies any more, and the floor is
    gone with them. That is the one way in which a fast-forwarded number (ATTACKS.md T4) is ever forgotten.

    Args:
        floors: Where the numbers are kept.
        name: The role: `image/timestamp`.
        keyids: The role's keys as its delegator names them now.
        threshold: The delegator's.
    """

    def __init__(self, floors: Floors, name: str, keyids: Collection[str], threshold: int) -> None:
        self._floors = floors
        self._names = [f"{name}/{keyid}" for keyid in sorted(keyids)]
        self._threshold = threshold

    def value(self) -> int:
        """The floor that holds under this key set."""
        seen = sorted((self._floors.read(name) for name in self._names), reverse=True)
        return seen[self._threshold - 1] if len(seen) >= self._threshold else 0

    def rise(self, value: int) -> None:
        """Raises the floor of every key of the set; writes nothing where it stands as high already."""
        for name in self._names:
            if self._floors.read(name) < value:
                self._floors.rise(name, value)
