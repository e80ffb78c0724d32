"""O10: batches resent, reordered, altered or forged. Same bytes are kept once, other bytes are never receipted."""

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from protocol import limits
from protocol.results import BatchBody, LaneRows, Loss, SignedBatch, rows_sha256
from protocol.wire import pack, unpack
from tests.fakes.server_house import Machine, body_of, published


async def test_attack_o10_batches_resent_and_reordered_are_kept_once_each(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        one = tractor.batch("results", [b"0", b"1"])
        two = tractor.batch("results", [b"2", b"3"])
        overlap = tractor.batch("results", [b"1", b"2"], first=1)
        for batch in (two, one, overlap, two, one):
            assert (await tractor.send(batch))[0] == 200
        found = (await house.must("GET", "/api/v1/devices/tractor-1/results"))["rows"]
        assert sorted((row["seq"], row["row"]) for row in found) == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]


async def test_attack_o10_other_bytes_under_a_known_number_are_quarantined_and_never_receipted(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        assert (await tractor.send(tractor.batch("results", [b"a", b"b", b"c"])))[0] == 200
        forged = tractor.batch("results", [b"a", b"OTHER", b"c", b"d"], first=0)
        for _ in range(2):
            code, receipt = await tractor.send(forged)
            assert code == 409
            assert [(row["first"], row["last"]) for row in body_of(receipt)["rows"]] == [(0, 0), (2, 3)]
            assert body_of(receipt)["rows"][1]["rows_sha256"] == rows_sha256([b"c", b"d"])
        rows = (await house.must("GET", "/api/v1/devices/tractor-1/results"))["rows"]
        assert [row["row"] for row in rows] == ["a", "b", "c", "d"]
        shown = await house.must("GET", "/api/v1/devices/tractor-1")
        assert (shown["conflicts"], shown["ingested"]["results"]) == (1, 4)
        assert (await house.events("conflict"))[0]["what"] == "results 1"


async def test_attack_o10_a_batch_that_the_device_did_not_sign_is_refused(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        other = await house.enrol("tractor-2")
        body = BatchBody(
            device="tractor-1", epoch=tractor.epoch, lanes=(LaneRows(lane="results", first=0, rows=(b"x",)),)
        )
        stranger = Machine(house, "tractor-1")
        stranger.key = ec.generate_private_key(ec.SECP256R1())
        cases = {
            "another key": stranger.sign(body),
            "another machine's envelope": other.sign(body, device="tractor-1"),
            "another device under this certificate": other.batch("results", [b"x"], first=0),
        }
        good = unpack(tractor.sign(body), SignedBatch, limit=1 << 20)
        for place in range(0, len(good.payload), 7):
            flipped = bytearray(good.payload)
            flipped[place] ^= 1
            cases[f"bit {place}"] = pack(
                SignedBatch(
                    device=good.device,
                    body_bytes=good.body_bytes,
                    payload=bytes(flipped),
                    signature=good.signature,
                )
            )
        for name, batch in cases.items():
            code, answer = await tractor.send(batch)
            assert (code, answer["reason"] in ("signature", "wrong-device")) == (403, True), (name, answer)
        assert (await house.must("GET", "/api/v1/devices/tractor-1"))["ingested"]["results"] == 0
        assert len(await house.events("batch-refused")) == len(cases)


async def test_attack_o10_a_signed_body_for_another_device_is_refused(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        await house.enrol("tractor-2")
        code, answer = await tractor.send(tractor.batch("results", [b"x"], first=0, device="tractor-2"))
        # The envelope says who sends; `batch` put tractor-2 into both.
        assert (code, answer["reason"]) == (403, "wrong-device")
        body = BatchBody(device="tractor-2", epoch=tractor.epoch, lanes=())
        code, answer = await tractor.send(tractor.sign(body))
        assert (code, answer["reason"]) == (403, "wrong-device")


async def test_attack_o10_a_batch_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        good = unpack(tractor.batch("results", [b"x" * 1000]), SignedBatch, limit=1 << 20)
        for length in (0, good.body_bytes - 1, good.body_bytes + 1):
            lie = SignedBatch(device=good.device, body_bytes=length, payload=good.payload, signature=good.signature)
            code, answer = await tractor.send(pack(lie))
            assert (code, answer["reason"]) == (413, "length")
        code, answer = await tractor.send(b"\x00" * 100)
        assert (code, answer["reason"]) == (400, "batch")
        code, body, _ = await tractor.ask("POST", "/v1/results", b"\x00" * (2 << 20))
        assert (code, "error" in json.loads(body)) == (413, True)


async def test_attack_o10_a_lane_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        code, answer = await tractor.send(tractor.batch("gossip", [b"x"], first=0))
        assert (code, answer["reason"]) == (400, "batch")


async def test_attack_o10_numbers_that_no_row_has_are_refused_before_they_add_up_to_no_sum(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        end = limits.ROW_NUMBERS
        for first, last in ((0, end), (0, 1 << 53)):
            loss = Loss(lane="results", first=first, last=last, reason="budget", at_ms=1)
            code, answer = await tractor.send(tractor.batch("results", [], first=0, losses=[loss]))
            assert (code, answer["reason"]) == (413, "limit")
        code, answer = await tractor.send(tractor.batch("results", [b"x", b"y"], first=end - 1))
        assert (code, answer["reason"]) == (413, "limit")
        whole = Loss(lane="results", first=0, last=end - 1, reason="budget", at_ms=1)
        assert (await tractor.send(tractor.batch("results", [b"x"], first=end - 1, losses=[whole])))[0] == 200
        assert (await house.must("GET", "/api/v1/devices/tractor-1"))["lost"]["results"] == end - 1
