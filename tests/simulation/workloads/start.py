"""How the agent begins, as far as a piece of its work needs it."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from device.agent import held
from device.layout import Layout
from device.repair import leftovers
from device.repair.examine import examine
from device.repair.fault import Place


@contextlib.contextmanager
def started(state: Path) -> Iterator[None]:
    """The state folder is this process's alone, and what a cut left unfinished in it is gone."""
    layout = Layout(state)
    with held(layout):
        place = Place(layout, lambda: secrets.token_hex(16))
        examine(place, mend=True, checks={"leftovers": leftovers.find})
        yield
