"""The exact request to the engine, also for hardware that is not here: what is not in it, a container does not get."""

import json
from contextlib import closing
from typing import Any

import pytest

from device.containers.engine import Bind, Wish
from device.containers.engine_docker import DockerEngine
from device.containers.engine_request import container_name, create_request
from protocol.container import USUAL_PATH
from protocol.errors import Refused
from tests.fakes.engine_front import Heard, front, scripted

OWNER = "0123456789abcdef"
IMAGE = "a" * 64
VOID = "NVIDIA_VISIBLE_DEVICES=void"
PATH = f"PATH={USUAL_PATH}"
PLAIN = Wish(name="app", spec="b" * 64, image=IMAGE, command=("/app", "--run"), environment={})


def test_a_plain_wish_gets_next_to_nothing_and_every_default_of_the_image_is_overruled() -> None:
    assert create_request(OWNER, PLAIN, f"sha256:{IMAGE}") == {
        "Image": f"sha256:{IMAGE}",
        "Entrypoint": ["/app", "--run"],
        "Cmd": [],
        "Env": [PATH, VOID],
        "WorkingDir": "/",
        "User": "65534:65534",
        "Labels": {"io.headland.owner": OWNER, "io.headland.container": "app", "io.headland.spec": "b" * 64},
        "StopSignal": "SIGTERM",
        "StopTimeout": 10,
        "Healthcheck": {"Test": ["NONE"]},
        "ExposedPorts": {},
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "HostConfig": {
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "Privileged": False,
            "CapDrop": ["ALL"],
            "CapAdd": [],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "NetworkMode": "none",
            "IpcMode": "private",
            "UsernsMode": "host",
            "PortBindings": {},
            "PublishAllPorts": False,
            "Mounts": [],
            "Tmpfs": {},
            "Devices": [],
            "GroupAdd": [],
            "Memory": 256 << 20,
            "MemorySwap": 256 << 20,
            "NanoCpus": 0,
            "PidsLimit": 128,
            "Init": False,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "2m", "max-file": "2"}},
        },
    }


def _wish(**changes: Any) -> Wish:
    return Wish(**{**{name: getattr(PLAIN, name) for name in PLAIN.__dataclass_fields__}, **changes})


def _host(wish: Wish) -> dict[str, Any]:
    return create_request(OWNER, wish, f"sha256:{IMAGE}")["HostConfig"]


def test_devices_are_passed_by_node_without_the_right_to_make_nodes() -> None:
    host = _host(_wish(devices=("/dev/apex_0", "/dev/video2"), groups=(44, 105)))
    assert host["Devices"] == [
        {"PathOnHost": "/dev/apex_0", "PathInContainer": "/dev/apex_0", "CgroupPermissions": "rw"},
        {"PathOnHost": "/dev/video2", "PathInContainer": "/dev/video2", "CgroupPermissions": "rw"},
    ]
    assert host["GroupAdd"] == ["44", "105"]
    assert host["Privileged"] is False


def test_nvidia_is_its_runtime_and_the_variables_that_it_looks_at() -> None:
    request = create_request(OWNER, _wish(gpu="nvidia", environment={"A": "1"}), f"sha256:{IMAGE}")
    assert request["HostConfig"]["Runtime"] == "nvidia"
    assert request["Env"] == ["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all", PATH, "A=1"]
    assert "Runtime" not in _host(PLAIN)
    narrowed = _wish(gpu="nvidia", environment={"NVIDIA_DRIVER_CAPABILITIES": "utility"})
    assert "NVIDIA_DRIVER_CAPABILITIES=utility" in create_request(OWNER, narrowed, "")["Env"]


@pytest.mark.parametrize("podman", [False, True])
def test_an_engine_whose_default_runtime_is_nvidias_gives_no_gpu_that_was_not_granted(podman: bool) -> None:
    """To a container that looks old to it, by its CUDA_VERSION, that runtime gives all."""
    wishes = (
        _wish(hidden=("NVIDIA_VISIBLE_DEVICES", "CUDA_VERSION")),
        _wish(environment={"CUDA_VERSION": "9.0", "NVIDIA_VISIBLE_DEVICES": "all"}),
    )
    for wish in wishes:
        env = create_request(OWNER, wish, "", podman=podman)["Env"]
        assert [one for one in env if one.startswith("NVIDIA_VISIBLE_DEVICES")] == ["NVIDIA_VISIBLE_DEVICES=void"]


def test_labels_of_the_image_are_emptied_and_never_ours() -> None:
    wish = _wish(labels=("io.containers.autoupdate", "io.headland.owner", "io.headland.spec"))
    assert create_request(OWNER, wish, "")["Labels"] == {
        "io.containers.autoupdate": "",
        "io.headland.owner": OWNER,
        "io.headland.spec": PLAIN.spec,
        "io.headland.container": "app",
    }


def test_mounts_ports_and_limits_are_what_the_wish_says() -> None:
    host = _host(
        _wish(
            binds=(Bind("/state/sets", "/headland/release", read_only=True),),
            scratch={"/tmp": 16},
            network="bridge",
            ports=((80, "tcp", "127.0.0.1", 8080), (53, "udp", "0.0.0.0", 5353)),
            memory_mib=64,
            cpus=0.5,
            pids=7,
            capabilities=("NET_BIND_SERVICE",),
            writable_root=True,
            init=True,
        )
    )
    assert host["Mounts"] == [
        {
            "Type": "bind",
            "Source": "/state/sets",
            "Target": "/headland/release",
            "ReadOnly": True,
            "BindOptions": {"Propagation": "rprivate"},
        }
    ]
    assert host["Tmpfs"] == {"/tmp": "rw,noexec,nosuid,nodev,mode=1777,uid=65534,gid=65534,size=16m"}
    assert host["PortBindings"] == {
        "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}],
        "53/udp": [{"HostIp": "0.0.0.0", "HostPort": "5353"}],
    }
    assert (host["NetworkMode"], host["Memory"], host["MemorySwap"]) == ("bridge", 64 << 20, 64 << 20)
    assert (host["NanoCpus"], host["PidsLimit"], host["CapAdd"]) == (500_000_000, 7, ["NET_BIND_SERVICE"])
    assert (host["ReadonlyRootfs"], host["Init"]) == (False, True)


def test_variables_of_the_image_are_taken_away_in_the_words_of_each_engine() -> None:
    wish = _wish(environment={"A": "1"}, hidden=("EVIL", "PATH", "A"))
    assert create_request(OWNER, wish, "")["Env"] == [PATH, "A=1", VOID, "EVIL"]
    assert create_request(OWNER, wish, "", podman=True)["Env"] == [PATH, "A=1", VOID, "EVIL="]
    wish = _wish(environment={"PATH": "/app"}, hidden=("PATH",))
    assert create_request(OWNER, wish, "")["Env"] == ["PATH=/app", VOID]


def test_a_health_check_goes_as_words_never_through_a_shell() -> None:
    wish = _wish(health_command=("/check", "a b", "$(c)"), health_interval_s=1.5, health_start_s=2.0)
    assert create_request(OWNER, wish, "")["Healthcheck"] == {
        "Test": ["CMD", "/check", "a b", "$(c)"],
        "Interval": 1_500_000_000,
        "Timeout": 5_000_000_000,
        "Retries": 3,
        "StartPeriod": 2_000_000_000,
        "StartInterval": 1_500_000_000,
    }
    (words,) = create_request(OWNER, wish, "", podman=True)["Healthcheck"]["Test"]
    assert json.loads(words) == ["/check", "a b", "$(c)"]


def test_no_number_of_a_health_check_is_one_that_an_engine_takes_from_the_image() -> None:
    wish = _wish(health_command=("/check",), health_start_s=0.0)
    assert all(create_request(OWNER, wish, "")["Healthcheck"].values()), "to an engine, zero means: as the image says"


def test_the_request_reaches_the_engine_as_it_was_made() -> None:
    wish = _wish(gpu="nvidia", devices=("/dev/apex_0",))

    def refuse(_: Heard) -> Any:
        return 400, {"message": "Unknown runtime specified nvidia"}

    table = {
        ("GET", f"/images/sha256:{IMAGE}/json"): {"Id": f"sha256:{IMAGE}", "RootFS": {"Layers": []}},
        ("GET", "/containers/json"): [],
        ("POST", "/containers/create"): refuse,
    }
    with front(scripted(table)) as engine, closing(DockerEngine(engine.socket, OWNER)) as adapter:
        with pytest.raises(Refused, match="Unknown runtime"):
            adapter.start(wish)
        (asked,) = engine.asked("/containers/create")
        assert asked.tree == create_request(OWNER, wish, f"sha256:{IMAGE}")
        assert asked.path.endswith(f"?name={container_name(OWNER, wish)}")
