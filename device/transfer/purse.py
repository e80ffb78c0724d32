"""What pays for a transfer: bytes are judged before they travel, and counted once they came."""

from collections.abc import Callable
from typing import Literal, Protocol

from protocol.errors import StateError
from protocol.ids import Digest

Way = Literal["delta", "full"]


class OverBudgetError(StateError):
    """More bytes would travel than may. Nothing is wrong with them: the transfer waits.

    Args:
        message: For a person, with both numbers.
        needs_bytes: What would still have to travel.
    """

    def __init__(self, message: str, needs_bytes: int) -> None:
        super().__init__(message)
        self.needs_bytes = needs_bytes


class Purse(Protocol):
    """The bytes that one release may take. All methods block."""

    def check(self, needs_bytes: int) -> None:
        """Holds what would still have to travel against what is left.

        Raises:
            OverBudgetError: It is more.
        """
        ...

    def spend(self, count: int, way: Way) -> None:
        """Takes note of bytes that came; durable on return."""
        ...

    def promise(self, artifact: Digest, length_bytes: int, saves_bytes: int) -> None:
        """Says what a patch saves once its result is in the store, which is what happens next; durable on return.

        One promise is open at a time, and `settle` closes it: a cut in between neither loses a saving nor counts it
        twice.
        """
        ...

    def settle(self, is_here: Callable[[Digest, int], bool]) -> None:
        """Counts what was promised if the artifact came, and forgets it if it did not. Safe to repeat.

        Args:
            is_here: Whether the store has an artifact of that length.
        """
        ...


class Unlimited:
    """A purse that counts and never says no.

    Args:
        count: Told of received bytes.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count

    def check(self, needs_bytes: int) -> None:
        """As `Purse`."""

    def spend(self, count: int, way: Way) -> None:
        """As `Purse`."""
        self._count(count)

    def promise(self, artifact: Digest, length_bytes: int, saves_bytes: int) -> None:
        """As `Purse`: savings are not counted here."""

    def settle(self, is_here: Callable[[Digest, int], bool]) -> None:
        """As `Purse`."""
