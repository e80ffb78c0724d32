"""A power cut at every single effect on the managers' disk: the command run again ends as if nothing had happened."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from signing import durable
from tests.fakes.managers_tool import ManagersTool

EFFECTS_MAX = 400


class PowerCut(BaseException):
    """Nothing may catch it as an error."""


@pytest.fixture(autouse=True)
def _power_comes_back() -> Iterator[None]:
    before = durable.DISK.before
    yield
    durable.DISK.before = before


def cut_everywhere(
    tool: ManagersTool, act: Callable[[], object], check: Callable[[], None], first: int = 0, step: int = 1
) -> int:
    """Cuts `act` before each effect in turn, from the same start; then runs it whole and checks. Returns the effects.

    Args:
        tool: As it is before `act`.
        act: Safe to repeat.
        check: Looks at how it ended.
        first: The first effect to cut at.
        step: More than 1 takes only some, for acts of a hundred effects.
    """
    whole = durable.DISK.before
    saved = tool.folder / "saved"
    shutil.copytree(tool.path, saved)
    sets, blobs = dict(tool.server.sets), dict(tool.server.blobs)
    for number in range(first, EFFECTS_MAX, step):
        shutil.rmtree(tool.path)
        shutil.copytree(saved, tool.path)
        tool.server.sets, tool.server.blobs = copy.copy(sets), copy.copy(blobs)
        left = [number]

        def before(effect: str, path: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise PowerCut

        durable.DISK.before = before
        try:
            act()
        except PowerCut:
            durable.DISK.before = whole
            act()
            check()
        else:
            durable.DISK.before = whole
            check()
            return number
    raise AssertionError("it never ends")


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.begin(managers=("alice",))
    return tool


def test_a_push_that_is_cut_anywhere_is_finished_by_the_next(tool: ManagersTool) -> None:
    tool.build("1.0.0", 1)
    tool.sign("alice")

    def push() -> None:
        if tool.run("release", "list")["open"]:
            tool.push()

    def check() -> None:
        listed = tool.run("release", "list")
        assert [each["version"] for each in listed["releases"]] == ["1.0.0"]
        assert listed["open"] == []
        assert tool.workspace.current("image") == tool.server.sets["image"]

    assert cut_everywhere(tool, push, check) > 20


@pytest.mark.parametrize("first", [0, 1])
def test_a_rotation_that_is_cut_anywhere_at_its_push_ends_with_the_new_key(tool: ManagersTool, first: int) -> None:
    tool.run("keys", "rotate", "--manager", "alice")
    new = tool.run("keys", "show")["managers"][0]["next_keyid"]
    tool.sign("alice")

    def push() -> None:
        if tool.run("release", "list")["open"]:
            tool.push()

    def check() -> None:
        (alice,) = tool.run("keys", "show")["managers"]
        assert (alice["keyid"], alice["next_keyid"]) == (new, None)
        assert tool.workspace.current("image") == tool.server.sets["image"]
        assert tool.workspace.current("director") == tool.server.sets["director"]

    assert cut_everywhere(tool, push, check, first, 7) > 20


def test_a_build_and_a_signature_that_are_cut_anywhere_can_be_made_again(tool: ManagersTool) -> None:
    folder = tool.describe("1.0.0", 1)

    def build() -> None:
        if not tool.run("release", "list")["open"]:
            tool.run("release", "build", folder)
        tool.sign("alice")

    def check() -> None:
        shown = tool.run("release", "show")
        assert shown["ready"] is True

    assert cut_everywhere(tool, build, check, step=3) > 20


def test_a_key_that_is_made_anew_after_a_cut_is_registered_once(tool: ManagersTool) -> None:
    def add() -> None:
        if "bob" not in {each["name"] for each in tool.run("keys", "show")["managers"]}:
            tool.run("keys", "add", "bob")

    def check() -> None:
        (bob,) = (each for each in tool.run("keys", "show")["managers"] if each["name"] == "bob")
        assert bob["keyid"]
        tool.run("keys", "init", "--product", "weed-finder", "--manager", "bob")
        tool.sign("alice", "bob")

    assert cut_everywhere(tool, add, check, step=2) > 10
