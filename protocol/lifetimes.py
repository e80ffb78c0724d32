"""The marks of a life: at half of it something is due, at 80 % urgent. One rule for roles, keys and certificates."""

from collections.abc import Mapping
from typing import Final, Literal

State = Literal["fresh", "due", "urgent", "expired"]

MARKS: Final = (0.5, 0.8, 1.0)
"""Shares of a life at which an alarm is raised."""

STATES: Final[Mapping[float, State]] = {0.0: "fresh", 0.5: "due", 0.8: "urgent", 1.0: "expired"}


def passed(share: float) -> float:
    """The highest mark that a share of a life has reached; 0 when none."""
    return max((mark for mark in MARKS if share >= mark), default=0.0)
