"""Images of the demo: built without an engine, the same each time, and whole."""

import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from protocol.container import Container, check_containers
from scripts.demo_apps import elf
from scripts.demo_apps.images import MADE_S, File, Folder, Image, Link, layer, tree_of, write_archive, write_layout
from scripts.demo_apps.runtimes import BUSYBOX, PYTHON, NoRuntimeError, busybox, python
from scripts.demo_apps.sprayer_images import DESCRIPTION, NOZZLES, describe, sprayer
from signing.release_description import read_description
from tests.fakes.intake import Taking

TREE = {
    "bin/app": File(b"program", 0o755),
    "bin/sh": Link("app"),
    "tmp": Folder(0o1777),
    "a/deep/path/file": File(b"x"),
}


def small(folder: Path) -> Image:
    return Image((layer(folder, TREE, "base"), layer(folder, {"app": File(b"1")}, "app")), command=("/bin/app",))


def test_the_same_content_gives_the_same_bytes_wherever_and_whenever_it_is_built(tmp_path):
    source = tmp_path / "program"
    source.write_bytes(b"program")
    first = small(tmp_path / "one")
    os.utime(source, (1, 1))
    backwards = dict(reversed(TREE.items())) | {"bin/app": File(source, 0o755)}
    assert layer(tmp_path / "two", backwards, "base") == first.layers[0].__class__(
        tmp_path / "two" / first.layers[0].path.name, first.layers[0].sha256, first.layers[0].length_bytes, "base"
    )
    for folder in ("one", "two"):
        again = small(tmp_path / folder)
        assert again.id == first.id
        write_archive(again, tmp_path / f"{folder}.tar", "app:1")
        write_layout(again, tmp_path / f"{folder}-layout", "1")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    for path in (tmp_path / "one-layout").rglob("*"):
        other = tmp_path / "two-layout" / path.relative_to(tmp_path / "one-layout")
        assert path.is_dir() or path.read_bytes() == other.read_bytes()


def test_a_layer_holds_every_folder_and_all_is_roots(tmp_path):
    made = layer(tmp_path, TREE, "base")
    with tarfile.open(made.path) as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries] == [
        "a", "a/deep", "a/deep/path", "a/deep/path/file", "bin", "bin/app", "bin/sh", "tmp",
    ]  # fmt: skip
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries} == {(0, 0, MADE_S)}
    assert {entry.name: entry.mode for entry in entries}["tmp"] == 0o1777


def test_a_folder_becomes_a_layer_and_is_the_same_again(tmp_path):
    made = layer(tmp_path, TREE, "base")
    with tarfile.open(made.path) as archive:
        archive.extractall(tmp_path / "root", filter="fully_trusted")
    assert layer(tmp_path, tree_of(tmp_path / "root"), "base").sha256 == made.sha256


@pytest.mark.parametrize("form", ["archive", "oci"])
def test_the_builder_takes_them_in_as_they_are(tmp_path, form):
    image = small(tmp_path / "layers")
    write_archive(image, tmp_path / "app.tar", "app:1")
    write_layout(image, tmp_path / "app", "1")
    taking = Taking(tmp_path)
    (taken,) = taking.take("archive:app.tar" if form == "archive" else "oci:app:1")
    assert taken.config.sha256 == image.id
    assert [each.artifact.sha256 for each in taken.layers] == [each.sha256 for each in image.layers]
    assert all(each.origin for each in taken.layers), "patches lead from one version to the next"
    assert taken.platform.startswith("linux/")


def test_what_the_sprayer_is_granted_can_be_read_and_holds(tmp_path):
    path = tmp_path / "release.toml"
    path.write_text('product = "pest-detector"\nversion = "1.0.0"\ncounter = 1\n' + DESCRIPTION.read_text())
    (described,) = read_description(path)[1].containers
    run = described.run()
    assert run.sees_model
    assert run.health is not None
    assert run.user == "65534:65534"
    assert not run.writable_root
    assert run.network == "none"
    check_containers([Container(name=described.name, images=(), run=run)], models=True)


def test_python_is_whole(tmp_path):
    """Every module of it can be loaded where nothing else is."""
    if not PYTHON.exists() or os.geteuid() != 0:
        _skip("no Python of Debian's, or not root: nothing can be run in a folder of its own")
    root = tmp_path / "root"
    first = layer(tmp_path, python(), "python")
    assert layer(tmp_path, python(), "python") == first
    with tarfile.open(first.path) as archive:
        archive.extractall(root, filter="fully_trusted")
    program = (
        "import glob, importlib, os, warnings; warnings.simplefilter('ignore')\n"
        "names = [os.path.basename(path).split('.')[0] for path in glob.glob('/usr/lib/python3*/lib-dynload/*.so')]\n"
        "[importlib.import_module(name) for name in ['http.server', 'urllib.request', 'asyncio', *names]]\n"
        "print(len(names) > 20, open('/etc/passwd').read().count('nobody'), os.listdir('/tmp'))"
    )
    done = subprocess.run(
        ["chroot", "--userspec", "65534:65534", root, "/usr/bin/python3", "-I", "-S", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "True 2 []\n"), done.stderr


def test_the_shell_is_busybox_under_all_its_names(tmp_path):
    try:
        tree = busybox()
    except NoRuntimeError as error:
        _skip(str(error))
    assert tree["bin/sh"] == tree["bin/wget"] == Link("busybox")
    assert elf.read(BUSYBOX) == ("", []), "it needs nothing"


def test_versions_of_the_sprayer_differ_in_what_a_fix_and_a_new_version_change(tmp_path):
    if not PYTHON.exists():
        _skip("no Python of Debian's")
    began_s = time.monotonic()
    one, two, broken = (sprayer(version, tmp_path) for version in NOZZLES)
    assert two.layers[0] == broken.layers[0]
    with tarfile.open(one.layers[0].path) as old, tarfile.open(two.layers[0].path) as new:
        was, now = ({entry.name: entry.size for entry in archive} for archive in (old, new))
    (fixed,) = {name for name in now if was.get(name) != now[name]}
    assert fixed.endswith("http/client.py")
    assert was.keys() == now.keys()
    assert len({one.id, two.id, broken.id}) == 3
    with tarfile.open(fileobj=io.BytesIO(two.layers[1].path.read_bytes())) as archive:
        assert b'"nozzles": 8' in archive.extractfile("app/sprayer.json").read()
    assert time.monotonic() - began_s < 60


def test_a_release_carries_the_sprayer_beside_a_model_of_the_demo(tmp_path):
    if not PYTHON.exists():
        _skip("no Python of Debian's")
    image = sprayer("1.0.0", tmp_path / "layers")
    path = describe(tmp_path / "one", "1.2.0", 3, model="1.1.0", image=image)
    folder, described = read_description(path)
    assert (described.version, described.counter) == ("1.2.0", 3)
    (model,) = described.models
    assert all((folder / variant.file).exists() for variant in model.variants)
    (container,) = described.containers
    (taken,) = Taking(folder).take(container.image)
    assert taken.config.sha256 == image.id


def test_what_a_program_needs_is_read_from_it_and_a_missing_library_is_named(tmp_path):
    program = Path(sys.executable).resolve()
    loader, needed = elf.read(program)
    assert Path(loader).exists()
    assert any(name.startswith("libc.so") for name in needed)
    assert loader.lstrip("/") in elf.libraries([program])
    broken = program.read_bytes().replace(b"libc.so.6\0", b"libz.so.6\0")
    (tmp_path / "broken").write_bytes(broken)
    with pytest.raises(FileNotFoundError, match=r"libz\.so\.6 is not on this machine"):
        elf.libraries([tmp_path / "broken"])
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(ValueError, match="no program"):
        elf.read(tmp_path / "script")


def _skip(why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)
