"""O4: what an image's layers and its own config try is of no use, on a real engine: all that counts is the wish.

The images here are such as no builder makes. Each may be refused or may run; the machine is untouched either way.
"""

import contextlib
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import docker
import pytest

from device.containers.engine import EngineError
from protocol.errors import Refused
from tests.fakes.engine_bench import SICK, Bench, real_bench
from tests.fakes.images import SHELL, base_layer, file, folder, link, tar
from tests.fakes.private_engine import PrivateEngine


@pytest.fixture(params=["docker", "podman"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    made = real_bench(request.getfixturevalue(f"shared_{request.param}"), tmp_path / "images")
    yield made
    await made.clear()


def _shell(program: str) -> tuple[str, ...]:
    return (*SHELL, program)


@pytest.mark.parametrize("user", ["0:0", "65534:65534"])
async def test_attack_o4_a_device_node_in_a_layer_opens_nothing(user: str, bench: Bench) -> None:
    nodes = []
    for name, kind, major, minor in (("memory", tarfile.CHRTYPE, 1, 1), ("disk", tarfile.BLKTYPE, 7, 0)):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.devmajor, info.devminor = kind, 0o666, major, minor
        nodes.append((info, b""))
    image = bench.images.build([base_layer(), tar(nodes)])
    await bench.engine.load(image.image, image.files)
    program = "for it in /memory /disk; do test -c $it -o -b $it && head -c 1 $it && echo open; done; exit 0"
    code, said = await bench.run(bench.wish(image, _shell(program), user=user))
    assert (code, said.count("Operation not permitted"), "open" in said) == (0, 2, False)


async def test_attack_o4_a_container_of_root_can_make_no_device_node(bench: Bench) -> None:
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    wish = bench.wish(image, _shell("mknod /made b 7 0; mknod /made2 c 1 1"), user="0:0", writable_root=True)
    code, said = await bench.run(wish)
    assert code == 1
    assert said.count("Operation not permitted") + said.count("Permission denied") == 2


ESCAPES = {
    "above": lambda victim: [[file(f"{'../' * 24}{victim}/new")]],
    "absolute": lambda victim: [[file(f"{victim}/new")]],
    "symlink, then through it": lambda victim: [[link("out", str(victim))], [file("out/new"), file("out/mine", b"x")]],
    "symlink above, then through it": lambda victim: [[link("out", f"{'../' * 24}{victim}")], [file("out/new")]],
    "hard link to it, then write": lambda victim: [[link("mine", f"{victim}/mine", hard=True)], [file("mine", b"x")]],
    "whiteout of it": lambda victim: [[link("out", str(victim))], [file("out/.wh.mine")]],
    "whiteout above": lambda victim: [[folder("a")], [file(f"{'../' * 24}{victim}/.wh.mine")]],
    "opaque whiteout of its folder": lambda victim: [[link("out", str(victim))], [file("out/.wh..wh..opq")]],
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "mine").write_bytes(b"mine")
    return folder


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _unpack_trustingly(entries: list[tuple[tarfile.TarInfo, bytes]], root: Path) -> None:
    """What an engine would do that believed every name."""
    for info, data in entries:
        at = root / info.name
        if at.name == ".wh..wh..opq":
            for path in at.parent.iterdir():
                path.unlink()
        elif at.name.startswith(".wh."):
            at.with_name(at.name.removeprefix(".wh.")).unlink()
        elif info.isdir():
            at.mkdir()
        elif info.issym():
            at.symlink_to(info.linkname)
        elif info.islnk():
            at.hardlink_to(info.linkname)
        else:
            at.write_bytes(data)


@pytest.mark.parametrize("name", ESCAPES)
def test_attack_o4_each_of_these_layers_reaches_it_where_names_are_believed(
    name: str, victim: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for layer in ESCAPES[name](victim):
        _unpack_trustingly(layer, root)
    assert _content(victim) != {"mine": b"mine"}


@pytest.mark.parametrize("name", ESCAPES)
async def test_attack_o4_no_layer_reaches_a_file_of_the_machine(name: str, bench: Bench, victim: Path) -> None:
    layers = ESCAPES[name](victim)
    image = bench.images.build([base_layer(), *(tar(layer) for layer in layers)])
    try:
        await bench.engine.load(image.image, image.files)
    except (Refused, EngineError):
        pass  # the engine will not have it
    else:
        with contextlib.suppress(Refused):  # nor start it
            await bench.run(bench.wish(image, _shell("cat /out/mine /mine; ls /out; exit 0"), user="0:0"))
    assert _content(victim) == {"mine": b"mine"}


async def test_attack_o4_what_the_images_config_asks_for_is_not_granted(bench: Bench) -> None:
    asked: dict[str, Any] = {
        "Entrypoint": ["/bin/busybox", "echo", "EVIL"],
        "Cmd": ["EVIL"],
        "Env": ["EVIL=1", "LD_PRELOAD=/evil.so", "PATH=/evil", "NVIDIA_VISIBLE_DEVICES=all"],
        "User": "0:0",
        "WorkingDir": "/evil",
        "Volumes": {"/data": {}},
        "Healthcheck": {"Test": ["CMD", "/bin/busybox", "touch", "/data/evil"], "Interval": 1_000_000_000},
        "StopSignal": "SIGUSR1",
        "Labels": {
            "io.headland.owner": "f" * 16,
            "io.headland.container": "evil",
            "io.headland.spec": "evil",
            # Other programs on the machine act on these: Podman would start a unit of the machine anew.
            "io.containers.autoupdate": "registry",
            "PODMAN_SYSTEMD_UNIT": "ssh.service",
            "com.docker.compose.project": "evil",
        },
        "Shell": ["/evil"],
        "OnBuild": ["RUN /evil"],
        "ExposedPorts": {"80/tcp": {}},
        # Of no meaning in a config, and so of none to an engine:
        "HostConfig": {"Privileged": True, "Binds": ["/:/host"]},
        "Privileged": True,
    }
    image = bench.images.build([base_layer(), tar([folder("data"), folder("evil")])], asked)
    await bench.engine.load(image.image, image.files)
    program = "id -u; id -g; pwd; env; cat /proc/self/status; ls /data; echo new >/new; ls /host /var/run /run; exit 7"
    program = f"exec 2>&1; {program}"  # one stream: an engine puts the lines of two in any order
    taken: dict[str, Any] = {
        "hidden": tuple(text.partition("=")[0] for text in asked["Env"]),
        "labels": tuple(asked["Labels"]),
        "scratch": {"/data": 1},
    }
    wish = bench.wish(image, _shell(program), **taken)
    code, said = await bench.run(wish)
    lines = said.splitlines()
    assert code == 7
    assert lines[:3] == ["65534", "65534", "/"]
    given = dict(line.split("=", 1) for line in lines if line.partition("=")[0] in taken["hidden"])
    assert "evil" not in given.pop("PATH")  # a shell without one makes its own
    assert {name: value for name, value in given.items() if value} == {"NVIDIA_VISIBLE_DEVICES": "void"}
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert "can't create /new: Read-only file system" in said
    assert "docker.sock" not in said

    staying = bench.wish(image, (*SHELL, "sleep 100 & trap 'exit 0' TERM; wait"), **taken)
    await bench.engine.start(staying)
    seen = await bench.only()
    assert (seen.name, seen.spec, seen.health) == (staying.name, staying.spec, "none")
    facts = json.loads(_docker(bench, "inspect", seen.id))[0]
    assert facts["HostConfig"]["Privileged"] is False
    assert not facts["HostConfig"]["Binds"]
    assert not facts["HostConfig"]["PortBindings"]
    assert {value for name, value in facts["Config"]["Labels"].items() if not name.startswith("io.headland.")} == {""}
    assert [(mount["Type"], mount["Destination"]) for mount in facts["Mounts"]] == []  # the scratch is none of these
    assert facts["Config"]["StopSignal"] in ("SIGTERM", "15")
    assert not json.loads(_docker(bench, "volumes"))
    await bench.engine.stop(seen.id, 5.0)
    assert (await bench.only()).exit == "exit 0"


def _cat() -> list[tuple[tarfile.TarInfo, bytes]]:
    """A `cat` that would run as root, what it is linked with, and a file that only root may read."""
    words = subprocess.run(["ldd", "/bin/cat"], capture_output=True, text=True, check=True).stdout.split()
    libraries = [Path(word) for word in words if word.startswith("/")]
    return [
        file("cat", Path("/bin/cat").read_bytes(), 0o6755),
        file("secret", b"secret", 0o600),
        *(file(str(path).lstrip("/"), path.read_bytes(), 0o755) for path in libraries),
    ]


async def test_attack_o4_a_set_user_id_program_gives_nobody_anything(bench: Bench) -> None:
    entries = _cat()
    image = bench.images.build([base_layer(), tar(entries)])
    await bench.engine.load(image.image, image.files)
    code, said = await bench.run(bench.wish(image, ("/cat", "/secret")))
    assert code == 1
    assert "Permission denied" in said
    assert "secret\n" not in said.replace("/secret", "")


async def test_attack_o4_the_owner_on_an_image_makes_nobody_elses_container_ours(
    bench: Bench, shared_docker: PrivateEngine, tmp_path: Path
) -> None:
    """Labels of an image become those of its containers. Ours are set on the container, and win."""
    stranger = real_bench(shared_docker, tmp_path)
    asked = {"Labels": {"io.headland.owner": bench.owner}}
    image = bench.images.build([base_layer()], asked)
    await stranger.engine.load(image.image, image.files)
    await stranger.engine.start(stranger.wish(image))
    assert (await bench.engine.view()).containers == ()
    assert len((await stranger.engine.view()).containers) == 1
    await stranger.clear()


def _docker(bench: Bench, *words: str) -> str:
    """What the engine itself tells, past the adapter."""
    assert bench.socket is not None
    client = docker.APIClient(base_url=f"unix://{bench.socket}", version="1.41", timeout=20)
    try:
        match words:
            case ["inspect", id]:
                return json.dumps([client.inspect_container(id)])
            case _:
                return json.dumps(client.volumes()["Volumes"])
    finally:
        client.close()


async def test_attack_o4_an_image_gives_no_grace_to_a_health_check_of_the_wish(bench: Bench) -> None:
    grace = {"Test": ["CMD", "/bin/busybox", "true"], "Interval": 3_600_000_000_000, "StartPeriod": 3_600_000_000_000}
    image = bench.images.build([base_layer()], config={"Healthcheck": grace})
    await bench.engine.load(image.image, image.files)
    beat = {"health_interval_s": 1.0, "health_retries": 1, "health_start_s": 0.0}
    await bench.engine.start(bench.wish(image, health_command=SICK, **beat))
    await bench.until(lambda view: [one.health for one in view.containers] == ["unhealthy"], limit_s=15.0)
