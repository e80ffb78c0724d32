"""Pieces from sticks at a real server: each row once however it comes, reports by their number, receipts both ways."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocol.kits import FORCE_CONTEXT, ForceRequest
from protocol.messages import Alert, SignedForce, VersionReport
from protocol.results import Loss
from protocol.wire import encode
from signing.sealing import public_half
from tests.fakes.pieces import piece, report, sealing_key_of, signed_report
from tests.fakes.server_house import House, Machine, body_of, running, signed_by, status

OTHER_MANIFEST = "1" * 64


class Desk:
    """A server with a sealing key, a machine, and pieces brought to its people's door."""

    def __init__(self, house: House, tractor: Machine, sealing_key: str) -> None:
        self.house, self.tractor, self.sealing_key = house, tractor, sealing_key

    async def bring(self, kind: str, inner: bytes, device: str = "tractor-1") -> tuple[int, dict]:
        return await self.post(piece(self.sealing_key, device, kind, inner))

    async def post(self, data: bytes) -> tuple[int, dict]:
        return await self.house.ask("POST", "/api/v1/kits/results", data=data)

    async def tell(self, number: int, **more: object) -> dict:
        code, answer = await self.bring("report", signed_report(self.tractor, report(self.tractor, number, **more)))
        assert code == 200, answer
        return answer

    async def shown(self) -> dict:
        return await self.house.must("GET", "/api/v1/devices/tractor-1")

    async def totals(self) -> tuple[int, int]:
        found = await self.shown()
        return found["ingested"]["results"], found["lost"]["results"]

    async def waiting(self) -> list[dict]:
        return (await self.house.must("GET", "/api/v1/devices/tractor-1/receipts"))["receipts"]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with running(tmp_path) as house:
        await house.publish()
        sealing_key = await asyncio.to_thread(sealing_key_of, house.state)
        yield Desk(house, await house.enrol("tractor-1"), sealing_key)


async def test_a_batch_by_stick_counts_once_before_and_after_the_same_by_network(desk: Desk):
    batch = desk.tractor.batch("results", [b"a", b"b", b"c"])
    code, first = await desk.bring("batch", batch)
    assert (code, first["fresh"], first.get("known", 0), first["whole"]) == (200, 3, 0, True)
    assert signed_by(first["receipt"], desk.house, "receipts")
    assert (await desk.tractor.send(batch))[0] == 200
    _, again = await desk.bring("batch", batch)
    assert (again.get("fresh", 0), again["known"]) == (0, 3)
    assert (await desk.shown())["ingested"]["results"] == 3


async def test_a_piece_may_go_once_all_of_it_is_here_though_its_receipt_has_no_room_for_all(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("server.ingest.RANGES", 1)
    losses = [Loss(lane="results", first=number, last=number, reason="budget", at_ms=1) for number in (7, 9)]
    _, taken = await desk.bring("batch", desk.tractor.batch("results", [b"a"], losses=losses))
    assert taken["whole"]
    assert (len(body_of(taken["receipt"])["rows"]), body_of(taken["receipt"]).get("losses", [])) == (1, [])
    assert await desk.totals() == (1, 2)


async def test_rows_that_were_given_up_count_as_rows_once_their_copy_comes_home(desk: Desk):
    copy = desk.tractor.batch("results", [b"a", b"b"])
    loss = Loss(lane="results", first=0, last=1, reason="budget", at_ms=1)
    await desk.tractor.send(desk.tractor.batch("results", [b"c"], losses=[loss]))
    assert await desk.totals() == (1, 2)
    await desk.bring("batch", copy)
    assert await desk.totals() == (3, 0)


async def test_a_receipt_goes_with_the_next_contact_and_is_forgotten_once_the_machine_shows_that_it_came(desk: Desk):
    await desk.tractor.sync()
    _, taken = await desk.bring("batch", desk.tractor.batch("results", [b"a"]))
    [waiting] = await desk.waiting()
    assert waiting["receipt"] == taken["receipt"]
    request = desk.tractor.request()
    for _ in range(2):  # the answer got lost, and the contact came again
        _, answer = await desk.tractor.contact(request)
        assert answer["receipts"] == [taken["receipt"]]
    assert await desk.waiting()
    desk.tractor.sync_token = answer["sync_token"]
    assert not (await desk.tractor.sync()).receipts
    assert not await desk.waiting()


async def test_the_same_piece_twice_leaves_one_receipt(desk: Desk):
    batch = desk.tractor.batch("results", [b"a"])
    await desk.bring("batch", batch)
    desk.house.now_ms += 60_000
    await desk.bring("batch", batch)
    assert len(await desk.waiting()) == 1


async def test_conflicting_rows_are_kept_apart_not_receipted_and_said(desk: Desk):
    await desk.tractor.send(desk.tractor.batch("results", [b"a", b"b"]))
    _, taken = await desk.bring("batch", desk.tractor.batch("results", [b"a", b"other"], first=0))
    assert (taken["known"], taken["conflicting"], taken.get("whole", False)) == (1, 1, False)
    assert "results 1" in taken["words"]
    assert [each["last"] for each in body_of(taken["receipt"])["rows"]] == [0]
    assert await desk.house.events("conflict")


@pytest.mark.parametrize("case", ["sealed to another key", "another machine's signature", "another machine's name"])
async def test_what_was_not_sealed_and_signed_for_this_is_refused_and_nothing_of_it_is_kept(desk: Desk, case: str):
    batch = desk.tractor.batch("results", [b"a"])
    device, sealing_key = "tractor-1", desk.sealing_key
    if case == "sealed to another key":
        sealing_key = public_half(X25519PrivateKey.generate())
    elif case == "another machine's signature":
        desk.tractor.key = ec.generate_private_key(ec.SECP256R1())
        batch = desk.tractor.batch("results", [b"a"])
    else:
        await desk.house.enrol("tractor-2")
        device = "tractor-2"
    code, answer = await desk.post(piece(sealing_key, device, "batch", batch))
    assert code >= 400, answer
    assert await desk.totals() == (0, 0)


async def test_a_revoked_machine_is_refused_and_a_doubted_one_is_heard_as_online(desk: Desk):
    batch = desk.tractor.batch("results", [b"a"])
    old = desk.tractor.sync_token = (await desk.tractor.sync()).sync_token
    await desk.tractor.sync()
    desk.tractor.sync_token = old
    await desk.tractor.contact(desk.tractor.request())
    assert (await desk.shown())["set_apart"]
    assert (await desk.bring("batch", batch))[1]["fresh"] == 1
    await desk.house.must("POST", "/api/v1/devices/tractor-1/revoke", {})
    for kind, inner in (("batch", batch), ("report", signed_report(desk.tractor, report(desk.tractor, 1)))):
        code, answer = await desk.bring(kind, inner)
        assert (code, answer["reason"]) == (403, "revoked")


async def test_the_operator_token_is_asked_for(desk: Desk):
    data = piece(desk.sealing_key, "tractor-1", "batch", desk.tractor.batch("results", [b"a"]))
    assert (await desk.house.ask("POST", "/api/v1/kits/results", data=data, token="0" * 64))[0] == 401


# Reports


async def test_a_report_replaces_what_is_known_only_above_the_number_of_the_last(desk: Desk):
    await desk.tractor.sync()
    runs = VersionReport(manifest=OTHER_MANIFEST)
    assert (await desk.tell(2, report=runs))["newest"]
    assert (await desk.shown())["report"]["manifest"] == OTHER_MANIFEST
    assert not (await desk.tell(2)).get("newest", False)
    assert not (await desk.tell(1)).get("newest", False)
    assert (await desk.shown())["report"]["manifest"] == OTHER_MANIFEST


async def test_a_report_from_before_the_last_contact_replaces_nothing_whether_or_not_its_answer_came(desk: Desk):
    await desk.tractor.sync()
    old = desk.tractor.sync_token
    desk.tractor.manifest = "2" * 64
    await desk.tractor.sync(stick_number=3)
    for token in (old, desk.tractor.sync_token):
        told = await desk.tell(3, sync_token=token, report=VersionReport(manifest=OTHER_MANIFEST))
        assert not told.get("newest", False)
    assert (await desk.shown())["report"]["manifest"] == "2" * 64


async def test_reports_of_a_machine_whose_last_answer_got_lost_are_the_newest(desk: Desk):
    await desk.tractor.sync()
    lost = desk.tractor.request(stick_number=1)
    for number in (2, 3):
        await desk.tractor.contact(lost)  # and its retry; no answer came
        assert (await desk.tell(number, report=VersionReport(manifest=str(number) * 64)))["newest"]
        assert (await desk.shown())["report"]["manifest"] == str(number) * 64
    assert not (await desk.tell(3)).get("newest", False)


async def test_a_report_of_a_copy_of_the_machine_replaces_nothing(desk: Desk):
    await desk.tractor.sync()
    of_the_copy = desk.tractor.sync_token
    await desk.tractor.sync()
    await desk.tractor.sync()
    told = await desk.tell(99, sync_token=of_the_copy, report=VersionReport(manifest=OTHER_MANIFEST))
    assert not told.get("newest", False)
    assert (await desk.shown())["report"]["manifest"] is None


async def test_a_report_tells_a_server_out_of_a_backup_what_came_after_it(desk: Desk, tmp_path: Path):
    await desk.tractor.sync()
    await desk.house.stop()
    backup = tmp_path / "catalog.db.then"
    await asyncio.to_thread(shutil.copy, desk.house.state / "catalog.db", backup)
    await desk.house.start()
    await desk.tractor.sync(stick_number=4)
    await desk.tractor.sync(stick_number=5)
    await desk.house.stop()
    await asyncio.to_thread(shutil.copy, backup, desk.house.state / "catalog.db")
    await desk.house.start()
    assert (await desk.tell(6, report=VersionReport(manifest=OTHER_MANIFEST)))["newest"]
    assert (await desk.shown())["report"]["manifest"] == OTHER_MANIFEST


async def test_a_machine_that_never_had_a_contact_is_known_by_its_report(desk: Desk):
    assert (await desk.tell(1, report=VersionReport(manifest=OTHER_MANIFEST)))["newest"]
    found = await desk.shown()
    assert found["report"]["manifest"] == OTHER_MANIFEST
    assert found["last_contact_ms"] is None
    await desk.tractor.sync()
    assert not await desk.house.events("clone")


async def test_statuses_and_alerts_of_an_old_report_are_kept_once_each(desk: Desk):
    await desk.tractor.sync()
    await desk.tractor.sync()
    end = status(OTHER_MANIFEST, "kit-spring", "committed")
    alert = Alert(id="a" * 32, kind="stale-metadata", at_ms=1)
    for number in (5, 4):
        await desk.tell(number, sync_token="0" * 32, statuses=(end,), alerts=(alert,))
    await desk.tractor.sync(statuses=(end,), alerts=(alert,))
    assert len(await desk.house.events("update-committed")) == 1
    assert len(await desk.house.events("alert")) == 1


async def test_a_report_of_another_product_or_by_another_key_is_refused_and_noted(desk: Desk):
    code, answer = await desk.bring(
        "report", signed_report(desk.tractor, report(desk.tractor, 1, product="weed-detector"))
    )
    assert (code, answer["reason"]) == (403, "wrong-product")
    other = Machine(desk.house, "tractor-1")
    code, answer = await desk.bring("report", signed_report(other, report(other, 1)))
    assert (code, answer["reason"]) == (403, "signature")
    assert len(await desk.house.events("report-refused")) == 2


async def test_a_batch_is_not_taken_for_a_report_nor_the_other_way_round(desk: Desk):
    assert (await desk.bring("report", desk.tractor.batch("results", [b"a"])))[0] >= 400
    assert (await desk.bring("batch", signed_report(desk.tractor, report(desk.tractor, 1))))[0] >= 400


# Forces


def force(key: Ed25519PrivateKey, **more: object) -> SignedForce:
    fields = {
        "id": secrets.token_hex(16),
        "device": "tractor-1",
        "product": "pest-detector",
        "offer": "kit-spring",
        "release": "1.0.0",
        "manifest": OTHER_MANIFEST,
        "technician": "ada",
        "reason": "the header is off",
        "at_ms": 1,
    }
    request = encode(ForceRequest(**{**fields, **more})).decode()
    return SignedForce(request=request, signature=key.sign(FORCE_CONTEXT + request.encode()).hex())


async def test_each_force_is_one_event_however_often_and_by_whichever_way_it_is_told(desk: Desk):
    told = force(Ed25519PrivateKey.generate())
    await desk.tell(1, forces=(told,))
    await desk.tell(2, forces=(told,))
    await desk.tractor.sync(forces=(told,))
    [event] = await desk.house.events("forced")
    assert event["what"] == "pest-detector 1.0.0"
    assert "by ada: the header is off" in event["detail"]
    assert "nobody of this name" in event["detail"], "there is no list"
    assert event["reason"] == "signature"


async def test_a_force_and_the_machines_own_alert_of_it_are_one_event(desk: Desk):
    told = force(Ed25519PrivateKey.generate(), id="f" * 32)
    forced = Alert(id="f" * 32, kind="forced", at_ms=1, detail="1.0.0 by ada: the header is off")
    await desk.tractor.sync(forces=(told,), alerts=(forced, msgspec.structs.replace(forced, id="e" * 32)))
    assert len(await desk.house.events("forced")) == 1
    assert len(await desk.house.events("alert")) == 1, "one that no force was told with stands for itself"
    assert len((await desk.house.must("GET", "/api/v1/devices/tractor-1"))["alerts"]) == 2


async def test_a_force_that_is_no_request_is_noted_and_stops_nothing(desk: Desk):
    await desk.tractor.sync(forces=(SignedForce(request="{", signature="0" * 128),))
    assert "it is no request" in (await desk.house.events("forced"))[0]["detail"]
