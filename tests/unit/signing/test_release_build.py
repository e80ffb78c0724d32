"""What the builder makes of a description, and everything that it refuses before a manager could sign it."""

from pathlib import Path

import pytest

from protocol.errors import Reason, Refused
from protocol.limits import MANIFEST_BYTES
from protocol.release import ImagePreprocessing, parse_manifest
from tests.fakes.managers_tool import ManagersTool


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.begin()
    return tool


def fails(tool: ManagersTool, folder: Path, code: int, *options: str) -> str:
    said = tool.fail("release", "build", folder, *options, code=code)
    assert tool.run("release", "list")["open"] == [], "nothing is proposed"
    return said


def test_the_manifest_says_what_the_description_and_the_model_say(tool: ManagersTool) -> None:
    top = (
        'hardware = ["sprayer"]\nnotes = "a better eye"\nsbom = "sbom.json"\n'
        'lineage = { training_run = "run 7", metrics = { map50 = 0.8 } }\ntrial = { healthy_s = 30 }\n'
        'configs = [{ name = "thresholds.toml", file = "thresholds.toml" }]\n'
    )
    folder = tool.describe("1.0.0", 1, top=top, variant="bounds = { latency_ms = 90 }")
    (folder / "sbom.json").write_text("{}")
    (folder / "thresholds.toml").write_text("stop = 0.9")
    built = tool.run("release", "build", folder / "release.toml")
    manifest = parse_manifest(tool.workspace.read_blob(built["manifest_sha256"], MANIFEST_BYTES))
    (model,) = manifest.models
    (variant,) = model.variants
    assert (manifest.product, manifest.version, manifest.release_counter) == ("pest-detector", "1.0.0", 1)
    assert manifest.frame_policy == "never"
    assert manifest.hardware == ("sprayer",)
    assert manifest.trial.healthy_s == 30
    assert manifest.lineage.metrics == {"map50": 0.8}
    assert manifest.notes == "a better eye"
    assert manifest.sbom is not None and manifest.sbom.media_type == "application/json"
    assert [(config.name, config.artifact.media_type) for config in manifest.configs] == [
        ("thresholds.toml", "application/toml")
    ]
    assert model.labels == ("healthy", "pest")
    assert isinstance(model.preprocessing, ImagePreprocessing)
    assert variant.runtime == "onnxruntime" and variant.artifact.media_type == "application/onnx"
    assert variant.inputs == tool.checker.described.inputs
    assert variant.bounds.latency_ms == 90
    for artifact in manifest.artifacts():
        assert tool.workspace.blob(artifact.sha256).stat().st_size == artifact.length_bytes


def test_labels_may_stand_in_a_file(tool: ManagersTool) -> None:
    folder = tool.describe("1.0.0", 1)
    text = (folder / "release.toml").read_text()
    (folder / "release.toml").write_text(text.replace('labels = ["healthy", "pest"]', 'labels_file = "labels.txt"'))
    (folder / "labels.txt").write_bytes(b"caf\xe9\n")
    assert "labels.txt: cannot be read as text" in fails(tool, folder, 3)
    (folder / "labels.txt").write_text("healthy\npest\n")
    built = tool.run("release", "build", folder)
    manifest = parse_manifest(tool.workspace.read_blob(built["manifest_sha256"], MANIFEST_BYTES))
    assert manifest.models[0].labels == ("healthy", "pest")


def test_a_model_that_does_not_load_is_refused(tool: ManagersTool) -> None:
    tool.checker.unreadable = Refused(Reason.MODEL_LOAD, "not a model")
    assert ".onnx: not a model" in fails(tool, tool.describe("1.0.0", 1), 4)


def test_golden_inputs_that_do_not_hold_are_refused(tool: ManagersTool) -> None:
    tool.checker.refusal = Refused(Reason.GOLDEN, "scores[1] is 0.4, 0.9 is expected")
    said = fails(tool, tool.describe("1.0.0", 1), 4)
    assert "leaf/onnx: scores[1] is 0.4" in said


@pytest.mark.parametrize("counter", [1, 4, 5])
def test_a_counter_that_does_not_rise_is_refused(tool: ManagersTool, counter: int) -> None:
    tool.publish("1.0.0", 5)
    said = fails(tool, tool.describe("1.1.0", counter), 4)
    assert "pest-detector 1.0.0 has 5" in said
    assert "counter = 6" in said


def test_a_delisted_counter_counts_too(tool: ManagersTool) -> None:
    tool.publish("1.0.0", 5)
    tool.run("release", "delist", "1.0.0")
    tool.sign("alice", "bob")
    tool.push()
    fails(tool, tool.describe("1.1.0", 5), 4)


def test_a_counter_below_the_products_floor_is_refused(tool: ManagersTool) -> None:
    tool.run("release", "delist", "--floor", 9)
    tool.sign("alice", "bob")
    tool.push()
    assert "floor of 9" in fails(tool, tool.describe("1.0.0", 8), 4)


def test_a_version_is_never_used_twice(tool: ManagersTool) -> None:
    tool.publish("1.0.0", 1)
    assert "never changes" in fails(tool, tool.describe("1.0.0", 2), 6)


def test_a_product_that_nobody_created_is_refused(tool: ManagersTool) -> None:
    said = fails(tool, tool.describe("1.0.0", 1, product="weed-finder"), 6)
    assert "no product 'weed-finder'" in said


def test_an_unknown_key_is_told_with_its_line_and_the_nearest_right_name(tool: ManagersTool) -> None:
    said = fails(tool, tool.describe("1.0.0", 1, variant='accelerater = "cpu"'), 3)
    assert "line 16" in said
    assert "did you mean 'accelerator'?" in said


@pytest.mark.parametrize("missing", ["leaf.onnx", "leaf.png", "leaf.npz", "release.toml"])
def test_a_file_that_is_not_there_is_told(tool: ManagersTool, missing: str) -> None:
    folder = tool.describe("1.0.0", 1)
    (folder / missing).unlink()
    assert missing in fails(tool, folder, 3)


@pytest.mark.parametrize("file", ["leaf.pt", "leaf.pkl", "leaf.so", "leaf.h5"])
def test_a_form_of_model_that_no_machine_reads_is_refused(tool: ManagersTool, file: str) -> None:
    assert "onnx and .tflite" in fails(tool, tool.describe("1.0.0", 1, file=file), 4)


def test_a_config_of_a_kind_that_does_not_travel_is_refused(tool: ManagersTool) -> None:
    folder = tool.describe("1.0.0", 1, top='configs = [{ name = "run", file = "run.sh" }]\n')
    (folder / "run.sh").write_text("#!/bin/sh")
    assert "do not travel" in fails(tool, folder, 4)


def test_a_model_without_golden_inputs_is_refused(tool: ManagersTool) -> None:
    folder = tool.describe("1.0.0", 1)
    text = (folder / "release.toml").read_text()
    (folder / "release.toml").write_text(text.replace("golden =", "#"))
    assert "no golden input" in fails(tool, folder, 4)


def test_a_task_that_reads_an_output_which_the_model_lacks_is_refused(tool: ManagersTool) -> None:
    folder = tool.describe("1.0.0", 1)
    text = (folder / "release.toml").read_text()
    (folder / "release.toml").write_text(text.replace('output = "scores"', 'output = "boxes"'))
    assert "boxes" in fails(tool, folder, 4)


def test_tensors_that_are_stated_must_be_the_files(tool: ManagersTool) -> None:
    stated = (
        'inputs = [{ name = "pixels", shape = [1, 3, 8, 8], dtype = "float32" }]\n'
        'outputs = [{ name = "scores", shape = [1, 2], dtype = "float32" }]'
    )
    assert "pixels" in fails(tool, tool.describe("1.0.0", 1, variant=stated), 4)


EDGE_TPU = """
[[models.variants]]
name = "tpu"
file = "leaf.tflite"
accelerator = "edgetpu"
inputs = [{ name = "image", shape = [1, 8, 8, 3], dtype = "uint8", layout = "NHWC" }]
outputs = [{ name = "scores", shape = [1, 2], dtype = "uint8", scale = 0.004 }]
golden = [{ name = "leaf", input = "leaf.png", expected = "leaf.npz" }]
"""


def with_edge_tpu(tool: ManagersTool, version: str = "1.0.0", more: str = EDGE_TPU) -> Path:
    folder = tool.describe(version, 1, more=more)
    (folder / "leaf.tflite").write_bytes(b"compiled for the Edge TPU")
    return folder


def test_what_can_be_tried_is_tried_and_what_cannot_is_told_to_all(tool: ManagersTool) -> None:
    built = tool.run("release", "build", with_edge_tpu(tool))
    assert built["tried"] == ["leaf/onnx"]
    assert built["untried"] == {"leaf/tpu": "no edgetpu on the computer of the builder"}
    said = tool.invoke("release", "sign", "--as", "alice", "--yes").stderr
    assert "golden inputs were not tried: leaf/tpu: no edgetpu" in said


def test_a_variant_whose_tensors_nobody_here_can_read_must_state_them(tool: ManagersTool) -> None:
    silent = "\n".join(line for line in EDGE_TPU.splitlines() if not line.startswith(("inputs", "outputs")))
    assert "state inputs and outputs" in fails(tool, with_edge_tpu(tool, more=silent), 6)


def test_a_release_of_which_nothing_can_be_tried_needs_the_reason(tool: ManagersTool) -> None:
    tool.checker.runtimes = set()
    stated = (
        'inputs = [{ name = "image", shape = [1, 3, 8, 8], dtype = "float32" }]\n'
        'outputs = [{ name = "scores", shape = [1, 2], dtype = "float32" }]'
    )
    folder = tool.describe("1.0.0", 1, variant=stated)
    assert "--untried REASON" in fails(tool, folder, 6)
    assert fails(tool, folder, 6, "--untried", "  ")
    built = tool.run("release", "build", folder, "--untried", "built on a laptop\nin the field")
    assert built["untried"] == {"leaf/onnx": "built on a laptop in the field"}
