"""When machines may activate a release: the options that rollouts and kits share, in words for people."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click

from protocol.errors import StateError
from protocol.objects import Conditions

Command = TypeVar("Command", bound=Callable[..., Any])

_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


def activation_options(command: Command) -> Command:
    """Adds `--not-before`, `--activate-before` and `--window` to a command."""
    for option in (
        click.option("--window", metavar="FROM-TO", help="Of each day, UTC, such as 22:00-04:30."),
        click.option("--activate-before", metavar="TIME", help="Machines activate no later."),
        click.option(
            "--not-before", metavar="TIME", help="Machines activate no earlier: 2027-03-01, or 2027-03-01T06:00 (UTC)."
        ),
    ):
        command = option(command)
    return command


def parse_moment(text: str | None) -> int | None:
    """Reads a day or a time of ISO 8601; UTC unless it names another offset. Milliseconds since 1970.

    Raises:
        StateError: With what is understood.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise StateError(f"{text!r} is no time", hint="such as 2027-03-01, or 2027-03-01T06:00 (UTC)") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    at_ms = int(moment.timestamp() * 1000)
    if at_ms < 0:
        raise StateError(f"{text!r} lies before 1970")
    return at_ms


def parse_window(text: str | None) -> tuple[int, int] | None:
    """Reads `22:00-04:30` into minutes of the day, UTC; over midnight is fine.

    Raises:
        StateError: With what is understood.
    """
    if text is None:
        return None
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise StateError(f"{text!r} is no window", hint="times of the day, UTC, such as 22:00-04:30")
    from_h, from_min, to_h, to_min = map(int, found.groups())
    begin, end = from_h * 60 + from_min, to_h * 60 + to_min
    if begin == end:
        raise StateError(f"the window {text!r} is never open", hint="leave --window away for the whole day")
    return begin, end


def activation_lines(conditions: Conditions) -> list[str]:
    """What machines wait for, for people."""
    lines = []
    if conditions.not_before_ms is not None:
        lines.append(f"machines activate it from {show_moment(conditions.not_before_ms)}")
    if conditions.activate_before_ms is not None:
        lines.append(f"machines activate it before {show_moment(conditions.activate_before_ms)}")
    if conditions.window_utc is not None:
        begin, end = (f"{minute // 60:02}:{minute % 60:02}" for minute in conditions.window_utc)
        lines.append(f"machines activate it between {begin} and {end} UTC")
    if conditions.signals_clear:
        lines.append(f"machines activate it while these are off: {', '.join(conditions.signals_clear)}")
    return lines


def show_moment(at_ms: int) -> str:
    """A time for people."""
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%d %H:%M} UTC"
