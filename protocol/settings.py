"""Settings in TOML: one strict record, and for what is wrong the line, the name of its table, and what is allowed."""

import difflib
import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final, TypeVar, dataclass_transform

import msgspec

from protocol.errors import SettingsError
from protocol.wrong_values import Path, find_wrong, name_path, parts, table_types

T = TypeVar("T")

_HEADER: Final = re.compile(r"^\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"""^\s*((?:["']?[\w-]+["']?\s*\.\s*)*["']?[\w-]+["']?)\s*=""")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all settings records; units stand in the names (`poll_s`, `budget_bytes`)."""


def parse_settings(text: str, kind: type[T], *, source: str) -> T:
    """Reads TOML into `kind`.

    Args:
        text: The file's content.
        kind: A `Settings` record, nested as the tables are.
        source: The file's name, for messages.

    Raises:
        SettingsError: Not TOML, an unknown key (with its line and the nearest right name), or a wrong value (with its
            line and what is allowed).
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source}: not valid TOML: {error}") from error
    unknown = _find_unknown(data, kind)
    if unknown is not None:
        path, known = unknown
        key = str(path[-1])
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"
        named = name_path(path[:-1], data)
        table = (f" in {named}" if " " in named else f" in [{named}]") if named else ""
        line = _line_of(text, path, rf"\b{re.escape(key)}\b\s*=")
        raise SettingsError(f"{source}, line {line}: unknown key {key!r}{table}; {hint}", hint=hint)
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        wrong = find_wrong(kind, data)
        where = name_path(wrong.path, data)
        line = _line_of(text, wrong.path, re.escape(wrong.value) if isinstance(wrong.value, str) else "$^")
        raise SettingsError(f"{source}, line {line}: {f'{where}: ' if where else ''}{wrong.text}") from error


def _find_unknown(data: Any, kind: Any, path: Path = ()) -> tuple[Path, list[str]] | None:
    """Walks tables and lists beside their types; the first unknown key, and those that are known beside it."""
    for struct in table_types(kind, data):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        for key in data:
            if key not in fields and key != struct.__struct_config__.tag_field:
                return (*path, key), list(fields)
    for step, inner, part in parts(kind, data):
        found = _find_unknown(part, inner, (*path, step))
        if found is not None:
            return found
    return None


def _line_of(text: str, path: Path, needle: str) -> int:
    """The first line that says most of a path, counted from 1, or below it one that has the needle.

    Args:
        text: TOML.
        path: Of a value.
        needle: A pattern: where a value spans several lines, one of them is meant.
    """
    best, deepest = 1, 0
    for number, said in _said(text):
        depth = min(len(said), len(path))
        if depth > deepest and said[:depth] == path[:depth]:
            best, deepest = number, depth
    lines = text.splitlines()
    if deepest < len(path):
        for number in range(best, len(lines) + 1):
            if re.search(needle, lines[number - 1]):
                return number
            if number > best and _HEADER.match(lines[number - 1]):
                break
    return best


def _said(text: str) -> Iterator[tuple[int, Path]]:
    """Each line that says where it stands: headers of tables, and keys."""
    counts: dict[Path, int] = {}
    table: Path = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = ()
            names = _names(header[2])
            for at, name in enumerate(names, 1):
                table = (*table, name)
                if at == len(names) and header[1] == "[[":
                    counts[table] = counts.get(table, -1) + 1
                if table in counts:
                    table = (*table, counts[table])
            yield number, table
        elif key := _KEY.match(line):
            yield number, (*table, *_names(key[1]))


def _names(dotted: str) -> list[str]:
    return [name.strip().strip("\"'") for name in dotted.split(".")]
