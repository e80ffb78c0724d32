"""Where the engine of this machine listens: an agent that is no root looks into folders that are not open to it."""

from functools import partial
from pathlib import Path

import pytest

from device.containers.engine import EngineAwayError
from device.containers.engine_client import EngineClient
from device.containers.owner import Owner
from device.containers.settings import find_socket, is_there
from device.state_db import StateDb
from tests.fakes.engine_front import front, scripted

CLOSED = Path("/run/podman/podman.sock")


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian makes `/run/podman` with mode 0700. Root, as whom these tests may run, would look into it."""
    really = Path.stat

    def stat(self: Path, *, follow_symlinks: bool = True) -> object:
        if self == CLOSED:
            raise PermissionError(13, "Permission denied", str(self))
        return really(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat)


@pytest.mark.usefixtures("closed")
def test_a_folder_that_is_closed_to_the_agent_keeps_it_from_nothing(tmp_path: Path) -> None:
    known = (tmp_path / "docker.sock", CLOSED)
    assert find_socket("", known=known) == known[0]
    assert not is_there(CLOSED)


@pytest.mark.usefixtures("closed")
async def test_an_engine_behind_a_closed_folder_is_away() -> None:
    engine = EngineClient(lambda: CLOSED, "0123456789abcdef")
    with pytest.raises(EngineAwayError):
        await engine.view()


@pytest.fixture
def known(tmp_path: Path) -> tuple[Path, Path]:
    """Where Docker and Podman listen on this machine: nobody does, yet."""
    return (tmp_path / "docker.sock", tmp_path / "podman.sock")


def _owner(tmp_path: Path, known: tuple[Path, Path], named: str = "") -> Owner:
    return Owner("someone", StateDb(tmp_path / "state.db"), named=named, find=partial(find_socket, known=known))


async def test_an_engine_that_is_installed_after_the_start_is_found(tmp_path: Path, known: tuple[Path, Path]) -> None:
    owner = _owner(tmp_path, known)
    client = EngineClient(lambda: owner.socket, "0123456789abcdef")
    with pytest.raises(EngineAwayError, match=r"docker\.sock"):
        await client.view()
    answers = {("GET", "/containers/json"): [], ("GET", "/images/json"): []}
    with front(scripted(answers)) as podman, front(scripted(answers)) as docker:
        known[1].symlink_to(podman.socket)
        await client.view()
        assert (len(podman.heard) > 0, docker.heard) == (True, [])
        known[0].symlink_to(docker.socket)
        await client.view()
        assert docker.heard, "it is asked by the same agent, in another child"
    await client.close()


async def test_an_engine_that_holds_something_of_ours_stays_the_one(tmp_path: Path, known: tuple[Path, Path]) -> None:
    with front(scripted({})) as engine:
        known[1].symlink_to(engine.socket)
        owner = _owner(tmp_path, known)
        owner.uses()
        known[0].symlink_to(engine.socket)
        assert owner.socket == known[1]
        known[1].unlink()
        for again in (owner, _owner(tmp_path, known)):
            assert again.socket == known[1], "it may be started later at this boot"
        moved = _owner(tmp_path, known, named=str(known[0]))
        assert moved.socket == known[0], "a person says so"
        moved.uses()
        assert _owner(tmp_path, known).socket == known[0]
        moved.is_done()
        known[0].unlink()
        known[1].symlink_to(engine.socket)
        assert _owner(tmp_path, known).socket == known[1]
