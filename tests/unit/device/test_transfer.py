"""Downloads over links that break: what a drop costs, what is refused, and how fast it may go."""

import asyncio
import errno
import itertools
import time

import msgspec
import pytest

from device.link import Link
from device.store import NoSpaceError, Store
from device.transfer import Transfer, TransferSettings
from device.transfer.purse import Unlimited
from device.transfer.rate import MinimumRate, RateCap
from device.transfer.spool import SegmentSpool
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import digest
from protocol.limits import MIB, SEGMENT_PAYLOAD_BYTES
from protocol.objects import TransferPlan
from protocol.transfer import decode_segment, parse_index
from signing.durable import Part
from tests.fakes.cutting_proxy import BlobServer, CuttingProxy, serving
from tests.fakes.updates import BlobSource, Release, compressed, noise, signed

BIG = Release("1.0.0", 1, noise(3 * MIB + 12345, 7))
STEP = next(step for step in BIG.plan.steps if step.index is not None)
MODEL = STEP.artifact
PAYLOAD = BIG.blobs[STEP.payload.sha256]
INDEX = BIG.blobs[STEP.index.sha256]
ARTIFACTS = BIG.manifest.artifacts()


class Rig:
    def __init__(self, folder, source, **settings):
        self.counted = 0
        self.slept = []
        self.store = Store(folder / "store")
        options = {"attempts": 3, "first_retry_s": 0.01, "longest_retry_s": 0.02, **settings}
        self.transfer = Transfer(
            source,
            self.store,
            TransferSettings(**options),
            count=self.count,
            sleep=self.sleep,
            random=lambda: 0.5,
        )

    def count(self, more):
        self.counted += more

    async def sleep(self, seconds):
        self.slept.append(seconds)
        await asyncio.sleep(0)

    async def fetch(self, release=BIG):
        await self.transfer.fetch(release.plan, release.manifest.artifacts())

    def is_complete(self, release=BIG):
        return all(self.store.is_whole(name) for name in release.artifacts)


@pytest.fixture
def source():
    return BlobSource(BIG)


@pytest.fixture
def rig(tmp_path, source):
    return Rig(tmp_path, source)


async def test_every_artifact_arrives_whole_and_is_counted_once(rig, source):
    seen = []
    await rig.transfer.fetch(BIG.plan, ARTIFACTS, seen.append)
    assert rig.is_complete()
    assert rig.counted == sum(seen) == source.sent == BIG.travels_bytes
    assert list(rig.store.part("x").parent.iterdir()) == []
    await rig.fetch()
    assert source.sent == BIG.travels_bytes, "what is here does not travel again"


async def test_one_request_brings_all_segments(rig, source):
    await rig.fetch()
    assert [name for name, _, _ in source.asked].count(STEP.payload.sha256) == 1


async def test_a_dropped_link_costs_nothing_while_the_process_lives(tmp_path, source):
    rig = Rig(tmp_path, source, attempts=9)
    source.chunk_bytes = 10_007
    source.drops_at = {1, 5000, MIB - 1, MIB, MIB + 1, 2 * MIB + 77, 3 * MIB}
    await rig.fetch()
    assert rig.is_complete()
    assert source.drops_at == set()
    assert source.sent == BIG.travels_bytes


def interesting_offsets():
    index = parse_index(INDEX, len(BIG.model), len(PAYLOAD))
    borders = [index.offset(number) for number in range(len(index.segments) + 1)]
    inside = (border + delta for border in borders for delta in (-1, 0, 1))
    return sorted({at for at in (*inside, 17, MIB // 2) if 0 < at < len(PAYLOAD)})


@pytest.mark.parametrize("at", interesting_offsets())
async def test_after_the_process_was_killed_at_most_one_segment_is_fetched_again(tmp_path, at, monkeypatch):
    monkeypatch.setattr("device.transfer.spool.keep_rest", lambda *_: None)
    source = BlobSource(BIG, chunk_bytes=4096)
    only = TransferPlan(steps=(STEP,), full_bytes=0)
    model = [artifact for artifact in ARTIFACTS if artifact.sha256 == MODEL]
    first = Rig(tmp_path, source, attempts=1)
    source.drops_at = {len(INDEX) + at}
    with pytest.raises(LinkError):
        await first.transfer.fetch(only, model)
    second = Rig(tmp_path, source)
    await second.transfer.fetch(only, model)
    assert second.store.is_whole(MODEL)
    again = source.sent - len(INDEX) - len(PAYLOAD)
    assert 0 <= again <= SEGMENT_PAYLOAD_BYTES
    assert [name for name, _, _ in source.asked].count(STEP.index.sha256) == 1, "the index travels once"


async def test_of_several_segments_at_once_those_before_a_wrong_one_are_kept(tmp_path):
    source = BlobSource(BIG, chunk_bytes=8 * MIB)
    parse = parse_index(INDEX, STEP.length_bytes, len(PAYLOAD))
    at = parse.segments[0].payload_bytes + 5  # in the second segment
    good = source.blobs[STEP.payload.sha256]
    source.blobs[STEP.payload.sha256] = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    rig = Rig(tmp_path, source)
    with pytest.raises(Refused):
        await rig.fetch()
    source.blobs[STEP.payload.sha256] = good
    before = source.sent
    again = Rig(tmp_path, source)
    await again.fetch()
    assert again.is_complete()
    assert len(good) - (source.sent - before) >= parse.segments[0].payload_bytes - 4 * len(INDEX)


def test_the_next_segment_is_decoded_ahead_and_no_more_of_them(tmp_path, monkeypatch):
    """A few kilobytes of payload may give gigabytes: they never wait in memory for the disk."""
    payload, index = compressed(bytes(24 * MIB))
    events = []
    append = Part.append

    def decode(*arguments):
        events.append(1)
        return decode_segment(*arguments)

    def slow(part, data):
        time.sleep(0.01)
        events.append(-1)
        append(part, data)

    monkeypatch.setattr("device.transfer.spool.decode_segment", decode)
    monkeypatch.setattr(Part, "append", slow)
    store = Store(tmp_path / "store")
    parsed = parse_index(index, 24 * MIB, len(payload))
    spool = SegmentSpool(parsed, signed(payload), store, digest(bytes(24 * MIB)), 64 * MIB)
    spool.take(payload)
    spool.close()
    assert events.count(1) == events.count(-1) == 24
    assert max(itertools.accumulate(events)) == 2
    assert spool.digest == digest(bytes(24 * MIB))


async def test_segments_that_are_signed_but_give_another_whole_are_refused(rig, source):
    """Whoever signs a plan is not whoever signed the release."""
    other = Release("1.0.0", 1, noise(len(BIG.model), 8))
    source.add([other])
    step = next(step for step in other.plan.steps if step.index is not None)
    plan = TransferPlan(steps=(msgspec.structs.replace(step, artifact=MODEL),), full_bytes=0)
    with pytest.raises(Refused) as refused:
        await rig.transfer.fetch(plan, [artifact for artifact in ARTIFACTS if artifact.sha256 == MODEL])
    assert refused.value.reason is Reason.HASH
    assert not rig.store.has(MODEL)
    assert not rig.store.part(MODEL).exists()


async def test_a_disk_that_takes_no_sync_beside_the_work_ends_the_fetch(tmp_path, source, monkeypatch):
    def fail(part):
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(Part, "sync", fail)
    rig = Rig(tmp_path, source)
    rig.transfer = Transfer(source, rig.store, TransferSettings(), count=rig.count, sync_bytes=2 * MIB)
    with pytest.raises(OSError, match="no"):
        await rig.fetch()
    assert not rig.store.has(MODEL)


@pytest.mark.parametrize(("sync_bytes", "syncs"), [(0, 4), (2 * MIB, 1), (64 * MIB, 0)])
async def test_where_bytes_are_free_the_disk_is_synced_more_rarely(tmp_path, source, monkeypatch, sync_bytes, syncs):
    found = []
    monkeypatch.setattr(Part, "sync", lambda part: found.append(part))  # noqa: PLW0108  (a method)
    rig = Rig(tmp_path, source)
    rig.transfer = Transfer(source, rig.store, TransferSettings(), count=rig.count, sync_bytes=sync_bytes)
    await rig.fetch()
    assert rig.is_complete()
    assert len(found) == syncs


async def test_a_pause_costs_nothing(tmp_path, source):
    source.chunk_bytes = 4096
    source.drops_at = {5000, 100_000, MIB + 100_000, 2 * MIB + 5, len(PAYLOAD) - 1}
    for _ in range(len(source.drops_at)):
        with pytest.raises(LinkError):
            await Rig(tmp_path, source, attempts=1).fetch()
    rig = Rig(tmp_path, source)
    await rig.fetch()
    assert rig.is_complete()
    assert list(rig.store.part("x").parent.iterdir()) == []
    assert source.sent == BIG.travels_bytes


@pytest.mark.parametrize("torn", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB + 5])
async def test_a_tail_torn_by_a_power_cut_is_found_and_fetched_again(tmp_path, source, torn):
    rig = Rig(tmp_path, source)
    half = BIG.model[: 2 * MIB] + b"rest"
    rig.store.part(MODEL).write_bytes(half[:torn] + bytes(max(len(half) - torn, 0)))
    await rig.fetch()
    assert rig.is_complete()
    kept = min(torn // MIB, 2)
    assert source.sent <= BIG.travels_bytes - kept * MIB + 1000 if kept else source.sent == BIG.travels_bytes


async def test_a_torn_index_is_fetched_again(rig):
    rig.store.part(f"{STEP.index.sha256}.index").write_bytes(bytes(len(INDEX)))
    await rig.fetch()
    assert rig.is_complete()


async def test_a_swapped_blob_is_refused_before_a_decoder_sees_it(rig, source, monkeypatch):
    decoded = []
    monkeypatch.setattr("protocol.transfer.decompress", lambda *args: decoded.append(args))
    source.blobs[STEP.payload.sha256] = bytes(len(PAYLOAD))
    with pytest.raises(Refused) as refused:
        await rig.transfer.fetch(TransferPlan(steps=(STEP,), full_bytes=0), [a for a in ARTIFACTS if a.sha256 == MODEL])
    assert refused.value.reason is Reason.HASH
    assert decoded == []
    assert not rig.store.has(MODEL)


@pytest.mark.parametrize("byte", [0, 100, MIB + 3, len(PAYLOAD) - 1])
async def test_one_changed_byte_anywhere_is_refused_and_good_bytes_before_it_stay(rig, source, byte):
    bad = bytearray(PAYLOAD)
    bad[byte] ^= 1
    source.blobs[STEP.payload.sha256] = bytes(bad)
    with pytest.raises(Refused) as refused:
        await rig.fetch()
    assert refused.value.reason is Reason.HASH
    source.blobs[STEP.payload.sha256] = PAYLOAD
    sent = source.sent
    await rig.fetch()
    assert rig.is_complete()
    assert source.sent - sent <= len(PAYLOAD) - byte + SEGMENT_PAYLOAD_BYTES + 4096


async def test_bytes_of_two_minds_are_looked_at_once_more_in_one_piece(rig, source):
    """A cache may give the beginning of one blob and the end of another: the second look tells."""
    source.blobs[STEP.payload.sha256] = bytes(1000) + PAYLOAD[1000:]
    source.drops_at = {len(INDEX) + 500_000}
    only = TransferPlan(steps=(STEP,), full_bytes=0)

    async def mend(_):
        source.blobs[STEP.payload.sha256] = PAYLOAD

    rig.transfer._sleep = mend
    await rig.transfer.fetch(only, [a for a in ARTIFACTS if a.sha256 == MODEL])
    assert rig.store.is_whole(MODEL)


async def test_a_swapped_small_blob_and_a_swapped_index_are_refused(tmp_path):
    for step in BIG.plan.steps:
        part = step.index or step.payload
        source = BlobSource(BIG)
        source.blobs[part.sha256] = bytes(part.length_bytes)
        rig = Rig(tmp_path / part.sha256[:8], source)
        with pytest.raises(Refused) as refused:
            await rig.fetch()
        assert refused.value.reason is Reason.HASH
        assert not rig.store.has(step.artifact)


async def test_a_plan_that_does_not_fit_the_manifest_is_refused(rig):
    wrong = TransferPlan(
        steps=tuple(
            type(step)(artifact=step.artifact, length_bytes=step.length_bytes + 1, method="full", payload=step.payload)
            for step in BIG.plan.steps
        ),
        full_bytes=0,
    )
    with pytest.raises(Refused) as refused:
        await rig.transfer.fetch(wrong, ARTIFACTS)
    assert refused.value.reason is Reason.LENGTH


async def test_a_plan_without_a_needed_step_pauses_instead_of_guessing(rig, source):
    for method in ("have", "delta"):
        steps = tuple(
            type(step)(artifact=step.artifact, length_bytes=step.length_bytes, method=method) for step in BIG.plan.steps
        )
        with pytest.raises(LinkError) as failed:
            await rig.transfer.fetch(TransferPlan(steps=steps, full_bytes=0), ARTIFACTS)
        assert not failed.value.retryable
    with pytest.raises(LinkError):
        await rig.transfer.fetch(TransferPlan(steps=(), full_bytes=0), ARTIFACTS)
    assert source.asked == []


async def test_a_blob_that_is_not_there_is_not_asked_for_for_ever(rig, source):
    del source.blobs[STEP.payload.sha256]
    with pytest.raises(LinkError) as failed:
        await rig.fetch()
    assert (failed.value.status, failed.value.retryable) == (404, False)
    assert [name for name, _, _ in source.asked].count(STEP.payload.sha256) == 1


async def test_patience_is_spent_by_failures_in_a_row_and_renewed_by_progress(tmp_path):
    source = BlobSource(BIG, chunk_bytes=50_000)
    rig = Rig(tmp_path, source, attempts=3)
    source.drops_at = set(range(100_000, len(PAYLOAD), 100_000))
    drops = len(source.drops_at)
    await rig.fetch()
    assert rig.is_complete()
    assert len(rig.slept) == drops
    source = BlobSource(BIG)
    source.up = False
    rig = Rig(tmp_path / "other", source, attempts=3)
    with pytest.raises(LinkError):
        await rig.fetch()
    assert len(source.asked) == 3


async def test_a_trickle_between_drops_does_not_renew_patience(tmp_path):
    source = BlobSource(BIG, chunk_bytes=10)
    source.drops_at = set(range(10, 5000, 10))
    rig = Rig(tmp_path, source, attempts=4)
    with pytest.raises(LinkError):
        await rig.fetch()
    assert len(source.asked) == 4


async def test_space_is_looked_at_before_the_first_byte(tmp_path, source):
    rig = Rig(tmp_path, source)
    rig.store._free = lambda _: len(BIG.model)
    with pytest.raises(NoSpaceError):
        await rig.fetch()
    assert source.asked == []
    rig.store._free = lambda _: rig.store._keep_free_bytes + len(BIG.model) + 1000
    await rig.fetch()
    assert rig.is_complete()


async def test_a_part_that_is_here_counts_for_the_space_it_has(tmp_path, source):
    rig = Rig(tmp_path, source)
    rig.store.part(MODEL).write_bytes(BIG.model[: 2 * MIB])
    rig.store._free = lambda _: rig.store._keep_free_bytes + len(BIG.model) - 2 * MIB + 1000
    await rig.fetch()
    assert rig.is_complete()


async def test_a_cancelled_fetch_keeps_what_was_verified(tmp_path, source):
    source.chunk_bytes = 100_000
    rig = Rig(tmp_path, source)
    task = asyncio.create_task(rig.fetch())
    counted = asyncio.Event()
    loop = asyncio.get_running_loop()
    count = rig.count

    def count_and_say(more):
        count(more)
        loop.call_soon_threadsafe(counted.set)

    rig.transfer._unlimited = Unlimited(count_and_say)
    await counted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    sent = source.sent
    assert rig.counted == sent
    await rig.fetch()
    assert rig.is_complete()
    assert source.sent <= BIG.travels_bytes + SEGMENT_PAYLOAD_BYTES + source.chunk_bytes


async def test_a_manifest_is_read_whole_and_hashed(rig, source):
    assert await rig.transfer.small(signed(BIG.manifest_bytes), 1 << 20) == BIG.manifest_bytes
    source.blobs[BIG.digest] = bytes(len(BIG.manifest_bytes))
    with pytest.raises(Refused) as refused:
        await rig.transfer.small(signed(BIG.manifest_bytes), 1 << 20)
    assert refused.value.reason is Reason.HASH
    asked = len(source.asked)
    with pytest.raises(Refused) as refused:
        await rig.transfer.small(signed(BIG.manifest_bytes), 10)
    assert refused.value.reason is Reason.LENGTH
    assert len(source.asked) == asked
    assert await rig.transfer.small(signed(b""), 10) == b""


async def test_the_cap_spreads_bytes_over_time():
    now, slept = [0.0], []

    async def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    cap = RateCap(1000, monotonic=lambda: now[0], sleep=sleep)
    for _ in range(10):
        await cap.take(500)
    assert now[0] == pytest.approx(5.0)
    now[0] += 100
    await cap.take(1000)
    assert now[0] == pytest.approx(106.0), "an idle time is not saved up"
    free = RateCap(0, monotonic=lambda: now[0], sleep=sleep)
    slept.clear()
    await free.take(1 << 30)
    assert slept == []


def test_the_minimum_is_judged_over_its_time_only():
    floor = MinimumRate(100, 10)
    for _ in range(9):
        floor.received(1, 1)
    floor.received(991, 1)
    floor.received(2000, 5)
    with pytest.raises(LinkError):
        for _ in range(20):
            floor.received(1, 1)


async def test_real_connections_cut_at_every_interesting_byte_still_bring_it_whole(tmp_path):
    server = BlobServer(dict(BIG.blobs))
    head = 230  # about the length of the answer's head: cuts fall into it, on its edge, and behind it
    cuts = [1, 50, head, head + 1, 70_000, MIB - 1, MIB, MIB + head, 5, MIB + head + 2]
    async with serving(server.handle) as port, CuttingProxy(port).running() as proxy:
        proxy.cuts = list(cuts)
        link = Link(f"http://127.0.0.1:{proxy.port}", None)
        rig = Rig(tmp_path, link, attempts=6)
        try:
            await rig.fetch()
        finally:
            await link.close()
        assert rig.is_complete()
        assert proxy.cuts == []
        assert rig.counted == BIG.travels_bytes, "in one life of the process no byte is taken twice"
