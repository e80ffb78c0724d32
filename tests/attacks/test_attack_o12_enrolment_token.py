"""O12: a stolen, guessed, old or misdirected enrolment token gives nobody a certificate."""

import base64
import json
from pathlib import Path

import msgspec

from protocol.messages import EnrolRequest, TokenContent
from protocol.wire import encode
from server.tokens import read_token, render_token
from tests.fakes.server_house import Machine, make_csr, published


async def test_attack_o12_a_used_token_gives_another_key_nothing(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        token = await house.make_token("tractor-1")
        honest, thief = Machine(house, "tractor-1"), Machine(house, "tractor-1")
        assert (await honest.enrol(token))[0] == 200
        code, answer = await thief.enrol(token)
        assert (code, answer["reason"]) == (403, "token")
        assert (await honest.sync()).generation
        assert (await house.events("enrolment-refused"))[0]["device"] == "tractor-1"


async def test_attack_o12_the_same_key_may_ask_again_after_a_lost_answer(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        token = await house.make_token("tractor-1")
        machine = Machine(house, "tractor-1")
        _, first = await machine.enrol(token)
        again = Machine(house, "tractor-1")
        again.key = machine.key
        code, second = await again.enrol(token)
        assert (code, second["certificate_pem"]) == (200, first["certificate_pem"])
        await house.must("POST", "/api/v1/devices/tractor-1/revoke", {})
        late = Machine(house, "tractor-1")
        late.key = machine.key
        code, answer = await late.enrol(token)
        assert (code, answer["reason"]) == (403, "revoked")


async def test_attack_o12_a_token_for_another_device_or_after_its_day_is_refused(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        token = await house.make_token("tractor-1")
        code, answer = await Machine(house, "tractor-2").enrol(token)
        assert (code, answer["reason"]) == (403, "token")
        renamed = render_token(msgspec.structs.replace(read_token(token), device="tractor-2"))
        code, answer = await Machine(house, "tractor-2").enrol(renamed)
        assert (code, answer["reason"]) == (403, "token")
        house.now_ms += 24 * 3_600_000
        code, answer = await Machine(house, "tractor-1").enrol(token)
        assert (code, "expired" in answer["error"]) == (403, True)


async def test_attack_o12_guessing_is_slowed_down(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        real = read_token(await house.make_token("tractor-1"))
        codes = []
        for number in range(12):
            guess = render_token(msgspec.structs.replace(real, secret=f"guess-{number}"))
            codes.append((await Machine(house, "tractor-1").enrol(guess))[0])
        assert codes == [403] * 10 + [429] * 2
        # Even the right one waits now: a guesser must not learn that the last guess was good.
        assert (await Machine(house, "tractor-1").enrol(render_token(real)))[0] == 429


async def test_attack_o12_secrets_are_not_at_rest(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        token = await house.make_token("tractor-1")
        secret = read_token(token).secret
        operator = house.token
        await house.stop()
        for path in house.state.glob("catalog.db*"):
            data = path.read_bytes()
            assert secret.encode() not in data and operator.encode() not in data
        await house.start()


async def test_attack_o12_a_request_for_somebody_elses_name_or_key_is_refused(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        token = await house.make_token("tractor-1")
        machine = Machine(house, "tractor-1")
        for csr in (make_csr(machine.key, "tractor-2"), "no request", ""):
            body = EnrolRequest(token=token, device="tractor-1", csr_pem=csr)
            code, answer, _ = await machine.ask("POST", "/v1/enrol", encode(body))
            assert (code, json.loads(answer)["reason"]) == (403, "certificate")
        assert (await machine.enrol(token))[0] == 200


async def test_attack_o12_an_older_certificate_of_an_enrolled_again_machine_is_a_strangers(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        old = await house.enrol("tractor-1")
        new = await house.enrol("tractor-1")
        code, answer = await old.contact(old.request())
        assert (code, answer["reason"]) == (403, "certificate")
        assert (await new.sync()).generation


async def test_attack_o12_a_revoked_machine_is_turned_away_at_every_door(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        machine = await house.enrol("tractor-1")
        await house.must("POST", "/api/v1/devices/tractor-1/revoke", {})
        for method, path in (
            ("GET", "/v1/tuf/image/timestamp.json"),
            ("GET", f"/v1/blobs/{'0' * 64}"),
            ("POST", "/v1/sync"),
            ("POST", "/v1/results"),
            ("POST", "/v1/renew"),
        ):
            code, answer, _ = await machine.ask(method, path, b"{}")
            assert (code, json.loads(answer)["reason"]) == (403, "revoked"), path


async def test_attack_o12_without_a_certificate_nothing_but_enrolment_is_open(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        stranger = Machine(house, "tractor-1")
        for method, path in (
            ("GET", "/v1/tuf/image/timestamp.json"),
            ("GET", f"/v1/blobs/{'0' * 64}"),
            ("POST", "/v1/sync"),
            ("POST", "/v1/results"),
            ("POST", "/v1/renew"),
        ):
            code, answer, _ = await stranger.ask(method, path, b"{}")
            assert (code, json.loads(answer)["reason"]) == (403, "certificate"), path


async def test_attack_o12_an_expired_certificate_may_renew_and_nothing_else(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        machine = await house.enrol("tractor-1")
        house.now_ms += 731 * 86_400_000
        code, answer = await machine.contact(machine.request())
        assert (code, answer["reason"]) == (403, "certificate")
        thief = Machine(house, "tractor-1")
        for key, expected in ((thief.key, 403), (machine.key, 200)):
            body = json.dumps({"csr_pem": make_csr(key, "tractor-1")}).encode()
            code, answer, _ = await machine.ask("POST", "/v1/renew", body)
            assert code == expected, answer
        machine.use(json.loads(answer)["certificate_pem"])
        assert (await machine.contact(machine.request()))[0] == 200


async def test_attack_o12_a_renewal_without_a_certificate_is_for_the_machines_own_key_alone(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        machine = await house.enrol("tractor-1")
        bare = Machine(house, "tractor-1")  # another key, and no certificate
        for csr in (make_csr(bare.key, "tractor-1"), make_csr(bare.key, "tractor-9"), "nonsense"):
            code, answer, _ = await bare.ask("POST", "/v1/renew", json.dumps({"csr_pem": csr}).encode())
            assert (code, json.loads(answer)["reason"]) == (403, "certificate")
        own = json.dumps({"csr_pem": make_csr(machine.key, "tractor-1")}).encode()
        code, answer, _ = await bare.ask("POST", "/v1/renew", own)
        assert code == 200
        bare.use("")  # whoever repeats the request gets a certificate, and cannot use it without the key
        await house.must("POST", "/api/v1/devices/tractor-1/revoke", {})
        code, answer, _ = await bare.ask("POST", "/v1/renew", own)
        assert (code, json.loads(answer)["reason"]) == (403, "revoked")
        for _ in range(60):
            code, _, _ = await bare.ask("POST", "/v1/renew", b"{}")
        assert code == 429


def test_attack_o12_what_is_no_token_is_refused() -> None:
    from protocol.errors import Refused

    for text in (
        "",
        "HL1.",
        "HL2.abc",
        "HL1.!!!",
        "HL1." + base64.urlsafe_b64encode(b"[]").decode(),
        "HL1." + "A" * 99999,
    ):
        try:
            read_token(text)
        except Refused as refused:
            assert refused.reason == "token"
        else:
            raise AssertionError(text)
    content = TokenContent(
        server="https://x:1",
        secret="s",
        device="tractor-1",
        product="pest-detector",
        ca_sha256="0" * 64,
        image_root_sha256="1" * 64,
        director_root_sha256="2" * 64,
    )
    assert read_token(render_token(content)) == content
