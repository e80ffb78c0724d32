"""The demo's releases meet the real builder, the real canary and real workers as the story needs them to."""

import dataclasses
import io
import itertools
import time
from pathlib import Path

import pytest
from PIL import Image

from device.inference.canary_client import SubprocessCanary
from device.inference.frames import Frame
from device.inference.workers import ProcessWorkers
from device.update.ports import ReleaseSet
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.messages import Inventory
from protocol.release import parse_manifest
from protocol.selection import needed_artifacts, select_variants
from scripts import make_broken_models
from scripts.camera import jpeg_of, views
from scripts.make_demo_goldens import MODELS
from signing.checker import SubprocessChecker
from tests.fakes.managers_tool import ManagersTool


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.app = dataclasses.replace(tool.app, checker=SubprocessChecker())
    tool.begin()
    return tool


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    make_broken_models.write(folder)
    return folder


def release_of(tool: ManagersTool, manifest_sha256: str, *tags: str) -> ReleaseSet:
    """The release as it would lie on a machine with these tags, files in the workspace."""
    data = tool.workspace.blob(manifest_sha256).read_bytes()
    manifest = parse_manifest(data)
    inventory = Inventory(agent="0.1.0", platform="linux-x86_64", accelerators=("cpu",), hardware=tags)
    chosen = select_variants(manifest, inventory)
    files = {
        artifact.sha256: tool.workspace.blob(artifact.sha256) for artifact in needed_artifacts(manifest, chosen, {})
    }
    return ReleaseSet(digest=digest(data), manifest=manifest, variants=chosen, files=files)


async def test_both_good_releases_are_built_one_after_the_other_and_a_tag_picks_the_int8_form(
    tool: ManagersTool, tmp_path: Path
) -> None:
    for version in ("1.0.0", "1.1.0"):
        built = tool.run("release", "build", MODELS / f"pest-detector-{version}.toml")
        tool.sign("alice", "bob")
        tool.push()
    plain, tagged = release_of(tool, built["manifest_sha256"]), release_of(tool, built["manifest_sha256"], "litert")
    assert plain.variants["leaf"].runtime == "onnxruntime"
    assert tagged.variants["leaf"].runtime == "litert"
    assert plain.manifest.lineage.metrics["map50"] > 0.85
    assert plain.manifest.frame_policy == "never"
    for release in (plain, tagged):
        await SubprocessCanary(tmp_path / "run").check(release)


async def test_the_damaged_release_needs_untried_to_be_built_and_no_machine_passes_it_in_check(
    tool: ManagersTool, broken: Path, tmp_path: Path
) -> None:
    description = broken / f"pest-detector-{make_broken_models.DAMAGED}.toml"
    tool.fail("release", "build", description, code=4)
    built = tool.run("release", "build", description, "--untried", "the bench is away for repair")
    for tags in ((), ("litert",)):
        with pytest.raises(Refused) as refused:
            await SubprocessCanary(tmp_path / "run").check(release_of(tool, built["manifest_sha256"], *tags))
        assert refused.value.reason is Reason.GOLDEN


async def test_the_careless_release_passes_check_and_breaks_its_latency_bound_on_live_frames(
    tool: ManagersTool, broken: Path, tmp_path: Path
) -> None:
    built = tool.run("release", "build", broken / f"pest-detector-{make_broken_models.CARELESS}.toml")
    release = release_of(tool, built["manifest_sha256"])
    await SubprocessCanary(tmp_path / "run").check(release)
    workers = ProcessWorkers(clock=time.monotonic)
    scenes = views(1)
    try:
        await workers.converge(release)
        for number, scene in enumerate(itertools.islice((one for one in scenes if one.boxes), 3)):
            data = jpeg_of(scene)
            assert Image.open(io.BytesIO(data)).size == (640, 480)
            reply = await workers.infer(Frame(f"{number}.jpg", "image/jpeg", data, 0.0))
            assert reply.replies[0].kind == "finding"
        latency = workers.health().latency_ms
        assert latency is not None
        assert latency["leaf"] > 1.5 * release.variants["leaf"].bounds.latency_ms
    finally:
        scenes.close()
        await workers.close()
