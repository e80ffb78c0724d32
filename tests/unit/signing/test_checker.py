"""The builder with the device's real checker: real models in throw-away processes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.errors import Reason, Refused, StateError
from signing import checker as checker_module
from signing.checker import SubprocessChecker, _run
from tests.fakes.managers_tool import ManagersTool

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'headland[dev]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'headland[device]'")


def model(bias: float = 0.0, external: str = "") -> bytes:
    """scores = mean over the pixels of each channel, times a small matrix, plus a bias."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.array([[1, 0], [0, 1], [1, 1]], np.float32), "weight")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["scores"]),
        ],
        "leaf",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])],
        [
            weight,
            numpy_helper.from_array(np.array([bias, 0], np.float32), "bias"),
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(made.SerializeToString())


def golden(folder: Path, scores: tuple[float, float]) -> None:
    """A gray picture (every pixel 0.2 after scaling) and the scores it must give."""
    image: Any = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'headland[device]'")
    image.new("RGB", (8, 8), (51, 51, 51)).save(folder / "leaf.png")
    buffer = io.BytesIO()
    np.savez(buffer, scores=np.array([scores], np.float32))
    (folder / "leaf.npz").write_bytes(buffer.getvalue())


@pytest.fixture
def tool(tmp_path: Path) -> ManagersTool:
    tool = ManagersTool(tmp_path)
    tool.app.checker = SubprocessChecker()
    tool.begin()
    return tool


def described(tool: ManagersTool, data: bytes, scores: tuple[float, float] = (0.4, 0.4)) -> Path:
    folder = tool.describe("1.0.0", 1, model=data, variant="bounds = { latency_ms = 5000 }")
    golden(folder, scores)
    return folder


def test_a_model_whose_golden_inputs_hold_is_built(tool: ManagersTool) -> None:
    assert tool.run("release", "build", described(tool, model()))["tried"] == ["leaf/onnx"]


def test_golden_outputs_that_differ_are_refused(tool: ManagersTool) -> None:
    assert "leaf/onnx" in tool.fail("release", "build", described(tool, model(bias=0.5)), code=4)


def test_a_file_that_is_no_model_is_refused(tool: ManagersTool) -> None:
    tool.fail("release", "build", described(tool, b"not a model at all"), code=4)
    tool.fail("release", "build", described(tool, model()[:-40]), code=4)


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
def test_attack_O7_external_data_is_refused_at_build_even_untried(tool: ManagersTool, location: str) -> None:
    folder = described(tool, model(external=location))
    result = tool.invoke("release", "build", folder, "--untried", "no time", "--json")
    assert result.exit_code == 4
    assert '"reason":"external-data"' in result.stdout


def test_untried_runs_no_golden_input_but_still_reads_the_model(tool: ManagersTool) -> None:
    built = tool.run("release", "build", described(tool, model(bias=0.5)), "--untried", "the camera is away")
    assert built["tried"] == []


def run_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, limit_s: float = 20.0) -> Refused:
    """What a checker that behaves as `text` is taken for."""
    (tmp_path / "odd_checker.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(Refused) as error:
        _run("odd_checker", tmp_path / "request.json", limit_s)
    return error.value


def test_a_checker_that_dies_of_a_signal_is_a_crash_of_the_model(monkeypatch: Any, tmp_path: Path) -> None:
    error = run_script(monkeypatch, tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert error.reason == Reason.MODEL_CRASH
    assert "SIGSEGV" in error.message


def test_a_checker_that_ends_without_an_answer_is_a_crash(monkeypatch: Any, tmp_path: Path) -> None:
    assert run_script(monkeypatch, tmp_path, "raise SystemExit('out of luck')").reason == Reason.MODEL_CRASH
    assert run_script(monkeypatch, tmp_path, "").reason == Reason.MODEL_CRASH


def test_a_checker_that_hangs_is_ended(monkeypatch: Any, tmp_path: Path) -> None:
    error = run_script(monkeypatch, tmp_path, "import time; time.sleep(60)", limit_s=1.0)
    assert error.reason == Reason.BOUNDS


def test_without_the_device_part_the_message_says_what_to_install(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(checker_module, "DESCRIBE", "absent.inference.describe")
    with pytest.raises(StateError, match="not installed") as error:
        SubprocessChecker().describe(tmp_path / "leaf.onnx")
    assert "headland[device]" in error.value.hint
