"""An engine that keeps its images in containerd, as Docker 29 does, names them by manifest. Debian has no such Docker
yet, but what it would read and write: a real containerd stands behind a front that speaks Docker's interface."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from device.containers.engine import TAG, HeldImage
from device.containers.engine_docker import DockerEngine
from protocol.errors import Reason, Refused
from tests.fakes.engine_front import INFO, Heard, front, scripted
from tests.fakes.images import Images, base_layer, file, tar

OWNER = "0123456789abcdef"
PREFIX = "docker.io/library/"
SETTINGS = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/socket"
"""


class Containerd:
    """A real one, by its own tool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "settings").write_text(SETTINGS.format(folder=folder))
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(["containerd", "-c", folder / "settings"], stdout=log, stderr=log)
        end = time.monotonic() + 30
        while self.ask("version").returncode:
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.1)

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)

    def ask(self, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["ctr", "-a", self.folder / "socket", *words], capture_output=True, check=False)

    def images(self) -> dict[str, str]:
        """Digests of manifests, by name."""
        lines = self.ask("images", "ls").stdout.decode().splitlines()[1:]
        return {line.split()[0]: line.split()[2] for line in lines}

    def blob(self, digest: str) -> Any:
        return json.loads(self.ask("content", "get", digest).stdout)

    def answers(self) -> dict[tuple[str, str], Any]:
        """What an engine with such a store says."""
        return {
            ("GET", "/info"): {**INFO, "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]},
            ("GET", "/containers/json"): [],
            ("GET", "/images/json"): lambda _: [self._told(name) for name in self.images()],
            ("GET", "/images/"): self._get,
            ("POST", "/images/load"): self._load,
            ("DELETE", "/images/"): self._remove,
        }

    def _told(self, name: str) -> dict[str, Any]:
        manifest = self.images()[name]
        config = self.blob(self.blob(manifest)["config"]["digest"])
        layers = config["rootfs"]["diff_ids"]
        return {"Id": manifest, "RepoTags": [name.removeprefix(PREFIX)], "RootFS": {"Layers": layers}}

    def _name(self, wanted: str) -> str | None:
        return next((name for name, id in self.images().items() if wanted in (id, name.removeprefix(PREFIX))), None)

    def _get(self, heard: Heard) -> Any:
        wanted, _, what = heard.path.removeprefix("/images/").rpartition("/")
        if (name := self._name(wanted)) is None:
            return 404, {"message": "no such image"}
        if what == "json":
            return self._told(name)
        archive = self.folder / "out.tar"
        assert self.ask("images", "export", archive, name).returncode == 0
        return archive.read_bytes()

    def _load(self, heard: Heard) -> Any:
        (self.folder / "in.tar").write_bytes(heard.body)
        done = self.ask("images", "import", self.folder / "in.tar")
        return {"error": done.stderr.decode()} if done.returncode else {"stream": done.stdout.decode()}

    def _remove(self, heard: Heard) -> Any:
        name = self._name(heard.path.removeprefix("/images/").partition("?")[0])
        return [self.ask("images", "rm", name).returncode] if name else (404, {"message": "no such image"})


@pytest.fixture
def containerd() -> Iterator[Containerd]:
    if os.geteuid() != 0 or not shutil.which("containerd"):
        message = "no containerd here, or none that may be started: it comes with docker.io and needs root"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix="headland-ctd-") as folder:
        made = Containerd(Path(folder))
        yield made
        made.close()


def test_what_went_into_containerd_is_known_by_its_config_and_comes_out_byte_for_byte(
    containerd: Containerd, tmp_path: Path
) -> None:
    images = Images(tmp_path / "images")
    twice = tar([file("app", b"x" * 3000)])
    image, other = images.build([base_layer(), twice, tar([file("more")]), twice]), images.app("other")
    with front(scripted(containerd.answers())) as made, closing(DockerEngine(made.socket, OWNER)) as adapter:
        for _ in range(2):
            adapter.load(image.image, image.files)
        assert adapter.view().images == (HeldImage(image.digest, image.layers),)
        assert len(made.asked("/images/load")) == 1

        lengths = {one.artifact.sha256: one.artifact.length_bytes for one in image.image.layers}
        adapter.export(image.digest, {name: tmp_path / name for name in lengths}, lengths)
        for name in lengths:
            assert (tmp_path / name).read_bytes() == image.files[name].read_bytes()

        adapter.load(other.image, other.files)
        adapter.drop_images([other.digest])
        assert [held.image for held in adapter.view().images] == [other.digest]


def test_room_is_looked_for_on_the_disk_of_containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device.containers.engine_docker.CONTAINERD", tmp_path / "containerd")
    info = {**INFO, "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    for folder in (Path(INFO["DockerRootDir"]), tmp_path / "containerd"):
        with (
            front(scripted({("GET", "/info"): info, ("GET", "/"): []})) as made,
            closing(DockerEngine(made.socket, OWNER)) as adapter,
        ):
            assert adapter.view().folder == folder
        (tmp_path / "containerd").mkdir(exist_ok=True)


def test_layers_that_are_not_the_configs_are_refused_and_no_image_stays(containerd: Containerd, tmp_path: Path) -> None:
    images = Images(tmp_path / "images")
    good, other = images.app("one"), images.app("two")
    lying = msgspec.structs.replace(good.image, layers=other.image.layers)
    with front(scripted(containerd.answers())) as made, closing(DockerEngine(made.socket, OWNER)) as adapter:
        with pytest.raises(Refused) as refused:
            adapter.load(lying, {**good.files, **other.files})
        assert refused.value.reason is Reason.IMAGE
        assert adapter.view().images == ()
        assert TAG.format(owner=OWNER, image=good.digest) not in str(containerd.images())
