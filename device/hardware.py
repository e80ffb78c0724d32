"""What this machine is: accelerators that are usable now, tags, memory, disk.

The runtimes are asked in a short-lived child (`python -m device.hardware`), so that the agent itself never loads one.
An accelerator counts only when its runtime is installed and its device is there.
"""

import asyncio
import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from protocol import limits
from protocol.delta.patch import CODEC
from protocol.errors import Refused, StateError
from protocol.ids import Digest, Name, Version, digest
from protocol.messages import Inventory
from protocol.release import Accelerator
from protocol.wire import decode, encode
from signing.child import python_command

PROBE_S: Final = 60.0  # a cold onnxruntime on a slow card takes several seconds to import
BOARDS: Final[dict[str, Name]] = {
    "orin": "jetson-orin",
    "xavier": "jetson-xavier",
    "jetson nano": "jetson-nano",
    "raspberry pi": "raspberry-pi",
}
RUNTIMES: Final = ("onnxruntime", "ai-edge-litert", "pycoral")
EDGE_TPU_USB: Final = frozenset({("1a6e", "089a"), ("18d1", "9302")})  # before and after its firmware is loaded


def agent_version() -> Version:
    """Of the running agent."""
    return importlib.metadata.version("headland")


def inventory_digest(inventory: Inventory) -> Digest:
    """What `SyncRequest.inventory_sha256` names: it changes when the inventory does."""
    return digest(encode(inventory))


async def probe(tags: Iterable[Name], folder: Path, known: Inventory | None = None) -> Inventory:
    """Asks a child what the machine has. A child that fails leaves what is known: the processor is always there.

    Args:
        tags: From the settings, besides those that are found.
        folder: On the disk that counts.
        known: What an earlier probe found.
    """
    found = known or Inventory(agent=agent_version(), platform=_platform(), accelerators=("cpu",))
    try:
        child = await asyncio.create_subprocess_exec(
            *python_command("device.hardware"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise StateError(f"no process can be started: {error}") from error
    try:
        async with asyncio.timeout(PROBE_S):
            out, _ = await child.communicate()
        found = decode(out, Inventory, limit=limits.INVENTORY_BYTES)
    except (TimeoutError, Refused):
        pass
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return msgspec.structs.replace(
        found,
        hardware=tuple(sorted({*found.hardware, *tags})),
        disk_bytes=await asyncio.to_thread(_disk_bytes, folder),
        patch_codecs=(CODEC,),
    )


def find(root: Path = Path("/")) -> Inventory:
    """Looks at this machine. Imports onnxruntime where it is installed.

    Args:
        root: Under which `sys` and `dev` lie.
    """
    runtimes = {name: version for name in RUNTIMES if (version := _installed(name)) is not None}
    accelerators: list[Accelerator] = []
    providers = _providers() if "onnxruntime" in runtimes else frozenset()
    if _has_nvidia(root):
        if "TensorrtExecutionProvider" in providers:
            accelerators.append("tensorrt")
        if "CUDAExecutionProvider" in providers:
            accelerators.append("cuda")
    tpu = _edge_tpu(root)
    if tpu and _runs_edge_tpu(runtimes):
        accelerators.append("edgetpu")
    return Inventory(
        agent=agent_version(),
        platform=_platform(),
        accelerators=(*accelerators, "cpu"),
        hardware=tuple(sorted({*tpu, *_board(root)})),
        memory_mib=_memory_mib(),
        runtimes=runtimes,
    )


def _platform() -> str:
    return f"{sys.platform}-{platform.machine()}"


def _disk_bytes(folder: Path) -> int:
    """The whole disk, not what is free of it: that changes all the time, and the inventory's hash with it."""
    return shutil.disk_usage(folder).total


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // limits.MIB


def _installed(name: str) -> str | None:
    """The version of a runtime. The `pycoral` of PyPI is another program: the genuine one has the Edge TPU inside."""
    if name == "pycoral" and not _is_genuine_pycoral():
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_genuine_pycoral() -> bool:
    """Looks for its file: importing a stranger would run it."""
    spec = importlib.util.find_spec("pycoral")
    places = spec.submodule_search_locations if spec is not None else None
    return any((Path(place) / "utils" / "edgetpu.py").is_file() for place in places or ())


def _providers() -> frozenset[str]:
    try:
        import onnxruntime
    except ImportError:  # installed for another processor, or its libraries are missing
        return frozenset()
    return frozenset(onnxruntime.get_available_providers())


def _has_nvidia(root: Path) -> bool:
    return any((root / "dev" / name).exists() for name in ("nvidia0", "nvhost-gpu", "nvgpu"))


def _runs_edge_tpu(runtimes: dict[str, str]) -> bool:
    if "pycoral" in runtimes:
        return True
    return "ai-edge-litert" in runtimes and ctypes.util.find_library("edgetpu") is not None


def _edge_tpu(root: Path) -> frozenset[Name]:
    """The tags of the Edge TPUs that are plugged in."""
    found = set()
    if any((root / "dev").glob("apex_[0-9]*")):
        found.add("coral-pcie")
    for device in (root / "sys/bus/usb/devices").glob("*"):
        if (_line(device / "idVendor"), _line(device / "idProduct")) in EDGE_TPU_USB:
            found.add("coral-usb")
    return frozenset(found)


def _board(root: Path) -> frozenset[Name]:
    """The tag of a board that says its name in the device tree."""
    model = _line(root / "proc/device-tree/model").lower()
    return frozenset(tag for words, tag in BOARDS.items() if words in model)


def _line(path: Path) -> str:
    try:
        return path.read_bytes()[:256].decode("ascii", "replace").strip("\x00\n ")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.stdout.buffer.write(encode(find()))
