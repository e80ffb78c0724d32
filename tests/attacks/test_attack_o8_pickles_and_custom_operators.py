"""O8: only ONNX and TFLite are models; nothing in a release can bring code."""

import io
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import device.inference
from device.inference.backends.litert import LiteRtBackend
from device.inference.backends.onnxruntime_ import OnnxRuntimeBackend
from protocol.errors import Reason, Refused
from protocol.release import parse_manifest
from protocol.wire import encode
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import ModelSpec, make_release


class Bomb:
    def __reduce__(self):
        return (print, ("a pickle ran",))


def torch_archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    return out.getvalue()


FOREIGN = {
    "pickle": pickle.dumps(Bomb()),
    "old-pickle": pickle.dumps(Bomb(), protocol=0),
    "torch": torch_archive(),
    "shared-object": b"\x7fELF" + b"\x00" * 60,
    "hdf5": b"\x89HDF\r\n\x1a\n" + b"\x00" * 60,
    "script": b"#!/bin/sh\necho a script ran\n",
    "ort-format": b"\x00\x00\x00\x00ORTM" + b"\x00" * 60,
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_attack_o8_no_backend_loads_anything_else(data, tmp_path, capfd):
    for backend in (OnnxRuntimeBackend(), LiteRtBackend()):
        with pytest.raises(Refused) as refused:
            backend.load(data, "cpu", threads=1)
        assert refused.value.reason is Reason.MODEL_LOAD
    (tmp_path / "model").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "device.inference.describe", str(tmp_path / "model")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["ok"] is False
    known = data[:1] == b"\x80" or data[:2] == b"PK" or data[1:4] in (b"ELF", b"HDF")
    assert told["reason"] == (Reason.MEDIA_TYPE if known else Reason.MODEL_LOAD)
    assert "ran" not in done.stdout.replace("ran out", "") + done.stderr + capfd.readouterr().out


@pytest.mark.parametrize(
    "media_type", ["application/octet-stream", "application/vnd.tflite", "application/x-python-pickle"]
)
def test_attack_o8_a_manifest_cannot_call_it_a_model(tmp_path, media_type):
    release = make_release(tmp_path, ModelSpec(tiny.brightness()))
    text = encode(release.manifest).replace(b"application/onnx", media_type.encode())
    with pytest.raises(Refused) as refused:
        parse_manifest(text)
    assert refused.value.reason in (Reason.MEDIA_TYPE, Reason.MANIFEST)


def test_attack_o8_unknown_operators_do_not_load():
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node("RunMyCode", ["x"], ["y"], domain="evil")
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    with pytest.raises(Refused) as refused:
        OnnxRuntimeBackend().load(model.SerializeToString(), "cpu", threads=1)
    assert refused.value.reason is Reason.MODEL_LOAD
    with pytest.raises(Refused) as refused:
        LiteRtBackend().load(tiny.with_custom_operator(), "cpu", threads=1)
    assert refused.value.reason is Reason.MODEL_LOAD


def test_attack_o8_session_settings_inside_a_model_are_not_followed(monkeypatch, tmp_path):
    model = onnx.load_from_string(tiny.brightness())
    entry = model.metadata_props.add()
    profile = json.dumps({"session_options": {"enable_profiling": 1, "intra_op_num_threads": 64}})
    entry.key, entry.value = "ort_config", profile
    monkeypatch.chdir(tmp_path)
    session = OnnxRuntimeBackend().load(model.SerializeToString(), "cpu", threads=1)
    session.run({"image": np.zeros((1, 3, 8, 8), np.float32)})
    session.close()
    assert not list(tmp_path.iterdir())


def test_attack_o8_no_code_of_ours_registers_operators_or_unpickles():
    forbidden = re.compile(
        r"(?<!calls )register_custom_ops|custom_op_registerers|InterpreterWithCustomOps|import pickle|allow_pickle=True"
        r"|shell=True"
    )
    folder = Path(device.inference.__file__).parent
    for path in folder.rglob("*.py"):
        assert not forbidden.search(path.read_text()), path
