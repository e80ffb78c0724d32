"""The chain of the audit trail, with a vector that any other reader can be held against."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from protocol.audit import START, AuditLine, check_chain, line_hash
from protocol.errors import Refused

VECTOR = "a5bc790e676aa3f3eb51af654a134e26b2317b8a5ba87f3f9037b9b0ca3ae5c7"


def trail() -> list[AuditLine]:
    lines = []
    before = START
    for number in range(1, 5):
        line = AuditLine(id=number, at_ms=1000 + number, kind="groups", who="ada", device="t-1", what='gr\u00fcn, "a"')
        line = replace(line, hash=line_hash(before, line))
        lines.append(line)
        before = line.hash
    return lines


def test_a_line_hashes_as_the_page_of_the_protocol_says() -> None:
    assert trail()[1].hash == VECTOR


def test_a_trail_as_it_was_written_holds() -> None:
    lines = trail()
    assert check_chain(lines, START, 0) == (4, lines[-1].hash)
    assert check_chain(lines[2:], lines[1].hash) == (4, lines[-1].hash)
    assert check_chain([], START, 0) == (0, START)


def harms() -> Iterator[tuple[str, list[AuditLine]]]:
    for name in AuditLine.__struct_fields__:
        lines = trail()
        value = getattr(lines[1], name)
        lines[1] = replace(lines[1], **{name: value + 1 if isinstance(value, int) else value[::-1] + "a"})
        yield f"{name} changed", lines
    lines = trail()
    yield "one left out", lines[:1] + lines[2:]
    yield "two swapped", [lines[0], lines[2], lines[1], lines[3]]
    yield "one twice", [lines[0], lines[0], *lines[1:]]
    yield "the first left out", lines[1:]


@pytest.mark.parametrize(("harm", "lines"), list(harms()), ids=[name for name, _ in harms()])
def test_every_harm_to_a_trail_is_found(harm: str, lines: list[AuditLine]) -> None:
    with pytest.raises(Refused, match="audit trail"):
        check_chain(lines, START, 0)


def test_fields_do_not_run_into_one_another() -> None:
    one, other = AuditLine(id=1, at_ms=1, kind="a", who="bc"), AuditLine(id=1, at_ms=1, kind="ab", who="c")
    assert line_hash(START, one) != line_hash(START, other)
