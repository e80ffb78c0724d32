"""The CA's generations: replaced by its own word, cut anywhere, and ended when nobody depends on it."""

from datetime import timedelta
from pathlib import Path

import pytest

from protocol.errors import SettingsError
from server import authorities
from server.clock import as_datetime
from signing import anchors, durable
from tests.fakes.server_house import START_MS

NOW = as_datetime(START_MS)


class PowerCutError(Exception):
    pass


def cut_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """The power goes just before the n-th effect on the disk, and stays away."""
    count = 0

    def before(effect: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count >= nth:
            raise PowerCutError(f"{effect} {path.name}")

    monkeypatch.setattr(durable.DISK, "before", before)


def test_the_old_key_is_gone_and_every_older_ca_leads_to_the_newest(tmp_path: Path) -> None:
    authorities.found(tmp_path, NOW)
    first = authorities.load(tmp_path)
    second = authorities.rotate(tmp_path, NOW + timedelta(days=1))
    third = authorities.rotate(tmp_path, NOW + timedelta(days=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authorities.json", "ca.key", "ca.pem"]
    links = anchors.read(third.links_pem)
    assert anchors.follow(first.trusted, third.trusted, links) == third.trusted
    assert anchors.follow(second.trusted, third.trusted, links) == third.trusted
    assert anchors.follow(second.trusted[:1], third.trusted, links) == third.trusted[:2]
    assert first.current.private_pem() not in [path.read_bytes() for path in tmp_path.iterdir()]
    assert [third.standing(each) for each in third._standings] == ["current", "retiring", "retiring"]
    assert authorities.end(tmp_path, NOW).trusted == third.trusted[:1]
    assert (tmp_path / "ca.pem").read_text() == third.current.pem()


def test_a_cut_in_a_rotation_leaves_the_old_ca_or_the_new_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = set()
    for nth in range(1, 200):
        folder = tmp_path / str(nth)
        folder.mkdir()
        authorities.found(folder, NOW)
        before = authorities.load(folder)
        try:
            with monkeypatch.context() as patch:
                cut_at(patch, nth)
                authorities.rotate(folder, NOW)
        except PowerCutError:
            done = False
        else:
            done = True
        after = authorities.load(folder)  # also before anything was mended
        authorities.settle(folder)
        mended = authorities.load(folder)
        assert mended.record == after.record
        assert (mended.current.certificate == before.current.certificate) == (len(mended.record.generations) == 1)
        assert anchors.vouched(before.trusted, anchors.read(mended.links_pem) if mended.links_pem else ())
        assert (folder / "ca.pem").read_text() == mended.trusted_pem
        assert not (folder / "next.key").exists()
        ends.add(len(mended.record.generations))
        if done:
            break
    assert done
    assert ends == {1, 2}


def test_a_cut_in_the_founding_is_founded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for nth in range(1, 100):
        folder = tmp_path / str(nth)
        folder.mkdir()
        try:
            with monkeypatch.context() as patch:
                cut_at(patch, nth)
                authorities.found(folder, NOW)
        except PowerCutError:
            authorities.found(folder, NOW)
        else:
            break
        assert (folder / "ca.pem").read_text() == authorities.load(folder).trusted_pem
    assert nth > 5


def test_a_folder_without_its_key_says_what_to_do(tmp_path: Path) -> None:
    authorities.found(tmp_path, NOW)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(SettingsError, match="key of the CA is not there") as caught:
        authorities.load(tmp_path)
    assert "backup" in caught.value.hint
    record = (tmp_path / "authorities.json").read_bytes()
    for damaged in (b"{}", record.replace(b"-----BEGIN", b"-----BEGUN"), b"\xff"):
        (tmp_path / "authorities.json").write_bytes(damaged)
        with pytest.raises(SettingsError, match="cannot be read"):
            authorities.load(tmp_path)


def test_what_is_derived_is_made_anew_where_it_is_damaged(tmp_path: Path) -> None:
    authorities.found(tmp_path, NOW)
    (tmp_path / "ca.pem").write_bytes(b"\xff\xfe")
    authorities.settle(tmp_path)
    assert (tmp_path / "ca.pem").read_text() == authorities.load(tmp_path).trusted_pem
