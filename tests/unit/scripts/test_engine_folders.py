"""`scripts/engine` deletes folders and ends processes, as root: only its own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "engine.py"


def script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("words", [("remove",), ("start",), ("stop",), ("run", "--", "true")])
def test_a_folder_that_is_somebodys_is_left_alone(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "thesis").write_text("years of work")
    done = script(words[0], tmp_path, *words[1:])
    assert done.returncode == 2
    assert "is not a folder of an engine" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_number_that_another_process_has_by_now_is_not_the_guards(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "headland-engine").touch()
    (folder / "guard").write_text(f"{stranger.pid}\n")  # after a restart of the machine
    assert script("remove", folder).returncode == 0
    assert not folder.exists()
    assert stranger.poll() is None
