"""Makes two releases of the pest detector that no machine must keep, out of the committed 1.1.0.

- 1.2.0 is damaged: noise lies over its weights, while its golden outputs are those of 1.1.0. It has to be built with
  `--untried`, or the builder would refuse it; machines refuse it in CHECK.
- 1.2.1 is careless: its outputs are those of 1.1.0, but whenever it sees a pest it spends most of a second on a loop.
  Its one golden input shows a healthy leaf, so it passes the builder and CHECK; live frames break its latency bound in
  the trial.

    .venv/bin/python scripts/make_broken_models.py FOLDER

Writes `FOLDER/pest-detector-1.2.0.toml` and `-1.2.1.toml` with all that they name. It needs the package onnx, which
the development set-up has, and nothing of the training.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from make_demo_goldens import GOLDEN_SEEDS, MODELS, description  # noqa: E402  (the path is set above)

BASE = "1.1.0"
DAMAGED, CARELESS = "1.2.0", "1.2.1"
NOISE = 0.6  # of each tensor's own spread: the outputs are far outside any tolerance
SLOW_S = 0.8  # three times the latency bound, so that a faster machine than this one still breaks it
SIDE = 384  # of the matrices that the loop multiplies


def damaged_onnx(model: bytes, seed: int = 12) -> bytes:
    """The model with noise over its convolutions."""
    rng = np.random.default_rng(seed)
    net = onnx.load_from_string(model)
    for tensor in net.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim == 4:
            noisy = weights + NOISE * weights.std() * rng.standard_normal(weights.shape).astype(weights.dtype)
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(weights.dtype), tensor.name))
    return net.SerializeToString()


def damaged_tflite(model: bytes, seed: int = 12) -> bytes:
    """The int8 model with noise over its weights, in place: the file's structure stays whole."""
    from ai_edge_litert.interpreter import Interpreter

    rng = np.random.default_rng(seed)
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    damaged = bytearray(model)
    hit = 0
    for details in interpreter.get_tensor_details():
        if details["dtype"] != np.int8 or len(details["shape"]) != 4 or np.prod(details["shape"]) < 1000:
            continue
        try:
            weights = interpreter.get_tensor(details["index"])
        except ValueError:
            continue  # an activation that has no memory of its own
        place = model.find(weights.tobytes())
        if place < 0:
            continue  # an activation
        noisy = np.clip(weights + rng.normal(0, NOISE * weights.std(), weights.shape), -127, 127).astype(np.int8)
        damaged[place : place + noisy.size] = noisy.tobytes()
        hit += 1
    if hit == 0:
        raise RuntimeError("no weights were found in the TFLite file")
    return bytes(damaged)


def careless_onnx(model: bytes, rounds: int) -> bytes:
    """The model with a loop of `rounds` matrix products, which runs as soon as one cell holds a pest.

    The loop's outcome is multiplied by zero and added to the output, so that no optimiser may leave it out.
    """
    net = onnx.load_from_string(model)
    graph = net.graph
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == "grid":
                node.output[place] = "plain_grid"

    def number(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    # Scaled so that the values neither vanish (tiny floats are slow on some processors) nor all reach one.
    square = np.random.default_rng(5).standard_normal((SIDE, SIDE)).astype(np.float32) * np.float32(1.5 / SIDE**0.5)
    number("slow_matrix", square)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["slow_in", "slow_matrix"], ["slow_product"]),
            helper.make_node("Tanh", ["slow_product"], ["slow_next"]),
            helper.make_node("Identity", ["slow_go"], ["slow_go_on"]),
        ],
        "slow",
        [
            helper.make_tensor_value_info("slow_round", TensorProto.INT64, []),
            helper.make_tensor_value_info("slow_go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("slow_in", TensorProto.FLOAT, [SIDE, SIDE]),
        ],
        [
            helper.make_tensor_value_info("slow_go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("slow_next", TensorProto.FLOAT, [SIDE, SIDE]),
        ],
    )
    graph.node.extend(
        [
            helper.make_node(
                "Slice",
                [
                    "plain_grid",
                    number("slow_from", np.array([0], np.int64)),
                    number("slow_to", np.array([1], np.int64)),
                    number("slow_axis", np.array([1], np.int64)),
                ],
                ["slow_objectness"],
            ),
            helper.make_node("ReduceMax", ["slow_objectness"], ["slow_best"], keepdims=0),
            helper.make_node("Greater", ["slow_best", number("slow_zero", np.array(0, np.float32))], ["slow_pest"]),
            helper.make_node("Cast", ["slow_pest"], ["slow_once"], to=TensorProto.INT64),
            helper.make_node("Mul", ["slow_once", number("slow_rounds", np.array(rounds, np.int64))], ["slow_trips"]),
            helper.make_node("Loop", ["slow_trips", "", "slow_matrix"], ["slow_end"], body=body),
            helper.make_node("ReduceMax", ["slow_end"], ["slow_number"], keepdims=0),
            helper.make_node("Mul", ["slow_number", "slow_zero"], ["slow_nothing"]),
            helper.make_node("Add", ["plain_grid", "slow_nothing"], ["grid"]),
        ]
    )
    onnx.checker.check_model(net)
    return net.SerializeToString()


def rounds_for(seconds: float) -> int:
    """How many rounds of the loop this machine does in so long, on one core, at its best."""
    square = np.eye(SIDE, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Tanh", ["c"], ["d"])],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in "ab"],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, [SIDE, SIDE])],
    )
    one = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(one.SerializeToString(), options, providers=["CPUExecutionProvider"])
    best = float("inf")
    for _ in range(12):
        began = time.perf_counter()
        session.run(None, {"a": square, "b": square})
        best = min(best, time.perf_counter() - began)
    return max(1, round(seconds / best))


def write(folder: Path, *, rounds: int | None = None) -> None:
    """Writes both releases.

    Args:
        folder: Made when it is not there.
        rounds: Of the careless model's loop; None measures what takes `SLOW_S` here.
    """
    base = MODELS / BASE
    for version in (DAMAGED, CARELESS):
        (folder / version).mkdir(parents=True, exist_ok=True)
    for name in GOLDEN_SEEDS:
        shutil.copyfile(MODELS / f"golden-{name}.jpg", folder / f"golden-{name}.jpg")
        for version in (DAMAGED, CARELESS):
            for variant in ("onnx", "int8"):
                expected = f"golden-{name}-{variant}.npz"
                shutil.copyfile(base / expected, folder / version / expected)
    good = (base / "pest-detector.onnx").read_bytes()
    (folder / DAMAGED / "pest-detector.onnx").write_bytes(damaged_onnx(good))
    int8 = (base / "pest-detector-int8.tflite").read_bytes()
    (folder / DAMAGED / "pest-detector-int8.tflite").write_bytes(damaged_tflite(int8))
    careless = careless_onnx(good, rounds_for(SLOW_S) if rounds is None else rounds)
    (folder / CARELESS / "pest-detector.onnx").write_bytes(careless)
    (folder / f"pest-detector-{DAMAGED}.toml").write_text(
        description(DAMAGED, 3, metrics={}, training=f"{BASE}, damaged on the way", data="none")
    )
    (folder / f"pest-detector-{CARELESS}.toml").write_text(
        description(
            CARELESS,
            4,
            metrics={},
            training=f"{BASE} with a loop over what it found",
            data="none",
            variants=("onnx",),
            goldens=("healthy",),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write(options.folder)


if __name__ == "__main__":
    main()
