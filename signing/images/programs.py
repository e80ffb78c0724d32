"""Whether the programs that a container is to run are in its image: a misspelt one would come to light on the machines.

The layers' headers are read, nothing is unpacked. Links are followed within the image alone. What may come from outside
it, through a mount, and what cannot be read to its end, gets the benefit of the doubt.
"""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from protocol.container import USUAL_PATH, RunSpec
from protocol.errors import Reason, Refused
from signing.images import bounds
from signing.images.tar_entries import FOLDER, HARD_LINK, SYMLINK, Entry, Place, walk

FOLLOWED: Final = 40  # links, as a kernel does
_HIDES: Final = ".wh."
_HIDES_ALL: Final = f"{_HIDES}{_HIDES}.opq"
_OUTSIDE: Final = ("/proc", "/dev", "/sys")

Tree = Mapping[str, Entry]


def check_programs(layers: Sequence[Path], run: RunSpec) -> None:
    """Refuses a command whose program is not in the image, or is none.

    Args:
        layers: Uncompressed, lowest first.
        run: What is to be run.

    Raises:
        Refused: `IMAGE`.
    """
    try:
        trees = [_tree(layer) for layer in reversed(layers)]
    except Refused:
        return
    commands = {"command": run.command, **({"health.command": run.health.command} if run.health is not None else {})}
    for key, command in commands.items():
        found = [_kind(trees, path, run) for path in _places(key, command[0], run)]
        if "program" in found or "outside" in found:
            continue
        why = "which the image has, but not as an executable file" if "file" in found else "which is not in the image"
        raise Refused(Reason.IMAGE, f"`{key}` begins with {command[0]!r:.200}, {why}")


def _places(key: str, program: str, run: RunSpec) -> Iterator[str]:
    if "/" in program:
        yield posixpath.join(run.workdir, program)
        return
    path = run.environment.get("PATH", USUAL_PATH)
    yield from (posixpath.join(run.workdir, folder, program) for folder in path.split(":"))


def _kind(trees: Sequence[Tree], path: str, run: RunSpec) -> str:
    """What a path leads to: a `program`, a `file` that is none, something `outside` of the image, or nothing."""
    outside = (*_OUTSIDE, *(mount.at for mount in run.mounts))
    rest = path.split("/")[::-1]
    at, links = "", 0
    while rest:
        step = rest.pop()
        if step in ("", "."):
            continue
        at = posixpath.dirname(at) if step == ".." else f"{at}/{step}"
        if at.rstrip("/") in outside:
            return "outside"
        found = _look_up(trees, at.strip("/")) if at.strip("/") else None
        if step == ".." or (found is not None and found.kind == FOLDER):
            continue
        if found is None:
            return ""
        if found.kind == SYMLINK:
            links += 1
            if links > FOLLOWED:
                return ""
            rest += found.link.split("/")[::-1]
            at = "" if found.link.startswith("/") else posixpath.dirname(at)
            continue
        if rest:
            return ""
        runs = found.mode & 0o111 and (found.is_file or found.kind == HARD_LINK)
        return "program" if runs else "file"
    return "file"


def _look_up(trees: Sequence[Tree], path: str) -> Entry | None:
    """An entry in the topmost layer that has it, unless one above hides it."""
    for tree in trees:
        found = tree.get(path)
        if found is not None:
            return found
        folder = path
        while folder:
            folder, name = posixpath.split(folder)
            if posixpath.join(folder, _HIDES + name) in tree or posixpath.join(folder, _HIDES_ALL) in tree:
                return None
    # Builders leave out folders that they only pass through.
    below = f"{path}/"
    passed = any(name.startswith(below) for tree in trees for name in tree)
    return Entry(path, FOLDER, 0o755, "", Place(0, 0)) if passed else None


def _tree(layer: Path) -> Tree:
    with layer.open("rb") as file:
        return {entry.name.strip("/"): entry for entry in walk(file, bounds.LAYER_ENTRIES)}
