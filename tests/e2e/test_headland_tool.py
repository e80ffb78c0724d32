"""The managers' tool and the server as real processes: from the first key to a halted rollout."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
MODELS = Path(__file__).resolve().parents[2] / "scripts" / "demo_models"
START_S = 40.0
COMMAND_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Tool:
    """`headland` as a process."""

    def __init__(self, folder: Path) -> None:
        self.environment = os.environ | {
            "HEADLAND_WORKSPACE": str(folder / "workspace"),
            "HEADLAND_PASSPHRASE_FILE": str(folder / "passphrase"),
        }
        (folder / "passphrase").write_text("correct horse battery\n")

    def __call__(self, *arguments: object, code: int = 0) -> Any:
        done = subprocess.run(
            [BIN / "headland", *map(str, arguments), "--json"],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    """A running server's state folder."""
    state = tmp_path / "server"
    subprocess.run(
        [BIN / "headland-server", "init", "--state", state], check=True, capture_output=True, timeout=COMMAND_S
    )
    ports = (free_port(), free_port())
    settings = (state / "server.toml").read_text().replace("8443", str(ports[0])).replace("8444", str(ports[1]))
    (state / "server.toml").write_text(settings)
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen([BIN / "headland-server", "run", "--state", state], stdout=log, stderr=log)
    try:
        end = time.monotonic() + START_S
        while not (state / "run.json").exists():
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "server.log").read_text()
            time.sleep(0.1)
        operator = json.loads((state / "operator.json").read_text())
        operator["url"] = json.loads((state / "run.json").read_text())["operator_url"]
        (state / "operator.json").write_text(json.dumps(operator))
        yield state
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


@pytest.mark.timeout(300)
def test_two_managers_publish_and_stage_a_trained_model_on_a_real_server(tmp_path: Path, server: Path) -> None:
    headland = Tool(tmp_path)
    for name in ("alice", "bob"):
        headland("keys", "add", name)
    headland("keys", "init", "--product", "pest-detector", "--server", server / "operator.json")
    headland("keys", "sign", "--as", "alice", "--yes")
    headland("keys", "sign", "--as", "bob", "--yes")
    headland("release", "push")

    built = headland("release", "build", MODELS / "pest-detector-1.0.0.toml")
    assert sorted(built["tried"]) == ["leaf/int8", "leaf/onnx"]
    headland("release", "sign", "--as", "bob", "--yes")
    assert headland("release", "push", code=4)["reason"] == "signature"
    headland("release", "sign", "--as", "alice", "--yes")
    headland("release", "push")

    online = {(e["repository"], e["role"]) for e in headland("keys", "due")["roles"] if e["online"]}
    assert online == {(kind, role) for kind in ("image", "director") for role in ("timestamp", "snapshot")}
    assert headland("device", "token", "tractor-1", "--group", "north")["token"].startswith("HL1.")
    headland("rollout", "create", "spring", "--release", "1.0.0", "--group", "north", "--phase", "percent=100")
    assert headland("rollout", "pause", "spring")["state"] == "paused"
    assert headland("rollout", "halt", "spring")["state"] == "halted"
    assert headland("device", "list") == {"devices": []}
    assert headland("device", "show", "tractor-1", code=6)["error"]

    headland("release", "push", "--again")
    headland("release", "delist", "1.0.0")
    headland("release", "sign", "--as", "bob", "--yes")
    headland("release", "sign", "--as", "alice", "--yes")
    headland("release", "push")
    assert headland("rollout", "create", "autumn", "--release", "1.0.0", "--group", "north", code=6)["error"]
