"""`scripts/delta` as a person uses it: what it says when a file cannot be written."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from server.delta.command import main


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "old").write_bytes(b"old" * 1000)
    (tmp_path / "new").write_bytes(b"old" * 1000 + b"new")
    return tmp_path


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(word) for word in words])
    return done.exit_code, " ".join(done.output.split())


def test_what_is_made_is_applied(files: Path) -> None:
    assert run("encode", files / "old", files / "new", files / "patch", "--json")[0] == 0
    assert run("apply", files / "old", files / "patch", files / "out", "--json")[0] == 0
    assert (files / "out").read_bytes() == (files / "new").read_bytes()
    assert {path.name for path in files.iterdir()} == {"old", "new", "patch", "out"}


@pytest.mark.parametrize("command", ["encode", "apply"])
def test_a_folder_that_does_not_exist_is_named_with_what_to_do(files: Path, command: str) -> None:
    run("encode", files / "old", files / "new", files / "patch")
    code, said = run(command, files / "old", files / "patch", files / "not here" / "out")
    assert code == 2
    assert f"there is no folder {files / 'not here'}" in said
    assert f"mkdir -p '{files / 'not here'}'" in said
    assert ".tmp-" not in said, "nobody asked for that file"


def test_a_folder_that_nobody_may_write_into_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.delta.command.os.access", lambda _, mode: mode == os.R_OK)  # root may write anywhere
    code, said = run("encode", files / "old", files / "new", files / "patch")
    assert (code, f"you may not write into the folder {files}" in said) == (2, True)


def test_a_file_beside_the_present_folder_needs_no_folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    assert run("encode", "old", "new", "patch")[0] == 0
    assert (files / "patch").exists()
