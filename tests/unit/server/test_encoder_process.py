"""The encoder's process: what it makes, what it may take, and that it ends when the server does."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.delta.apply import apply_group
from protocol.delta.patch import PatchFile
from protocol.ids import digest
from server.delta.applying import read_groups
from server.delta.gzip_file import FileBase
from server.delta.process import EncoderFailedError, InterruptedEncodingError, Made, ProcessEncoder
from server.settings import Patches

OLD = random.Random(7).randbytes(300_000)


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Made]:
    """Makes a patch between two contents."""

    def make(old: bytes, new: bytes, encoder: ProcessEncoder, beat: Callable[[], bool] = lambda: True) -> Made:
        (tmp_path / "old").write_bytes(old)
        (tmp_path / "new").write_bytes(new)
        return encoder(tmp_path / "old", tmp_path / "new", tmp_path / "payload", tmp_path / "index", beat)

    return make


def applied(folder: Path, made: Made) -> bytes:
    index = (folder / "index").read_bytes() if made.index is not None else b""
    out = bytearray()
    with (folder / "payload").open("rb") as payload, (folder / "old").open("rb", buffering=0) as old:
        base = FileBase(old)
        for _, group in read_groups(payload, PatchFile(b"", b"", index, 0)):
            apply_group(group, base, len(out), out.extend)
    return bytes(out)


def child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, settings: Patches | None = None
) -> ProcessEncoder:
    """A child of ours in place of the encoder; it has read its order and begins with `body`."""
    program = "import os, sys, time\nfrom pathlib import Path\nimport json\norder = json.loads(sys.stdin.readline())\n"
    (tmp_path / "odd_child.py").write_text(program + textwrap.dedent(body))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return ProcessEncoder(settings or Patches(), module="odd_child")


def gone(pid: int) -> bool:
    """Whether a process ended; the kernel may take a moment."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_patch_is_made_and_its_digests_are_those_of_the_files(tmp_path: Path, files: Callable[..., Made]) -> None:
    new = OLD[:100_000] + b"something else" + OLD[100_014:] + b"more"
    made = files(OLD, new, ProcessEncoder(Patches()))
    assert (made.base, made.result, made.index) == (digest(OLD), digest(new), None)
    payload = (tmp_path / "payload").read_bytes()
    assert (made.payload, made.payload_bytes) == (digest(payload), len(payload))
    assert applied(tmp_path, made) == new


def test_a_large_patch_comes_with_its_index(tmp_path: Path, files: Callable[..., Made]) -> None:
    new = random.Random(8).randbytes(1_500_000)
    made = files(OLD, new, ProcessEncoder(Patches()))
    assert made.index == digest((tmp_path / "index").read_bytes())
    assert made.index_bytes == (tmp_path / "index").stat().st_size
    assert applied(tmp_path, made) == new


def test_the_encoder_can_start_processes_beside_the_thread_that_watches_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Callable[..., Made]
) -> None:
    (tmp_path / "several.py").write_text(
        textwrap.dedent(
            """
            import time
            from concurrent.futures import ProcessPoolExecutor
            import server.delta.child as child

            def encode(old, new, payload, *, options):
                time.sleep(0.2)  # the thread is at its post
                with ProcessPoolExecutor(options.processes) as pool:
                    raise child.Refused("limit", f"together {sum(pool.map(abs, range(10)))}")

            child.encode = encode
            child.main()
            """
        )
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EncoderFailedError, match="together 45"):
        files(OLD, OLD, ProcessEncoder(Patches(processes=2, seconds=5.0), module="several"))


def test_files_without_content_go_too(tmp_path: Path, files: Callable[..., Made]) -> None:
    assert applied(tmp_path, files(b"", b"new", ProcessEncoder(Patches()))) == b"new"
    assert applied(tmp_path, files(OLD, b"", ProcessEncoder(Patches()))) == b""


def test_an_encoder_that_runs_out_of_memory_while_it_looks_at_its_files_says_so(files: Callable[..., Made]) -> None:
    data = random.Random(3).randbytes(8 << 20)
    enough_to_start = Patches(memory_mib=70)
    with pytest.raises(EncoderFailedError, match="needs more than 70 MiB"):
        files(data, data[::-1], ProcessEncoder(enough_to_start))


def test_an_encoder_that_wants_too_much_memory_is_told_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Callable[..., Made]
) -> None:
    # The real child, with an encoder in it that is hungry.
    (tmp_path / "hungry.py").write_text(
        textwrap.dedent(
            """
            import server.delta.child as child

            def encode(*_, **__):
                return [bytes(64 << 20) for _ in range(100)]

            child.encode = encode
            child.main()
            """
        )
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EncoderFailedError, match="more than 256 MiB"):
        files(OLD, OLD, ProcessEncoder(Patches(memory_mib=256), module="hungry"))


def test_a_patch_that_does_not_give_its_result_never_leaves_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Callable[..., Made]
) -> None:
    (tmp_path / "wrong.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import replace
            import server.delta.child as child

            right = child.encode

            def encode(*order, **options):
                return replace(right(*order, **options), output_sha256="0" * 64)

            child.encode = encode
            child.main()
            """
        )
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EncoderFailedError, match="does not give its result"):
        files(OLD, OLD + b"x", ProcessEncoder(Patches(), module="wrong"))


def test_an_encoder_that_takes_too_long_is_killed_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Callable[..., Made]
) -> None:
    encoder = child(
        tmp_path,
        monkeypatch,
        """
        if os.fork() == 0:
            Path(order["index"]).write_text(str(os.getpid()))
        time.sleep(600)
        """,
        Patches(seconds=1.0),
    )
    with pytest.raises(EncoderFailedError, match="longer than 2 seconds"):
        files(OLD, OLD, encoder)
    assert gone(int((tmp_path / "index").read_text()))


def test_an_encoder_that_nobody_waits_for_any_more_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Callable[..., Made]
) -> None:
    encoder = child(tmp_path, monkeypatch, 'Path(order["index"]).write_text(str(os.getpid()))\ntime.sleep(600)\n')
    with pytest.raises(InterruptedEncodingError):
        files(OLD, OLD, encoder, lambda: not (tmp_path / "index").exists())
    assert gone(int((tmp_path / "index").read_text()))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("raise ValueError('a strange file')", "a strange file"),
        ("print('x' * 100_000)", "fell"),
        ("sys.stdout.close()", "fell"),
    ],
)
def test_an_encoder_that_falls_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Callable[..., Made], body: str, said: str
) -> None:
    with pytest.raises(EncoderFailedError, match=said):
        files(OLD, OLD, child(tmp_path, monkeypatch, body))


def test_it_runs_at_low_priority_in_the_cores_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Callable[..., Made]
) -> None:
    (tmp_path / "polite.py").write_text(
        textwrap.dedent(
            """
            import os
            import server.delta.child as child

            def encode(old, new, payload, *, options):
                raise child.Refused("limit", f"nice {os.nice(0)} with {options}")

            child.encode = encode
            child.main()
            """
        )
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = Patches(nice=7, processes=3, seconds=77.0)
    nice = min(19, os.nice(0) + 7)
    with pytest.raises(EncoderFailedError, match=rf"nice {nice} with EncodeOptions\(processes=3, seconds=77.0"):
        files(OLD, OLD, ProcessEncoder(settings, module="polite"))


def test_it_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
import server.delta.child as child

def encode(*_, **__):
    import os
    Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
    time.sleep(600)

child.encode = encode
child.main()
"""
    (tmp_path / "endless.py").write_text(program)
    server = f"""
from pathlib import Path
from server.delta.process import ProcessEncoder
from server.settings import Patches
here = Path({str(tmp_path)!r})
(here / "old").write_bytes(b"")
ProcessEncoder(Patches(), module="endless")(here / "old", here / "old", here / "p", here / "i", lambda: True)
"""
    killed = subprocess.Popen([sys.executable, "-c", server], env={**os.environ, "PYTHONPATH": str(tmp_path)})
    try:
        for _ in range(600):
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                break
            time.sleep(0.05)
        pid = int((tmp_path / "pid").read_text())
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert gone(pid)
