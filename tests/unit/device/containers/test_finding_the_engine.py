"""Where the engine of this machine listens: an agent that is no root looks into folders that are not open to it."""

from pathlib import Path

import pytest

from device.containers.engine import EngineAwayError
from device.containers.engine_client import EngineClient
from device.containers.settings import find_socket, is_there

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
    assert find_socket("", known) == known[0]
    assert not is_there(CLOSED)


@pytest.mark.usefixtures("closed")
async def test_an_engine_behind_a_closed_folder_is_away() -> None:
    engine = EngineClient(CLOSED, "0123456789abcdef")
    with pytest.raises(EngineAwayError):
        await engine.view()
