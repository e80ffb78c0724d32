"""Which shared libraries a program of this machine needs, read from its ELF file: nothing is run."""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little end first
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_ENTRY = struct.Struct("<QQ")
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_NEEDED, _STRINGS = 1, 5


def libraries(programs: Iterable[Path]) -> dict[str, Path]:
    """Everything that programs or modules need to be loaded, the loader too.

    Returns:
        By the path at which a loader looks for it, without a leading slash: where it lies.

    Raises:
        FileNotFoundError: A library is not where Debian keeps them.
    """
    found: dict[str, Path] = {}
    waiting = list(programs)
    while waiting:
        interpreter, needed = read(waiting.pop())
        wanted = [_find(name) for name in needed]
        if interpreter:
            wanted.append(Path(interpreter))
        for path in wanted:
            at = str(path).lstrip("/")
            if at not in found:
                found[at] = path.resolve()
                waiting.append(path)
    return found


def read(path: Path) -> tuple[str, list[str]]:
    """The loader that a file asks for, or an empty text, and the names of the libraries that it needs.

    Raises:
        ValueError: It is not for a machine with 64 bits, little end first.
    """
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise ValueError(f"{path} is no program for 64 bits")
    _, _, _, _, _, at, _, _, _, length, count, *_ = _HEADER.unpack_from(data)
    segments = [_SEGMENT.unpack_from(data, at + number * length) for number in range(count)]
    loads = [(virtual, offset, size) for kind, _, offset, virtual, _, size, *_ in segments if kind == _LOAD]
    interpreter, needed = "", list[int]()
    strings = 0
    for kind, _, offset, _, _, size, *_ in segments:
        if kind == _INTERPRETER:
            interpreter = _text(data, offset)
        elif kind == _DYNAMIC:
            for tag, value in _entries(data[offset : offset + size]):
                if tag == _NEEDED:
                    needed.append(value)
                elif tag == _STRINGS:
                    strings = next(at + value - start for start, at, size in loads if start <= value < start + size)
    return interpreter, [_text(data, strings + name) for name in needed]


def _entries(table: bytes) -> Iterator[tuple[int, int]]:
    for tag, value in _ENTRY.iter_unpack(table[: len(table) // _ENTRY.size * _ENTRY.size]):
        if tag == 0:
            return
        yield tag, value


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _find(name: str) -> Path:
    for folder in sorted([*Path("/lib").glob("*-linux-gnu*"), *Path("/usr/lib").glob("*-linux-gnu*"), Path("/lib64")]):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"library {name} is not on this machine")
