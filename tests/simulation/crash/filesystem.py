"""What a recording did to a folder: inodes, and effects on them, each with the time in which it happened.

Only two things change: the bytes of a file, and which inode a name in a folder stands for. Modes, owners and times are
not kept. `-shm` files of SQLite are left out altogether: they are memory that processes share, and SQLite builds them
anew at the first start.
"""

import os
import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.simulation.crash.trace import HARMLESS, Argument, Call, UnknownCallError

ROOT: Final = 0
LEFT_OUT: Final = "-shm"
MOST_LINKS: Final = 16


@dataclass(slots=True)
class Inode:
    """A file, a folder or a symlink.

    Args:
        kind: `file`, `dir`, `link`.
        content: Of a file as it stood at the beginning; the target of a link.
    """

    kind: str
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes of a file."""

    inode: int
    offset: int
    data: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """The length of a file."""

    inode: int
    length: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Bind:
    """What a name in a folder stands for; None: nothing any more."""

    folder: int
    name: str
    child: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rename:
    """A name of an inode that becomes another one."""

    old_folder: int
    old_name: str
    folder: int
    name: str
    child: int
    start: int
    end: int


Effect = Write | Truncate | Bind | Rename


@dataclass(frozen=True, slots=True)
class Sync:
    """All that was over for this inode when it began is durable when it is over."""

    inode: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Promise:
    """Something that was promised from here on."""

    text: str
    end: int


Event = Effect | Sync | Promise
Names = dict[int, dict[str, int]]


@dataclass
class History:
    """How a folder stood, and what happened to it.

    Args:
        inodes: By number; those that were made later too.
        names: Of each folder at the beginning.
        events: In the order of their ends.
    """

    inodes: dict[int, Inode]
    names: Names
    events: list[Event] = field(default_factory=list)

    @property
    def effects(self) -> list[Effect]:
        """What a cut can take away."""
        return [event for event in self.events if isinstance(event, Write | Truncate | Bind | Rename)]


@dataclass(slots=True)
class _Description:
    """An open file of the folder: what `dup` and `fork` share."""

    inode: int
    offset: int = 0
    appends: bool = False


def read_folder(root: Path, volatile: Collection[str] = ()) -> History:
    """A folder as it stands, all of it durable.

    Args:
        root: The folder.
        volatile: Names right below it that are left out.

    Raises:
        UnknownCallError: There is something else in it than files, folders and links.
    """
    history = History(inodes={ROOT: Inode("dir")}, names={ROOT: {}})
    known: dict[int, int] = {}

    def add(folder: Path, number: int) -> None:
        for entry in sorted(os.scandir(folder), key=lambda each: each.name):
            if entry.name.endswith(LEFT_OUT) or (number == ROOT and entry.name in volatile):
                continue
            child = known.setdefault(entry.inode(), len(history.inodes))
            history.names[number][entry.name] = child
            if child in history.inodes:
                continue  # another name of the same file
            if entry.is_symlink():
                history.inodes[child] = Inode("link", os.fsencode(Path(entry.path).readlink()))
            elif entry.is_dir():
                history.inodes[child] = Inode("dir")
                history.names[child] = {}
                add(Path(entry.path), child)
            elif entry.is_file():
                history.inodes[child] = Inode("file", Path(entry.path).read_bytes())
            else:
                raise UnknownCallError(f"{entry.path} is neither file, folder nor link")

    add(root, ROOT)
    return history


class Reader:
    """Turns calls into events, keeping names and descriptors as the system had them.

    Args:
        history: As `read_folder` gave it before the recording; events are added to it.
        root: The folder.
        promises: The file whose lines are promises.
        parents: Who made each thread, and whether they share descriptors.
        cwd: Of all processes.
        volatile: As for `read_folder`.
    """

    def __init__(
        self,
        history: History,
        root: Path,
        promises: Path,
        parents: Mapping[int, tuple[int, bool]],
        *,
        cwd: Path,
        volatile: Collection[str] = (),
    ) -> None:
        self._history = history
        self._root = os.fspath(root)
        self._promises = os.fspath(promises)
        self._parents = parents
        self._cwd = os.fspath(cwd)
        self._volatile = frozenset(volatile)
        self._names: Names = {folder: dict(names) for folder, names in history.names.items()}
        self._sizes = {number: len(inode.content) for number, inode in history.inodes.items()}
        self._tables: dict[int, dict[int, _Description]] = {}
        self._calls: dict[str, Callable[[Call], None]] = {
            "openat": lambda call: self._open(call, call.arguments[2].text),
            "open": lambda call: self._open(call, call.arguments[1].text),
            "creat": lambda call: self._open(call, "O_CREAT|O_WRONLY|O_TRUNC"),
            "write": self._write,
            "writev": self._write,
            "pwrite64": lambda call: self._write(call, at=int(call.arguments[3].text)),
            "pwritev": lambda call: self._write(call, at=int(call.arguments[3].text)),
            "ftruncate": self._truncate,
            "fsync": self._sync,
            "fdatasync": self._sync,
            "fallocate": self._allocate,
            "mmap": self._map,
            "rename": lambda call: self._rename(call, *self._paths(call)),
            "renameat": lambda call: self._rename(call, *self._paths(call)),
            "renameat2": self._rename_with_flags,
            "link": lambda call: self._link(call, *self._paths(call)),
            "linkat": lambda call: self._link(call, *self._paths(call)),
            "symlink": self._symlink,
            "symlinkat": self._symlink,
            "unlink": lambda call: self._unlink(call, *self._paths(call)),
            "unlinkat": lambda call: self._unlink(call, *self._paths(call)),
            "rmdir": lambda call: self._unlink(call, *self._paths(call)),
            "mkdir": lambda call: self._make_dir(call, *self._paths(call)),
            "mkdirat": lambda call: self._make_dir(call, *self._paths(call)),
            "chdir": self._change_dir,
            "fchdir": self._change_dir,
            "lseek": self._seek,
            "read": self._pass,
            "readv": self._pass,
            "close": self._close,
            "close_range": self._close_range,
            "dup": self._copy,
            "dup2": self._copy,
            "dup3": self._copy,
            "fcntl": self._control,
        }

    def read(self, calls: Iterable[Call]) -> History:
        """The history with the events of `calls`.

        Raises:
            UnknownCallError: One of them touches the folder in a way that is not known here.
        """
        for call in calls:
            if call.name in self._calls:
                self._calls[call.name](call)
            elif call.name not in HARMLESS:
                raise UnknownCallError(f"line {call.end}: {call.name} touches the folder, and is not known here")
        return self._history

    # Paths

    def _paths(self, call: Call) -> list[str]:
        """The absolute paths that a call names; each may stand behind the descriptor of a folder."""
        found = []
        folder = None
        for argument in call.arguments:
            if argument.data is not None:
                found.append(posixpath.normpath(posixpath.join(folder or self._cwd, os.fsdecode(argument.data))))
                folder = None
            elif argument.path is not None:
                folder = argument.path
        return found

    def _inside(self, path: str) -> str | None:
        """The path below the root; None outside."""
        if path == self._root:
            return ""
        if not path.startswith(self._root + "/"):
            return None
        below = path[len(self._root) + 1 :]
        return None if below.split("/", 1)[0] in self._volatile else below

    def _walk(self, below: str, call: Call, depth: int = 0) -> int:
        """The inode of a path below the root, links followed."""
        if depth > MOST_LINKS:
            raise UnknownCallError(f"line {call.end}: a circle of links at {below!r}")
        number = ROOT
        parts = [part for part in below.split("/") if part]
        for at, part in enumerate(parts):
            found = self._names.get(number, {}).get(part)
            if found is None:
                raise UnknownCallError(f"line {call.end}: {call.name} of {below!r}, of which nothing was recorded")
            if self._history.inodes[found].kind == "link":
                target = os.fsdecode(self._history.inodes[found].content)
                joined = posixpath.normpath(posixpath.join(self._root, *parts[:at], target, *parts[at + 1 :]))
                inside = self._inside(joined)
                if inside is None:
                    raise UnknownCallError(f"line {call.end}: {below!r} leads out of the folder")
                return self._walk(inside, call, depth + 1)
            number = found
        return number

    def _entry(self, path: str, call: Call) -> tuple[int, str] | None:
        """Folder and name of a path; None when it lies outside."""
        below = self._inside(path)
        if below is None:
            return None
        if not below:
            raise UnknownCallError(f"line {call.end}: {call.name} of the folder itself")
        folder, _, name = below.rpartition("/")
        return self._walk(folder, call), name

    def _new(self, kind: str, content: bytes = b"") -> int:
        number = len(self._history.inodes)
        self._history.inodes[number] = Inode(kind, content)
        self._sizes[number] = 0
        if kind == "dir":
            self._history.names[number] = {}
            self._names[number] = {}
        return number

    def _bind(self, entry: tuple[int, str], child: int | None, call: Call) -> None:
        folder, name = entry
        if name.endswith(LEFT_OUT):
            return
        if child is None:
            del self._names[folder][name]
        else:
            self._names[folder][name] = child
        self._history.events.append(Bind(folder, name, child, call.start, call.end))

    # Descriptors

    def _table(self, pid: int) -> dict[int, _Description]:
        table = self._tables.get(pid)
        if table is None:
            parent, shares = self._parents.get(pid, (None, False))
            theirs = self._table(parent) if parent is not None else {}
            table = self._tables[pid] = theirs if shares else dict(theirs)
        return table

    def _file(self, call: Call, argument: Argument) -> _Description | None:
        """The open file of an argument; None when it is none of the folder's."""
        path = argument.path or ""
        if self._inside(path) is None or path.endswith(LEFT_OUT):
            return None
        found = self._table(call.pid).get(argument.fd if argument.fd is not None else -1)
        if found is None:
            raise UnknownCallError(f"line {call.end}: {call.name} of {path}, which was opened unseen")
        return found

    def _open(self, call: Call, flags: str) -> None:
        table = self._table(call.pid)
        table.pop(call.result, None)
        below = self._inside(call.opened or "")
        if below is None or below.endswith(LEFT_OUT):
            return
        if "O_SYNC" in flags or "O_DSYNC" in flags:
            raise UnknownCallError(f"line {call.end}: {below!r} is opened with {flags}")
        if "O_TMPFILE" in flags:  # it has no name, and a cut takes it away
            table[call.result] = _Description(self._new("file"))
            return
        folder, _, name = below.rpartition("/")
        at = self._walk(folder, call)
        inode = self._names[at].get(name) if below else ROOT
        if inode is None:
            if "O_CREAT" not in flags:
                raise UnknownCallError(f"line {call.end}: {below!r} was opened, of which nothing was recorded")
            inode = self._new("file")
            self._bind((at, name), inode, call)
        elif "O_TRUNC" in flags:
            self._set_length(inode, 0, call)
        table[call.result] = _Description(inode, appends="O_APPEND" in flags)

    def _close(self, call: Call) -> None:
        self._table(call.pid).pop(_number(call, 0), None)

    def _close_range(self, call: Call) -> None:
        table = self._table(call.pid)
        for fd in [fd for fd in table if _number(call, 0) <= fd <= _number(call, 1)]:
            del table[fd]

    def _copy(self, call: Call) -> None:
        table = self._table(call.pid)
        table.pop(call.result, None)
        if (found := table.get(_number(call, 0))) is not None:
            table[call.result] = found

    def _control(self, call: Call) -> None:
        if call.arguments[1].text.startswith("F_DUPFD"):
            self._copy(call)

    def _seek(self, call: Call) -> None:
        if (found := self._file(call, call.arguments[0])) is not None:
            found.offset = call.result

    def _pass(self, call: Call) -> None:
        """A read moves the offset, which writes share."""
        if (found := self._table(call.pid).get(_number(call, 0))) is not None:
            found.offset += call.result

    # Bytes

    def _write(self, call: Call, at: int | None = None) -> None:
        if call.arguments[0].path == self._promises:
            said = (call.arguments[1].data or b"").decode()
            self._history.events += [Promise(line, call.end) for line in said.splitlines()]
            return
        found = self._file(call, call.arguments[0])
        if found is None:
            return
        data = call.arguments[1].data
        assert data is not None
        offset = at if at is not None else self._sizes[found.inode] if found.appends else found.offset
        self._history.events.append(Write(found.inode, offset, data[: call.result], call.start, call.end))
        self._sizes[found.inode] = max(self._sizes[found.inode], offset + call.result)
        if at is None:
            found.offset = offset + call.result

    def _truncate(self, call: Call) -> None:
        if (found := self._file(call, call.arguments[0])) is not None:
            self._set_length(found.inode, _number(call, 1), call)

    def _allocate(self, call: Call) -> None:
        found = self._file(call, call.arguments[0])
        if found is None:
            return
        mode, offset, length = call.arguments[1].text, _number(call, 2), _number(call, 3)
        if mode == "FALLOC_FL_KEEP_SIZE":
            return
        if mode != "0":
            raise UnknownCallError(f"line {call.end}: fallocate with {mode}")
        if offset + length > self._sizes[found.inode]:
            self._set_length(found.inode, offset + length, call)

    def _set_length(self, inode: int, length: int, call: Call) -> None:
        self._history.events.append(Truncate(inode, length, call.start, call.end))
        self._sizes[inode] = length

    def _sync(self, call: Call) -> None:
        if (found := self._file(call, call.arguments[0])) is not None:
            self._history.events.append(Sync(found.inode, call.start, call.end))

    def _map(self, call: Call) -> None:
        shared = "MAP_SHARED" in call.arguments[3].text and "PROT_WRITE" in call.arguments[2].text
        if shared and self._file(call, call.arguments[4]) is not None:
            raise UnknownCallError(
                f"line {call.end}: {call.arguments[4].path} is written as memory: that cannot be seen"
            )

    # Names

    def _rename_with_flags(self, call: Call) -> None:
        if call.arguments[4].text not in ("0", "RENAME_NOREPLACE"):
            raise UnknownCallError(f"line {call.end}: a rename with {call.arguments[4].text}")
        self._rename(call, *self._paths(call))

    def _rename(self, call: Call, old: str, new: str) -> None:
        before, after = self._entry(old, call), self._entry(new, call)
        if before is None and after is None:
            return  # in a volatile folder
        if before is None or after is None:
            raise UnknownCallError(f"line {call.end}: a rename into or out of the folder: {old} to {new}")
        if before[1].endswith(LEFT_OUT) and after[1].endswith(LEFT_OUT):
            return
        child = self._names[before[0]].pop(before[1])
        self._names[after[0]][after[1]] = child
        self._history.events.append(Rename(*before, *after, child, call.start, call.end))

    def _link(self, call: Call, old: str, new: str) -> None:
        before, after = self._entry(old, call), self._entry(new, call)
        if before is None and after is None:
            return  # in a volatile folder
        if before is None or after is None:
            raise UnknownCallError(f"line {call.end}: a link into or out of the folder: {old} to {new}")
        self._bind(after, self._names[before[0]][before[1]], call)

    def _symlink(self, call: Call) -> None:
        target = call.arguments[0].data
        assert target is not None
        entry = self._entry(self._paths(call)[-1], call)
        if entry is not None:
            self._bind(entry, self._new("link", target), call)

    def _unlink(self, call: Call, path: str) -> None:
        entry = self._entry(path, call)
        if entry is not None and not entry[1].endswith(LEFT_OUT):
            self._bind(entry, None, call)

    def _make_dir(self, call: Call, path: str) -> None:
        entry = self._entry(path, call)
        if entry is not None:
            self._bind(entry, self._new("dir"), call)

    def _change_dir(self, call: Call) -> None:
        raise UnknownCallError(f"line {call.end}: a process goes into the folder; its relative paths cannot be told")


def _number(call: Call, at: int) -> int:
    argument = call.arguments[at]
    return argument.fd if argument.fd is not None else int(argument.text, 0)
