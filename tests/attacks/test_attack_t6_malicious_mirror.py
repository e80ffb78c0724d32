"""T6: a mirror gives garbage while the server is good: refused, nothing trusted is harmed, the good source is taken."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.fakes.field import Field, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
GARBAGE = [b"", b"\0" * 1000, b"<html>welcome to the hotel</html>", b"{}", b'{"signed":{},"signatures":[]}']


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("role", ["root", "snapshot", "targets", "pest-detector"])
def test_attack_t6_garbage_is_refused_and_the_good_source_taken_afterwards(
    tmp_path: Path, garbage: bytes, role: str
) -> None:
    field = Field(tmp_path, NOW)
    field.serve()
    bad = {name: garbage if name.endswith(f".{role}.json") else data for name, data in field.image_shelf.files.items()}
    if role == "root":
        bad["2.root.json"] = garbage
    good, field.image_shelf.files = field.image_shelf.files, bad
    verdict = field.contact(serve=False)
    assert [what for what, _ in reasons(verdict)] == ["image"]
    assert not verdict.may_install
    field.image_shelf.files = good
    verdict = field.contact(serve=False)
    assert (reasons(verdict), verdict.may_install) == ([], True)


def test_attack_t6_a_bad_image_mirror_does_not_hinder_time_receipts_and_the_director(tmp_path: Path) -> None:
    field = Field(tmp_path, NOW)
    field.serve()
    field.image_shelf.files = dict.fromkeys(field.image_shelf.files, b"garbage")
    verdict = field.contact(serve=False, image_timestamp="garbage", receipts=(field.receipts(),))
    assert verdict.time_ms is not None
    assert len(verdict.receipts) == 1
    assert reasons(verdict) == [("image", "metadata")]
