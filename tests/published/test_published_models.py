"""Models published by others: built, signed and pushed by the managers' tool, tried and run by the device's own pieces.

Whatever comes out is held against the runtime called directly, on frames whose inputs were made by other code.
"""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from device.inference.canary_client import SubprocessCanary
from device.inference.finding import Finding
from device.inference.frames import SUFFIXES, Frame
from device.inference.workers import ProcessWorkers
from device.update.ports import ReleaseSet
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.messages import Inventory
from protocol.release import parse_manifest
from protocol.selection import needed_artifacts, select_variants
from signing.checker import SubprocessChecker
from tests.fakes.managers_tool import ManagersTool
from tests.published.catalogue import CATALOGUE, PublishedModel
from tests.published.conftest import PublishedRelease
from tests.published.meaning import hold

Write = Callable[..., PublishedRelease]
STATELESS = sorted(set(CATALOGUE) - {"wake-word"})


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    """The managers' tool with the real checker: it loads each model in the device's throw-away process."""
    tool = ManagersTool(tmp_path)
    tool.app = dataclasses.replace(tool.app, checker=SubprocessChecker())
    tool.begin("published")
    return tool


def publish(tool: ManagersTool, release: PublishedRelease) -> bytes:
    """Builds, signs and pushes; the manifest as the server holds it."""
    built = tool.run("release", "build", release.folder)
    tool.sign("alice", "bob")
    tool.push()
    return tool.server.blobs[built["manifest_sha256"]]


def machine(*tags: str) -> Inventory:
    return Inventory(agent="0.1.0", platform="linux-x86_64", accelerators=("cpu",), hardware=tags)


def installed(tool: ManagersTool, manifest_bytes: bytes, folder: Path, inventory: Inventory) -> ReleaseSet:
    """What the store holds after FETCH: the blobs that the server has and this machine needs."""
    manifest = parse_manifest(manifest_bytes)
    chosen = select_variants(manifest, inventory)
    files = {}
    folder.mkdir(exist_ok=True)
    for artifact in needed_artifacts(manifest, chosen, {}):
        files[artifact.sha256] = folder / artifact.sha256
        files[artifact.sha256].write_bytes(tool.server.blobs[artifact.sha256])
    return ReleaseSet(digest=digest(manifest_bytes), manifest=manifest, variants=chosen, files=files)


async def infer(release: ReleaseSet, model: PublishedModel) -> dict[str, Finding]:
    """Each case's finding, by the release's workers."""
    workers = ProcessWorkers(clock=Clock())
    try:
        await workers.converge(release)
        found = {}
        for case in model.cases():
            name = f"{case.name}{case.suffix}"
            reply = await workers.infer(Frame(name, SUFFIXES[case.suffix], case.data, 0.0))
            (only,) = reply.replies
            assert only.kind == "finding", only.message
            assert only.model_digest == release.variants[model.name].artifact.sha256
            assert only.finding is not None
            found[case.name] = only.finding
        assert workers.health().errors == 0
        return found
    finally:
        await workers.close()


@pytest.mark.parametrize("name", STATELESS)
async def test_built_signed_pushed_and_tried_it_finds_what_its_runtime_called_directly_finds(
    name: str, tool: ManagersTool, published_model: Write, tmp_path: Path
) -> None:
    release = published_model(name)
    manifest_bytes = publish(tool, release)
    (model,) = parse_manifest(manifest_bytes).models
    assert {variant.name for variant in model.variants} == set(release.files[name])
    for variant in model.variants:
        assert variant.artifact.sha256 == digest(release.files[name][variant.name].read_bytes())
        tags = variant.hardware
        on_disk = installed(tool, manifest_bytes, tmp_path / f"store-{variant.name}", machine(*tags))
        assert on_disk.variants[name].name == variant.name
        await SubprocessCanary(tmp_path / "run").check(on_disk)
        found = await infer(on_disk, CATALOGUE[name])
        for case in CATALOGUE[name].cases():
            size = Image.open(io.BytesIO(case.data)).size if case.suffix == ".png" else (0, 0)
            hold(model, found[case.name], release.direct[name][variant.name][case.name], size)


async def test_a_model_that_remembers_earlier_frames_is_built_and_passes_the_canary(
    tool: ManagersTool, published_model: Write, tmp_path: Path
) -> None:
    """A streaming wake word: what it says of a frame depends on those before, so only fresh sessions are compared."""
    release = published_model("wake-word")
    on_disk = installed(tool, publish(tool, release), tmp_path / "store", machine())
    await SubprocessCanary(tmp_path / "run").check(on_disk)
    found = await infer(on_disk, CATALOGUE["wake-word"])
    assert not any(finding.alarm for finding in found.values())


@pytest.mark.parametrize("name", ["file-type", "notes"])
def test_a_release_whose_golden_outputs_are_another_case_is_refused_by_the_builder(
    name: str, tool: ManagersTool, published_model: Write
) -> None:
    release = published_model(name)
    for variant in release.files[name]:
        one, other = (release.folder / f"{name}-{case.name}-{variant}.npz" for case in CATALOGUE[name].cases()[:2])
        swapped = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(swapped)
    with pytest.raises(AssertionError, match="golden"):
        tool.run("release", "build", release.folder)


async def test_a_published_model_with_a_swapped_file_is_refused_by_canary_and_workers(
    tool: ManagersTool, published_model: Write, tmp_path: Path
) -> None:
    release = published_model("text-direction")
    on_disk = installed(tool, publish(tool, release), tmp_path / "store", machine())
    path = on_disk.files[on_disk.variants["text-direction"].artifact.sha256]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Refused) as refused:
        await SubprocessCanary(tmp_path / "run").check(on_disk)
    assert refused.value.reason is Reason.HASH
    with pytest.raises(Refused) as refused:
        await infer(on_disk, CATALOGUE["text-direction"])
    assert refused.value.reason is Reason.HASH


def test_published_models_do_what_their_authors_say(published_model: Write) -> None:
    """Else the comparison above could hold between two answers that mean nothing."""
    release = published_model("text-direction")
    direction = release.direct["text-direction"]["onnx"]
    assert next(iter(direction["upright"].values()))[0].argmax() == 0
    assert next(iter(direction["turned"].values()))[0].argmax() == 1
