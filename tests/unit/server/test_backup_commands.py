"""`headland-server backup`, `restore` and `unhold` as a person and a program meet them."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from protocol.ids import digest
from server.cli import main
from server.founding import catalog_url, open_layout
from server.settings import read_settings
from server.storage.catalog import Catalog


def run(*arguments: object, code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=answer)
    assert result.exit_code == code, result.output + result.stderr
    return result


def told(*arguments: object, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json", code=code).stdout)
    return found


def catalog_of(state: Path) -> Catalog:
    return Catalog(catalog_url(read_settings(state), open_layout(state).state))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    state = tmp_path / "server"
    run("init", "--state", state, "--device-port", 0, "--operator-port", 0)
    blob = state / "blobs" / "sha256" / digest(b"one")[:2] / digest(b"one")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"one")
    catalog = catalog_of(state)
    with catalog.write() as session:
        session.payloads.add_blob(digest(b"one"), 3, 1)
    catalog.close()
    return state


def test_a_program_gets_the_facts_and_a_person_what_to_mind(state: Path, tmp_path: Path) -> None:
    done = told("backup", tmp_path / "backup", "--state", state)
    assert (done["blobs"], done["copied"], done["copied_bytes"], done["left_out"]) == (1, 1, 3, [])
    assert told("status", "--state", state)["backup_ms"] == done["created_ms"]
    back = told("restore", tmp_path / "backup", "--state", tmp_path / "again", "--revoke", "sprayer-9")
    assert (back["set"], back["blobs"], back["lost"], back["unknown"]) == (done["set"], 1, [], ["sprayer-9"])
    said = run("restore", tmp_path / "backup", "--state", tmp_path / "third").stdout
    for word in ("--revoke", "push --again", "readmit", "paused", "headland-server run"):
        assert word in said
    assert "last backup" in run("status", "--state", state).stdout


def test_a_restored_server_says_how_it_is_before_its_first_start(state: Path, tmp_path: Path) -> None:
    run("backup", tmp_path / "backup", "--state", state)
    run("restore", tmp_path / "backup", "--state", tmp_path / "again")
    assert told("status", "--state", tmp_path / "again")["listening"] is None


def test_a_ca_that_no_backup_has_yet_is_shown(state: Path, tmp_path: Path) -> None:
    def is_backed_up() -> bool:
        shown = "not backed up" not in run("status", "--state", state).stdout
        assert shown == told("status", "--state", state)["ca"]["backed_up"]
        return shown

    assert not is_backed_up()
    run("backup", tmp_path / "backup", "--state", state)
    assert is_backed_up()
    run("ca", "rotate", "--state", state)
    assert not is_backed_up()


def test_what_goes_wrong_has_an_exit_code_and_a_hint(state: Path, tmp_path: Path) -> None:
    assert "no backup that is whole" in told("restore", tmp_path, "--state", tmp_path / "again", code=6)["error"]
    run("backup", tmp_path / "backup", "--state", state)
    assert "not empty" in told("restore", tmp_path / "backup", "--state", state, code=6)["error"]
    (next((tmp_path / "backup" / "sets").iterdir()) / "catalog.db").write_bytes(b"no catalog")
    answer = told("restore", tmp_path / "backup", "--state", tmp_path / "again", code=4)
    assert (answer["reason"], "--set" in answer["hint"]) == ("hash", True)
    assert not (tmp_path / "again").exists()


def test_a_server_that_lacks_blobs_is_backed_up_and_says_so_with_its_exit_code(state: Path, tmp_path: Path) -> None:
    (state / "blobs" / "sha256" / digest(b"one")[:2] / digest(b"one")).unlink()
    result = run("backup", tmp_path / "backup", "--state", state, code=6)
    assert digest(b"one") in result.stdout and "push --again" in result.stderr
    assert told("restore", tmp_path / "backup", "--state", tmp_path / "again")["lost"] == [digest(b"one")]


def test_a_catalog_that_cannot_be_copied_is_said_in_words(state: Path, tmp_path: Path) -> None:
    run("backup", tmp_path / "backup", "--state", state)
    (state / "catalog.db").write_bytes(b"no catalog" * 500)
    answer = told("backup", tmp_path / "backup", "--state", state, code=6)
    assert "the catalog cannot be copied" in answer["error"] and "made before are whole" in answer["hint"]
    (whole,) = (each for each in (tmp_path / "backup" / "sets").iterdir() if not each.name.startswith("."))
    assert run("restore", tmp_path / "backup", "--state", tmp_path / "again", "--set", whole.name)


def test_a_passphrase_seals_and_opens(state: Path, tmp_path: Path) -> None:
    (tmp_path / "good").write_text("correct horse battery\n")
    (tmp_path / "bad").write_text("wrong horse battery\n")
    (tmp_path / "empty").write_text("\n")
    backup = ("backup", tmp_path / "backup", "--state", state)
    (tmp_path / "binary").write_bytes(b"\xff\xfe horse battery\n")
    for wrong in ("empty", "binary"):
        assert "its first line" in run(*backup, "--passphrase-file", tmp_path / wrong, code=6).stderr
    run(*backup, "--passphrase-file", tmp_path / "good")
    restore = ("restore", tmp_path / "backup", "--state", tmp_path / "again")
    assert "--passphrase-file" in run(*restore, code=6).stderr
    run(*restore, "--passphrase-file", tmp_path / "bad", code=6)
    run(*restore, "--passphrase-file", tmp_path / "good")
    kept = (tmp_path / "again" / "ca" / "ca.key").read_bytes()
    assert kept == (state / "ca" / "ca.key").read_bytes()
    assert stat.S_IMODE((tmp_path / "again" / "ca" / "ca.key").stat().st_mode) == 0o600


def test_a_person_ends_a_hold_by_their_word_only(state: Path) -> None:
    assert "not held" in run("unhold", "--state", state, "--yes", code=6).stderr
    from server import restored

    catalog = catalog_of(state)
    with catalog.write() as session:
        session.repositories.serve("image", {"timestamp.json": b"{}"})
        restored.begin(session, 5, restore="a", backup_ms=1, how="by hand")
    catalog.close()
    status = told("status", "--state", state)
    assert (status["restored"]["held"], status["restored"]["how"]) == (True, "by hand")
    assert "publishing is held" in run("status", "--state", state).stdout
    run("unhold", "--state", state, code=1, answer="n\n")
    assert told("unhold", "--state", state, "--yes") == {"held": False, "missing": []}
    assert not told("status", "--state", state)["restored"]["held"]
