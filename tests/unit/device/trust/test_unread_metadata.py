"""Stored metadata that the disk does not read any more comes again with the next contact, not with the next start."""

import builtins
import errno
import io
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.fakes.field import Field

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("repository", ["image", "director"])
@pytest.mark.parametrize("name", ["root", "timestamp", "snapshot", "targets", "root_history/1.root"])
def test_a_file_with_a_bad_block_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: str, name: str
) -> None:
    field = Field(tmp_path, NOW)
    field.contact()
    [path] = tmp_path.glob(f"**/{repository}/{name}.json")
    kept = tmp_path / "kept"
    kept.hardlink_to(path)  # what takes its place is another file
    bad, plain = path.stat().st_ino, io.open

    def opened(file, *arguments, **more):
        if isinstance(file, str | Path) and Path(file).exists() and Path(file).stat().st_ino == bad:
            raise OSError(errno.EIO, "Input/output error", str(file))
        return plain(file, *arguments, **more)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)
    field.passes(minutes=10)
    field.house.release("1.1.0", 2, b"manifest two")
    verdict = field.contact()
    assert verdict.complaints == ()
    assert verdict.may_install
    assert field.contact().may_install
