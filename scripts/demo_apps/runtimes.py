"""What the demo's images stand on: a shell, and Python, each assembled from what Debian installed on this machine."""

import subprocess
from pathlib import Path

from scripts.demo_apps.elf import libraries
from scripts.demo_apps.images import File, Folder, Link

BUSYBOX = Path("/bin/busybox")  # of the package busybox-static
PYTHON = Path("/usr/bin/python3")
NOBODY = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
GROUPS = b"root:x:0:\nnogroup:x:65534:\n"
LEFT_OUT = frozenset(
    {
        *("__pycache__", "test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "pydoc_data", "distutils"),
        *("sitecustomize.py", "EXTERNALLY-MANAGED"),
    }
)
NOT_LOADED = ("_test", "_xx", "xx", "_ctypes_test", "_curses", "readline", "nis", "_dbm", "_gdbm", "ossaudiodev", "_tk")
"""Modules that no application of ours needs, with libraries of their own."""

Tree = dict[str, File | Link | Folder]


class NoRuntimeError(Exception):
    """This machine has not what the image is made of; the message says what to install."""


def busybox() -> Tree:
    """A static busybox under the names of all its programs."""
    if not BUSYBOX.exists():
        raise NoRuntimeError(f"{BUSYBOX} is not here: apt-get install busybox-static")
    names = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, timeout=20, check=True).stdout.split()
    tree: Tree = {f"bin/{name}": Link("busybox") for name in names}
    return tree | _users() | {"bin/busybox": File(BUSYBOX.resolve(), 0o755)}


def python() -> Tree:
    """Debian's Python with its standard library, without what is for developers."""
    if not PYTHON.exists():
        raise NoRuntimeError(f"{PYTHON} is not here: apt-get install python3")
    asked = "import sysconfig; print(sysconfig.get_path('stdlib'))"
    command = [PYTHON, "-I", "-S", "-c", asked]
    home = Path(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip())
    program = PYTHON.resolve()
    tree: Tree = {str(program).lstrip("/"): File(program, 0o755), "usr/bin/python3": Link(program.name)}
    modules = []
    for path in sorted(home.rglob("*")):
        parts = path.relative_to(home).parts
        if not LEFT_OUT.isdisjoint(parts) or parts[0].startswith("config-") or not path.is_file():
            continue
        if parts[0] == "lib-dynload":
            if path.name.startswith(NOT_LOADED):
                continue
            modules.append(path)
        tree[str(path).lstrip("/")] = File(path.resolve())
    tree |= {at: File(path, 0o755) for at, path in libraries([program, *modules]).items()}
    return tree | _users()


def _users() -> Tree:
    return {"etc/passwd": File(NOBODY), "etc/group": File(GROUPS), "tmp": Folder(0o1777)}
