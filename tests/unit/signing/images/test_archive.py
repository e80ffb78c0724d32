"""Images from archives of `docker save`: both forms, and archives that were made to mislead."""

import bz2
import gzip
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.container import RunSpec
from protocol.errors import Reason, Refused, SettingsError, StateError
from protocol.image_config import check_volumes, parse_image_config
from signing.images import bounds, tar_entries
from tests.fakes.image_files import FOLDS, Blobs, index, layer, make_image, sha256, write_archive, write_tar
from tests.fakes.intake import Taking

LOWER, UPPER = layer({"lib": b"library" * 1000}), layer({"app": b"program"})
ONE = make_image([LOWER, UPPER])
ARM = make_image([UPPER], architecture="arm64")


def refused(taking: Taking, reason: Reason) -> str:
    with pytest.raises(Refused) as caught:
        taking.take("archive:app.tar")
    assert caught.value.reason is reason, caught.value.message
    assert taking.left_over() == []
    return caught.value.message


def oci_archive(path: Path, *images: object, leave_out: tuple[str, ...] = ()) -> None:
    blobs = Blobs()
    top = blobs.add_images(images)  # type: ignore[arg-type]  # images, all of them
    files: dict[str, bytes | str] = {
        f"blobs/sha256/{name}": data for name, data in blobs.items() if name not in leave_out
    }
    write_tar(path, {"oci-layout": b"{}", "index.json": index([top]), "manifest.json": b"[]", **files})


@pytest.mark.parametrize("form", list(FOLDS))
def test_an_archive_of_the_older_form_gives_its_image(taking: Taking, form: str) -> None:
    write_archive(taking.folder / "app.tar", ONE, form=form)
    (image,) = taking.take("archive:app.tar")
    assert taking.is_whole(image, ONE)
    assert image.source == "archive:app.tar", "it has no digest but that of the config"
    assert taking.left_over() == []


def test_an_archive_in_the_form_of_a_layout_gives_the_images_of_all_its_platforms(taking: Taking) -> None:
    oci_archive(taking.folder / "app.tar", ONE, ARM)
    one, arm = taking.take("archive:app.tar")
    assert taking.is_whole(one, ONE) and taking.is_whole(arm, ARM)
    assert "sha256:" in one.source
    (only,) = taking.take("archive:app.tar", "linux/arm64")
    assert taking.is_whole(only, ARM)


def test_an_engine_that_names_platforms_it_does_not_have_gives_those_that_it_has(taking: Taking) -> None:
    blobs = Blobs()
    manifest = blobs.add_image(ARM)["digest"].removeprefix("sha256:")
    oci_archive(taking.folder / "app.tar", ONE, ARM, leave_out=(manifest,))
    (image,) = taking.take("archive:app.tar")
    assert taking.is_whole(image, ONE)


def test_a_layer_that_stands_twice_is_found_without_following_the_link(taking: Taking) -> None:
    twice = make_image([UPPER, LOWER, UPPER])
    write_archive(taking.folder / "app.tar", twice)
    assert taking.is_whole(taking.take("archive:app.tar")[0], twice)


def test_a_layer_that_is_a_link_to_a_file_of_this_computer_is_not_read(taking: Taking) -> None:
    secret = taking.folder / "secret"
    secret.write_bytes(UPPER)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        write_archive(taking.folder / "app.tar", ONE, listed=["a/layer.tar", "../secret"])
        with tarfile.open(taking.folder / "app.tar", "a") as archive:
            for name in ("a/layer.tar", "../secret"):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, str(secret)
                archive.addfile(member)
        assert "is not in it" in refused(taking, Reason.IMAGE)


def test_an_archive_for_another_machine_is_said(taking: Taking) -> None:
    write_archive(taking.folder / "app.tar", ARM)
    with pytest.raises(StateError, match="one for linux/arm64"):
        taking.take("archive:app.tar", "linux/amd64")


def test_an_archive_of_several_images_is_not_guessed_at(taking: Taking) -> None:
    write_tar(
        taking.folder / "app.tar",
        {"manifest.json": json.dumps([{"Config": "a", "Layers": []}, {"Config": "b", "Layers": []}]).encode()},
    )
    with pytest.raises(SettingsError, match="2 images") as caught:
        taking.take("archive:app.tar")
    blobs = Blobs()
    tops = [blobs.add_image(each) for each in (ONE, ARM)]
    files = {f"blobs/sha256/{name}": data for name, data in blobs.items()}
    write_tar(taking.folder / "app.tar", {"index.json": index(tops), **files})
    with pytest.raises(SettingsError, match="2 images") as newer:
        taking.take("archive:app.tar")
    assert "save one" in caught.value.hint and newer.value.hint == caught.value.hint, "no name of a layout's helps here"


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 5000, gzip.compress(b"x" * 5000), b"\0" * 10240],
)
def test_what_is_no_archive_is_refused(taking: Taking, content: bytes) -> None:
    (taking.folder / "app.tar").write_bytes(content)
    refused(taking, Reason.IMAGE)


@pytest.mark.parametrize(
    ("compress", "program"),
    [(gzip.compress, "gzip"), (FOLDS["+zstd"], "zstd"), (lzma.compress, "xz"), (bz2.compress, "bzip2")],
)
def test_a_compressed_archive_is_said_to_be_one(
    taking: Taking, compress: Callable[[bytes], bytes], program: str
) -> None:
    write_archive(taking.folder / "app.tar", ONE)
    (taking.folder / "app.tar").write_bytes(compress((taking.folder / "app.tar").read_bytes()))
    with pytest.raises(Refused, match=f"compressed with {program}") as caught:
        taking.take("archive:app.tar")
    assert caught.value.hint == f"unpack it first: `{program} -d`"


def test_what_somebody_may_take_for_an_archive_of_an_image_is_said(taking: Taking) -> None:
    (taking.folder / "app.tar").write_bytes(LOWER)
    with pytest.raises(Refused, match="is in it") as caught:
        taking.take("archive:app.tar")
    assert "`export` writes none" in caught.value.hint
    (taking.folder / "layout").mkdir()
    with pytest.raises(SettingsError, match="directory") as folder:
        taking.take("archive:layout")
    assert "oci:FOLDER" in folder.value.hint


def test_every_cut_of_an_archive_is_refused(taking: Taking) -> None:
    path = taking.folder / "app.tar"
    write_archive(path, ONE)
    whole = path.read_bytes()
    with path.open("rb") as file:
        places = tar_entries.read_entries(file)
    end = max(place.offset + place.length_bytes for place in places.values())
    for length in (*range(1, end, 997), end - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Refused):
            taking.take("archive:app.tar")
        assert taking.left_over() == []


def test_each_flipped_bit_of_the_layers_and_the_config_is_refused(taking: Taking) -> None:
    path = taking.folder / "app.tar"
    write_archive(path, ONE)
    whole = path.read_bytes()
    for data in (LOWER, UPPER):
        start = whole.index(data)
        for at in (start, start + 700, start + len(data) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert "config names" in refused(taking, Reason.HASH)
    assert taking.kept() <= {sha256(LOWER)}, "of what was whole"


@pytest.mark.parametrize(
    ("listed", "reason"),
    [([], Reason.IMAGE), (["x/layer.tar", "y/layer.tar"], Reason.IMAGE), (["../../etc/passwd"] * 2, Reason.IMAGE)],
)
def test_a_list_that_does_not_fit_the_config_is_refused(taking: Taking, listed: list[str], reason: Reason) -> None:
    files: dict[str, bytes | str] = {"c.json": ONE.config}
    files["manifest.json"] = json.dumps([{"Config": "c.json", "Layers": listed}]).encode()
    write_tar(taking.folder / "app.tar", files)
    refused(taking, reason)


def test_archives_have_bounds(taking: Taking, monkeypatch: pytest.MonkeyPatch) -> None:
    path = taking.folder / "app.tar"
    write_tar(path, {"manifest.json": b" " * (bounds.MANIFEST_BYTES + 1)})
    refused(taking, Reason.LIMIT)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("n" * (bounds.ARCHIVE_NAME_BYTES + 1)))
    assert "name" in refused(taking, Reason.LIMIT)
    monkeypatch.setattr(bounds, "ARCHIVE_ENTRIES", 100)
    write_tar(path, {f"file-{number}": b"" for number in range(101)})
    assert "entries" in refused(taking, Reason.LIMIT)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_form_of_tar(tmp_path: Path, form: int) -> None:
    name = f"{'folder/' * 18}{'f' * 90}"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for each in ("first", name, "./last"):
            archive.addfile(tarfile.TarInfo(each))
        archive.add(__file__, "behind")
    with (tmp_path / "a.tar").open("rb") as file:
        places = tar_entries.read_entries(file)
        assert list(places) == ["first", name, "last", "behind"]
        file.seek(places["behind"].offset)
        assert file.read(places["behind"].length_bytes) == Path(__file__).read_bytes()


def test_an_entry_of_more_bytes_than_there_are_is_refused_in_every_form(tmp_path: Path) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        member = tarfile.TarInfo("layer.tar")
        member.size = 1 << 40
        (tmp_path / "a.tar").write_bytes(member.tobuf(form) + bytes(1024))
        with (tmp_path / "a.tar").open("rb") as file, pytest.raises(Refused) as caught:
            tar_entries.read_entries(file)
        assert caught.value.reason is Reason.IMAGE


def test_no_name_in_an_archive_repaints_the_terminal(taking: Taking) -> None:
    names = ["\x1b[2Ja/layer.tar", "b/layer.tar"]
    files: dict[str, bytes | str] = {"c.json": ONE.config, names[0]: b"other bytes", names[1]: UPPER}
    files["manifest.json"] = json.dumps([{"Config": "c.json", "Layers": names}]).encode()
    write_tar(taking.folder / "app.tar", files)
    assert refused(taking, Reason.HASH).isprintable()
    volumes = make_image([UPPER], config={"Volumes": {"/\x1b[2J": {}}})
    with pytest.raises(Refused) as caught:
        check_volumes(parse_image_config(volumes.config), RunSpec(command=("/app",)))
    assert caught.value.message.isprintable()
