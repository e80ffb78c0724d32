"""What the adapter makes of an engine's answers: which are evidence, which are obstacles, which it does not believe."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from device.containers.engine import (
    NAME_LABEL,
    OWNER_LABEL,
    SPEC_LABEL,
    TAG,
    EngineAwayError,
    EngineError,
    MissingLayersError,
    Wish,
)
from device.containers.engine_docker import DockerEngine
from device.containers.engine_shown import NOBODY
from device.store import NoSpaceError
from protocol.errors import HeadlandError, Reason, Refused, StateError
from protocol.ids import digest
from tests.fakes.engine_front import INFO, VERSION, EngineFront, Heard, front, scripted
from tests.fakes.images import BuiltImage, Images, file, tar

OWNER = "0123456789abcdef"
IMAGE = "a" * 64
SPEC = "b" * 64
WISH = Wish(name="app", spec=SPEC, image=IMAGE, command=("/app",), environment={})
HELD = {("GET", f"/images/sha256:{IMAGE}/json"): {"Id": f"sha256:{IMAGE}", "RootFS": {"Layers": []}, "RepoTags": []}}


@contextmanager
def engine(answers: dict[tuple[str, str], Any]) -> Iterator[tuple[DockerEngine, EngineFront]]:
    table = {("GET", "/containers/json"): [], ("GET", "/images/json"): [], **answers}
    with front(scripted(table)) as made, closing(DockerEngine(made.socket, OWNER, answer_s=5)) as adapter:
        yield adapter, made


EVIDENCE = [
    (400, 'OCI runtime create failed: runc: exec: "/app": stat /app: no such file or directory: unknown'),
    (400, "Unknown runtime specified nvidia"),
    (500, 'error gathering device information while adding custom device "/dev/apex_0": no such file or directory'),
    (500, "driver failed programming external connectivity: Bind for 0.0.0.0:80 failed: port is already allocated"),
    (500, "crun: executable file `/app` not found in $PATH: No such file or directory: OCI runtime attempted"),
]
OBSTACLES = [
    (500, "grpc: the connection is unavailable"),
    (500, "transport is closing: unavailable"),
    (500, "OCI runtime create failed: runc did not terminate successfully: signal: killed"),
    (500, "context canceled"),
    (
        500,
        "OCI runtime create failed: runc: unable to apply cgroup configuration: unable to start unit: "
        "Message recipient disconnected from message bus without replying",
    ),
    (500, "OCI runtime create failed: runc: rootfs: structure needs cleaning: unknown"),
    (400, "invalid mount config for type bind: bind source path does not exist: /state/run/link"),
    (500, "fork/exec /usr/bin/runc: cannot allocate memory"),
    (
        500,
        'plugin type="portmap" failed: failed to locate iptables: exec: "iptables": executable file not found in $PATH',
    ),
    (503, "something that nobody has seen before"),
]


def _failing(status: int, text: str) -> dict[tuple[str, str], Any]:
    return {
        **HELD,
        ("POST", "/containers/create"): {"Id": "c" * 64},
        ("GET", f"/containers/{'c' * 64}/json"): {"Image": f"sha256:{IMAGE}", "Config": {}, "Id": "c" * 64},
        ("POST", f"/containers/{'c' * 64}/start"): (status, {"message": text}),
        ("DELETE", f"/containers/{'c' * 64}"): {},
    }


@pytest.mark.parametrize(("status", "text"), EVIDENCE)
def test_a_container_that_cannot_be_started_as_signed_is_evidence(status: int, text: str) -> None:
    with engine(_failing(status, text)) as (adapter, made), pytest.raises(Refused) as refused:
        adapter.start(WISH)
    assert refused.value.reason is Reason.TRIAL_CONTAINER
    assert text in refused.value.message
    assert [one for one in made.heard if one.method == "DELETE"]  # what could not be started does not stay


@pytest.mark.parametrize(("status", "text"), OBSTACLES)
def test_what_the_machine_lacks_at_the_moment_is_none(status: int, text: str) -> None:
    with engine(_failing(status, text)) as (adapter, made), pytest.raises(StateError) as failed:
        adapter.start(WISH)
    assert isinstance(failed.value, EngineError)
    assert [one for one in made.heard if one.method == "DELETE"]


def test_a_full_disk_is_told_as_one() -> None:
    full = _failing(500, "mkdir /engine/overlay2/x: no space left on device")
    with engine(full) as (adapter, _), pytest.raises(NoSpaceError):
        adapter.start(WISH)


def test_a_refusal_by_an_engine_that_has_ended_meanwhile_is_no_evidence() -> None:
    """It refuses what it cannot do any more; its line has broken by then."""
    ended = False

    def start(_: Heard) -> Any:
        nonlocal ended
        ended = True
        return EVIDENCE[0][0], {"message": EVIDENCE[0][1]}

    table = _failing(*EVIDENCE[0]) | {("POST", f"/containers/{'c' * 64}/start"): start}
    with engine(table) as (adapter, made):
        life = adapter._line.life
        names = iter(["first", "first", "second", "second"])
        adapter._line.life = lambda: next(names) if ended or life() else ""  # type: ignore[method-assign]  # its end
        with pytest.raises(EngineError):
            adapter.start(WISH)
        assert made.asked(f"/containers/{'c' * 64}/start")


@pytest.mark.parametrize("said", [b"no json", b"[1]", b'{"Id": 5}', b"null"])
def test_an_answer_without_sense_is_an_obstacle(said: bytes) -> None:
    table = {("GET", f"/images/sha256:{IMAGE}/json"): said}
    with engine(table) as (adapter, _), pytest.raises((EngineError, EngineAwayError)):
        adapter.start(WISH)


def test_an_engine_that_shows_another_image_than_was_asked_for_is_not_believed() -> None:
    other = {("GET", f"/images/sha256:{IMAGE}/json"): {"Id": f"sha256:{'f' * 64}", "RepoTags": []}}
    with engine(other) as (adapter, _), pytest.raises(EngineError, match="does not hold"):
        adapter.start(WISH)


def test_somebody_elses_container_of_our_name_is_left_alone() -> None:
    table = {
        **HELD,
        ("POST", "/containers/create"): (409, {"message": "the name is already in use"}),
        ("GET", "/containers/headland-"): {"Id": "d" * 64, "Config": {"Labels": {}}},
    }
    with engine(table) as (adapter, made), pytest.raises(EngineError, match="not ours"):
        adapter.start(WISH)
    assert not [one for one in made.heard if one.method == "DELETE"]


def test_half_a_container_that_a_killed_podman_shows_to_nobody_is_made_way_for() -> None:
    there = [True]
    words = "creating container storage: the container name is already in use by 726136048a98. You have to remove it"

    def create(_: Heard) -> Any:
        return (500, {"message": words}) if there else {"Id": "c" * 64}

    def remove(_: Heard) -> Any:
        there.clear()
        return {}

    table = {
        **_failing(500, "shutting down"),
        ("POST", "/containers/create"): create,
        ("GET", "/containers/headland-"): (404, {"message": "no such container"}),
        ("DELETE", "/containers/headland-"): remove,
        ("POST", f"/containers/{'c' * 64}/start"): b"",
    }
    with engine(table) as (adapter, made):
        adapter.start(WISH)
        assert len(made.asked("/containers/create")) == 2


def test_labels_that_somebody_spoilt_match_nothing_that_is_wanted() -> None:
    labels = {OWNER_LABEL: OWNER, NAME_LABEL: "../x", SPEC_LABEL: "none"}
    facts = {"Id": "e" * 64, "Image": "sha256:x", "Config": {"Labels": labels}, "State": {"Status": "running"}}
    table = {("GET", "/containers/json"): [{"Id": "e" * 64}], ("GET", f"/containers/{'e' * 64}/json"): facts}
    with engine(table) as (adapter, _):
        (seen,) = adapter.view().containers
    assert (seen.name, seen.spec, seen.image) == ("unnamed", NOBODY, NOBODY)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"Status": "exited", "ExitCode": 0}, ("exited", "exit 0")),
        ({"Status": "exited", "ExitCode": 137}, ("exited", "SIGKILL")),
        ({"Status": "exited", "ExitCode": 137, "OOMKilled": True}, ("exited", "out of memory")),
        ({"Status": "exited", "ExitCode": 255}, ("exited", "exit 255")),
        ({"Status": "paused", "Paused": True}, ("paused", "")),
        ({"Status": "dead", "ExitCode": 1}, ("created", "")),
        ({"Status": "removing"}, ("created", "")),
        ({"Status": "running", "StartedAt": "2026-01-01T00:00:00Z"}, ("running", "")),
    ],
)
def test_states_of_engines_are_told_in_ours(state: dict[str, Any], expected: tuple[str, str]) -> None:
    facts = {"Id": "e" * 64, "Image": f"sha256:{IMAGE}", "Config": {"Labels": {}}, "State": state}
    table = {("GET", "/containers/json"): [{"Id": "e" * 64}], ("GET", f"/containers/{'e' * 64}/json"): facts}
    with engine(table) as (adapter, _):
        (seen,) = adapter.view().containers
    assert (seen.state, seen.exit) == expected


def test_the_first_words_of_a_container_are_in_its_log_though_they_were_said_before_it_counted_as_started() -> None:
    started = "2026-01-01T00:00:10.123456789Z"
    table = {
        ("GET", "/containers/"): {"Config": {"Tty": True}, "State": {"StartedAt": started}},
        ("GET", f"/containers/{'e' * 64}/logs"): b"headland-sees\n",
    }
    with engine(table) as (adapter, made):
        assert adapter.log("e" * 64, started, 100) == b"headland-sees\n"
        adapter.log("e" * 64, "2026-01-01T00:00:11.5Z", 100)
        first, later = (one.path for one in made.asked(f"/containers/{'e' * 64}/logs"))
    assert "since" not in first
    assert "since=1767225611.5" in later


# Docker's containerd image store names images by their manifest. Such an engine is not in Debian; its answers are.


def _by_manifest(image: BuiltImage, config: str) -> tuple[str, dict[tuple[str, str], Any]]:
    manifest = json.dumps({"schemaVersion": 2, "config": {"digest": f"sha256:{config}"}, "layers": []}).encode()
    name = digest(manifest)
    archive = tar([file("oci-layout", b"{}"), file(f"blobs/sha256/{name}", manifest), file("index.json", b"{}")])
    tag = TAG.format(owner=OWNER, image=image.digest)
    facts = {
        "Id": f"sha256:{name}",
        "RepoTags": [tag],
        "RootFS": {"Layers": [f"sha256:{layer}" for layer in image.layers]},
    }
    return name, {
        ("GET", "/info"): {**INFO, "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]},
        ("GET", "/images/json"): [facts],
        ("GET", f"/images/{tag}/json"): facts,
        ("GET", f"/images/sha256:{name}/json"): facts,
        ("GET", f"/images/sha256:{name}/get"): archive,
    }


def test_an_image_that_is_named_by_its_manifest_is_known_by_its_config(tmp_path: Path) -> None:
    image = Images(tmp_path).build([tar([file("app")])])
    name, table = _by_manifest(image, image.digest)
    with engine(table) as (adapter, made):
        for _ in range(2):
            (held,) = adapter.view().images
        assert (held.image, held.layers) == (image.digest, image.layers)
        assert len(made.asked(f"/images/sha256:{name}/get")) == 1  # once: a manifest's digest names its config for good
        adapter.load(image.image, image.files)
        assert not made.asked("/images/load")


def test_a_manifest_of_another_config_under_our_mark_is_not_ours(tmp_path: Path) -> None:
    image = Images(tmp_path).build([tar([file("app")])])
    _, table = _by_manifest(image, "f" * 64)
    with engine(table) as (adapter, _):
        assert adapter.view().images == ()
        with pytest.raises(MissingLayersError):  # such a store is never asked to complete an image from what it has
            adapter.load(image.image, {})


def test_an_export_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    image = Images(tmp_path / "images").build([tar([file("app", bytes(100_000))])])
    whole = tar([file("layer.tar", image.files[image.layers[0]].read_bytes())])
    facts = {"Id": f"sha256:{image.digest}", "RootFS": {"Layers": [f"sha256:{image.layers[0]}"]}}
    table = {
        ("GET", f"/images/sha256:{image.digest}/json"): facts,
        ("GET", f"/images/sha256:{image.digest}/get"): whole[:60_000],
    }
    (layer,) = image.layers
    with engine(table) as (adapter, _), pytest.raises(EngineAwayError):
        adapter.export(image.digest, {layer: tmp_path / "layer"}, {layer: (tmp_path / "images" / layer).stat().st_size})
    assert not (tmp_path / "layer").exists()


def test_a_file_that_is_gone_or_short_is_our_own_trouble(tmp_path: Path) -> None:
    image = Images(tmp_path).build([tar([file("app", b"x" * 1000)])])
    (layer,) = image.layers
    nowhere = {("GET", f"/images/sha256:{image.digest}/json"): (404, {"message": "no such image"})}
    with engine(nowhere) as (adapter, _):
        (tmp_path / layer).write_bytes(b"short")
        for _ in range(2):
            with pytest.raises(HeadlandError) as failed:
                adapter.load(image.image, image.files)
            assert type(failed.value) is StateError
            (tmp_path / layer).unlink(missing_ok=True)


def test_of_what_a_load_made_without_a_name_only_what_was_not_there_before_goes_again(tmp_path: Path) -> None:
    image = Images(tmp_path).build([tar([file("app")])])
    made, before = f"sha256:{'f' * 64}", f"sha256:{'e' * 64}"
    words = [f"Loaded image ID: {made}\n", f"Loaded image ID: {before}\n"]
    table = {
        ("GET", f"/images/sha256:{image.digest}/json"): (404, {"message": "no such image"}),
        ("GET", "/images/json"): [{"Id": before, "RepoTags": []}, {"Id": f"sha256:{'d' * 64}", "RepoTags": []}],
        ("GET", "/images/sha256:"): {"RootFS": {"Layers": []}},
        ("POST", "/images/load"): "".join(json.dumps({"stream": word}) for word in words).encode(),
        ("DELETE", "/images/"): [],
    }
    with engine(table) as (adapter, front):
        with pytest.raises(Refused):
            adapter.load(image.image, image.files)
        gone = [one.path.removeprefix("/images/").partition("?")[0] for one in front.heard if one.method == "DELETE"]
    assert gone == [TAG.format(owner=OWNER, image=image.digest), made]


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"),
    [("1.41", "1.12", "1.41"), ("1.44", "1.24", "1.44"), ("1.52", "1.44", "1.44"), ("1.60", "1.51", "1.51")],
)
def test_the_newest_version_of_the_interface_that_both_know_is_spoken(newest: str, oldest: str, spoken: str) -> None:
    version = {**VERSION, "ApiVersion": newest, "MinAPIVersion": oldest}
    with engine({("GET", "/version"): version}) as (adapter, made):
        adapter.view()
    versioned = [one for one in made.heard if not one.path.startswith(("/version", "/events"))]
    assert {one.version for one in versioned} == {spoken}
    assert {one.version for one in made.asked("/version")} == {""}, "an engine may turn away what it does not speak"


@pytest.mark.parametrize("said", [{"ApiVersion": "new"}, {}, [], {"ApiVersion": None}])
def test_an_engine_that_does_not_say_what_it_speaks_is_an_obstacle(said: Any) -> None:
    with engine({("GET", "/version"): said}) as (adapter, _), pytest.raises(EngineError):
        adapter.view()


@pytest.mark.parametrize(("ago_s", "is_due"), [(9.0, False), (11.0, True), (-3600.0, True)])
def test_a_health_check_of_podman_is_due_by_its_interval_and_when_the_clock_was_set_back(
    ago_s: float, is_due: bool
) -> None:
    began = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat()
    facts = {
        "Id": "e" * 64,
        "Image": f"sha256:{IMAGE}",
        "Config": {"Labels": {}, "Healthcheck": {"Test": ["CMD", "/check"], "Interval": 10_000_000_000}},
        "State": {"Status": "running", "StartedAt": began, "Healthcheck": {"Log": [{"Start": began}]}},
    }
    table = {
        ("GET", "/version"): {**VERSION, "Components": [{"Name": "Podman Engine"}]},
        ("GET", "/v4.0.0/libpod/containers/json"): [{"Id": "e" * 64}],
        ("GET", f"/containers/{'e' * 64}/json"): facts,
    }
    with engine(table) as (adapter, made):
        adapter.view()
    assert bool([one for one in made.heard if one.path.endswith("/healthcheck")]) is is_due


@pytest.mark.parametrize(
    "words",
    [
        "invalid diffID for layer 0: expected sha256:aa, got sha256:bb",
        "failed to extract layer sha256:aa: wrong diff id calculated on extraction sha256:bb",  # containerd
    ],
)
def test_layers_that_are_not_the_configs_are_evidence_in_the_words_of_each_engine(words: str, tmp_path: Path) -> None:
    image = Images(tmp_path).build([tar([file("app")])])
    table = {
        ("GET", f"/images/sha256:{image.digest}/json"): (404, {"message": "no such image"}),
        ("POST", "/images/load"): {"error": words},
    }
    with engine(table) as (adapter, _), pytest.raises(Refused) as refused:
        adapter.load(image.image, image.files)
    assert refused.value.reason is Reason.IMAGE
