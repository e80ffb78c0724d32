"""What is taken from other people's packages is exactly what was pinned, or nothing."""

import hashlib
import re
import zipfile
from pathlib import Path

import pytest

from scripts import fetch_published_models as fetcher

MODEL = b"a model by others"


def pin(**changes: str) -> fetcher.Pin:
    made: fetcher.Pin = {
        "package": "some-package",
        "version": "1.0",
        "wheel": "0" * 64,
        "member": "some/model.onnx",
        "sha256": hashlib.sha256(MODEL).hexdigest(),
    }
    return {**made, **changes}  # type: ignore[typeddict-item]  # the tests name its fields


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "some_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some/model.onnx", MODEL)
    return path


def test_every_pin_names_package_version_wheel_member_and_both_hashes() -> None:
    pins = fetcher.read_pins()
    assert len({one["package"] for one in pins.values()}) >= 4
    assert {Path(one["member"]).suffix for one in pins.values()} >= {".onnx", ".tflite"}
    for one in pins.values():
        assert set(one) - {"platform"} == {"package", "version", "wheel", "member", "sha256"}
        assert re.fullmatch("[0-9a-f]{64}", one["wheel"])
        assert re.fullmatch("[0-9a-f]{64}", one["sha256"])


def test_the_cache_is_where_the_environment_says() -> None:
    assert fetcher.cache_folder({"HEADLAND_PUBLISHED_MODELS": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert fetcher.cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/headland/published-models")


def test_a_model_is_taken_out_under_its_hash_and_suffix(tmp_path: Path, wheel: Path) -> None:
    fetcher.take_out(wheel, pin(), tmp_path)
    assert (tmp_path / f"{hashlib.sha256(MODEL).hexdigest()}.onnx").read_bytes() == MODEL
    assert fetcher.is_there(tmp_path, pin())


def test_a_model_with_another_hash_never_reaches_the_cache(tmp_path: Path, wheel: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with pytest.raises(RuntimeError, match="another hash"):
        fetcher.take_out(wheel, pin(sha256="1" * 64), cache)
    with pytest.raises(RuntimeError, match="has no"):
        fetcher.take_out(wheel, pin(member="some/other.onnx"), cache)
    assert list(cache.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_fetched_again(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "download", lambda one, into: wheel)
    fetcher.cached_path(tmp_path, pin()).write_bytes(b"a model by otherz")
    assert not fetcher.is_there(tmp_path, pin())
    assert fetcher.fetch(tmp_path, {"it": pin()}) == {}
    assert fetcher.is_there(tmp_path, pin())


def test_what_is_there_asks_no_registry(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher.take_out(wheel, pin(), tmp_path)

    def forbidden(one: fetcher.Pin, into: Path) -> Path:
        raise AssertionError("asked")

    monkeypatch.setattr(fetcher, "download", forbidden)
    assert fetcher.fetch(tmp_path, {"it": pin()}) == {}


def test_a_wheel_of_several_models_is_downloaded_once_and_a_failure_is_told_by_name(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(one: fetcher.Pin, into: Path) -> Path:
        asked.append(one["wheel"])
        if one["wheel"] == "f" * 64:
            raise RuntimeError("no network")
        return wheel

    monkeypatch.setattr(fetcher, "download", download)
    pins = {
        "a": pin(),
        "b": pin(sha256=hashlib.sha256(b"other").hexdigest()),
        "c": pin(wheel="f" * 64, sha256="2" * 64),
    }
    failed = fetcher.fetch(tmp_path, pins)
    assert asked == ["0" * 64, "f" * 64]
    assert set(failed) == {"b", "c"}
    assert failed["c"] == "no network"
    assert fetcher.is_there(tmp_path, pins["a"])
