"""What the benchmark of container updates needs of the computer."""

import pytest

from scripts.container_bench.command import CANNOT, main


def test_what_is_not_installed_is_said_before_anything_is_made(
    tmp_path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert main(["--cache", str(tmp_path / "cache")]) == CANNOT
    said = capsys.readouterr().err
    assert all(name in said for name in ("docker-registry", "skopeo"))
    assert list(tmp_path.iterdir()) == []
