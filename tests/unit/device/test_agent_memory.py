"""The idle agent stays small: what it must not carry is not even imported."""

import subprocess
import sys

FORBIDDEN = (
    "tuf",
    "securesystemslib",
    "onnxruntime",
    "ai_edge_litert",
    "PIL",
    "numpy",
    "sqlite_utils",
    "rich",
    "click",
    "docker",
    "requests",
    "aiohttp.web",
)


def test_the_agent_imports_no_runtime_no_tuf_and_no_comfort():
    program = f"import sys, device.agent; print([m for m in {FORBIDDEN!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
