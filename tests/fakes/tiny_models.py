"""Models small enough to read: built here, so that a test knows every number that must come out.

All take one image of 8 by 8 pixels, scaled to 0..1, and look at its mean brightness `m`.
"""

from collections.abc import Sequence

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as tfl
from onnx import TensorProto, helper, numpy_helper

SIDE = 8
LABELS = ("bright", "dark")


def _onnx(nodes: list, outputs: list, initializers: Sequence[tuple[str, np.ndarray]] = (), inputs=None) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs or [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in initializers],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _value(name: str, shape: list, kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def brightness(factor: float = 1.0) -> bytes:
    """`scores [1, 2] = [factor * m, 1 - factor * m]`."""
    weights = np.stack([np.full(3, factor / 3), np.full(3, -factor / 3)], axis=1).astype(np.float32)
    return _onnx(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["scores"]),
        ],
        [_value("scores", [1, 2])],
        [("weights", weights), ("bias", np.array([0.0, 1.0], np.float32))],
    )


def free_batch() -> bytes:
    """As `brightness`, with a free first dimension."""
    model = onnx.load_from_string(brightness())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return model.SerializeToString()


def _mean_nodes() -> list:
    return [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("ReduceMean", ["pooled"], ["mean"], keepdims=0),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["calm"]),
    ]


_CALM = (
    ("weights", np.stack([np.full(3, 1 / 3), np.full(3, -1 / 3)], axis=1).astype(np.float32)),
    ("bias", np.array([0.0, 1.0], np.float32)),
)


def crashes_on_black() -> bytes:
    """As `brightness`, but a frame of no light divides the least int32 by -1, which x86 answers with SIGFPE."""
    return _onnx(
        [
            *_mean_nodes(),
            helper.make_node("Greater", ["mean", "nought"], ["lit"]),
            helper.make_node("Where", ["lit", "one", "least"], ["above"]),
            helper.make_node("Div", ["above", "minus"], ["below"]),
            helper.make_node("Cast", ["below"], ["negative"], to=TensorProto.FLOAT),
            helper.make_node("Neg", ["negative"], ["unit"]),
            helper.make_node("Mul", ["calm", "unit"], ["scores"]),
        ],
        [_value("scores", [1, 2])],
        [
            *_CALM,
            ("nought", np.array(0.0, np.float32)),
            ("one", np.array([1], np.int32)),
            ("least", np.array([-(2**31)], np.int32)),
            ("minus", np.array([-1], np.int32)),
        ],
    )


def spins_on_white(rounds: int) -> bytes:
    """As `brightness`, but a frame of much light (m > 0.9) goes round a loop `rounds` times first."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["x"], ["y"]),
        ],
        "body",
        [_value("i", [], TensorProto.INT64), _value("go", [], TensorProto.BOOL), _value("x", [1, 2])],
        [_value("go_on", [], TensorProto.BOOL), _value("y", [1, 2])],
    )
    return _onnx(
        [
            *_mean_nodes(),
            helper.make_node("Greater", ["mean", "much"], ["is_white"]),
            helper.make_node("Cast", ["is_white"], ["white"], to=TensorProto.INT64),
            helper.make_node("Mul", ["white", "rounds"], ["trips"]),
            helper.make_node("Loop", ["trips", "", "calm"], ["spun"], body=body),
            helper.make_node("Mul", ["spun", "none"], ["nothing"]),
            helper.make_node("Add", ["calm", "nothing"], ["scores"]),
        ],
        [_value("scores", [1, 2])],
        [
            *_CALM,
            ("much", np.array(0.9, np.float32)),
            ("rounds", np.array(rounds, np.int64)),
            ("none", np.array(0.0, np.float32)),
        ],
    )


def hungry(mib: int, *, on_white_only: bool) -> bytes:
    """As `brightness`, but asks for `mib` mebibytes; always, or for a frame of much light only."""
    side = mib * 1024 * 256
    return _onnx(
        [
            *_mean_nodes(),
            helper.make_node("Greater", ["mean", "much"], ["is_white"]),
            helper.make_node("Cast", ["is_white"], ["white"], to=TensorProto.INT64),
            helper.make_node("Mul", ["white", "side"], ["wanted"]),
            helper.make_node("Add", ["wanted", "one"], ["length"]),
            helper.make_node("Reshape", ["length", "row"], ["shape"]),
            helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["calm", "nothing"], ["scores"]),
        ],
        [_value("scores", [1, 2])],
        [
            *_CALM,
            ("much", np.array(0.9 if on_white_only else -1.0, np.float32)),
            ("side", np.array(side, np.int64)),
            ("one", np.array(1, np.int64)),
            ("row", np.array([1], np.int64)),
        ],
    )


def not_a_number_on_black() -> bytes:
    """As `brightness`, but a frame of no light gives 0 / 0."""
    return _onnx(
        [
            *_mean_nodes(),
            helper.make_node("Div", ["mean", "mean"], ["one"]),
            helper.make_node("Mul", ["calm", "one"], ["scores"]),
        ],
        [_value("scores", [1, 2])],
        _CALM,
    )


def doubled_tensors() -> bytes:
    """Takes `x float32 [1, 4]` and `n int64 []` as arrays, and gives `y = x * n`."""
    return _onnx(
        [
            helper.make_node("Cast", ["n"], ["n_f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["x", "n_f"], ["y"]),
        ],
        [_value("y", [1, 4])],
        inputs=[_value("x", [1, 4]), _value("n", [], TensorProto.INT64)],
    )


def brightness_tflite(factor: float = 1.0) -> bytes:
    """As `brightness`, as TFLite: `image [1, 8, 8, 3]`, `scores [1, 2]`."""
    count = SIDE * SIDE * 3
    weights = np.stack([np.full(count, factor / count), np.full(count, -factor / count)]).astype(np.float32)
    return _tflite(
        operator=tfl.BuiltinOperator.FULLY_CONNECTED,
        options=(tfl.BuiltinOptions.FullyConnectedOptions, tfl.FullyConnectedOptionsT()),
        constants=[("weights", weights), ("bias", np.array([0.0, 1.0], np.float32))],
        source=("image", [1, SIDE, SIDE, 3], tfl.TensorType.FLOAT32, None),
        target=("scores", [1, 2], tfl.TensorType.FLOAT32, None),
    )


def logistic_int8_tflite() -> bytes:
    """`scores = logistic(image)` in int8: the input in steps of 1/16, the output in steps of 1/256 from -128 on."""
    return _tflite(
        operator=tfl.BuiltinOperator.LOGISTIC,
        options=None,
        constants=[],
        source=("image", [1, SIDE, SIDE, 3], tfl.TensorType.INT8, (1 / 16, 3)),
        target=("scores", [1, SIDE, SIDE, 3], tfl.TensorType.INT8, (1 / 256, -128)),
    )


def with_external_buffers() -> bytes:
    """A TFLite model that says that some of its buffers lie in another file."""
    model = tfl.ModelT.InitFromPackedBuf(brightness_tflite(), 0)
    group = tfl.ExternalBufferGroupT()
    group.name = "../../etc/passwd"
    model.externalBufferGroups = [group]
    return _packed(model)


def without_graphs() -> bytes:
    """A TFLite model without a graph: LiteRT 2.3 follows the missing pointer and ends with SIGSEGV as it loads."""
    model = tfl.ModelT.InitFromPackedBuf(brightness_tflite(), 0)
    model.subgraphs = None
    return _packed(model)


def with_custom_operator() -> bytes:
    """A TFLite model whose one operator is Coral's, as compiled models have it."""
    model = tfl.ModelT.InitFromPackedBuf(brightness_tflite(), 0)
    code = model.operatorCodes[0]
    code.builtinCode = tfl.BuiltinOperator.CUSTOM
    code.deprecatedBuiltinCode = tfl.BuiltinOperator.CUSTOM
    code.customCode = "edgetpu-custom-op"
    operator = model.subgraphs[0].operators[0]
    operator.builtinOptionsType = tfl.BuiltinOptions.NONE
    operator.builtinOptions = None
    return _packed(model)


def _tflite(*, operator: int, options, constants, source, target) -> bytes:
    model = tfl.ModelT()
    model.version = 3
    model.buffers = [tfl.BufferT()]
    graph = tfl.SubGraphT()
    graph.tensors = []

    def tensor(name: str, shape: list, kind: int, quantisation, data: np.ndarray | None = None) -> int:
        made = tfl.TensorT()
        made.name, made.shape, made.type, made.buffer = name, shape, kind, 0
        if quantisation is not None:
            made.quantization = tfl.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [quantisation[0]], [quantisation[1]]
        if data is not None:
            buffer = tfl.BufferT()
            buffer.data = list(data.tobytes())
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    first = tensor(*source)
    others = [tensor(name, list(data.shape), tfl.TensorType.FLOAT32, None, data) for name, data in constants]
    last = tensor(*target)
    step = tfl.OperatorT()
    step.opcodeIndex, step.inputs, step.outputs = 0, [first, *others], [last]
    if options is not None:
        step.builtinOptionsType, step.builtinOptions = options
    graph.inputs, graph.outputs, graph.operators = [first], [last], [step]
    code = tfl.OperatorCodeT()
    code.builtinCode = operator
    code.deprecatedBuiltinCode = min(operator, 127)
    code.version = 1
    model.operatorCodes = [code]
    model.subgraphs = [graph]
    return _packed(model)


def _packed(model) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
