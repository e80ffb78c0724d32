"""What pays for a transfer: bytes are judged before they travel, and counted once they came."""

from collections.abc import Callable
from typing import Literal, Protocol

from protocol.errors import StateError

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

    def save(self, count: int) -> None:
        """Takes note of bytes that a patch made needless; durable on return."""
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

    def save(self, count: int) -> None:
        """As `Purse`."""
