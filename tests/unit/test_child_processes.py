"""What a process of ours starts is ours, wherever the person who started it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("protocol", "signing", "server", "device")


@pytest.mark.parametrize("room", ["device", "signing", "protocol"])
def test_an_agent_that_is_started_beside_packages_of_our_names_runs_none_of_them(tmp_path: Path, room: str) -> None:
    stick = tmp_path / "stick"
    (stick / room).mkdir(parents=True)
    (stick / room / "__init__.py").write_text("import pathlib\npathlib.Path('taken').touch()\n")
    command = Path(sys.executable).with_name("headland-device")

    done = subprocess.run([command, "run", "--state", "state"], cwd=stick, capture_output=True, check=False, timeout=60)

    assert not (stick / "taken").exists()
    assert done.returncode == 6, done.stderr
    assert b"device.toml is missing" in done.stderr


def test_all_children_are_started_alike() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"""["']-m["']""", path.read_text())
    }
    assert found == {"signing/child.py"}
