"""Images as they travel: what a small change of a layer costs, by the real encoder and the real planner."""

import random
from pathlib import Path

import msgspec

from protocol.artifact import Artifact
from protocol.container import CONFIG_MEDIA_TYPE, LAYER_MEDIA_TYPE, Container, Image, Layer, RunSpec
from protocol.ids import digest
from protocol.image_config import parse_image_config
from protocol.objects import Step
from protocol.release import ReleaseManifest
from protocol.wire import encode
from tests.fakes.image_files import BuiltImage, layer, make_image
from tests.fakes.server_house import PATCHING, House, running
from tests.unit.server.test_deltas import plan_of

NOISE = random.Random(1)
BASE = layer({f"lib/lib{number}.so": NOISE.randbytes(60_000) for number in range(4)})
PACKAGES = {f"site/module{number}.py": NOISE.randbytes(40).hex().encode() * 400 for number in range(40)}
PACKAGES |= {f"site/native{number}.so": NOISE.randbytes(100_000) for number in range(5)}
CHANGED = {
    **PACKAGES,
    "site/module7.py": PACKAGES["site/module7.py"][:9000] + b"# mended\n" + PACKAGES["site/module7.py"][9000:],
}
STEPS = ("ADD file:{} in /", "RUN pip install app=={}", "COPY app /")


def built(*layers: bytes, version: str = "1.0", steps: tuple[str, ...] = STEPS) -> BuiltImage:
    return make_image(layers, steps=[step.format(version) for step in steps])


def release(image: BuiltImage, version: str, counter: int) -> ReleaseManifest:
    def artifact(data: bytes, media_type: str) -> Artifact:
        return msgspec.convert({"sha256": digest(data), "length_bytes": len(data), "media_type": media_type}, Artifact)

    origins = parse_image_config(image.config).origins()
    layers = tuple(
        Layer(artifact=artifact(data, LAYER_MEDIA_TYPE), origin=origin)
        for data, origin in zip(image.layers, origins, strict=True)
    )
    container = Container(
        name="app",
        images=(Image(platform="linux/amd64", config=artifact(image.config, CONFIG_MEDIA_TYPE), layers=layers),),
        run=RunSpec(command=("/app",)),
    )
    return ReleaseManifest(
        format=1,
        product="pest-detector",
        version=version,
        release_counter=counter,
        created_ms=0,
        models=(),
        containers=(container,),
    )


async def publish(house: House, image: BuiltImage, version: str, counter: int) -> None:
    manifest = encode(release(image, version, counter))
    await house.put_blobs(*dict.fromkeys((*image.layers, image.config, manifest)))
    house.managers.release(version, counter, manifest)
    await house.publish()
    await house.payloads()


async def steps_between(folder: Path, old: BuiltImage, new: BuiltImage) -> dict[str, Step]:
    """The plan of a machine that holds the old image and gets the new one, by artifact."""
    async with running(folder) as house:
        await house.publish()
        await publish(house, old, "1.0.0", 1)
        tractor = await house.enrol("tractor-1")
        tractor.inventory = PATCHING
        tractor.have = (old.id, *dict.fromkeys(old.diff_ids))
        await tractor.sync()
        await publish(house, new, "1.1.0", 2)
        await house.patches()
        await house.rollout("second", "1.1.0")
        return {step.artifact: step for step in plan_of(await tractor.sync()).steps}


async def test_one_changed_file_of_a_layer_costs_hundreds_of_bytes(tmp_path: Path) -> None:
    packages, changed = layer(PACKAGES, mtime=1_700_000_000), layer(CHANGED, mtime=1_710_000_000)
    old, new = built(BASE, packages, version="1.0"), built(BASE, changed, version="1.1")
    steps = await steps_between(tmp_path, old, new)
    assert steps[digest(BASE)].method == "have"
    step = steps[digest(changed)]
    assert (step.method, step.base) == ("delta", digest(packages))
    assert step.travels_bytes() < 1500 < step.full_bytes / 100
    assert sum(each.travels_bytes() for each in steps.values()) < 2500


async def test_a_layer_that_moved_is_patched_from_where_it_was(tmp_path: Path) -> None:
    packages, changed, inserted = layer(PACKAGES), layer(CHANGED), layer({"etc/ca.pem": NOISE.randbytes(3000)})
    old = built(BASE, packages)
    new = built(BASE, inserted, changed, steps=(STEPS[0], "COPY ca.pem /etc", STEPS[1]))
    steps = await steps_between(tmp_path, old, new)
    assert steps[digest(changed)].base == digest(packages)
    assert steps[digest(inserted)].travels_bytes() > 3000


async def test_an_image_that_tells_no_steps_is_patched_by_place(tmp_path: Path) -> None:
    packages, changed, inserted = layer(PACKAGES), layer(CHANGED), layer({"etc/ca.pem": NOISE.randbytes(3000)})
    old, new = make_image([BASE, packages]), make_image([BASE, inserted, changed])
    steps = await steps_between(tmp_path, old, new)
    assert steps[digest(changed)].base == digest(packages)
