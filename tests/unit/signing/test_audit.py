"""`headland audit`, against a server that may lie."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from protocol.audit import START, AuditLine, line_hash
from protocol.errors import Refused
from tests.fakes.managers_tool import ManagersTool


class Trail:
    """What a server says of its audit trail."""

    def __init__(self, count: int, kind: str = "groups") -> None:
        self.base = (0, START)
        self.lines: list[AuditLine] = []
        self.grow(count, kind)

    def grow(self, count: int, kind: str = "groups") -> None:
        for _ in range(count):
            number, before = (self.lines[-1].id, self.lines[-1].hash) if self.lines else self.base
            line = AuditLine(id=number + 1, at_ms=1_780_000_000_000 + number, kind=kind, who="ada", what="early")
            self.lines.append(replace(line, hash=line_hash(before, line)))

    def forget(self, count: int) -> None:
        self.base = (self.lines[count - 1].id, self.lines[count - 1].hash)
        self.lines = self.lines[count:]

    def __call__(self, query: Mapping[str, str]) -> dict[str, Any]:
        number, hashed = (self.lines[-1].id, self.lines[-1].hash) if self.lines else self.base
        if "last" in query:
            found = [line for line in self.lines if query.get("device") in (None, line.device)][-int(query["last"]) :]
        else:
            found = [line for line in self.lines if line.id > int(query["after"])][: min(3, int(query["limit"]))]
        return {
            "events": found,
            "next": number,
            "base": {"number": self.base[0], "hash": self.base[1]},
            "head": {"number": number, "hash": hashed},
        }


@pytest.fixture
def trail(tool: ManagersTool) -> Trail:
    trail = Trail(10)
    tool.server.answers["/events"] = trail
    return trail


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.begin()
    return tool


def test_a_trail_that_grows_and_ages_holds_at_each_look(tool: ManagersTool, trail: Trail) -> None:
    assert tool.run("audit", "verify")["lines"] == 10
    trail.grow(5)
    done = tool.run("audit", "verify")
    assert (done["lines"], done["seen"]["number"], done["head"]["number"]) == (15, 10, 15)
    trail.forget(12)
    assert "line 15, seen before, is the same" in tool.invoke("audit", "verify").stdout
    trail.grow(3)
    trail.forget(3)
    assert "lines up to 15 are older" in tool.invoke("audit", "verify").stdout


def test_a_line_that_was_seen_and_went_by_age_is_said(tool: ManagersTool, trail: Trail) -> None:
    tool.run("audit", "verify")
    trail.grow(5)
    trail.forget(12)
    assert tool.run("audit", "verify")["seen_is_old"] is True


def test_a_trail_that_was_cut_is_refused_until_a_person_takes_it(tool: ManagersTool, trail: Trail) -> None:
    tool.run("audit", "verify")
    trail.lines = trail.lines[:8]
    assert "ends at line 8, and this workspace saw line 10" in tool.fail("audit", "verify", code=Refused.exit_code)
    assert tool.run("audit", "verify", "--forget")["lines"] == 8
    assert tool.run("audit", "verify")["lines"] == 8


def test_a_trail_that_was_written_anew_is_refused(tool: ManagersTool, trail: Trail) -> None:
    tool.run("audit", "verify")
    tool.server.answers["/events"] = Trail(20, kind="readmitted")
    assert "line 10 of the audit trail is another" in tool.fail("audit", "verify", code=Refused.exit_code)


def test_of_a_trail_with_a_changed_line_no_file_is_left(tool: ManagersTool, trail: Trail, tmp_path: Path) -> None:
    trail.lines[4] = replace(trail.lines[4], who="eve")
    file = tmp_path / "trail.jsonl"
    assert "line 5" in tool.fail("audit", "export", file, code=Refused.exit_code)
    assert not file.exists() and not file.with_name("trail.jsonl.part").exists()


def test_an_export_is_verified_anywhere(tool: ManagersTool, trail: Trail, tmp_path: Path) -> None:
    trail.forget(2)
    file = tmp_path / "trail.jsonl"
    tool.run("audit", "export", file)
    assert tool.run("audit", "verify", file)["lines"] == 8
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole[:3] + whole[4:]))
    assert "lines are missing" in tool.fail("audit", "verify", file, code=Refused.exit_code)
    file.write_text("".join(whole[1:]))
    assert "not a TrailStart" in tool.fail("audit", "verify", file, code=Refused.exit_code)


def test_a_server_that_names_a_head_and_does_not_show_it_is_refused(tool: ManagersTool, trail: Trail) -> None:
    tool.server.answers["/events"] = lambda query: trail(query) | {"head": {"number": 12, "hash": START}}
    assert "names line 12 as its last" in tool.fail("audit", "verify", code=Refused.exit_code)


def test_the_newest_lines_are_shown_to_people(tool: ManagersTool, trail: Trail) -> None:
    shown = tool.invoke("audit", "list", "--last", "2").stdout
    assert "ada" in shown and "early" in shown and shown.count("groups") == 2
    assert tool.invoke("audit", "list", "--machine", "nobody").stdout == "The audit trail is empty.\n"
