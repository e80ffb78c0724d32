"""A machine that never met its server is updated from a stick: real agent, real keeper, a kit of the managers' tool."""

import shutil

import pytest

from scripts.cast import BIN, PRODUCT, run_json, wait_for
from tests.e2e.device_stage import ALICE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def built(stage, tmp_path_factory):
    """A folder with a kit of 1.0.0, as the managers made it."""
    out = tmp_path_factory.mktemp("built")
    kit = ("kit", "build", out, "--product", PRODUCT, "--release", "1.0.0", "--as", ALICE, "--yes")
    stage.managers(*kit, person=ALICE)
    return out


def test_a_machine_without_any_link_is_updated_from_a_stick(stage, built, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    settings = f'[kits]\nfolders = ["{media}"]\n[update]\nfirst_backoff_s = 0.5\nlongest_backoff_s = 1.0\n'
    machine = stage.machine("lonely-1", settings=settings)
    stage.server.stop()
    try:
        machine.start()
        command = (BIN / "headland-device", "kit")
        state = ("--state", machine.state)
        assert run_json(*command, "list", *state)["kits"] == []
        shutil.copytree(built, tmp_path / "copy")
        (tmp_path / "copy").rename(media / "stick")
        machine.until_it_runs("1.0.0")
        (kit,) = wait_for(
            "the word", lambda: [k for k in machine.status()["kits"]["kits"] if k["state"] == "installed"]
        )
        assert kit["sticks"] == [str(media / "stick")]
        done = run_json(*command, "apply", kit["kit"], *state)
        assert done["state"] == "installed"
        assert machine.status()["contact"]["last_ms"] is None
        assert machine.status()["bytes_received"] == 0
        answer = run_json(*command, "apply", "kit-unknown", *state, code=6)
        assert "kit-unknown" in answer["error"]
    finally:
        stage.server.start()


def test_a_kit_in_which_one_byte_was_changed_is_named_and_not_taken(stage, built, tmp_path):
    machine = stage.machine("wary-1", settings=f'[kits]\nfolders = ["{tmp_path / "media"}"]\n')
    stage.server.stop()
    try:
        stick = tmp_path / "media" / "stick"
        shutil.copytree(built, stick)
        (path,) = stick.glob("headland-kits/*/kit.json")
        content = bytearray(path.read_bytes())
        at = content.index(b'"created_ms"') + len(b'"created_ms"') + 8
        content[at] = ord("1") if content[at] != ord("1") else ord("2")
        path.write_bytes(content)
        machine.start()
        kit = wait_for("the word", lambda: next(iter(machine.status()["kits"]["kits"]), None))
        kit = wait_for(
            "a verdict", lambda: next((k for k in machine.status()["kits"]["kits"] if k["state"] == "refused"), None)
        )
        assert kit["sentence"]
        assert machine.runs() is None
        apply = (BIN / "headland-device", "kit", "apply", kit["kit"], "--state", machine.state)
        assert run_json(*apply, code=4)["error"]
    finally:
        stage.server.start()
