"""Every effect of the product on files goes through `signing.durable`: what it does not see, no fail point covers."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("protocol", "signing", "server", "device")

ALLOWED = {
    # A file whose only use is to be locked has no content that a cut could tear.
    "signing/locks.py": {"os.open"},
    "device/trust/keeper.py": {"os.open"},
    "device/status.py": {"open", "write_bytes", "replace", "unlink"},  # the status in `run/`, anew each second
    "device/local/listening.py": {"chmod"},  # of the socket in `run/`, anew at each start, and of its folder
    # SQLite's files are SQLite's own business.
    "device/state_db.py": {"os.open"},
    "device/outbox/schema.py": {"os.open"},
    "device/rescue.py": {"tempfile.TemporaryFile"},  # without a name
    "server/storage/catalog.py": {"chmod"},
    "server/backup.py": {"chmod"},  # of a copy that SQLite made; it is synced next
    "server/restoring.py": {"rmdir"},  # an empty folder that the draft takes the place of
    "device/repair/who_may_read.py": {"chmod"},  # no content; it is looked at again at each start
    # Scratch that no later start reads, emptied at start or without a name.
    "signing/checker.py": {"tempfile.TemporaryDirectory", "write_bytes", "write_text"},
    "server/compress.py": {"tempfile.TemporaryFile"},
    "server/patching.py": {"TemporaryDirectory"},
    "server/storage/blobs.py": {"tempfile.NamedTemporaryFile"},
    "server/delta/process.py": {"tempfile.TemporaryFile"},
    "server/delta/child.py": {"open", "write_bytes"},
    "device/inference/canary_client.py": {"mkdir", "tempfile.mkdtemp", "write_bytes", "unlink", "rmdir"},
    # `headland patch` by hand: its output is a person's file, named last by a durable rename.
    "server/delta/writing.py": {"tempfile.TemporaryDirectory", "tempfile.TemporaryFile"},
    "server/delta/applying.py": {"tempfile.TemporaryDirectory", "open", "unlink", "chmod"},
    "device/update/diagram.py": {"write_text"},  # `scripts/draw-states`: a page of the docs
    # No file: a setting of this process, and the pin of an alarm.
    "device/inference/worker.py": {"write_text"},
    "device/inference/alarms.py": {"os.open"},
    # A copy of what a kit says of itself, and a socket: neither outlives the agent.
    "device/kits/folder.py": {"mkdir", "write_bytes"},
    "device/desk/socket.py": {"unlink", "chmod", "rename"},
    # The camera's folder: a frame leaves it after its results are durable, and is marked until that is durable too.
    "device/inference/folder_source.py": {"mkdir", "rename", "unlink"},
}
"""What else touches files, by module, and why it may."""

DURABLE = frozenset({"durable", "DISK", "disk", "_disk"})
METHODS = frozenset(
    {
        *("write_bytes", "write_text", "touch", "mkdir", "rmdir", "unlink", "rename", "chmod", "lchmod"),
        *("symlink_to", "hardlink_to", "makedirs", "removedirs", "rmtree"),
        *("copy2", "copyfile", "copytree", "copymode", "copystat", "utime", "mkstemp", "mkdtemp"),
        *("TemporaryFile", "NamedTemporaryFile", "TemporaryDirectory", "SpooledTemporaryFile"),
    }
)
FUNCTIONS = frozenset(
    {
        "shutil.move",
        *(f"os.{name}" for name in ("remove", "link", "symlink", "mknod", "mkfifo", "truncate", "ftruncate")),
    }
)
WRITES = frozenset({"O_CREAT", "O_WRONLY", "O_RDWR", "O_TRUNC", "O_APPEND"})


def effects(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each call that writes to the file system, or may."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        if owner.rpartition(".")[2] in DURABLE:
            continue
        full = f"{owner}.{name}" if owner in ("os", "shutil", "tempfile") else name
        if name == "open":
            is_effect = _opens_to_write(node, owner)
        elif name == "replace":  # of a path: those of texts, records and times have other arguments
            is_effect = owner == "os" or (len(node.args) == 1 and not node.keywords)
        else:
            is_effect = name in METHODS or f"{owner}.{name}" in FUNCTIONS
        if is_effect:
            yield node.lineno, full


def _opens_to_write(node: ast.Call, owner: str) -> bool:
    if owner == "os":
        return bool({part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)} & WRITES)
    modes = [node.args[0 if owner else 1]] if len(node.args) > (0 if owner else 1) else []
    modes += [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
    return any(isinstance(mode, ast.Constant) and set(str(mode.value)) & set("wax+") for mode in modes)


def test_nothing_but_the_durable_module_writes_files():
    found: dict[str, set[str]] = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            module = path.relative_to(ROOT).as_posix()
            for line, name in effects(path.read_text()):
                if module != "signing/durable.py":
                    assert name in ALLOWED.get(module, ()), f"{module}:{line}: {name} belongs in signing/durable.py"
                    found.setdefault(module, set()).add(name)
    assert found == ALLOWED, "what is allowed and not needed any more"


@pytest.mark.parametrize(
    "line",
    [
        "open(p, 'w')",
        "open(p, mode='ab')",
        "p.open('r+b')",
        "os.open(p, os.O_RDWR | os.O_CREAT)",
        "p.write_text('x')",
        "p.replace(q)",
        "os.replace(p, q)",
        "(folder / name).unlink()",
        "shutil.rmtree(p)",
        "tempfile.mkstemp()",
        "p.chmod(0o600)",
    ],
)
def test_the_look_sees_what_writes(line):
    assert [number for number, _ in effects(line)] == [1]


@pytest.mark.parametrize(
    "line",
    [
        "open(p)",
        "p.open('rb')",
        "os.open(p, os.O_RDONLY | os.O_CLOEXEC)",
        "text.replace('a', 'b')",
        "msgspec.structs.replace(record, state=x)",
        "at.replace(microsecond=0)",
        "self._disk.unlink(p)",
        "durable.rename(p, q)",
        "Workspace.open(path)",
    ],
)
def test_the_look_does_not_mind_what_reads(line):
    assert list(effects(line)) == []
