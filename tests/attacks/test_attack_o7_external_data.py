"""O7: a model that names other files is refused before any runtime sees it, wherever it hides the name."""

import contextlib
import random

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from device.inference.backends.litert import LiteRtBackend
from device.inference.backends.onnx_scan import refuse_external_data
from device.inference.backends.onnxruntime_ import OnnxRuntimeBackend
from device.inference.backends.tflite_scan import refuse_external_buffers
from device.inference.canary_client import SubprocessCanary
from device.inference.workers import ProcessWorkers
from protocol.errors import Reason, Refused
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import ModelSpec, make_release


def external(location: str = "../../etc/passwd") -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "weights")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def value(name: str):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])


def plain_graph(initializers=(), nodes=None) -> onnx.GraphProto:
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    return helper.make_graph(nodes, "g", [value("x")], [value("y")], list(initializers))


def model(graph: onnx.GraphProto) -> onnx.ModelProto:
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made


def hidden_in_subgraph() -> onnx.ModelProto:
    branch = helper.make_graph([helper.make_node("Identity", ["weights"], ["z"])], "b", [], [value("z")], [external()])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    condition = numpy_helper.from_array(np.array(True), "c")
    return model(plain_graph([condition], [node]))


def hidden_in_constant() -> onnx.ModelProto:
    return model(plain_graph(nodes=[helper.make_node("Constant", [], ["y"], value=external())]))


def hidden_in_sparse() -> onnx.ModelProto:
    graph = plain_graph()
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(external())
    return model(graph)


def hidden_in_function() -> onnx.ModelProto:
    made = model(plain_graph())
    node = helper.make_node("Constant", [], ["y"], value=external())
    made.functions.append(helper.make_function("own", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))
    return made


def hidden_in_attribute_default() -> onnx.ModelProto:
    made = hidden_in_function()
    function = made.functions[0]
    del function.node[:]
    function.attribute_proto.append(helper.make_attribute("default", external()))
    return made


def hidden_in_training() -> onnx.ModelProto:
    made = model(plain_graph())
    made.training_info.add().initialization.CopyFrom(plain_graph([external()]))
    return made


def hidden_in_tensor_list() -> onnx.ModelProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    attribute = node.attribute.add()
    attribute.name, attribute.type = "list", onnx.AttributeProto.TENSORS
    attribute.tensors.append(external())
    return model(plain_graph(nodes=[node]))


def location_without_data() -> onnx.ModelProto:
    tensor = external()
    del tensor.external_data[:]
    return model(plain_graph([tensor]))


def data_without_location() -> onnx.ModelProto:
    tensor = external()
    tensor.ClearField("data_location")
    return model(plain_graph([tensor]))


def engine_in_a_file() -> onnx.ModelProto:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="evil.engine")
    return model(plain_graph(nodes=[node]))


HIDDEN = [
    hidden_in_subgraph,
    hidden_in_constant,
    hidden_in_sparse,
    hidden_in_function,
    hidden_in_attribute_default,
    hidden_in_training,
    hidden_in_tensor_list,
    location_without_data,
    data_without_location,
    engine_in_a_file,
]


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin", "link", ""])
def test_attack_o7_external_weights_are_refused(location):
    data = model(plain_graph([external(location)])).SerializeToString()
    for backend_call in (
        lambda: OnnxRuntimeBackend().load(data, "cpu", threads=1),
        lambda: OnnxRuntimeBackend().describe(data),
    ):
        with pytest.raises(Refused) as refused:
            backend_call()
        assert refused.value.reason is Reason.EXTERNAL_DATA


@pytest.mark.parametrize("hide", HIDDEN, ids=lambda hide: hide.__name__)
def test_attack_o7_a_reference_is_found_wherever_it_hides(hide):
    with pytest.raises(Refused) as refused:
        refuse_external_data(hide().SerializeToString())
    assert refused.value.reason is Reason.EXTERNAL_DATA


def test_attack_o7_a_field_in_pieces_is_found_too():
    """Protobuf merges a message that comes in several pieces; so must who looks."""
    outside = model(plain_graph([external()])).SerializeToString()
    inside = model(plain_graph()).SerializeToString()
    with pytest.raises(Refused):
        refuse_external_data(inside + outside)


def varint(number: int, pad: int = 0) -> bytes:
    out = bytearray()
    while number >= 0x80 or pad:
        out.append((number & 0x7F) | 0x80)
        number >>= 7
        pad = max(0, pad - 1)
    out.append(number)
    return bytes(out)


@pytest.mark.parametrize(
    "tag",
    [
        varint((13 << 3) | 2, pad=2),
        varint((13 << 3) | 2 | (1 << 32)),
        varint((13 << 3) | 2, pad=6),
    ],
    ids=["padded", "wraps-around-in-32-bits", "too-long"],
)
def test_attack_o7_a_tag_that_parsers_read_differently_is_refused(tag):
    tensor = tag + varint(4) + b"\x0a\x02ab"
    graph = b"\x2a" + varint(len(tensor)) + tensor
    with pytest.raises(Refused):
        refuse_external_data(b"\x3a" + varint(len(graph)) + graph)


def test_attack_o7_honest_models_pass():
    for data in (tiny.brightness(), tiny.spins_on_white(3), model(plain_graph()).SerializeToString()):
        refuse_external_data(data)


def test_attack_o7_bytes_that_onnxruntime_loads_the_scanner_could_follow():
    """Each mutation that the runtime still loads must be one that the scanner walked to its end."""
    data = hidden_in_subgraph().SerializeToString()
    rng = random.Random(7)
    loaded = 0
    for _ in range(400):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        try:
            refuse_external_data(bytes(mutant))
        except Refused:
            continue
        try:
            onnxruntime.InferenceSession(bytes(mutant), providers=["CPUExecutionProvider"])
        except Exception:
            continue
        loaded += 1
        parsed = onnx.load_from_string(bytes(mutant))
        branch = parsed.graph.node[0].attribute[0].g
        assert not any(tensor.external_data or tensor.data_location for tensor in branch.initializer)
    assert loaded < 400


def test_attack_o7_nesting_and_many_fields_cost_bounded_time():
    deep = b""
    for _ in range(300):
        deep = b"\x32" + varint(len(deep)) + deep  # attribute.g
        deep = b"\x2a" + varint(len(deep)) + deep  # node.attribute
        deep = b"\x0a" + varint(len(deep)) + deep  # graph.node
    with pytest.raises(Refused):
        refuse_external_data(b"\x3a" + varint(len(deep)) + deep)
    with pytest.raises(Refused) as refused:
        refuse_external_data(b"\x08\x01" * 1001, most_fields=1000)
    assert refused.value.reason is Reason.LIMIT


def test_attack_o7_external_buffers_of_tflite_are_refused():
    with pytest.raises(Refused) as refused:
        LiteRtBackend().load(tiny.with_external_buffers(), "cpu", threads=1)
    assert refused.value.reason is Reason.EXTERNAL_DATA


def test_attack_o7_mangled_heads_of_tflite_are_refused_without_reading_outside():
    data = tiny.brightness_tflite()
    for place in range(24):
        for byte in (0x00, 0x7F, 0x80, 0xFF):
            mutant = data[:place] + bytes([byte]) + data[place + 1 :]
            try:
                refuse_external_buffers(mutant)
            except Refused as refused:
                assert refused.reason in (Reason.MODEL_LOAD, Reason.EXTERNAL_DATA)
    for length in range(len(data)):
        with contextlib.suppress(Refused):
            refuse_external_buffers(data[:length])


async def test_attack_o7_neither_canary_nor_worker_loads_it(tmp_path):
    data = model(plain_graph([external()])).SerializeToString()
    release = make_release(tmp_path / "release", ModelSpec(data))
    with pytest.raises(Refused) as refused:
        await SubprocessCanary(tmp_path / "scratch").check(release)
    assert refused.value.reason is Reason.EXTERNAL_DATA
    workers = ProcessWorkers(clock=lambda: 0.0)
    with pytest.raises(Refused) as refused:
        await workers.converge(release)
    assert refused.value.reason is Reason.EXTERNAL_DATA
    await workers.close()
