"""A release is tried in a throw-away process: what it does there, what runs never notices."""

import asyncio
import json
import subprocess
import sys

import numpy as np
import pytest

from device.inference.canary import check
from device.inference.canary_client import SubprocessCanary
from device.inference.npz import write_npz
from protocol.errors import Reason, Refused
from protocol.release import Anomaly, Bounds, Tensor, TensorPreprocessing
from protocol.wire import encode
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import IMAGE, IMAGE_NHWC, ModelSpec, grey_png, make_release


async def refusal(tmp_path, spec, **options) -> Refused:
    canary = SubprocessCanary(tmp_path / "scratch", **options)
    with pytest.raises(Refused) as refused:
        await canary.check(make_release(tmp_path / "release", spec))
    assert not list((tmp_path / "scratch").iterdir()), "nothing is left behind"
    return refused.value


async def test_a_good_release_passes_and_is_measured(tmp_path):
    release = make_release(
        tmp_path / "release",
        ModelSpec(tiny.brightness()),
        ModelSpec(tiny.brightness_tflite(), name="lite", runtime="litert", inputs=IMAGE_NHWC),
        ModelSpec(
            tiny.doubled_tensors(),
            name="arrays",
            inputs=(Tensor(name="x", shape=(1, 4), dtype="float32"), Tensor(name="n", shape=(), dtype="int64")),
            outputs=(Tensor(name="y", shape=(1, 4), dtype="float32"),),
            preprocessing=TensorPreprocessing(),
            task=Anomaly(output="y", threshold=5.0),
            labels=(),
            goldens=[
                (
                    write_npz({"x": np.ones((1, 4), np.float32), "n": np.array(3)}),
                    "application/x-npz",
                    {"y": np.full((1, 4), 3.0, np.float32)},
                )
            ],
        ),
    )
    answer = await SubprocessCanary(tmp_path / "scratch").try_release(release)
    assert set(answer.models) == {"light", "lite", "arrays"}
    for tried in answer.models.values():
        assert tried.accelerator == "cpu"
        assert tried.latency_ms > 0


async def test_other_outputs_than_the_golden_ones_are_refused(tmp_path):
    refused = await refusal(tmp_path, ModelSpec(tiny.brightness(0.9)))
    assert refused.reason is Reason.GOLDEN
    assert "case-0" in refused.message


async def test_a_crash_is_told_by_its_signal(tmp_path):
    black = [(grey_png(0), "image/png", {"scores": np.array([[0, 1]], np.float32)})]
    refused = await refusal(tmp_path, ModelSpec(tiny.crashes_on_black(), goldens=black))
    assert refused.reason is Reason.MODEL_CRASH
    assert "SIGFPE" in refused.message


async def test_a_hang_is_out_of_bounds(tmp_path):
    white = [(grey_png(255), "image/png", {"scores": np.array([[1, 0]], np.float32)})]
    refused = await refusal(tmp_path, ModelSpec(tiny.spins_on_white(10**12), goldens=white), wall_limit_s=3.0)
    assert refused.reason is Reason.BOUNDS


async def test_slow_is_out_of_bounds(tmp_path):
    white = [(grey_png(255), "image/png", {"scores": np.array([[1, 0]], np.float32)})]
    spec = ModelSpec(tiny.spins_on_white(100_000), goldens=white, bounds=Bounds(latency_ms=5.0, memory_mib=128))
    refused = await refusal(tmp_path, spec)
    assert refused.reason is Reason.BOUNDS
    assert "95th percentile" in refused.message


async def test_hungry_is_out_of_bounds(tmp_path):
    refused = await refusal(tmp_path, ModelSpec(tiny.hungry(4096, on_white_only=False)))
    assert refused.reason is Reason.BOUNDS


async def test_an_appetite_within_its_bounds_is_allowed(tmp_path):
    spec = ModelSpec(tiny.hungry(256, on_white_only=False), bounds=Bounds(latency_ms=5000.0, memory_mib=512))
    await SubprocessCanary(tmp_path / "scratch").check(make_release(tmp_path / "release", spec))


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": (Tensor(name="image", shape=(1, 3, 9, 8), dtype="float32"),)},
        {"inputs": (Tensor(name="picture", shape=(1, 3, 8, 8), dtype="float32"),)},
        {"inputs": (Tensor(name="image", shape=(1, 3, 8, 8), dtype="uint8"),)},
        {"inputs": (Tensor(name="image", shape=(1, 3, 8, 8), dtype="float32", scale=0.5),)},
        {"inputs": (*IMAGE, Tensor(name="more", shape=(1,), dtype="float32"))},
        {"outputs": (Tensor(name="scores", shape=(1, 3), dtype="float32"),)},
        {"outputs": (Tensor(name="scores", shape=(1, -1), dtype="float32"),)},
        {"labels": ("one", "two", "three")},
    ],
    ids=str,
)
def test_a_manifest_that_does_not_describe_the_file_is_refused(tmp_path, change):
    release = make_release(tmp_path, ModelSpec(tiny.brightness(), **change))
    with pytest.raises(Refused) as refused:
        check(release.manifest, {"light": "onnxruntime-cpu"}, dict(release.files), 1)
    assert refused.value.reason is Reason.MODEL_SHAPE


async def test_a_free_dimension_may_be_stated_as_a_length(tmp_path):
    release = make_release(tmp_path / "release", ModelSpec(tiny.free_batch()))
    await SubprocessCanary(tmp_path / "scratch").check(release)


async def test_not_a_number_is_refused_even_where_it_is_expected(tmp_path):
    black = [(grey_png(0), "image/png", {"scores": np.full((1, 2), np.nan, np.float32)})]
    refused = await refusal(tmp_path, ModelSpec(tiny.not_a_number_on_black(), goldens=black))
    assert refused.reason is Reason.MODEL_SHAPE


async def test_an_unreadable_golden_picture_is_refused(tmp_path):
    cut = [(grey_png(9)[:30], "image/png", {"scores": np.zeros((1, 2), np.float32)})]
    assert (await refusal(tmp_path, ModelSpec(tiny.brightness(), goldens=cut))).reason is Reason.GOLDEN


async def test_an_exclusive_accelerator_is_left_to_the_worker_that_has_it(tmp_path):
    spec = ModelSpec(tiny.with_custom_operator(), runtime="litert", accelerator="edgetpu", inputs=IMAGE_NHWC)
    release = make_release(tmp_path / "release", spec)
    answer = await SubprocessCanary(tmp_path / "scratch").try_release(release)
    assert answer.models["light"].deferred
    wrong = ModelSpec(tiny.with_custom_operator(), runtime="litert", accelerator="edgetpu", inputs=IMAGE)
    assert (await refusal(tmp_path, wrong)).reason is Reason.MODEL_SHAPE


async def test_a_missing_or_changed_file_is_refused(tmp_path):
    release = make_release(tmp_path / "release", ModelSpec(tiny.brightness()))
    path = release.files[release.variants["light"].artifact.sha256]
    data = path.read_bytes()
    for change, reason in (
        (lambda: path.write_bytes(data[:-1] + b"!"), Reason.HASH),
        (lambda: path.write_bytes(data[:-1]), Reason.LENGTH),
        (path.unlink, Reason.HASH),
    ):
        change()
        with pytest.raises(Refused) as refused:
            await SubprocessCanary(tmp_path / "scratch").check(release)
        assert refused.value.reason is reason


async def test_a_cancelled_check_leaves_no_process(tmp_path):
    white = [(grey_png(255), "image/png", {"scores": np.array([[1, 0]], np.float32)})]
    release = make_release(tmp_path / "release", ModelSpec(tiny.spins_on_white(10**12), goldens=white))
    task = asyncio.create_task(SubprocessCanary(tmp_path / "scratch").check(release))
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list((tmp_path / "scratch").iterdir())


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_one_line_and_exits_with_0(tmp_path):
    release = make_release(tmp_path / "release", ModelSpec(tiny.brightness(0.9)))
    (tmp_path / "manifest.json").write_bytes(encode(release.manifest))
    request = {
        "manifest": str(tmp_path / "manifest.json"),
        "files": {digest: str(path) for digest, path in release.files.items()},
        "variants": {"light": "onnxruntime-cpu"},
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    done = run("device.inference.canary", str(tmp_path / "request.json"))
    assert done.returncode == 0
    assert json.loads(done.stdout)["reason"] == "golden"
    request["variants"] = {"light": "another"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    assert json.loads(run("device.inference.canary", str(tmp_path / "request.json")).stdout)["reason"] == "manifest"
    assert run("device.inference.canary").returncode == 2


@pytest.mark.parametrize(
    ("data", "runtime", "names"),
    [
        (tiny.brightness(), "onnxruntime", ["scores"]),
        (tiny.brightness_tflite(), "litert", ["scores"]),
        (tiny.with_custom_operator(), "litert", ["scores"]),
    ],
)
def test_a_model_is_described(tmp_path, data, runtime, names):
    (tmp_path / "model").write_bytes(data)
    done = run("device.inference.describe", str(tmp_path / "model"))
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["runtime"] == runtime
    assert [tensor["name"] for tensor in told["inputs"]] == ["image"]
    assert [tensor["name"] for tensor in told["outputs"]] == names


def test_what_cannot_be_described_is_refused_with_a_reason(tmp_path):
    (tmp_path / "model").write_bytes(b"rubbish")
    told = json.loads(run("device.inference.describe", str(tmp_path / "model")).stdout)
    assert (told["ok"], told["reason"]) == (False, "model-load")
    told = json.loads(run("device.inference.describe", str(tmp_path / "absent")).stdout)
    assert (told["ok"], told["reason"]) == (False, "model-load")
    assert run("device.inference.describe").returncode == 2
