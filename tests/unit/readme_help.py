"""The commands' help as it stands in README.md: what the test checks and `scripts/readme-help` writes."""

import re
from collections.abc import Iterator

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
    """The block of one command: its own help, then that of each of its commands."""
    texts = "\n\n".join(_helps(COMMANDS[name], name))
    return f"<!-- help: {name} -->\n```\n{texts}\n```\n<!-- end of help -->"


def _helps(command: click.Command, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    if isinstance(command, click.Group):
        lines = [f"$ {name} --help", command.get_help(context)]
        yield "\n".join(line.rstrip() for line in "\n".join(lines).splitlines())
        for child in sorted(command.list_commands(context)):
            found = command.get_command(context, child)
            if isinstance(found, click.Group):
                yield from _helps(found, f"{name} {child}")
