"""The main line over real TLS: enrol, be assigned, fetch by ranges, commit, bring results home."""

import asyncio
import hashlib
import os
import sqlite3
from contextlib import closing

import aiohttp
import pytest

from protocol import limits
from protocol.errors import SettingsError, StateError
from protocol.ids import digest
from protocol.objects import AssignmentBody
from protocol.results import Loss, rows_sha256
from protocol.transfer import decompress, open_segment, parse_index
from protocol.wire import decode, encode
from server.app import serve
from server.compress import LEASE_MS
from server.storage.blobs import FolderBlobs
from server.storage.catalog import Catalog
from server.storage.jobs import COMPRESS, FREED_TRIES, Claim
from tests.fakes.server_house import House, body_of, make_manifest, no_secret, signed_by, status


async def test_a_machine_enrols_and_is_given_time_signed_over_its_nonce(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    request = tractor.request()
    code, answer = await tractor.contact(request)
    assert code == 200
    said = body_of(answer["time"])
    assert (said["device"], said["nonce"], said["time_ms"]) == ("tractor-1", request.nonce, house.now_ms)
    assert signed_by(answer["time"], house, "clock")
    assert answer["contact_id"] == request.contact_id
    assert answer.get("assignment") is None


async def test_a_release_reaches_a_machine_segment_by_segment(house: House) -> None:
    model = os.urandom(2 * limits.MIB) + bytes(500_000)
    manifest = await house.release("1.0.0", 1, [model, b"small"])
    tractor = await house.enrol("tractor-1")
    await house.rollout("first", "1.0.0")
    answer = await tractor.sync()
    assert answer.assignment is not None
    assert signed_by(answer.assignment, house, "assignments")
    assignment = decode(encode(body_of(answer.assignment)), AssignmentBody, limit=limits.MIB)
    assert (assignment.device, assignment.manifest.sha256) == ("tractor-1", manifest)

    steps = {step.artifact: step for step in assignment.plan.steps}
    large = steps[digest(model)]
    assert large.payload is not None and large.index is not None
    code, raw_index, _ = await tractor.ask("GET", f"/v1/blobs/{large.index.sha256}")
    assert code == 200 and digest(raw_index) == large.index.sha256
    index = parse_index(raw_index, large.length_bytes, large.payload.length_bytes)
    got = b""
    for number, segment in enumerate(index.segments):
        first = index.offset(number)
        last = first + segment.payload_bytes - 1
        code, data, headers = await tractor.ask(
            "GET", f"/v1/blobs/{large.payload.sha256}", headers={"Range": f"bytes={first}-{last}"}
        )
        assert code == 206
        assert headers["Content-Range"] == f"bytes {first}-{last}/{large.payload.length_bytes}"
        got += open_segment(index, number, data)
    assert got == model

    small = steps[digest(b"small")]
    assert small.payload is not None and small.index is None
    _, data, _ = await tractor.ask("GET", f"/v1/blobs/{small.payload.sha256}")
    assert decompress(data, small.length_bytes) == b"small"

    tractor.manifest = manifest
    done = await tractor.sync(statuses=[status(manifest, "first", "committed")])
    assert done.assignment is None
    (phase,) = (await house.must("GET", "/api/v1/rollouts/first"))["phases"]
    assert (phase["contacted"], phase["committed"], phase["unseen"]) == (1, 1, 0)
    shown = await house.must("GET", "/api/v1/devices/tractor-1")
    assert (shown["report"]["release"], shown["report"]["manifest"]) == ("1.0.0", manifest)
    assert shown["statuses"][0]["outcome"] == "committed"


async def test_what_a_machine_holds_does_not_travel(house: House) -> None:
    await house.release("1.0.0", 1, [b"old", b"new"])
    tractor = await house.enrol("tractor-1")
    await house.rollout("first", "1.0.0")
    tractor.have = (digest(b"old"),)
    answer = await tractor.sync()
    assert answer.assignment is not None
    methods = {step["artifact"]: step["method"] for step in body_of(answer.assignment)["plan"]["steps"]}
    assert methods[digest(b"old")] == "have"
    assert methods[digest(b"new")] == "full"


async def test_the_first_answer_asks_for_an_inventory_that_is_not_known(house: House) -> None:
    await house.release("1.0.0", 1, [b"model"])
    tractor = await house.enrol("tractor-1")
    await house.rollout("first", "1.0.0")
    answer = await tractor.sync(inventory=None)
    assert answer.want_inventory
    assert answer.assignment is None
    assert answer.poll_s < 60
    tractor.known_inventory = None
    assert (await tractor.sync()).assignment is not None


async def test_results_are_receipted_once_durable_and_the_same_batch_changes_nothing(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    rows = [f"row {number}".encode() for number in range(100)]
    batch = tractor.batch("results", rows)
    for _ in range(2):
        code, receipt = await tractor.send(batch)
        assert code == 200
        said = body_of(receipt)
        assert said["device"] == "tractor-1" and said["epoch"] == tractor.epoch
        assert said["rows"] == [{"lane": "results", "first": 0, "last": 99, "rows_sha256": rows_sha256(rows)}]
    shown = await house.must("GET", "/api/v1/devices/tractor-1")
    assert shown["ingested"] == {"alarms": 0, "results": 100}
    found = await house.must("GET", "/api/v1/devices/tractor-1/results?lane=results&limit=60")
    more = await house.must("GET", f"/api/v1/devices/tractor-1/results?lane=results&after={found['next']}")
    assert [row["seq"] for row in found["rows"] + more["rows"]] == list(range(100))
    assert [row["row"] for row in found["rows"] + more["rows"]] == [row.decode() for row in rows]


async def test_lost_rows_are_counted_and_receipted_so_that_produced_is_ingested_plus_lost(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    loss = Loss(lane="results", first=0, last=9, reason="budget", at_ms=1)
    wider = Loss(lane="results", first=5, last=19, reason="budget", at_ms=2)
    # Row 7 had arrived before it was dropped: it is not lost.
    assert (await tractor.send(tractor.batch("results", [b"seven"], first=7)))[0] == 200
    code, receipt = await tractor.send(tractor.batch("results", [b"twenty"], first=20, losses=[loss, wider]))
    assert code == 200
    assert [entry["rows_sha256"] for entry in body_of(receipt)["losses"]] == [
        digest(encode(loss)),
        digest(encode(wider)),
    ]
    shown = await house.must("GET", "/api/v1/devices/tractor-1")
    assert (shown["ingested"]["results"], shown["lost"]["results"]) == (2, 19)


async def test_the_metadata_on_offer_is_what_the_managers_signed(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    code, data, _ = await tractor.ask("GET", "/v1/tuf/image/1.root.json")
    assert code == 200 and data == house.managers.image.roots[1]
    code, stamp, _ = await tractor.ask("GET", "/v1/tuf/director/timestamp.json")
    assert code == 200
    answer = await tractor.sync()
    assert answer.director_timestamp.encode() == stamp
    assert (await tractor.ask("GET", "/v1/tuf/image/2.root.json"))[0] == 404
    assert (await tractor.ask("GET", "/v1/ca"))[0] == 200


async def test_snapshot_and_timestamp_are_signed_anew_and_versions_jump_with_time(tmp_path, house: House) -> None:
    before = (await house.must("GET", "/api/v1/status"))["repositories"]["image"]["timestamp"]["version"]
    await house.stop()
    house.now_ms += 3_600_000
    await house.start()
    after = (await house.must("GET", "/api/v1/status"))["repositories"]["image"]["timestamp"]["version"]
    assert after == house.now_ms // 1000 > before


async def test_a_stop_finishes_in_order_and_the_server_comes_back_with_all_it_knew(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    await tractor.send(tractor.batch("alarms", [b"stop"]))
    await house.stop()
    assert not (house.state / "run.json").exists()
    await house.start()
    shown = await house.must("GET", "/api/v1/devices/tractor-1")
    assert shown["ingested"]["alarms"] == 1
    assert (await tractor.sync()).generation


async def test_a_catalog_out_of_a_backup_begins_a_new_generation(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    first = await tractor.sync()
    await house.stop()
    backup = await asyncio.to_thread((house.state / "catalog.db").read_bytes)
    await house.start()
    await tractor.sync()
    await tractor.sync()
    await house.stop()
    for path in house.state.glob("catalog.db*"):
        path.unlink()
    await asyncio.to_thread((house.state / "catalog.db").write_bytes, backup)
    await house.start()
    answer = await tractor.sync()
    assert answer.generation != first.generation
    assert not answer.set_apart
    assert await house.events("server-restored")
    assert not await house.events("clone")


async def test_the_whole_file_can_be_asked_for_again_and_again(house: House) -> None:
    data = os.urandom(300_000)
    await house.put_blobs(data)
    tractor = await house.enrol("tractor-1")
    path = f"/v1/blobs/{digest(data)}"
    code, got, headers = await tractor.ask("GET", path)
    assert code == 200 and hashlib.sha256(got).hexdigest() == digest(data)
    assert headers["ETag"] == f'"{digest(data)}"' and "immutable" in headers["Cache-Control"]
    assert (await tractor.ask("GET", path, headers={"If-None-Match": headers["ETag"]}))[0] == 304
    code, none, headers = await tractor.ask("HEAD", path)
    assert (code, none, headers["Content-Length"]) == (200, b"", "300000")


@pytest.mark.parametrize(
    ("header", "code", "piece"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=90-500", 206, slice(90, None)),
        ("bytes=100-", 416, None),
        ("bytes=5-4", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=0-1,5-6", 416, None),
        ("bytes=a-b", 416, None),
        ("lines=0-1", 416, None),
        ("bytes=99999999999999999999-", 416, None),
    ],
)
async def test_one_range_is_answered_and_nothing_else(
    house: House, header: str, code: int, piece: slice | None
) -> None:
    data = bytes(range(100))
    await house.put_blobs(data)
    tractor = await house.enrol("tractor-1")
    got_code, got, headers = await tractor.ask("GET", f"/v1/blobs/{digest(data)}", headers={"Range": header})
    assert got_code == code
    if piece is not None:
        assert got == data[piece]
    else:
        assert headers["Content-Range"] == "bytes */100"


async def test_a_blob_that_is_deleted_while_it_is_asked_for_is_absent_and_not_broken_off(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(100))
    await house.put_blobs(data)
    tractor = await house.enrol("tractor-1")
    asked = FolderBlobs.length

    async def then_deleted(self: FolderBlobs, sha256: str) -> int | None:
        length = await asked(self, sha256)
        await asyncio.to_thread(self.delete_now, sha256)
        return length

    monkeypatch.setattr(FolderBlobs, "length", then_deleted)
    assert (await tractor.ask("GET", f"/v1/blobs/{digest(data)}"))[0] == 404


async def test_a_machine_that_drives_off_in_the_middle_disturbs_nobody(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    data = os.urandom(20_000_000)
    await house.put_blobs(data)
    tractor = await house.enrol("tractor-1")
    await tractor.sync()
    context = tractor._context
    assert context is not None
    for _ in range(3):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            answer = await session.get(house.running.device_url + f"/v1/blobs/{digest(data)}")
            assert await answer.content.readexactly(1000) == data[:1000]
            answer.close()
    got = b""
    while len(got) < len(data):
        code, piece, _ = await tractor.ask(
            "GET", f"/v1/blobs/{digest(data)}", headers={"Range": f"bytes={len(got)}-{len(got) + 9_999_999}"}
        )
        assert code == 206
        got += piece
    assert got == data
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_answers_do_not_say_what_the_server_is_made_of(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    for path in ("/v1/ca", "/v1/nothing", "/v1/tuf/image/timestamp.json"):
        _, _, headers = await tractor.ask("GET", path)
        assert headers["Server"] == "headland"
        assert headers["X-Content-Type-Options"] == "nosniff"


async def test_what_a_catalog_out_of_a_backup_lacks_comes_back_by_the_same_push(house: House) -> None:
    await house.stop()
    backup = await asyncio.to_thread((house.state / "catalog.db").read_bytes)
    await house.start()
    await house.release("1.0.0", 1, [b"model"])
    await house.stop()
    for path in house.state.glob("catalog.db*"):
        path.unlink()
    await asyncio.to_thread((house.state / "catalog.db").write_bytes, backup)
    await house.start()
    manifest = encode(make_manifest("1.0.0", 1, [b"model"]))
    for data in (b"model", b"golden", manifest):
        # As the tool does: only what the server says that it lacks.
        if (await house.ask("HEAD", f"/api/v1/blobs/{digest(data)}"))[0] == 404:
            await house.put_blobs(data)
    assert await house.push_again() == ""
    await house.payloads()
    tractor = await house.enrol("tractor-1")
    await house.rollout("first", "1.0.0")
    assert (await tractor.sync()).assignment


async def test_a_second_server_on_the_same_folder_does_not_start_and_disturbs_nothing(house: House) -> None:
    incoming = house.state / "blobs" / "incoming" / "an-upload"
    await asyncio.to_thread(incoming.write_bytes, b"half")
    with pytest.raises(StateError, match="another server runs"):
        async with serve(house.state, lambda: house.now_ms, no_secret):
            pass
    assert incoming.exists()


async def test_what_a_killed_server_was_at_is_taken_up_at_the_next_start(house: House) -> None:
    await house.stop()
    data = b"a model that was half compressed"

    def leave_behind() -> None:
        """As a server that was killed: one job begun, and one that it was killed at again and again."""
        FolderBlobs(house.state / "blobs").put_now(digest(data), [data])
        catalog = Catalog(f"sqlite:///{house.state / 'catalog.db'}")
        with catalog.write() as session:
            session.payloads.add_blob(digest(data), len(data), house.now_ms)
            session.payloads.want([digest(data)], house.now_ms)
            assert session.jobs.claim(COMPRESS, house.now_ms, LEASE_MS) is not None
            session.jobs.want("deadly", {"a": 1}, house.now_ms)
            for _ in range(FREED_TRIES + 1):
                assert session.jobs.claim("deadly", house.now_ms, 0) is not None
            assert session.jobs.renew(Claim("deadly", "a", FREED_TRIES + 1), house.now_ms, LEASE_MS)
        catalog.close()

    await asyncio.to_thread(leave_behind)
    await house.start()
    await house.payloads()  # the clock stands still: no lease ends by itself

    def is_deadly_free() -> bool:
        catalog = Catalog(f"sqlite:///{house.state / 'catalog.db'}")
        with catalog.write() as session:
            claim = session.jobs.claim("deadly", house.now_ms, LEASE_MS)
        catalog.close()
        return claim is not None

    assert not await asyncio.to_thread(is_deadly_free)


async def test_where_a_killed_server_listened_is_not_told_as_where_the_next_one_does(house: House) -> None:
    await house.stop()
    run = house.state / "run.json"
    await asyncio.to_thread(run.write_text, "{}")
    (house.state / "tls" / "server.pem").unlink()
    (house.state / "server.toml").write_text("[nonsense]\n")
    with pytest.raises(SettingsError):
        await house.start()
    assert not run.exists()


async def test_a_backup_of_the_same_run_is_noticed_before_any_machine_calls(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.app.COUNT_S", 0.02)
    await house.stop()
    await house.start()
    before = (await house.must("GET", "/api/v1/status"))["generation"]
    backup = house.state.parent / "backup.db"

    def back_up() -> None:
        with closing(sqlite3.connect(house.state / "catalog.db")) as live, closing(sqlite3.connect(backup)) as copy:
            live.backup(copy)

    await asyncio.to_thread(back_up)
    await asyncio.sleep(0.3)
    await house.stop()
    for path in house.state.glob("catalog.db*"):
        path.unlink()
    await asyncio.to_thread(backup.rename, house.state / "catalog.db")
    await house.start()
    assert (await house.must("GET", "/api/v1/status"))["generation"] != before
    assert len(await house.events("server-restored")) == 1
