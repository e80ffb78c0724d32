"""O3, for the archives that a container engine gives: nothing in them is a path to us. What has the digest of a wanted
layer goes where the caller says; all else is passed over."""

import io
import tarfile
from pathlib import Path

import pytest

from device.containers.engine_archive import take_layers
from protocol.ids import digest
from tests.fakes.images import file, folder, link

WANTED = b"the layer" * 100


def _named(name: str, data: bytes = WANTED) -> tuple[tarfile.TarInfo, bytes]:
    return file(name, data, 0o4755)


def _node(name: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.devmajor, info.devminor = kind, 1, 5
    return info, b""


def _sized(entry: tuple[tarfile.TarInfo, bytes]) -> tuple[tarfile.TarInfo, bytes]:
    """Claims to be as long as the layer."""
    entry[0].size = len(WANTED)
    return entry


HOSTILE = {
    "above": [_named("../../layer.tar")],
    "absolute": [_named("/tmp/headland-o3/layer.tar")],
    "through-a-symlink": [link("out", "/tmp"), _named("out/headland-o3")],
    "hard-link": [link("layer.tar", "/etc/passwd", hard=True), _named("a")],
    "hard link of its length": [_sized(link("layer.tar", "/etc/passwd", hard=True)), _named("a")],
    "symlink of its length": [_sized(link("layer.tar", "/etc/passwd")), _named("a")],
    "device": [_node("layer.tar", tarfile.CHRTYPE), _node("b", tarfile.BLKTYPE), _named("a")],
    "fifo": [_node("layer.tar", tarfile.FIFOTYPE), _named("a")],
    "twice": [_named("layer.tar", b"x" * len(WANTED)), _named("layer.tar"), _named("layer.tar", b"y" * len(WANTED))],
    "case": [_named("LAYER.tar", b"x" * len(WANTED)), _named("layer.tar")],
    "many": [*(folder(f"{n}") for n in range(5000)), _named("a")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_attack_o3_names_and_kinds_of_members_lead_nowhere(name: str, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in HOSTILE[name]:
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data) if data else None)
    inner = tmp_path / "in" / "ner"
    inner.mkdir(parents=True)
    place = inner / "layer"
    wanted = digest(WANTED)
    found = take_layers(iter([out.getvalue()]), {wanted: place}, {wanted: len(WANTED)})
    assert found == {wanted}
    assert place.read_bytes() == WANTED
    assert place.stat().st_mode & 0o7777 == 0o600
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*"))] == [
        Path("in"),
        Path("in/ner"),
        Path("in/ner/layer"),
    ]
    assert not Path("/tmp/headland-o3").exists()


def test_attack_o3_bytes_that_are_not_the_layers_are_not_left_behind(tmp_path: Path) -> None:
    wanted = digest(WANTED)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info, data = _named(wanted, b"x" * len(WANTED))
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    assert take_layers(iter([out.getvalue()]), {wanted: tmp_path / "layer"}, {wanted: len(WANTED)}) == frozenset()
    assert list(tmp_path.iterdir()) == []


def test_attack_o3_a_symlink_at_the_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "layer").symlink_to(victim)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info, data = _named("a")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    wanted = digest(WANTED)
    take_layers(iter([out.getvalue()]), {wanted: tmp_path / "layer"}, {wanted: len(WANTED)})
    assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "layer").is_symlink()
