"""How the three commands talk: errors as two lines, results as a table for people or one JSON object for programs.

Leaves to the commands what they say; here is only how it comes out, so that all three are alike.
"""

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import msgspec

from protocol.errors import HeadlandError, Refused
from protocol.messages import ErrorAnswer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

P = ParamSpec("P")
R = TypeVar("R")

PIPED_COLUMNS = 160
JSON_PARAMETER = "as_json"
"""The name under which a command gets the flag of `json_option`."""


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json` to a command, passed as `as_json`."""
    return click.option("--json", JSON_PARAMETER, is_flag=True, help="Print one JSON object for a program.")(command)


def headland_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turns errors raised on purpose into `error: ...` and `hint: ...` on stderr and the exit code of their class.

    With `--json`, an `ErrorAnswer` goes to stdout as well. Put it nearest to the function, under click's decorators.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except HeadlandError as error:
            reason = error.reason.value if isinstance(error, Refused) else ""
            _complain(error.message, error.hint, reason, as_json=bool(kwargs.get(JSON_PARAMETER)))
            sys.exit(error.exit_code)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            text = f"{error.strerror or error}{where}"
            _complain(text, "", "", as_json=bool(kwargs.get(JSON_PARAMETER)))
            sys.exit(HeadlandError.exit_code)

    return run


def emit(as_json: bool, value: Any, human: "RenderableType") -> None:
    """Prints a command's result on stdout.

    Args:
        as_json: Whether a program reads it.
        value: What msgspec can encode: a record, a dict, a list.
        human: What a person sees instead: text, or a rich table. Both as they are: what should be bold is a `Text`.
    """
    if as_json:
        click.echo(msgspec.json.encode(value))
    elif isinstance(human, str):
        click.echo(human)
    else:
        from rich.console import Console  # late: many commands print no table, and memory counts

        # Piped tables go into logs and editors, which scroll; 80 columns would cut names there.
        width = None if sys.stdout.isatty() else PIPED_COLUMNS
        # No markup: names and reasons come from other machines, and `[/]` in one would end the command.
        Console(width=width, highlight=False, markup=False).print(_uncut(human))


def _uncut(human: "RenderableType") -> "RenderableType":
    """The same, with cells that wrap where the terminal is narrow: half a name in an ellipsis tells nobody which."""
    from rich.console import Group
    from rich.table import Table

    for each in human.renderables if isinstance(human, Group) else (human,):
        if isinstance(each, Table):
            for column in each.columns:
                column.overflow = "fold"
    return human


def progress_console() -> "Console":
    """The console for progress and remarks: stderr, so that stdout stays for the result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _complain(message: str, hint: str, reason: str, *, as_json: bool) -> None:
    click.echo(f"error: {message}", err=True)
    if hint and hint not in message:  # what names the nearest right name says it once
        click.echo(f"hint: {hint}", err=True)
    if as_json:
        click.echo(msgspec.json.encode(ErrorAnswer(error=message, reason=reason, hint=hint)))
