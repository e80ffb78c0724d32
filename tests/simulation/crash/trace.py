"""Runs a program under strace, and reads back what it did to one folder, call by call.

Fail closed: a call that names the folder and is neither known to change nothing nor read in `filesystem` is an error.
Only those calls are kept that can matter to the folder; descriptors are told apart by process there, so their copies
and ends are kept too.
"""

import codecs
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STRACE: Final = ("strace", "-f", "--seccomp-bpf", "-y", "-s", str(1 << 24), "-e", "trace=%file,%desc,%process")
RAW: Final = ("read", "readv", "getdents64")  # how many bytes is all that matters, not which

_HARMLESS_NAMES: Final = """
access faccessat faccessat2 stat lstat fstat newfstatat statx statfs fstatfs readlink readlinkat getcwd readahead
pread64 preadv preadv2 readv getdents getdents64 poll ppoll select pselect6 ioctl flock fadvise64 execve execveat
epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 inotify_init1 inotify_add_watch
inotify_rm_watch getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
chmod fchmod fchmodat chown fchown lchown fchownat utimensat utime utimes futimesat umask
sync_file_range
"""
# No promise of ours rests on owners, modes and times; and what is durable sooner than it must be does no harm.
HARMLESS: Final = frozenset(_HARMLESS_NAMES.split())
DESCRIPTORS: Final = frozenset(["close", "close_range", "dup", "dup2", "dup3", "fcntl", "lseek", "read", "readv"])
PROCESSES: Final = frozenset(["clone", "clone3", "fork", "vfork"])

_LINE: Final = re.compile(rb"(\d+) +(.*)", re.DOTALL)
_CALL: Final = re.compile(rb"(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(?:<(.*?)>(?:\(deleted\))?)?(?: .*)?$", re.DOTALL)
_STRING: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"(\.\.\.)?', re.DOTALL)
_HOLE: Final = re.compile(rb"\x00(\d+)\x00")
_DESCRIPTOR: Final = re.compile(rb"(-?\d+|AT_FDCWD)<(.*)>(?:\(deleted\))?", re.DOTALL)


class UnknownCallError(Exception):
    """The recording has something in it that would be replayed wrongly."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a call: a number or symbols as `text`, a string as `data`, a descriptor as `fd` with its path."""

    text: str = ""
    data: bytes | None = None
    fd: int | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A call that succeeded.

    Args:
        pid: Of the thread.
        name: Of the call.
        arguments: In order.
        result: What it returned.
        opened: The path behind a descriptor that it returned.
        start: Where in the recording it began.
        end: Where it was over; what happened in between may have happened on either side of it.
    """

    pid: int
    name: str
    arguments: tuple[Argument, ...]
    result: int
    opened: str | None
    start: int
    end: int


def strace_found() -> bool:
    """Whether strace is installed."""
    return shutil.which("strace") is not None


def record(command: Sequence[str], log: Path, *, cwd: Path, env: dict[str, str] | None = None) -> None:
    """Runs `command` to its end, writing what it calls to `log`.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    done = subprocess.run(
        [*STRACE, "-e", f"raw={','.join(RAW)}", "-o", str(log), "--", *command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace")[-4000:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode} under strace:\n{said}")


class Attached:
    """strace on a process that has stopped itself, until that ends.

    Args:
        pid: It has sent itself SIGSTOP and goes on once strace is there.
        log: What it calls.
    """

    def __init__(self, pid: int, log: Path) -> None:
        command = [*STRACE, "-e", f"raw={','.join(RAW)}", "-o", str(log), "-p", str(pid)]
        # --seccomp-bpf works only for processes that strace starts itself.
        command.remove("--seccomp-bpf")
        self._strace = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert self._strace.stderr is not None
        said = self._strace.stderr.readline()
        if b"attached" not in said:
            self._strace.kill()
            self._strace.wait()
            raise RuntimeError(f"strace: {said.decode(errors='replace')}")
        os.kill(pid, signal.SIGCONT)

    def wait(self) -> None:
        """Until strace has written all of it."""
        assert self._strace.stderr is not None
        self._strace.stderr.close()
        self._strace.wait(timeout=60)


def read(log: Path, roots: Sequence[Path]) -> tuple[list[Call], dict[int, tuple[int, bool]]]:
    """The calls of a recording that may matter to the folders, in the order of their ends.

    Args:
        log: What strace wrote.
        roots: The folders, and files, that are looked at; absolute.

    Returns:
        The calls, and for each thread the one that made it and whether they share descriptors.

    Raises:
        UnknownCallError: See the module.
    """
    names = tuple(os.fsencode(root) for root in roots)
    calls: list[Call] = []
    parents: dict[int, tuple[int, bool]] = {}
    for pid, text, start, end in _whole_lines(log):
        found = _CALL.match(text)
        if found is None:
            if any(name in text for name in names) and not text.endswith(b"= ?"):
                raise UnknownCallError(f"line {end} cannot be read: {text[:200]!r}")
            continue
        name, inside, result_text, opened = found[1].decode(), found[2], found[3], found[4]
        if name.startswith("io_uring"):
            raise UnknownCallError("io_uring is used: what it does cannot be seen")
        if result_text == b"?" or result_text.startswith(b"-"):
            continue
        result = int(result_text, 0)
        if name in PROCESSES:
            parents[result] = (pid, b"CLONE_FILES" in inside)
            continue
        touches = any(each in text for each in names)
        if name in HARMLESS and name not in DESCRIPTORS:
            continue
        if not touches and name not in DESCRIPTORS:
            continue
        opened_path = _plain(opened) if opened is not None else None
        calls.append(Call(pid, name, tuple(_arguments(inside)), result, opened_path, start, end))
    # A descriptor is free as soon as its close begins: another thread may get the number before that call has ended.
    calls.sort(key=lambda call: call.start if call.name.startswith("close") else call.end)
    return calls, parents


def _whole_lines(log: Path) -> Iterator[tuple[int, bytes, int, int]]:
    """Each call with its thread, and the lines on which it began and ended; calls that were interrupted are joined."""
    begun: dict[int, tuple[bytes, int]] = {}
    with log.open("rb") as lines:
        for number, line in enumerate(lines):
            found = _LINE.match(line.rstrip(b"\n"))
            if found is None:
                continue
            pid, text = int(found[1]), found[2]
            if text.endswith(b"<unfinished ...>"):
                begun[pid] = (text[: -len(b"<unfinished ...>")], number)
            elif text.startswith(b"<... "):
                head, start = begun.pop(pid, (b"", number))
                yield pid, head + text.split(b" resumed>", 1)[1], start, number
            elif not text.startswith((b"+++", b"---")):
                yield pid, text, number, number


def _arguments(inside: bytes) -> Iterator[Argument]:
    """The arguments of a call; strings are set aside first, for commas and brackets may stand in them."""
    strings: list[bytes] = []

    def aside(found: re.Match[bytes]) -> bytes:
        if found[2]:
            raise UnknownCallError("a string is cut short in the recording")
        decoded, _ = codecs.escape_decode(found[1])
        strings.append(decoded)  # type: ignore[arg-type]  # bytes in, bytes out; the stub says str
        return b"\0%d\0" % (len(strings) - 1)

    plain = _STRING.sub(aside, inside)
    depth, begin = 0, 0
    for at, byte in enumerate(plain):
        if byte in b"([{<":
            depth += 1
        elif byte in b")]}" or (byte == ord(">") and plain[at - 1 : at] != b"="):
            depth -= 1
        elif byte == ord(",") and depth == 0:
            yield _argument(plain[begin:at].strip(), strings)
            begin = at + 1
    if plain[begin:].strip():
        yield _argument(plain[begin:].strip(), strings)


def _argument(text: bytes, strings: list[bytes]) -> Argument:
    whole = _HOLE.fullmatch(text)
    if whole is not None:
        return Argument(data=strings[int(whole[1])])
    descriptor = _DESCRIPTOR.fullmatch(text)
    if descriptor is not None:
        fd = None if descriptor[1] == b"AT_FDCWD" else int(descriptor[1])
        return Argument(text=descriptor[1].decode(), fd=fd, path=_plain(descriptor[2]))
    holes = _HOLE.findall(text)
    if holes:  # a vector of buffers
        return Argument(text=os.fsdecode(text), data=b"".join(strings[int(hole)] for hole in holes))
    return Argument(text=os.fsdecode(text))


def _plain(path: bytes) -> str:
    """A path behind a descriptor, without strace's escapes."""
    decoded, _ = codecs.escape_decode(path)
    return os.fsdecode(decoded)
