"""Whether the programs of a run specification are in an image, whatever its layers do with links and folders."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from protocol.container import DataMount, HealthCheck, RunSpec
from protocol.errors import Reason, Refused
from signing.images import bounds
from signing.images.programs import check_programs

Files = dict[str, str | int | None]
"""By name: where a symlink leads, the mode of a file, None for a folder."""


@pytest.fixture(params=[tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def form(request: pytest.FixtureRequest) -> int:
    return int(request.param)


class Image:
    """Layers in a folder, lowest first."""

    def __init__(self, folder: Path, form: int, *layers: Files) -> None:
        self.paths: list[Path] = []
        for number, files in enumerate(layers):
            path = folder / f"{number}.tar"
            with tarfile.open(path, "w", format=form) as archive:
                for name, what in files.items():
                    archive.addfile(*member(name, what))
            self.paths.append(path)

    def check(self, *command: str, **more: Any) -> None:
        check_programs(self.paths, RunSpec(command=command, **more))

    def refused(self, *command: str, **more: Any) -> str:
        with pytest.raises(Refused) as caught:
            self.check(*command, **more)
        assert caught.value.reason is Reason.IMAGE
        return caught.value.message


def member(name: str, what: str | int | None) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    if what is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        return info, io.BytesIO()
    if isinstance(what, str):
        hard = what.startswith("=")
        info.type, info.linkname = (tarfile.LNKTYPE, what[1:]) if hard else (tarfile.SYMTYPE, what)
        info.mode = 0o755 if hard else 0o777
        return info, io.BytesIO()
    info.mode, info.size = what, 3
    return info, io.BytesIO(b"ELF")


LONG = f"{'folder/' * 30}program"
USUAL: Files = {
    "bin": "usr/bin",
    "usr/bin": None,
    "usr/bin/python3": "python3.11",
    "usr/bin/python3.11": 0o755,
    "usr/bin/sh": "/etc/alternatives/sh",
    "etc/alternatives/sh": "/usr/bin/dash",
    "usr/bin/dash": "=usr/bin/python3.11",
    "./app/run": 0o755,
    "app/data.txt": 0o644,
    "/abs/run": 0o755,
    "loop": "loop",
    "up": "../../usr/bin/python3",
    "odd": "/proc/self/exe",
    "long": LONG,
    LONG: 0o755,
}


@pytest.mark.parametrize(
    "program",
    [
        "/usr/bin/python3.11",
        "/usr/bin/python3",
        "/bin/python3",
        "/bin/sh",
        "/app/run",
        "/app/../bin/./sh",
        "//app//run",
        "/up",
        "/abs/run",
        "/long",
        f"/{LONG}",
        "/odd",
        "/dev/shm/x",
        "./app/run",
    ],
)
def test_a_program_that_is_there_is_found_through_links_and_folders(tmp_path: Path, form: int, program: str) -> None:
    Image(tmp_path, form, USUAL).check(program, "argument")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("/usr/bin/pyhton3", "is not in the image"),
        ("/app/run/deeper", "is not in the image"),
        ("/loop", "is not in the image"),
        ("/app/data.txt", "not as an executable file"),
        ("/app", "not as an executable file"),
        ("/usr/bin", "not as an executable file"),
        ("run", "is not in the image"),
    ],
)
def test_a_program_that_no_machine_could_start_is_refused(tmp_path: Path, form: int, program: str, said: str) -> None:
    image = Image(tmp_path, form, USUAL)
    assert said in (message := image.refused(program)) and message.startswith("`command` begins with")
    unwell = HealthCheck(command=(program,))
    assert image.refused("/app/run", health=unwell).startswith("`health.command` begins with")


def test_a_program_without_its_path_is_looked_for_where_the_description_says(tmp_path: Path, form: int) -> None:
    image = Image(tmp_path, form, USUAL)
    image.check("python3")
    image.check("run", environment={"PATH": "/bin:/app"})
    image.check("run", environment={"PATH": "../app"}, workdir="/usr")
    image.check("./run", workdir="/app")
    assert "is not in the image" in image.refused("run", environment={"PATH": "/bin"})


def test_what_upper_layers_remove_or_put_in_its_place_counts(tmp_path: Path, form: int) -> None:
    def image(*upper: Files) -> Image:
        return Image(tmp_path, form, USUAL, *upper)

    image({"app/other": 0o755}).check("/app/run")
    image({"app/.wh.data.txt": 0o000}).check("/app/run")
    assert "is not in" in image({"app/.wh.run": 0o000}).refused("/app/run")
    assert "is not in" in image({".wh.app": 0o000}).refused("/app/run")
    assert "is not in" in image({"app": None, "app/.wh..wh..opq": 0o000}).refused("/app/run")
    image({"app/.wh.run": 0o000}, {"app/run": 0o755}).check("/app/run")
    image({"app/.wh..wh..opq": 0o000, "app/run": 0o755}).check("/app/run")
    assert "executable" in image({"app/run": 0o644}).refused("/app/run")
    assert "is not in" in image({"app": 0o755}).refused("/app/run"), "a file hides the folder that was there"
    assert "is not in" in image({"bin": "nowhere"}).refused("/bin/sh")


def test_what_may_come_from_outside_the_image_has_the_benefit_of_the_doubt(
    tmp_path: Path, form: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts: Sequence[DataMount] = (DataMount(name="tools", at="/app/tools"),)
    image = Image(tmp_path, form, USUAL, {"tool": "/app/tools/bin/tool"})
    image.check("/app/tools/run", mounts=tuple(mounts))
    image.check("/tool", mounts=tuple(mounts))
    assert "is not in" in image.refused("/tool")
    monkeypatch.setattr(bounds, "LAYER_ENTRIES", 3)
    image.check("/tool")
