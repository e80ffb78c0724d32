"""The committed models of the demo, and the broken ones that are made of them."""

import json
import time
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from onnx import numpy_helper

from device.inference.npz import read_npz
from protocol import limits
from scripts import make_broken_models
from scripts.camera import jpeg_of
from scripts.draw_leaves import Box, draw_scene
from scripts.make_demo_goldens import GOLDEN_SEEDS, MODELS, RELEASES, VARIANTS, golden_picture, run

VERSIONS = sorted(RELEASES)
FRESH_SEED = 1_700_000  # seen neither in training nor in the held-out measurement


def model(version: str, variant: str, folder: Path = MODELS) -> bytes:
    return (folder / version / VARIANTS[variant][1]).read_bytes()


def worst_difference(folder: Path, version: str, variant: str, name: str) -> float:
    got, _ = run(variant, model(version, variant, folder), (folder / f"golden-{name}.jpg").read_bytes())
    expected = read_npz((folder / version / f"golden-{name}-{variant}.npz").read_bytes())
    return float(np.abs(read_npz(got)["grid"].astype(float) - expected["grid"].astype(float)).max())


def tolerance(folder: Path, version: str, variant: str) -> float:
    description = tomllib.loads((folder / f"pest-detector-{version}.toml").read_text())
    variants = {one["name"]: one for one in description["models"][0]["variants"]}
    return float(variants[variant]["golden"][0]["atol"])


def test_all_that_is_committed_is_under_3_mb_together() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 3_000_000


@pytest.mark.parametrize("version", VERSIONS)
def test_the_float32_form_travels_in_more_than_one_segment_so_that_the_demo_can_cut_it(version: str) -> None:
    data = model(version, "onnx")
    assert len(data) > limits.SEGMENT_OUTPUT_BYTES
    assert len(zstandard.ZstdCompressor(level=19).compress(data)) > limits.UNINDEXED_PAYLOAD_BYTES


@pytest.mark.parametrize("name", sorted(GOLDEN_SEEDS))
@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("version", VERSIONS)
def test_golden_outputs_hold_with_room_to_spare(version: str, variant: str, name: str) -> None:
    assert worst_difference(MODELS, version, variant, name) <= tolerance(MODELS, version, variant) / 2


def test_the_retrained_version_is_a_fine_tune_that_leaves_the_first_layers_as_they_are() -> None:
    old, new = (
        [numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(model(version, "onnx")).graph.initializer]
        for version in ("1.0.0", "1.1.0")
    )
    same = [np.array_equal(one, other) for one, other in zip(old, new, strict=True)]
    kept = sum(one.size for one, is_same in zip(old, same, strict=True) if is_same)
    assert 0.5 < kept / sum(one.size for one in old) < 0.9


def test_the_retrained_version_measured_better_on_the_same_held_out_pictures() -> None:
    old, new = (json.loads((MODELS / version / "metrics.json").read_text()) for version in ("1.0.0", "1.1.0"))
    assert old["held_out"] == new["held_out"]
    for form in ("float32", "int8"):
        assert new[form]["map50"] > old[form]["map50"] + 0.02
        assert new[form]["recall"] > old[form]["recall"]
        assert new[form]["false_alarms_on_healthy"] < old[form]["false_alarms_on_healthy"]
    for version, measured in (("1.0.0", old), ("1.1.0", new)):
        description = tomllib.loads((MODELS / f"pest-detector-{version}.toml").read_text())
        assert description["lineage"]["metrics"] == measured["float32"], "the release shows other metrics than measured"


def test_on_frames_that_nobody_has_seen_both_find_pests_and_the_retrained_version_more() -> None:
    """Through the product's own preprocessing, runtimes, decoder and suppression, in pixels of the frame."""
    scenes = [draw_scene(np.random.default_rng(FRESH_SEED + n), pests=3) for n in range(16)]
    there = sum(len(scene.boxes) for scene in scenes)
    recall = {}
    for version in VERSIONS:
        data = model(version, "onnx")
        found = 0
        for scene in scenes:
            _, detections = run("onnx", data, jpeg_of(scene))
            boxes = [Box(d.label, *d.box) for d in detections]
            found += sum(any(overlap(box, truth) >= 0.5 for box in boxes) for truth in scene.boxes)
        recall[version] = found / there
    assert recall["1.0.0"] > 0.6
    assert recall["1.1.0"] > 0.8
    assert recall["1.1.0"] > recall["1.0.0"]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union; 0 for two labels."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    if one.label != other.label or width <= 0 or height <= 0:
        return 0.0
    areas = (one.x1 - one.x0) * (one.y1 - one.y0) + (other.x1 - other.x0) * (other.y1 - other.y0)
    return width * height / (areas - width * height)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    make_broken_models.write(folder, rounds=200)
    return folder


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_damaged_release_loads_and_is_far_outside_its_golden_tolerances(broken: Path, variant: str) -> None:
    version = make_broken_models.DAMAGED
    for name in GOLDEN_SEEDS:
        assert worst_difference(broken, version, variant, name) > 5 * tolerance(broken, version, variant)


def test_the_careless_release_answers_rightly_and_is_slow_only_when_it_sees_a_pest(broken: Path) -> None:
    version = make_broken_models.CARELESS
    assert worst_difference(broken, version, "onnx", "healthy") <= tolerance(broken, version, "onnx") / 2
    took = {}
    for name in ("healthy", "pests"):
        good = run("onnx", model("1.1.0", "onnx"), golden_picture(name))
        data = model(version, "onnx", broken)
        began = time.process_time()
        assert run("onnx", data, golden_picture(name))[0] == good[0]
        took[name] = time.process_time() - began
    assert took["pests"] > 2 * took["healthy"]
