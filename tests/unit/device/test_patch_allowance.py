"""A patch that takes more processor time than one of its size may is refused, in the child and between its frames."""

import signal
import sys
import time

import pytest

from device.transfer.allowance import OUTPUT_MIB_S, START_S, STREAM_MIB_S, Allowance
from device.transfer.child_applier import ChildApplier
from protocol.delta.patch import GroupHeader, Stream, read_group_header
from protocol.errors import Reason, Refused
from protocol.limits import MIB
from tests.unit.device.test_patch_child import ROOT, applied
from tests.unit.protocol.delta.slow_groups import slow_groups, tiny_operations


@pytest.fixture(autouse=True)
def _handler():
    before = signal.getsignal(signal.SIGPROF)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def header(output_bytes=1, stream_bytes=0):
    return GroupHeader(1, 1, output_bytes, 0, (Stream(32, stream_bytes, 0),) if stream_bytes else ())


def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def test_work_beyond_the_allowance_is_broken_off():
    allowance = Allowance(start_s=0.05)
    began = time.process_time()
    with pytest.raises(Refused) as refused, allowance.spent_on(header()):
        work(20)
    assert refused.value.reason is Reason.LIMIT
    assert time.process_time() - began < 5


def test_what_groups_give_adds_to_it_and_what_they_leave_is_kept():
    allowance = Allowance(start_s=0.0, stream_mib_s=1.0, output_mib_s=0.0)
    with allowance.spent_on(header(1, MIB)):
        work(0.1)
    with allowance.spent_on(header()):
        work(0.1)
    with pytest.raises(Refused), allowance.spent_on(header()):
        work(20)


def test_a_frame_is_not_broken_off_in_the_middle():
    allowance = Allowance(start_s=0.05)
    sent = []
    with pytest.raises(Refused), allowance.spent_on(None):
        with allowance.sending():
            work(0.2)
            sent.append("whole")
        sent.append("more")
    assert sent == ["whole"]


def test_no_time_runs_between_groups():
    allowance = Allowance(start_s=0.2)
    with allowance.spent_on(header()):
        pass
    work(0.4)


HASTY = """
import sys
from device.transfer import allowance, patch_child
patch_child.Allowance = lambda: allowance.Allowance(0.2, 0.0, 0.0)
sys.exit(patch_child.main(sys.argv[1:]))
"""


def test_a_child_refuses_what_takes_too_long(tmp_path, monkeypatch):
    """Operations that each give a byte: nothing else bounds their time."""
    base = tmp_path / "base"
    base.write_bytes(bytes(100))
    group = tiny_operations(1 << 16)
    monkeypatch.setattr("device.transfer.child_applier.python_command", lambda _: [sys.executable, "-c", HASTY])
    monkeypatch.chdir(ROOT)
    applier = ChildApplier(base)
    began = time.monotonic()
    try:
        with pytest.raises(Refused, match="processor time") as refused:
            applied(applier, group)
        assert refused.value.reason is Reason.LIMIT
    finally:
        applier.close()
    assert time.monotonic() - began < 60


def test_the_slowest_groups_have_their_time_on_a_core_ten_times_as_slow():
    for slow in slow_groups(1 / 64):
        seconds, _ = slow.seconds()
        parsed = read_group_header(slow.group)
        streams = sum(stream.length_bytes for stream in parsed.streams)
        allowed = START_S + STREAM_MIB_S * streams / MIB + OUTPUT_MIB_S * parsed.output_bytes / MIB
        assert 10 * seconds < allowed, slow.name


def test_no_group_takes_half_an_hour():
    assert START_S + STREAM_MIB_S * 6 + OUTPUT_MIB_S * 64 < 1800
