"""A wish holds what the managers signed and this machine has, and nothing that an image asks for."""

import os
from pathlib import Path

import pytest

from device.containers.engine import Bind, Wish
from device.containers.wishes import Places, check_host_mounts, make_wish
from protocol.container import (
    DataMount,
    HealthCheck,
    HostMount,
    LinkMount,
    PublishedPort,
    ReleaseMount,
    Resources,
    RunSpec,
    ScratchMount,
    spec_digest,
)
from protocol.errors import Reason, Refused
from tests.fakes.container_sets import pack_container


@pytest.fixture
def places(tmp_path: Path) -> Places:
    state = tmp_path / "state"
    state.mkdir()
    return Places(sets=state / "sets", link=state / "run" / "link", data=state / "data", never=(state,))


def wish_for(run: RunSpec, places: Places, environment: tuple[str, ...] = (), dev: Path = Path("/dev")) -> Wish:
    one = pack_container("gateway", run, environment=environment)
    return make_wish(one.container, one.image, one.contents[one.image.config.sha256], places, dev=dev)


def test_a_wish_is_the_signed_run_specification_and_nothing_else(places):
    run = RunSpec(
        command=("/bin/serve", "--all"),
        environment={"MODE": "field"},
        workdir="/srv",
        user=f"{os.getuid()}:{os.getgid()}",
        mounts=(
            ReleaseMount(),
            LinkMount(at="/link"),
            DataMount(name="maps", at="/data"),
            ScratchMount(at="/tmp", size_mib=8),
        ),
        network="bridge",
        ports=(PublishedPort(container=80, host=8080),),
        resources=Resources(memory_mib=64, cpus=0.5, pids=10),
        capabilities=("CHOWN",),
        writable_root=True,
        init=True,
        stop_s=3.0,
        health=HealthCheck(command=("/bin/check",), interval_s=2.0, timeout_s=1.0, retries=4, start_s=5.0),
    )
    one = pack_container("gateway", run)
    assert wish_for(run, places) == Wish(
        name="gateway",
        spec=spec_digest("gateway", one.image.config.sha256, run),
        image=one.image.config.sha256,
        command=("/bin/serve", "--all"),
        environment={"MODE": "field"},
        workdir="/srv",
        user=f"{os.getuid()}:{os.getgid()}",
        binds=(
            Bind(str(places.sets), "/headland/release", read_only=True),
            Bind(str(places.link), "/link", read_only=True),
            Bind(str(places.data / "maps"), "/data", read_only=False),
        ),
        scratch={"/tmp": 8},
        network="bridge",
        ports=((80, "tcp", "127.0.0.1", 8080),),
        memory_mib=64,
        cpus=0.5,
        pids=10,
        capabilities=("CHOWN",),
        writable_root=True,
        init=True,
        health_command=("/bin/check",),
        health_interval_s=2.0,
        health_timeout_s=1.0,
        health_retries=4,
        health_start_s=5.0,
        stop_s=3.0,
    )


def test_what_a_specification_does_not_say_is_not_granted(places):
    wish = wish_for(RunSpec(command=("/a",)), places)
    assert (wish.user, wish.network, wish.binds, wish.devices, wish.capabilities) == ("65534:65534", "none", (), (), ())
    assert (wish.health_command, wish.scratch, wish.gpu, wish.writable_root) == ((), None, "none", False)


def test_variables_of_the_image_are_hidden_but_for_those_that_were_signed(places):
    run = RunSpec(command=("/a",), environment={"PATH": "/bin"})
    wish = wish_for(run, places, environment=("EVIL=1", "PATH=/evil", "BARE", "EVIL=2"))
    assert wish.hidden == ("EVIL", "BARE")
    assert dict(wish.environment) == {"PATH": "/bin"}


def test_labels_of_the_image_are_named_to_be_emptied(places):
    one = pack_container("gateway", RunSpec(command=("/a",)))
    config = one.contents[one.image.config.sha256].replace(b'"Env"', b'"Labels": {"b": "1", "a": ""}, "Env"')
    assert make_wish(one.container, one.image, config, places).labels == ("b", "a")
    for odd in (rb'{"\u0000": "1"}', rb'{"\ud800": "1"}', rb'{"a": "1", "a": "2"}'):
        hostile = config.replace(b'{"b": "1", "a": ""}', odd)
        with pytest.raises(Refused) as refused:
            make_wish(one.container, one.image, hostile, places)
        assert refused.value.reason is Reason.IMAGE


def test_a_config_that_an_engine_may_read_in_another_way_makes_no_wish(places):
    """Engines take `env` for `Env`: a variable that is not seen here would be granted there."""
    one = pack_container("gateway", RunSpec(command=("/a",)), environment=("EVIL=1",))
    config = one.contents[one.image.config.sha256].replace(b'"Env"', b'"env"')
    assert b'"env"' in config
    with pytest.raises(Refused) as refused:
        make_wish(one.container, one.image, config, places)
    assert refused.value.reason is Reason.IMAGE


def test_a_data_folder_is_the_users_alone_and_what_lies_in_it_stays(places):
    run = RunSpec(command=("/a",), user=f"{os.getuid()}:{os.getgid()}", mounts=(DataMount(name="maps", at="/data"),))
    wish_for(run, places)
    (places.data / "maps" / "kept").write_text("a map")
    wish_for(run, places)
    assert (places.data / "maps" / "kept").read_text() == "a map"
    assert (places.data / "maps").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
def test_a_data_folder_belongs_to_the_user_of_the_container(places):
    wish_for(RunSpec(command=("/a",), mounts=(DataMount(name="maps", at="/data"),)), places)
    assert ((places.data / "maps").stat().st_uid, (places.data / "maps").stat().st_gid) == (65534, 65534)


def test_a_star_stands_for_the_numbered_nodes_that_are_there(places, tmp_path):
    for name in ("video0", "video10", "video2", "video-tuner", "videoX", "apex_0"):
        (tmp_path / name).touch()
    run = RunSpec(command=("/a",), devices=("/dev/video*", "/dev/apex_0", "/dev/ttyUSB*"))
    assert wish_for(run, places, dev=tmp_path).devices == ("/dev/video0", "/dev/video10", "/dev/video2", "/dev/apex_0")


def test_a_device_that_is_not_there_speaks_of_the_machine_not_of_the_release(places, tmp_path):
    with pytest.raises(Refused) as refused:
        wish_for(RunSpec(command=("/a",), devices=("/dev/apex_0",)), places, dev=tmp_path)
    assert refused.value.reason is Reason.WRONG_HARDWARE


def test_a_container_is_in_the_groups_that_its_devices_belong_to_but_never_in_roots(places, tmp_path):
    (tmp_path / "snd").mkdir()
    modes = {"video0": (0o660, 4001), "video1": (0o600, 4002), "snd/pcm": (0o660, 4003), "ttyUSB0": (0o660, 0)}
    for name, (mode, group) in modes.items():
        node = tmp_path / name
        node.touch()
        os.chown(node, -1, group) if os.geteuid() == 0 else pytest.skip("only root gives files to groups")
        node.chmod(mode)
    run = RunSpec(command=("/a",), devices=("/dev/video*", "/dev/snd", "/dev/ttyUSB0"))
    assert wish_for(run, places, dev=tmp_path).groups == (4001, 4003)


def host(path: Path | str, places: Places) -> Bind:
    run = RunSpec(command=("/a",), mounts=(HostMount(path=str(path), at="/host"),))
    check_host_mounts([pack_container("gateway", run).container], places)
    (bind,) = wish_for(run, places).binds
    return bind


def test_a_folder_of_the_machine_is_mounted_only_below_what_the_settings_allow(places, tmp_path):
    media = tmp_path / "media"
    (media / "stick").mkdir(parents=True)
    (tmp_path / "medial").mkdir()
    allowing = Places(places.sets, places.link, places.data, host=(media,), never=places.never)
    assert host(media / "stick", allowing) == Bind(str(media / "stick"), "/host", read_only=True)
    for path, where in ((media, places), (tmp_path / "medial", allowing), (tmp_path, allowing)):
        with pytest.raises(Refused, match="does not allow") as refused:
            host(path, where)
        assert refused.value.reason is Reason.IMAGE


def test_a_symlink_leads_out_of_no_allowed_folder(places, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    (media / "way-out").symlink_to("/etc")
    allowing = Places(places.sets, places.link, places.data, host=(media,), never=places.never)
    with pytest.raises(Refused, match="does not allow"):
        host(media / "way-out", allowing)


@pytest.mark.parametrize("path", ["/proc", "/proc/self", "/sys", "/dev", "/dev/shm", "/run", "/var/run"])
def test_the_kernels_folders_and_sockets_are_never_mounted(path, places):
    allowing = Places(places.sets, places.link, places.data, host=(Path("/"),), never=places.never)
    with pytest.raises(Refused, match="does not allow"):
        host(path, allowing)


def test_neither_the_state_folder_nor_what_is_above_or_in_it_is_ever_mounted(places, tmp_path):
    (state,) = places.never
    (state / "identity").mkdir()
    allowing = Places(places.sets, places.link, places.data, host=(Path("/"),), never=places.never)
    for path in (state, state / "identity", tmp_path):
        with pytest.raises(Refused, match="does not allow"):
            host(path, allowing)


def test_a_folder_that_is_not_there_now_speaks_of_the_machine(places, tmp_path):
    allowing = Places(places.sets, places.link, places.data, host=(tmp_path,), never=places.never)
    with pytest.raises(Refused) as refused:
        host(tmp_path / "stick", allowing)
    assert refused.value.reason is Reason.WRONG_HARDWARE


def test_nothing_is_mounted_from_within_what_a_container_may_write(places, tmp_path):
    """It could put a symlink in its place between our look and the engine's."""
    media = tmp_path / "media"
    (media / "stick").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(media)
    allowing = Places(places.sets, places.link, places.data, host=(media,), never=places.never)

    def check(*mounts: tuple[str, HostMount]) -> None:
        check_host_mounts(
            [pack_container(name, RunSpec(command=("/a",), mounts=(mount,))).container for name, mount in mounts],
            allowing,
        )

    stick = HostMount(path=str(media / "stick"), at="/stick")
    for writable in (media, tmp_path / "alias"):
        outer = HostMount(path=str(writable), at="/media", read_only=False)
        for inner in (stick, HostMount(path=str(media / "not" / "there yet"), at="/x")):
            for order in ([("a", outer), ("b", inner)], [("b", inner), ("a", outer)]):
                with pytest.raises(Refused, match="where container a may write") as refused:
                    check(*order)
                assert refused.value.reason is Reason.IMAGE
        check(("a", outer), ("b", HostMount(path=str(media), at="/same")))
    check(("a", HostMount(path=str(media), at="/media")), ("b", stick))
    check(
        ("a", HostMount(path=str(media / "stick"), at="/s", read_only=False)),
        ("b", HostMount(path=str(media), at="/m")),
    )
