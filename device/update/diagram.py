"""The state diagram of the docs, drawn from the table: `python -m device.update.diagram` prints it.

`python -m device.update.diagram device/README.md` writes it into that page, between its markers.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from device.update.states import NEXT, RESUME, State, UpdateRecord

BLOCK: Final = re.compile(r"(<!-- update machine -->\n).*?(<!-- end of update machine -->)", re.DOTALL)


def draw() -> str:
    """The whole machine in Mermaid: each transition of `NEXT`, and what a restart does."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.IDLE}"]
    for source in State:
        for target in State:
            events = [event for (state, event), after in NEXT.items() if (state, after) == (source, target)]
            if events:
                lines.append(f"    {source} --> {target}: {', '.join(events)}")
    lines += [f"    note right of {state}: each start is counted until it settles" for state in State if _counts(state)]
    return "\n".join(lines) + "\n"


def fill(page: str) -> str:
    """The page with its diagram made anew."""
    return BLOCK.sub(lambda match: f"{match.group(1)}```mermaid\n{draw()}```\n{match.group(2)}", page)


def _counts(state: State) -> bool:
    return RESUME[state](UpdateRecord(state=state)).starts > 0


def main(arguments: Sequence[str]) -> None:
    """Prints the diagram, or fills it into the pages that are named."""
    if not arguments:
        sys.stdout.write(draw())
    for name in arguments:
        page = Path(name)
        page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
