"""The commands' help as it stands in README.md: what the test checks and `scripts/readme-help` writes."""

import re
from collections.abc import Iterator
from typing import Any

import click

import device.cli
import server.cli
import signing.cli

COMMANDS = {
    "headland": signing.cli.main,
    "headland-server": server.cli.main,
    "headland-device": device.cli.main,
}
WIDTH = 100
BLOCK = re.compile(r"<!-- help: ([a-z-]+) -->\n.*?<!-- end of help -->", re.DOTALL)


def fill(page: str) -> str:
    """The page with each block's help made anew."""
    return BLOCK.sub(lambda match: block(match.group(1)), page)


def block(name: str) -> str:
    """The block of one command: its own help, then that of each of its groups."""
    command = COMMANDS[name]
    texts = "\n\n".join(_helps(command, click.Context(command, info_name=name, **_how(command))))
    return f"<!-- help: {name} -->\n```\n{texts}\n```\n<!-- end of help -->"


def _how(command: click.Command) -> dict[str, Any]:
    return {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}


def _helps(command: click.Command, context: click.Context) -> Iterator[str]:
    lines = [f"$ {context.command_path} --help", *command.get_help(context).splitlines()]
    yield "\n".join(line.rstrip() for line in lines)
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            child = command.get_command(context, name)
            if isinstance(child, click.Group):
                yield from _helps(child, click.Context(child, info_name=name, parent=context, **_how(child)))
