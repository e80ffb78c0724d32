"""The agent's own process loads no runtime, no image library: models live in processes of their own."""

import subprocess
import sys

LOADED = """
import sys
import device.inference.alarms, device.inference.canary_client, device.inference.folder_source
import device.inference.pump, device.inference.settings, device.inference.workers
print(sorted({name.split(".")[0] for name in sys.modules} & {"onnxruntime", "ai_edge_litert", "PIL", "onnx", "tuf"}))
"""


def test_the_agents_side_of_inference_imports_no_runtime():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
