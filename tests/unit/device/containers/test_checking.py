"""CHECK of containers: configs against the manifest, mounts against what this machine allows."""

import msgspec
import pytest

from device.containers.checking import ContainerCanary
from device.containers.wishes import Places
from device.update.states import State
from protocol.container import HostMount, RunSpec, ScratchMount
from protocol.errors import Reason, Refused
from protocol.ids import digest
from tests.fakes.container_sets import Packed, image_config, make_container_release, pack_container
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms
from tests.fakes.workers import FakeCanary

RUN = RunSpec(command=("/app",))


def places(tmp_path, *host):
    return Places(
        sets=tmp_path / "sets", link=tmp_path / "link", data=tmp_path / "data", host=host, never=(tmp_path / "state",)
    )


class Checks:
    def __init__(self, tmp_path, *host):
        self.tmp_path = tmp_path
        self.models = FakeCanary()
        self.canary = ContainerCanary(self.models, places(tmp_path, *host))

    async def refuse(self, *packed):
        release = make_container_release(self.tmp_path / "files", *packed)
        with pytest.raises(Refused) as caught:
            await self.canary.check(release)
        assert self.models.checked == []
        return caught.value


async def test_containers_that_fit_are_followed_by_the_models(tmp_path):
    checks = Checks(tmp_path)
    await checks.canary.check(make_container_release(tmp_path / "files", pack_container("app", RUN)))
    await checks.canary.check(make_container_release(tmp_path / "files"))
    assert len(checks.models.checked) == 2


async def test_a_config_of_other_layers_than_those_signed_is_evidence(tmp_path):
    one = pack_container("app", RUN, (b"base", b"app"))
    fewer = msgspec.structs.replace(one.image, layers=one.image.layers[:1])
    other = Packed(msgspec.structs.replace(one.container, images=(fewer,)), one.contents)
    refused = await Checks(tmp_path).refuse(pack_container("good", RUN), other)
    assert refused.reason is Reason.IMAGE
    assert refused.message.startswith("container app: ")


async def test_a_volume_that_is_not_granted_is_evidence(tmp_path):
    config = image_config((b"base",)).replace(b'"Env": []', b'"Env": [], "Volumes": {"/var/lib/app": {}}')
    assert b"Volumes" in config
    checks = Checks(tmp_path)
    bare = pack_of(config, RUN)
    assert (await checks.refuse(bare)).reason is Reason.IMAGE
    covered = pack_of(config, msgspec.structs.replace(RUN, mounts=(ScratchMount(at="/var/lib/app"),)))
    await checks.canary.check(make_container_release(tmp_path / "files", covered))


async def test_a_folder_that_this_machine_does_not_allow_is_evidence_and_one_that_is_not_there_is_not(tmp_path):
    allowed = tmp_path / "allowed"
    (allowed / "in").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (allowed / "out").symlink_to(tmp_path / "other")
    checks = Checks(tmp_path, allowed)

    def wants(path):
        run = msgspec.structs.replace(RUN, mounts=(HostMount(path=str(path), at="/host"),))
        return pack_container("app", run)

    for path in (tmp_path / "other", allowed / "out", tmp_path):
        assert (await checks.refuse(wants(path))).reason is Reason.IMAGE
    for path in (allowed, allowed / "in", allowed / "not there yet"):
        await checks.canary.check(make_container_release(tmp_path / "files", wants(path)))


@pytest.mark.parametrize("damage", [b"other bytes", None])
async def test_a_config_that_the_disk_changed_is_no_evidence(tmp_path, damage):
    one = pack_container("app", RUN)
    release = make_container_release(tmp_path / "files", one)
    path = release.files[one.image.config.sha256]
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(Refused) as caught:
        await Checks(tmp_path).canary.check(release)
    assert caught.value.reason is Reason.HASH


async def test_an_update_whose_image_does_not_fit_is_refused_for_good_and_its_image_goes(tmp_path):
    old = Release("1.0.0", 1, noise(1000, 1))
    config = image_config((b"base",)).replace(b'"Env": []', b'"Volumes": {"/x": {}}')
    bad = Release("1.1.0", 2, noise(1000, 2), containers=(pack_of(config, RUN),))
    bench = Bench(tmp_path, BlobSource(old, bad))
    bench.canary = ContainerCanary(FakeCanary(), places(tmp_path))
    async with bench.running() as updater:
        await bench.install(old)
        await bench.install(bad, old)
        assert bench.outcomes()[-1] == ("refused", "image")
        assert bench.daemon.marked == set()
        verdict = await updater.offer(bad.assignment("again"), bad.manifest_bytes, terms(old, bad), may_install=True)
        assert isinstance(verdict, Refused)
        assert verdict.reason is Reason.REFUSED_BEFORE
        assert updater.record.state is State.IDLE


def pack_of(config, run):
    """A container of an image with this config."""
    one = pack_container("app", run)
    artifact = msgspec.structs.replace(one.image.config, sha256=digest(config), length_bytes=len(config))
    image = msgspec.structs.replace(one.image, config=artifact)
    contents = {**one.contents, artifact.sha256: config}
    return Packed(msgspec.structs.replace(one.container, images=(image,)), contents)
