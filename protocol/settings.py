"""Settings in TOML: one strict record, and for an unknown key the line and the nearest right name."""

import difflib
import re
import tomllib
import types
import typing
from typing import Any, TypeVar, dataclass_transform

import msgspec

from protocol.errors import SettingsError

T = TypeVar("T")


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
        SettingsError: Not TOML, an unknown key (with its line and the nearest right name), or a wrong value.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source}: not valid TOML: {error}") from error
    _check_keys(data, kind, text, source, ())
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{source}: {_located(str(error), text)}") from error


def _check_keys(data: Any, kind: Any, text: str, source: str, path: tuple[str, ...]) -> None:
    """Walks tables and arrays of tables beside their record types and refuses the first unknown key."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    for struct in _structs(kind, data):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        tag = struct.__struct_config__.tag_field
        for key, value in data.items():
            if key == tag:
                continue
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
                where = f"{source}, line {_line_of(text, (*path, key))}"
                table = f" in [{'.'.join(path)}]" if path else ""
                hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(fields))}"
                raise SettingsError(f"{where}: unknown key {key!r}{table}; {hint}", hint=hint)
            _check_keys(value, fields[key], text, source, (*path, key))
        return
    if isinstance(data, list):
        inner = [arg for arg in typing.get_args(kind) if arg is not Ellipsis]
        for item in data:
            if inner and isinstance(item, dict):
                _check_keys(item, inner[0], text, source, path)
    elif isinstance(data, dict):
        arguments = typing.get_args(kind)
        if typing.get_origin(kind) is dict and len(arguments) == 2:
            for key, value in data.items():
                _check_keys(value, arguments[1], text, source, (*path, key))


def _structs(kind: Any, data: Any) -> list[Any]:
    """The record types that `kind` allows for the table `data`; of a tagged union, the one that the tag names."""
    if not isinstance(data, dict):
        return []
    if typing.get_origin(kind) is typing.Annotated:
        return _structs(typing.get_args(kind)[0], data)
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    structs = [option for option in options if isinstance(option, type) and issubclass(option, msgspec.Struct)]
    tagged = [
        struct
        for struct in structs
        if struct.__struct_config__.tag is not None
        and data.get(str(struct.__struct_config__.tag_field)) == struct.__struct_config__.tag
    ]
    return tagged or structs[:1]


def _line_of(text: str, path: tuple[str, ...]) -> int:
    """The line of a key, counted from 1: the key under its table's header, else its first mention, else 1."""
    key = path[-1]
    pattern = re.compile(
        rf"""^\s*(?:["']?{re.escape(key)}["']?\s*[=.]|\[+\s*(?:[^\]]*\.)?["']?{re.escape(key)}["']?\s*[\].])"""
    )
    table = path[:-1]
    inside = not table
    fallback = 0
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"^\s*\[+([^\]]+)\]+", line)
        if header:
            names = tuple(part.strip().strip("\"'") for part in header.group(1).split("."))
            if names == path:
                return number
            inside = names == table
        if pattern.match(line):
            if inside:
                return number
            fallback = fallback or number
        elif not fallback and re.search(rf"\b{re.escape(key)}\b\s*=", line):
            fallback = number
    return fallback or 1


def _located(message: str, text: str) -> str:
    """Puts the line before msgspec's message, which ends in a path such as `at $.link.poll_s`."""
    found = re.search(r"`\$\.([^`]+)`$", message)
    if not found:
        return message
    path = tuple(part for part in re.sub(r"\[[^\]]*\]", "", found.group(1)).split(".") if part)
    return f"line {_line_of(text, path)}: {message}"
