"""The process that applies patches: what it gives, what its death means, and what never enters the agent."""

import io
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from device.store import Store
from device.transfer import PatchFailedError, patch_child
from device.transfer.applier import ApplierEndedError
from device.transfer.child_applier import ChildApplier, _Child
from protocol import wire
from protocol.delta.streams import STORED
from protocol.errors import Reason, Refused
from protocol.limits import MIB
from server.delta.encode import encode
from tests.fakes.patches import PlainPatch, Rig
from tests.fakes.updates import BlobSource, noise

ROOT = Path(__file__).resolve().parents[3]
OLD = noise(3_000_000, 1)
NEW = (
    OLD[:1_800_000] + noise(20_000, 2) + OLD[1_700_000:]
)  # more than pipes hold: a child is never done before its time


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A real patch, of one group."""
    folder = tmp_path_factory.mktemp("pair")
    old, new = folder / "old", folder / "new"
    old.write_bytes(OLD)
    new.write_bytes(NEW)
    payload = io.BytesIO()
    encode(old, new, payload)
    return old, payload.getvalue()


@pytest.fixture
def applier(made):
    applier = ChildApplier(made[0])
    yield applier
    applier.close()


def applied(applier, payload, on_write=lambda: None):
    output = bytearray()

    def write(data):
        output.extend(data)
        on_write()

    applier.apply(bytearray(payload), 0, write)
    return bytes(output)


def child_of(applier):
    return applier._child._process


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_the_child_gives_the_result_as_often_as_it_is_asked_and_ends_with_its_applier(applier, made):
    for _ in range(3):
        assert applied(applier, made[1]) == NEW
    process = child_of(applier)
    applier.close()
    applier.close()
    assert process.returncode is not None


def test_it_runs_below_the_agent_and_without_a_thread_of_arithmetic(applier, made):
    applied(applier, made[1])
    pid = child_of(applier).pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1


def test_what_it_refuses_is_refused_here_and_it_goes_on(applier, made):
    with pytest.raises(Refused) as refused:
        applied(applier, made[1][:-1])
    assert refused.value.reason is Reason.LENGTH
    assert applier._child is None, "after a refusal nothing of it is used again"
    assert applied(applier, made[1]) == NEW


def test_a_child_that_somebody_kills_is_no_evidence_and_its_output_is_not_doubled(applier, made):
    killed = []

    def kill_once():
        if not killed:
            killed.append(child_of(applier).pid)
            os.kill(killed[0], signal.SIGKILL)

    assert applied(applier, made[1], kill_once) == NEW
    assert is_gone(killed[0])


@pytest.fixture
def starts(monkeypatch):
    """The children, in their order."""
    found = []
    start = subprocess.Popen

    def popen(*arguments, **more):
        process = start(*arguments, **more)
        found.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    return found


@pytest.mark.parametrize("crash", [signal.SIGSEGV, signal.SIGABRT])
def test_a_child_that_crashes_again_on_the_same_group_is(applier, made, starts, crash):
    with pytest.raises(Refused) as refused:
        applied(applier, made[1], lambda: os.kill(starts[-1], crash))
    assert refused.value.reason is Reason.LIMIT
    assert len(starts) == 2
    assert all(is_gone(pid) for pid in starts)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGBUS])
def test_a_child_that_is_ended_from_outside_again_and_again_says_nothing_about_the_patch(applier, made, starts, end):
    """By the kernel that has no memory, a supervisor that stops the unit, a disk that does not read a page."""
    with pytest.raises(ApplierEndedError):
        applied(applier, made[1], lambda: os.kill(starts[-1], end))
    assert len(starts) == 2
    assert all(is_gone(pid) for pid in starts)


def test_one_crash_and_one_end_from_outside_are_no_evidence_yet(applier, made, starts):
    ways = [signal.SIGSEGV, signal.SIGKILL, signal.SIGKILL]
    with pytest.raises(ApplierEndedError):
        applied(applier, made[1], lambda: os.kill(starts[-1], ways[len(starts) - 1]))
    assert len(starts) == 3


@pytest.mark.parametrize(("is_short", "expected"), [(True, ApplierEndedError), (False, Refused)])
def test_a_patch_that_gets_no_memory_is_refused_only_on_a_machine_that_has_some(
    made, tmp_path, monkeypatch, is_short, expected
):
    (tmp_path / "child.py").write_text(
        "import sys\n"
        "from device.transfer import patch_child\n"
        "from protocol.delta import apply\n"
        "def starve(*_): raise MemoryError\n"
        "apply.apply_group = starve\n"
        f"patch_child.lacks_memory = lambda need_mib: {is_short}\n"
        "sys.exit(patch_child.main(sys.argv[1:]))\n"
    )
    monkeypatch.setattr(
        "device.transfer.child_applier.python_command", lambda _: [sys.executable, str(tmp_path / "child.py")]
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    applier = ChildApplier(made[0])
    with pytest.raises(expected):
        applied(applier, made[1])
    applier.close()


def test_memory_is_lacking_when_the_machine_has_less_than_a_patch_may_take(tmp_path, monkeypatch):
    memory, overcommit = tmp_path / "meminfo", tmp_path / "overcommit"
    monkeypatch.setattr(patch_child, "MEMORY", memory)
    monkeypatch.setattr(patch_child, "OVERCOMMIT", overcommit)
    assert not patch_child.lacks_memory(64), "who cannot tell has enough"
    text = "MemAvailable:  {} kB\nSwapFree: {} kB\nCommitLimit: 900000 kB\nCommitted_AS: {} kB\nHugePages_Total: 0\n"
    for available, swap, committed, never, expected in [
        (65536, 0, 0, False, False),
        (65535, 0, 0, False, True),
        (30000, 35536, 0, False, False),
        (65536, 0, 899_999, False, False),
        (65536, 0, 834_465, True, True),
        (65536, 0, 834_464, True, False),
    ]:
        memory.write_text(text.format(available, swap, committed))
        overcommit.write_text("2\n" if never else "0\n")
        assert patch_child.lacks_memory(64) is expected


@pytest.mark.parametrize(("computed_s", "expected"), [(0.0, ApplierEndedError), (0.4, Refused)])
def test_a_child_that_is_silent_again_loops_if_it_computes_and_is_held_up_if_it_does_not(
    made, monkeypatch, starts, computed_s, expected
):
    used_s = itertools.count(0.0, computed_s)
    monkeypatch.setattr(_Child, "_computed_s", lambda _: next(used_s))
    applier = ChildApplier(made[0], silence_s=0.5)
    with pytest.raises(expected):
        applied(applier, made[1], lambda: os.kill(starts[-1], signal.SIGSTOP))
    applier.close()
    assert all(is_gone(pid) for pid in starts)


def test_the_processor_time_of_a_child_is_seen(applier, made):
    applied(applier, made[1])
    assert 0 < applier._child._computed_s() < 60


def test_a_child_that_hangs_is_killed(made):
    applier = ChildApplier(made[0], silence_s=0.5)
    stopped = []

    def stop_once():
        if not stopped:
            stopped.append(child_of(applier).pid)
            os.kill(stopped[0], signal.SIGSTOP)

    try:
        assert applied(applier, made[1], stop_once) == NEW
    finally:
        applier.close()
    assert is_gone(stopped[0])


def test_what_the_writer_raises_comes_through_and_the_child_ends(applier, made):
    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        applied(applier, made[1], full)
    assert applier._child is None


def test_a_cancelled_applier_applies_nothing_more(applier, made):
    applied(applier, made[1])
    process = child_of(applier)
    applier.cancel()
    with pytest.raises(OSError, match="no more"):
        applied(applier, made[1])
    assert process.poll() is not None or process.wait(10) is not None


def test_a_child_whose_agent_was_killed_ends(tmp_path, made):
    program = (
        "import sys, time; from pathlib import Path; from device.transfer.child_applier import ChildApplier\n"
        f"applier = ChildApplier(Path({str(made[0])!r}))\n"
        f"applier.apply(bytearray(Path({str(tmp_path / 'payload')!r}).read_bytes()), 0, lambda data: None)\n"
        "print(applier._child._process.pid, flush=True); time.sleep(60)"
    )
    (tmp_path / "payload").write_bytes(made[1])
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as agent:
        child = int(agent.stdout.readline())
        assert not is_gone(child)
        agent.kill()
    end = time.monotonic() + 10
    while not is_gone(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert is_gone(child)


def test_the_bound_on_memory_is_a_bound():
    program = (
        "from device.inference.rlimits import confine\n"
        "confine(memory_mib=32, cpu_s=None, slack_mib=32)\n"
        "try: bytearray(80 << 20)\n"
        "except MemoryError: print('refused')\n"
        "bytearray(40 << 20)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("refused\n", 0)


class RealPatch(PlainPatch):
    """A patch by the codec."""

    def __init__(self, old, new, payload):
        self.base, self.full_bytes, self.is_indexed, self.groups = old, 0, len(payload) > MIB // 4, []
        self.pack([payload], new)


async def test_an_artifact_comes_by_a_real_patch_and_a_bad_one_is_refused(tmp_path, made):
    for number, (payload, is_good) in enumerate([(made[1], True), (made[1][:-3] + b"xyz", False)]):
        patch = RealPatch(OLD, NEW, payload)
        source = BlobSource()
        source.blobs.update(patch.blobs)
        rig = Rig(tmp_path / str(number), source, patch)
        rig.transfer._appliers = ChildApplier
        if is_good:
            await rig.fetch()
            assert rig.store.path(patch.artifact.sha256).read_bytes() == NEW
        else:
            with pytest.raises(PatchFailedError):
                await rig.fetch()
            assert len(rig.book.untold()) == 1


MEASURE = """
import asyncio, resource, sys
from pathlib import Path
from device.state_db import StateDb
from device.store import Store
from device.transfer import Transfer, TransferSettings
from device.transfer.child_applier import ChildApplier
from protocol.objects import TransferPlan
from protocol.artifact import Artifact
from protocol.wire import decode
import device.agent

folder = Path(sys.argv[1])
plan = decode((folder / "plan").read_bytes(), TransferPlan, limit=1 << 20)
step = plan.steps[0]

class Source:
    async def stream(self, path, *, first, length):
        with (folder / path.rsplit("/", 1)[1]).open("rb") as file:
            file.seek(first)
            while length:
                chunk = file.read(min(length, 65536))
                length -= len(chunk)
                yield chunk

store = Store(folder / "store")
transfer = Transfer(Source(), store, TransferSettings(), count=lambda _: None, appliers=ChildApplier)
artifact = Artifact(sha256=step.artifact, length_bytes=step.length_bytes, media_type="application/onnx")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
asyncio.run(transfer.fetch(plan, [artifact]))
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak() - before, "numpy" in sys.modules, store.is_whole(step.artifact), child)
"""


def test_the_agent_stays_small_while_a_large_group_is_applied(tmp_path, monkeypatch):
    """A group of 8 MiB that does not compress is the most that the agent ever holds."""
    base, new = noise(1000, 1), noise(8 * MIB - 70_000, 2)
    old_path, new_path = tmp_path / "old", tmp_path / "new"
    old_path.write_bytes(base)
    new_path.write_bytes(new)
    monkeypatch.setattr(
        "server.delta.groups._encode_literal", lambda stream: (STORED, len(stream.data), bytes(stream.data))
    )
    payload = io.BytesIO()
    encode(old_path, new_path, payload)
    patch = RealPatch(base, new, payload.getvalue())
    (tmp_path / "plan").write_bytes(wire.encode(patch.plan))
    for name, blob in patch.blobs.items():
        (tmp_path / name).write_bytes(blob)
    Store(tmp_path / "store").put(base)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    more_kib, has_numpy, is_whole, _ = done.stdout.split()
    assert (has_numpy, is_whole) == ("False", "True")
    assert int(more_kib) < 20 * 1024, f"the agent grew by {int(more_kib) // 1024} MiB"
