"""What every command of `headland` gets: the workspace, the time, the passphrase, and how to reach the server."""

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import click
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn

from signing.checker import Checker
from signing.console import progress_console
from signing.sealed_file import RandomBytes, passphrase_in
from signing.server_client import Operator
from signing.server_client import Progress as Advance
from signing.workspace import ServerAccess, Workspace


@dataclass
class App:
    """The composition root's choices; tests make their own.

    Args:
        workspace_path: The folder.
        passphrase_file: Whose first line answers every question for a passphrase or a PIN; None asks the person.
        now: The time, aware.
        random: `os.urandom`.
        checker: Tries models.
        key_cost: scrypt's n for new key files.
        connect: Makes a client.
        environment: Of the process: where container engines and credentials of registries are.
    """

    workspace_path: Path
    passphrase_file: Path | None
    now: Callable[[], datetime]
    random: RandomBytes
    checker: Checker
    key_cost: int
    connect: Callable[[ServerAccess], Operator]
    environment: Mapping[str, str] = field(default_factory=dict)

    def workspace(self) -> Workspace:
        """The workspace, which must be there."""
        return Workspace.open(self.workspace_path)

    def server(self) -> contextlib.AbstractContextManager[Operator]:
        """A client for the server that the workspace knows; closed at the end of the block."""
        return contextlib.closing(self.connect(self.workspace().server_access()))

    def secret(self, what: str, *, new: bool = False) -> str:
        """Asks for a passphrase or PIN.

        Args:
            what: For the prompt.
            new: Asked twice.

        Raises:
            StateError: The passphrase file is empty, or no text.
        """
        if self.passphrase_file is not None:
            return passphrase_in(self.passphrase_file)
        answer: str = click.prompt(what, hide_input=True, confirmation_prompt=new, err=True)
        return answer


pass_app = click.make_pass_decorator(App)


class LineBar:
    """Shows how many lines of a long answer came, as a bar on stderr."""

    def __init__(self, what: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, console=progress_console(), disable=not os.isatty(2))
        self._task = self._progress.add_task(what, total=None)

    def advance(self, lines: int, total: int) -> None:
        """Says how many came, of how many."""
        self._progress.update(self._task, completed=lines, total=total)

    def __enter__(self) -> "LineBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class UploadBars:
    """Shows uploads as bars on stderr; implements `signing.publishing.Meter`."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._progress = Progress(*columns, console=progress_console(), disable=not os.isatty(2))

    def start(self, what: str, total_bytes: int) -> Advance:
        """Adds a bar."""
        task = self._progress.add_task(what, total=total_bytes)

        def advance(length: int) -> None:
            self._progress.update(task, advance=length)

        return advance

    def __enter__(self) -> "UploadBars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
