"""O5: a tag says nothing. What runs is the image whose config has the signed digest, whatever bears which name."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from device.containers.engine import TAG, EngineError
from device.containers.engine_archive import Sending
from device.containers.engine_client import EngineClient
from protocol.errors import Reason, Refused
from tests.fakes.engine_bench import Bench, real_bench
from tests.fakes.engine_front import Heard, front
from tests.fakes.images import SHELL, BuiltImage, base_layer, file, tar

WHO = (*SHELL, "echo $(cat /who)")


@pytest.fixture(params=["docker", "podman"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    made = real_bench(request.getfixturevalue(f"shared_{request.param}"), tmp_path / "images")
    yield made
    await made.clear()


def _image(bench: Bench, who: str) -> BuiltImage:
    return bench.images.build([base_layer(), tar([file("who", who.encode())])])


@contextmanager
def _hand(bench: Bench) -> Iterator[Any]:
    """Somebody at the machine, with the engine's own tools."""
    client = docker.APIClient(base_url=f"unix://{bench.socket}", version="1.41", timeout=20)
    try:
        yield client
    finally:
        client.close()


async def test_attack_o5_an_image_that_bears_our_mark_of_another_is_not_run_and_not_held(bench: Bench) -> None:
    good, evil = _image(bench, "good"), _image(bench, "evil")
    for image in (good, evil):
        await bench.engine.load(image.image, image.files)
    with _hand(bench) as client:
        repository, _, tag = TAG.format(owner=bench.owner, image=good.digest).partition(":")
        client.tag(f"sha256:{evil.digest}", repository, tag, force=True)
    code, said = await bench.run(bench.wish(good, WHO))
    assert (code, said) == (0, "good\n")
    held = {one.image for one in (await bench.engine.view()).images}
    assert good.digest not in held  # nobody keeps it for us any more: it is loaded and marked again
    await bench.engine.load(good.image, good.files)
    assert {one.image for one in (await bench.engine.view()).images} >= {good.digest}


async def test_attack_o5_an_image_that_took_the_place_of_a_removed_one_is_not_run(bench: Bench) -> None:
    good, evil = _image(bench, "good"), _image(bench, "evil")
    with _hand(bench) as client:
        list(client.load_image(iter(Sending(evil.image, evil.files, TAG.format(owner=bench.owner, image=good.digest)))))
    with pytest.raises(EngineError, match="does not hold"):
        await bench.engine.start(bench.wish(good, WHO))
    assert (await bench.engine.view()).images == ()
    await bench.engine.load(good.image, good.files)
    assert [one.image for one in (await bench.engine.view()).images] == [good.digest]
    assert await bench.run(bench.wish(good, WHO)) == (0, "good\n")
    with _hand(bench) as client:
        client.remove_image(f"sha256:{evil.digest}")


async def test_attack_o5_a_container_that_somebody_made_of_another_image_is_made_way_for(bench: Bench) -> None:
    """It has our labels and even runs; what it is made of is seen, and it is not taken for the signed one."""
    good, evil = _image(bench, "good"), _image(bench, "evil")
    for image in (good, evil):
        await bench.engine.load(image.image, image.files)
    wish = bench.wish(good)
    await bench.engine.start(wish)
    first = await bench.only()
    with _hand(bench) as client:
        config = client.inspect_container(first.id)["Config"]
        client.remove_container(first.id, force=True)
        config["Image"] = f"sha256:{evil.digest}"
        config["HostConfig"] = {"NetworkMode": "none", "Privileged": True}
        client.start(client.create_container_from_config(config)["Id"])
    assert (await bench.only()).image == evil.digest
    await bench.engine.start(wish)
    seen = await bench.only()
    assert (seen.image, seen.state) == (good.digest, "running")
    with _hand(bench) as client:
        assert client.inspect_container(seen.id)["HostConfig"]["Privileged"] is False


async def test_attack_o5_an_engine_that_makes_another_image_of_a_load_is_found_out(bench: Bench) -> None:
    good, evil = _image(bench, "good"), _image(bench, "evil")
    mine, next_of_mine = _image(bench, "of somebody else"), _image(bench, "newer")

    def lie(heard: Heard) -> Heard | None:
        if not heard.path.startswith("/images/load"):
            return None
        with _hand(bench) as hand:  # at the same moment; the second takes the name away from the first
            for one in (mine, next_of_mine):
                list(hand.load_image(iter(Sending(one.image, one.files, "somebody:else"))))
        tag = TAG.format(owner=bench.owner, image=good.digest)
        body = b"".join(Sending(evil.image, evil.files, tag))
        return Heard(heard.method, heard.path, heard.headers, body)

    with front(lie, bench.socket) as liar:
        client = EngineClient(lambda: liar.socket, bench.owner)
        with pytest.raises(Refused) as refused:
            await client.load(good.image, good.files)
        assert refused.value.reason is Reason.IMAGE
        with pytest.raises(EngineError):
            await client.start(bench.wish(good, WHO))
        await client.close()
    assert (await bench.engine.view()).images == ()
    with _hand(bench) as client:
        there = {one["Id"].removeprefix("sha256:") for one in client.images(all=True)}
        assert evil.digest not in there
        assert {mine.digest, next_of_mine.digest} <= there  # not ours to remove, with a name or without
        for one in (mine, next_of_mine):
            client.remove_image(f"sha256:{one.digest}", force=True)


async def test_attack_o5_an_engine_that_makes_a_container_of_another_image_is_found_out(bench: Bench) -> None:
    good, evil = _image(bench, "good"), _image(bench, "evil")
    for image in (good, evil):
        await bench.engine.load(image.image, image.files)

    def lie(heard: Heard) -> Heard | None:
        if not heard.path.startswith("/containers/create"):
            return None
        body = heard.body.replace(good.digest.encode(), evil.digest.encode())
        return Heard(heard.method, heard.path, heard.headers, body)

    with front(lie, bench.socket) as liar:
        client = EngineClient(lambda: liar.socket, bench.owner)
        with pytest.raises(Refused) as refused:
            await client.start(bench.wish(good, WHO))
        assert refused.value.reason is Reason.IMAGE
        assert not [one for one in liar.heard if one.path.endswith("/start")]
        await client.close()
    assert (await bench.engine.view()).containers == ()
