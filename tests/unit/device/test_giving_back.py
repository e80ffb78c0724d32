"""Signed files for a server that lost them: those that it asks for and that are here, nothing else of the folder."""

from pathlib import Path

import pytest

from device.giving_back import SignedFiles
from protocol import limits


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    trust = tmp_path / "trust"
    for kind in ("image", "director"):
        (trust / kind / "root_history").mkdir(parents=True)
        (trust / kind / "targets.json").write_text(f"{kind} targets")
    (trust / "image" / "pest-detector.json").write_text("the product")
    (trust / "image" / "root_history" / "2.root.json").write_text("root two")
    (tmp_path / "secret.json").write_text("secret")
    (trust / "secret.json").write_text("secret")
    return trust


def test_files_come_by_the_names_that_the_server_uses_in_its_order(trust: Path) -> None:
    found = SignedFiles(trust).find(("image/2.root.json", "director/targets.json", "image/pest-detector.json"))
    assert [(file.repository, file.name, file.content) for file in found] == [
        ("image", "2.root.json", "root two"),
        ("director", "targets.json", "director targets"),
        ("image", "pest-detector.json", "the product"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "image/3.root.json",
        "image/weed-detector.json",
        "image/../secret.json",
        "image/../../secret.json",
        "../secret.json",
        "/etc/passwd",
        "image//etc/passwd.json",
        "image/root_history/2.root.json",
        "image/2.root.json\n",
        "image/..json",
        "other/targets.json",
        "image/targets",
        "",
    ],
)
def test_what_is_not_here_or_no_such_name_is_left_out(trust: Path, name: str) -> None:
    assert SignedFiles(trust).find((name, "image/targets.json")) == SignedFiles(trust).find(("image/targets.json",))


def test_no_more_is_given_than_the_server_takes(trust: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GIVEN_BACK_BYTES", 40)
    assert [file.name for file in SignedFiles(trust).find(("image/targets.json", "director/targets.json"))] == [
        "targets.json"
    ]


def test_bytes_that_are_no_text_are_left_out(trust: Path) -> None:
    (trust / "image" / "targets.json").write_bytes(b"\xff\xfe")
    assert SignedFiles(trust).find(("image/targets.json",)) == ()
