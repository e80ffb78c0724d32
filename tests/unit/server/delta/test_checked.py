"""A group that does not give what it should is not sent: the same is coded more simply."""

import random

import pytest

from protocol.delta.apply import apply_group
from protocol.delta.patch import read_group_header
from protocol.errors import Reason, Refused
from server.delta import checked
from server.delta.checked import encode_checked, gives
from server.delta.groups import GroupPlan, ViewBase, cut_groups, encode_group
from server.delta.pieces import How, Piece
from tests.unit.server.delta.archive_files import applied, archive
from tests.unit.server.delta.archive_lists import package

OLD = memoryview(archive(package(1_700_000_000)))
NEW = memoryview(archive(package(1_700_086_400, "1.1", b"changed")))


def planned(*pieces: Piece) -> GroupPlan:
    (plan,) = cut_groups(pieces)
    return plan


def test_a_wrong_copy_is_seen() -> None:
    plan = planned(Piece(How.COPY, len(NEW), 0))
    assert not gives(encode_group(plan, OLD, NEW), plan, OLD, NEW)


def test_entries_that_are_not_those_of_the_base_are_sent_as_bytes() -> None:
    plan = planned(Piece(How.ENTRIES, 4096, 0, 3), Piece(How.BINARY, len(NEW) - 4096))
    group = encode_checked(plan, OLD, NEW)
    assert applied(bytes(OLD), [group]) == NEW


def test_digests_of_files_in_other_groups_count_among_few_new_bytes() -> None:
    text = b"robot leaf pest " * 120
    digests = random.Random(3).randbytes(2560)
    pieces = Piece(How.TEXT, len(text)), *(Piece(How.DIGEST, 64, 1 << 40) for _ in range(40))
    plan = planned(*pieces)
    group = encode_group(plan, memoryview(b""), memoryview(text + digests))
    assert applied(b"", [group]) == text + digests


def test_what_a_finer_way_refuses_is_coded_more_simply(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> bytes:
        raise Refused(Reason.LIMIT, "too many of something")

    monkeypatch.setattr(checked, "encode_group", refuses)
    payload = encode_checked(planned(Piece(How.BINARY, len(NEW))), OLD, NEW)
    assert applied(bytes(OLD), [payload]) == NEW


def test_what_is_coded_more_simply_may_take_several_groups() -> None:
    old, new = bytes(6 << 20), bytes(3) + random.Random(2).randbytes(5 << 20)
    plan = GroupPlan(3)
    plan.add(Piece(How.COPY, 5 << 20, 0))
    payload = encode_checked(plan, memoryview(old), memoryview(new))
    out = bytearray()
    count = 0
    while payload:
        header = read_group_header(payload)
        assert header is not None
        apply_group(payload[: header.group_bytes], ViewBase(memoryview(old)), 3 + len(out), out.extend)
        payload = payload[header.group_bytes :]
        count += 1
    assert out == new[3:]
    assert count > 1
