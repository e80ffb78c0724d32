"""The harness for crash states, measured by what is known: SQLite's journal modes, a careless swap, odd calls."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.simulation.crash import trace
from tests.simulation.crash.explore import differences
from tests.simulation.crash.filesystem import Promise, Reader, read_folder
from tests.simulation.crash.states import ORDERED, STRICT, Cuts

CHECKOUT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not trace.strace_found() and not os.environ.get("CI"), reason="strace is not installed: apt-get install strace"
)


@pytest.mark.parametrize("model", [STRICT, ORDERED])
@pytest.mark.parametrize(
    ("name", "breaks"),
    [
        ("sqlite-wal-normal", "promised rows are lost"),
        ("sqlite-wal-full", ""),
        ("sqlite-delete-full", "promised rows are lost"),
        ("sqlite-delete-extra", ""),
        ("swap-unsynced", "the active release is"),
        ("swap-synced", ""),
    ],
)
def test_the_harness_finds_what_is_known_to_break_and_nothing_else(name, breaks, model):
    command = [
        sys.executable,
        "-m",
        "tests.simulation.crash",
        name,
        "--model",
        model,
        "--most",
        "64",
        "--recoveries",
        "3",
    ]
    done = subprocess.run([*command, "--json"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    report = SimpleNamespace(**json.loads(done.stdout))
    assert report.checked >= 15
    if breaks:
        assert any(breaks in reason for reason, _ in report.reasons), report.reasons
        assert all("Assertion" in reason for reason, _ in report.reasons), report.reasons
    else:
        assert not report.failures, report.failures[0]
        assert report.second_checked > 0


def recorded(folder, source):
    """The history of a folder `state` in which a program ran."""
    state, promises = folder / "state", folder / "promises"
    state.mkdir()
    (state / "old").mkdir()
    (state / "old" / "file").write_bytes(b"0123456789")
    history = read_folder(state)
    program = f"import os, sys\nS, P = {str(state)!r}, {str(promises)!r}\n{textwrap.dedent(source)}"
    trace.record([sys.executable, "-c", program], folder / "log", cwd=CHECKOUT)
    calls, parents = trace.read(folder / "log", (state, promises))
    return Reader(history, state, promises, parents, cwd=CHECKOUT).read(calls)


ORDINARY = {
    "an odd name, and every byte": """
        open(S + '/a, (c) <d> [e] {f} \\\\ \\n é', 'wb').write(bytes(range(256)) * 40)
        """,
    "offsets that reads and writes share": """
        f = os.open(S + '/old/file', os.O_RDWR)
        os.read(f, 3); os.write(f, b'x'); os.lseek(f, -1, os.SEEK_END); os.write(f, b'yz'); os.pwrite(f, b'q', 20)
        g = os.dup(f); os.write(g, b'after'); os.close(f); os.write(g, b'!')
        """,
    "appending beside another descriptor": """
        a = os.open(S + '/old/file', os.O_WRONLY | os.O_APPEND)
        b = os.open(S + '/old/file', os.O_WRONLY)
        os.write(a, b'end'); os.write(b, b'begin'); os.write(a, b'end'); os.ftruncate(b, 4); os.write(a, b'last')
        os.writev(a, [b'one,', b'"two"', b'three'])
        """,
    "names": """
        os.rename(S + '/old/file', S + '/moved'); os.link(S + '/moved', S + '/old/again')
        os.symlink('../moved', S + '/old/link'); open(S + '/old/link', 'ab').write(b'through the link')
        os.mkdir(S + '/new'); os.rename(S + '/old', S + '/new/older'); open(S + '/new/older/x', 'w').write('x')
        os.unlink(S + '/moved'); os.symlink('new', S + '/via'); os.mkdir(S + '/via/deep'); os.rmdir(S + '/via/deep')
        d = os.open(S + '/new', os.O_RDONLY); os.rename('older', 'oldest', src_dir_fd=d, dst_dir_fd=d)
        os.unlink('oldest/x', dir_fd=d)
        """,
    "a file that lives on after its name": """
        f = open(S + '/old/file', 'r+b', buffering=0); os.unlink(S + '/old/file'); f.write(b'gone')
        g = open(S + '/old/file', 'wb', buffering=0); f.write(b'gone'); g.write(b'here')
        """,
    "threads": """
        import threading
        def work(n):
            f = os.open(S + f'/{n}', os.O_CREAT | os.O_WRONLY)
            for i in range(50):
                os.write(f, b'%d,' % i); os.fsync(f)
                os.rename(S + f'/{n}', S + f'/{n}+'); os.rename(S + f'/{n}+', S + f'/{n}')
        every = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        [t.start() for t in every]; [t.join() for t in every]
        """,
    "children, which inherit descriptors": """
        import subprocess
        f = os.open(S + '/log', os.O_CREAT | os.O_WRONLY); os.write(f, b'parent,')
        pid = os.fork()
        if pid == 0:
            os.write(f, b'child,'); os._exit(0)
        os.waitpid(pid, 0); os.write(f, b'parent again')
        subprocess.run([sys.executable, '-S', '-c', f'open({S!r} + "/by-a-child", "w").write("hello")'], check=True)
        subprocess.run(['head', '-c', '9'], stdin=open(S + '/log'), stdout=open(S + '/by-head', 'wb'), check=True)
        """,
    "a database": """
        import sqlite3
        c = sqlite3.connect(S + '/q.db', isolation_level=None)
        c.execute('PRAGMA journal_mode = WAL'); c.execute('PRAGMA synchronous = FULL')
        c.execute('CREATE TABLE t (x)'); c.executemany('INSERT INTO t VALUES (?)', [(b'x' * 3000,)] * 20)
        c.execute('PRAGMA wal_checkpoint(TRUNCATE)'); c.execute('DELETE FROM t'); c.execute('VACUUM')
        """,
}


@pytest.mark.parametrize("source", ORDINARY.values(), ids=ORDINARY)
def test_what_was_recorded_is_what_happened(tmp_path, source):
    history = recorded(tmp_path, source)
    assert history.effects
    assert differences(Cuts(history).whole(), tmp_path / "state") == []


ODD = {
    "memory that is shared with the file": """
        import mmap
        f = open(S + '/old/file', 'r+b'); m = mmap.mmap(f.fileno(), 10); m[0:1] = b'x'
        """,
    "an attribute": "os.setxattr(S + '/old/file', 'user.note', b'x')",
    "truncated by its path": "os.truncate(S + '/old/file', 3)",
    "copied by the kernel": """
        a, b = os.open(S + '/old/file', os.O_RDONLY), os.open(S + '/copy', os.O_CREAT | os.O_WRONLY)
        os.sendfile(b, a, 0, 10)
        """,
    "a pipe": "os.mkfifo(S + '/pipe')",
    "a process that goes in": "os.chdir(S); open('here', 'w').write('x')",
    "moved in from outside": "open(S + '.x', 'w').write('x'); os.rename(S + '.x', S + '/x')",
    "a hole": """
        import ctypes
        f = os.open(S + '/old/file', os.O_RDWR); ctypes.CDLL(None).fallocate(f, 3, ctypes.c_long(0), ctypes.c_long(4))
        """,
}


@pytest.mark.parametrize("source", ODD.values(), ids=ODD)
def test_what_cannot_be_replayed_fails_the_recording(tmp_path, source):
    with pytest.raises(trace.UnknownCallError):
        recorded(tmp_path, source)


def test_a_work_that_fails_is_told_with_its_words(tmp_path):
    with pytest.raises(RuntimeError, match="on purpose"):
        recorded(tmp_path, "raise SystemExit('on purpose')")


def states_of(folder, source, model=STRICT):
    return [
        ({path: content for path, (kind, content) in state.tree.entries.items() if kind != "dir"}, state.promised)
        for state in Cuts(recorded(folder, source), model).states()
    ]


WRITES = "f = os.open(S + '/old/file', os.O_RDWR); "


def test_a_write_that_is_not_synced_may_be_there_torn_or_as_zeros(tmp_path):
    found = {tree["old/file"] for tree, _ in states_of(tmp_path, WRITES + "os.pwrite(f, b'x' * 2048, 10)")}
    old = b"0123456789"
    assert found == {old, old + b"x" * 2048, old + b"x" * 1024, old + bytes(2048)}


def test_a_write_that_is_synced_stays(tmp_path):
    found = states_of(tmp_path, WRITES + "os.pwrite(f, b'x', 0); os.fsync(f); os.pwrite(f, b'y', 1)")
    assert {tree["old/file"][:2] for tree, _ in found[-2:]} == {b"x1", b"xy"}


def test_a_new_file_may_be_there_without_its_bytes_and_its_bytes_without_it(tmp_path):
    source = "f = os.open(S + '/new', os.O_CREAT | os.O_WRONLY); os.write(f, b'x'); os.fsync(f)"
    found = [tree.get("new") for tree, _ in states_of(tmp_path, source)]
    assert set(found[:-2]) == {None, b"", b"x", b"\0"}
    assert found[-2:] == [None, b"x"], "the file was synced, its name was not"


def test_entries_of_a_folder_are_independent_and_its_sync_keeps_them(tmp_path):
    source = """
        for name in 'ab':
            os.close(os.open(S + '/' + name, os.O_CREAT))
        d = os.open(S, os.O_RDONLY); os.fsync(d)
        """
    found = [frozenset(tree) - {"old/file"} for tree, _ in states_of(tmp_path, source)]
    assert set(found[:-1]) == {frozenset(), frozenset("a"), frozenset("b"), frozenset("ab")}
    assert found[-1] == frozenset("ab")


def test_names_keep_their_order_only_where_the_file_system_orders_them(tmp_path):
    source = "os.close(os.open(S + '/a', os.O_CREAT)); os.close(os.open(S + '/b', os.O_CREAT))"
    found = {frozenset(tree) - {"old/file"} for tree, _ in states_of(tmp_path, source, ORDERED)}
    assert found == {frozenset(), frozenset("a"), frozenset("ab")}


def test_a_rename_to_another_folder_of_which_one_was_synced_may_leave_both_names(tmp_path):
    source = "os.rename(S + '/old/file', S + '/file'); d = os.open(S, os.O_RDONLY); os.fsync(d)"
    found = [frozenset(tree) for tree, _ in states_of(tmp_path, source)]
    assert set(found[-2:]) == {frozenset({"file", "old/file"}), frozenset({"file"})}


def test_a_sync_covers_only_what_was_over_before_it_began(tmp_path):
    log = tmp_path / "log"
    state = tmp_path / "state"
    state.mkdir()
    (state / "f").write_bytes(b"")
    lines = [
        f'1 openat(AT_FDCWD</>, "{state}/f", O_WRONLY) = 3<{state}/f>',
        f'2 write(3<{state}/f>, "x", 1 <unfinished ...>',
        f"1 fsync(3<{state}/f> <unfinished ...>",
        "2 <... write resumed>) = 1",
        "1 <... fsync resumed>) = 0",
        f'1 pwrite64(3<{state}/f>, "y", 1, 1) = 1',
    ]
    log.write_text("".join(line + "\n" for line in lines))
    history = read_folder(state)
    calls, parents = trace.read(log, (state,))
    Reader(history, state, tmp_path / "promises", {**parents, 2: (1, True)}, cwd=tmp_path).read(calls)
    found = {state.tree.entries["f"][1] for state in Cuts(history).states()}
    assert b"" in found
    assert b"\0y" in found, "what was written while the sync ran may be lost for good"


def test_a_descriptor_is_free_when_its_close_begins(tmp_path):
    log, state = tmp_path / "log", tmp_path / "state"
    state.mkdir()
    (state / "f").write_bytes(b"")
    (state / "g").write_bytes(b"")
    lines = [
        f'1 openat(AT_FDCWD</>, "{state}/f", O_WRONLY) = 3<{state}/f>',
        f"1 close(3<{state}/f> <unfinished ...>",
        f'2 openat(AT_FDCWD</>, "{state}/g", O_WRONLY) = 3<{state}/g>',
        "1 <... close resumed>) = 0",
        f'2 write(3<{state}/g>, "x", 1) = 1',
    ]
    log.write_text("".join(line + "\n" for line in lines))
    history = read_folder(state)
    calls, parents = trace.read(log, (state,))
    Reader(history, state, tmp_path / "promises", {**parents, 2: (1, True)}, cwd=tmp_path).read(calls)
    assert Cuts(history).whole().entries["g"] == ("file", b"x")


def test_promises_are_marks_at_their_places(tmp_path):
    source = """
        p = os.open(P, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        f = os.open(S + '/new', os.O_CREAT | os.O_WRONLY); os.write(p, b'opened\\n')
        d = os.open(S, os.O_RDONLY); os.fsync(d); os.write(p, b'there\\n')
        """
    history = recorded(tmp_path, source)
    assert [event.text for event in history.events if isinstance(event, Promise)] == ["opened", "there"]
    found = {("new" in state.tree.entries, state.promised) for state in Cuts(history).states()}
    assert found == {(False, 1), (True, 1), (True, 2)}


def test_the_command_tells_what_it_found_and_fails_when_something_broke():
    command = [sys.executable, "-m", "tests.simulation.crash", "--most", "8"]
    broken = subprocess.run([*command, "swap-unsynced"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    whole = subprocess.run([*command, "swap-synced"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (broken.returncode, whole.returncode) == (1, 0)
    assert "an older release is active" in broken.stdout
    assert "0 broken" in whole.stdout
