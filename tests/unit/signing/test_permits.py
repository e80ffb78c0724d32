"""Permits to go back, and signals that technicians may skip: proposed, read by who signs, published, ended."""

from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Targets

from protocol.kits import PermitTerms
from protocol.objects import ProductTerms
from signing.metadata import parse, terms
from signing.repository import permits_of, read_release_list
from tests.fakes.managers_tool import ManagersTool

PRODUCT = "pest-detector"


@pytest.fixture
def begun(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.begin()
    tool.publish("1.0.0", 1)
    tool.publish("1.1.0", 2)
    return tool


def role(tool: ManagersTool) -> Targets:
    return parse(tool.server.sets["image"].delegated[PRODUCT], Targets, "").signed


def permits(tool: ManagersTool) -> list[PermitTerms]:
    return list(permits_of(PRODUCT, role(tool)))


def agree(tool: ManagersTool) -> str:
    said = tool.invoke("keys", "sign", "--as", "alice", "--yes").stderr
    tool.sign("bob")
    tool.push()
    return said


def grant(tool: ManagersTool, device: str = "tractor-1", release: str = "1.0.0", days: int = 10) -> str:
    event = tool.run("permit", "grant", device, release, "--reason", "1.1.0 sees rust", "--days", days)
    return str(event["permit"])


def test_a_permit_names_one_machine_one_release_and_an_end_and_every_signer_reads_it(begun: ManagersTool) -> None:
    made = grant(begun)
    assert permits(begun) == []
    said = agree(begun)
    assert "! permits tractor-1 to go back to pest-detector 1.0.0, once, until 2026-05-14: 1.1.0 sees rust" in said
    (permit,) = permits(begun)
    first = read_release_list(begun.server.sets["image"], PRODUCT)[0]
    assert (permit.permit, permit.device, permit.manifest) == (made, "tractor-1", first.manifest_sha256)
    assert permit.expires_ms - permit.created_ms == 10 * 86_400_000
    (row,) = begun.run("permit", "list")["permits"]
    assert (row["permit"], row["device"], row["ended"]) == (made, "tractor-1", False)
    assert [each["version"] for each in begun.run("release", "list")["releases"]] == ["1.0.0", "1.1.0"]


def test_a_permit_for_what_is_not_listed_too_long_or_without_a_reason_is_refused(begun: ManagersTool) -> None:
    say = ("--reason", "a reason")
    assert "not listed" in begun.fail("permit", "grant", "tractor-1", "0.9.0", *say, code=6)
    begun.fail("permit", "grant", "tractor-1", "1.0.0", *say, "--days", 31, code=2)
    begun.fail("permit", "grant", "../tractor", "1.0.0", *say, code=4)
    begun.fail("permit", "grant", "tractor-1", "1.0.0", "--reason", " ", code=6)
    begun.fail("permit", "grant", "tractor-1", "1.0.0", code=2)
    assert begun.run("keys", "show")["events"] == []


def test_a_withdrawn_permit_is_gone_and_the_others_stay(begun: ManagersTool) -> None:
    made = grant(begun)
    agree(begun)
    grant(begun, "tractor-2")
    agree(begun)
    begun.fail("permit", "withdraw", "f" * 31, code=6)
    assert "2 permits" in begun.fail("permit", "withdraw", "", code=6)
    begun.run("permit", "withdraw", made[:12])
    assert "the permit of tractor-1 to go back to pest-detector 1.0.0 is WITHDRAWN" in agree(begun)
    assert [each.device for each in permits(begun)] == ["tractor-2"]


def test_a_permit_that_has_ended_goes_with_whatever_is_signed_next(begun: ManagersTool) -> None:
    grant(begun, days=5)
    agree(begun)
    begun.later(days=4)
    begun.publish("1.2.0", 3)
    assert len(permits(begun)) == 1
    begun.later(days=2)
    assert begun.run("permit", "list")["permits"][0]["ended"] is True
    begun.build("1.3.0", 4)
    assert "the permit of tractor-1 to go back to pest-detector 1.0.0 has ended" in agree(begun)
    assert permits(begun) == []


def test_delisting_a_release_takes_its_permits_with_it(begun: ManagersTool) -> None:
    grant(begun)
    agree(begun)
    grant(begun, "tractor-2", "1.1.0")
    agree(begun)
    begun.run("release", "delist", "1.0.0")
    assert "is WITHDRAWN" in agree(begun)
    assert [each.device for each in permits(begun)] == ["tractor-2"]


def test_signals_that_a_technician_may_skip_are_shown_and_replaced_with_the_interlocks(begun: ManagersTool) -> None:
    begun.run("release", "interlocks", "driving", "spraying", "--skippable", "spraying")
    assert "! a technician who forces an update may activate it while spraying is on" in agree(begun)
    said = terms(role(begun), ProductTerms, "")
    assert (said.interlocks, said.skippable) == (("driving", "spraying"), ("spraying",))
    begun.build("1.2.0", 3)
    agree(begun)
    assert terms(role(begun), ProductTerms, "").skippable == ("spraying",)
    same = ("driving", "spraying", "--skippable", "spraying")
    assert "already" in begun.fail("release", "interlocks", *same, code=6)
    begun.fail("release", "interlocks", "driving", "--skippable", "../x", code=4)
    begun.run("release", "interlocks", "driving", "spraying")
    assert "a technician may no longer activate anything while spraying is on" in agree(begun)
    assert terms(role(begun), ProductTerms, "").skippable == ()


def test_nobody_signs_a_permit_that_says_it_was_made_in_years(begun: ManagersTool) -> None:
    now = begun.now
    begun.now = now + timedelta(days=300)
    grant(begun)
    begun.now = now
    assert "still to come" in begun.fail("keys", "sign", "--as", "alice", "--yes", code=4)
