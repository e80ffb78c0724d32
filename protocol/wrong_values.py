"""What is wrong with a value that was read into a record, where, and what may stand there: in words for who wrote it.

The rules are the types' own: constraints, choices, and the description that a type carries where a pattern says little.
"""

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

Path = tuple[str | int, ...]
"""Keys of tables, and numbers in lists."""

_PLAIN: Final[dict[Any, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
}


class Wrong(NamedTuple):
    """A value that no record takes.

    Args:
        path: Where it stands.
        text: What is wrong, and what is allowed.
        value: The value.
    """

    path: Path
    text: str
    value: Any


def find_wrong(kind: Any, value: Any) -> Wrong:
    """The first wrong value within a value that is wrong.

    Args:
        kind: The type that it does not fit.
        value: Tables, lists and scalars.
    """
    for step, inner, part in parts(kind, value):
        if not _fits(inner, part):
            deeper = find_wrong(inner, part)
            return deeper._replace(path=(step, *deeper.path))
    return Wrong((), _say(kind, value), value)


def name_path(path: Path, data: Any) -> str:
    """Where something stands, by the names that people gave: `container sprayer, mounts[0].at`.

    Args:
        path: Where.
        data: The whole, which it leads into.
    """
    named: list[str] = []
    rest = ""
    for step in path:
        data = data[step]
        if isinstance(step, str):
            rest += f".{step}" if rest else step
        elif isinstance(data, dict) and isinstance(name := data.get("name"), str):
            named.append(f"{rest.removesuffix('s')} {name if name.isprintable() else repr(name):.64}")
            rest = ""
        else:
            rest += f"[{step}]"
    return ", ".join([*named, rest] if rest else named)


def table_types(kind: Any, data: Any) -> list[Any]:
    """The record types that `kind` allows for the table `data`; of a tagged union, the one that the tag names."""
    if not isinstance(data, dict):
        return []
    structs = [option for option in _options(kind) if _is_record(option)]
    tagged = [
        struct
        for struct in structs
        if _tag(struct) is not None and data.get(str(struct.__struct_config__.tag_field)) == _tag(struct)
    ]
    return tagged or structs[:1]


def parts(kind: Any, value: Any) -> Iterator[tuple[str | int, Any, Any]]:
    """What a table or a list holds: key or number, the type that it should have, and the value."""
    for struct in table_types(kind, value):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        yield from ((key, fields[key], part) for key, part in value.items() if key in fields)
        return
    for option in _options(kind):
        origin, arguments = typing.get_origin(_bare(option)), typing.get_args(_bare(option))
        if isinstance(value, dict) and origin is dict:
            yield from ((key, arguments[1], part) for key, part in value.items())
        elif isinstance(value, list) and origin in (tuple, list):
            yield from ((number, arguments[0], part) for number, part in enumerate(value))


def _say(kind: Any, value: Any) -> str:
    """What is wrong with a value whose parts are right."""
    options = _options(kind)
    tags = [_tag(option) for option in options if _tag(option) is not None]
    for struct in table_types(kind, value):
        field = struct.__struct_config__.tag_field
        if len(tags) > 1 and value.get(field) not in tags:
            said = f"{field} = {_shown(value[field])} cannot stand there" if field in value else f"{field!r} is missing"
            return f"{said}; allowed: {_choices(tags)}"
        for each in msgspec.structs.fields(struct):
            if each.required and each.encode_name not in value:
                return f"{each.encode_name!r} is missing: {_describe(each.type)}"
    if isinstance(value, dict) and typing.get_origin(_bare(kind)) is dict:
        names = typing.get_args(_bare(kind))[0]
        for name in value:
            if not _fits(names, name):
                return f"the name {name!r:.80} cannot stand there; allowed: {_describe(names)}"
    return f"{_shown(value)} cannot stand there; allowed: {_describe(kind)}"


def _describe(kind: Any) -> str:
    """What may stand where a type does."""
    options = [option for option in _options(kind) if option is not types.NoneType]
    if len(options) > 1 and all(_tag(option) is not None for option in options):
        return f"a table with {options[0].__struct_config__.tag_field} = {_choices(map(_tag, options))}"
    return " or ".join(_describe_one(option, [] if option is kind else _metas(kind)) for option in options)


def _describe_one(kind: Any, metas: list[msgspec.Meta]) -> str:
    metas = [*metas, *_metas(kind)]
    kind = _bare(kind)
    said = next((meta.description for meta in metas if meta.description), None)
    origin = typing.get_origin(kind)
    if said is not None:
        return said
    if origin is typing.Literal:
        return _choices(typing.get_args(kind))
    if kind in _PLAIN:
        pattern = next((f" that fits {meta.pattern}" for meta in metas if meta.pattern), "")
        return f"{_PLAIN[kind]}{_span(metas)}{_count(metas, 'characters')}{pattern}"
    if origin in (tuple, list):
        return f"a list{_count(metas, 'entries')}, each {_describe(typing.get_args(kind)[0])}"
    if _is_record(kind):
        return f"a table with {', '.join(field.encode_name for field in msgspec.structs.fields(kind))}"
    return f"a table{_count(metas, 'entries')}"


def _span(metas: list[msgspec.Meta]) -> str:
    said = _bounds(metas, {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"})
    return f", {said}" if said else ""


def _count(metas: list[msgspec.Meta], what: str) -> str:
    said = _bounds(metas, {"min_length": "at least", "max_length": "at most"})
    return f" of {said} {what}" if said else ""


def _bounds(metas: list[msgspec.Meta], words: Mapping[str, str]) -> str:
    found = [(word, getattr(meta, name)) for meta in metas for name, word in words.items()]
    return " and ".join(f"{word} {_number(bound)}" for word, bound in found if bound is not None)


def _number(number: Any) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _choices(words: Iterable[Any]) -> str:
    return "one of " + ", ".join(f'"{word}"' for word in words)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value!r:.80}"


def _fits(kind: Any, value: Any) -> bool:
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError:
        return False
    return True


def _options(kind: Any) -> tuple[Any, ...]:
    bare = _bare(kind)
    return typing.get_args(bare) if typing.get_origin(bare) in (typing.Union, types.UnionType) else (kind,)


def _bare(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _metas(kind: Any) -> list[msgspec.Meta]:
    if typing.get_origin(kind) is not typing.Annotated:
        return []
    return [meta for meta in typing.get_args(kind)[1:] if isinstance(meta, msgspec.Meta)]


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _tag(kind: Any) -> Any:
    return kind.__struct_config__.tag if _is_record(kind) else None
