"""The inventory: what is usable now, found without loading a runtime into the agent."""

import subprocess
import sys

import msgspec
import pytest

from device import hardware
from protocol.delta.patch import CODEC
from protocol.messages import Inventory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without any device, with the runtimes that the test names."""
    for folder in ("dev", "sys/bus/usb/devices", "proc/device-tree"):
        (tmp_path / folder).mkdir(parents=True)
    installed = {"onnxruntime": "1.32.0", "ai-edge-litert": "2.3.0"}
    monkeypatch.setattr(hardware, "_installed", installed.get)
    monkeypatch.setattr(hardware, "_providers", lambda: frozenset({"CPUExecutionProvider"}))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    return tmp_path


def plug_in_coral(machine):
    device = machine / "sys/bus/usb/devices/1-2"
    device.mkdir()
    (device / "idVendor").write_text("18d1\n")
    (device / "idProduct").write_text("9302\n")


def test_the_processor_is_always_there_and_always_last(machine):
    assert hardware.find(machine).accelerators == ("cpu",)


def test_a_gpu_counts_only_with_its_provider_and_its_device(machine, monkeypatch):
    providers = frozenset({"TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"})
    monkeypatch.setattr(hardware, "_providers", lambda: providers)
    assert hardware.find(machine).accelerators == ("cpu",)
    (machine / "dev/nvidia0").touch()
    assert hardware.find(machine).accelerators == ("tensorrt", "cuda", "cpu")
    monkeypatch.setattr(hardware, "_providers", lambda: frozenset({"CPUExecutionProvider"}))
    assert hardware.find(machine).accelerators == ("cpu",)


def test_an_edge_tpu_counts_only_with_something_that_drives_it(machine, monkeypatch):
    plug_in_coral(machine)
    assert hardware.find(machine).accelerators == ("cpu",)
    assert hardware.find(machine).hardware == ("coral-usb",)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: "libedgetpu.so.1" if name == "edgetpu" else None)
    assert hardware.find(machine).accelerators == ("edgetpu", "cpu")


def test_a_pcie_coral_and_a_board_are_found_by_their_files(machine):
    (machine / "dev/apex_0").touch()
    (machine / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\x00")
    assert hardware.find(machine).hardware == ("coral-pcie", "jetson-orin")


def test_the_unrelated_pycoral_is_not_taken_for_the_genuine_one(tmp_path, monkeypatch):
    (tmp_path / "pycoral").mkdir()
    (tmp_path / "pycoral/__init__.py").write_text("raise SystemExit('a stranger was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not hardware._is_genuine_pycoral()
    (tmp_path / "pycoral/utils").mkdir()
    (tmp_path / "pycoral/utils/edgetpu.py").touch()
    assert hardware._is_genuine_pycoral()


async def test_the_probe_asks_a_child_and_adds_what_the_settings_say(tmp_path):
    found = await hardware.probe(["sprayer"], tmp_path)
    assert found.accelerators[-1] == "cpu"
    assert "sprayer" in found.hardware
    assert found.runtimes["onnxruntime"]
    assert found.disk_bytes > 0
    assert found.memory_mib > 0
    assert found.patch_codecs == (CODEC,)
    assert hardware.inventory_digest(found) == hardware.inventory_digest(await hardware.probe(["sprayer"], tmp_path))


async def test_a_probe_that_fails_leaves_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware.sys, "executable", "/bin/false")
    found = await hardware.probe([], tmp_path)
    assert found.accelerators == ("cpu",)
    assert isinstance(found, Inventory)
    known = msgspec.structs.replace(found, accelerators=("edgetpu", "cpu"))
    assert await hardware.probe([], tmp_path, known) == known, "or what an earlier one found"


def test_the_agent_loads_no_runtime_to_know_its_hardware():
    program = "import sys, device.hardware; print([m for m in ('onnxruntime', 'ai_edge_litert') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=30)
    assert out.stdout.strip() == b"[]"
