"""O17: the operator's token. It rides in a header only, expires, and cannot sign releases, whoever steals it."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from tuf.api.metadata import Metadata, Targets

from device.enrol import read_token
from protocol.wire import encode
from server.founding import FirstAnswers, found
from signing.repository import ROOT_FILE
from tests.fakes.server_house import START_MS, House, Machine, client_context, make_manifest, no_secret, published


async def raw(house: House, path: str, headers: dict[str, str]) -> int:
    context = client_context(house.ca_pem)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.get(house.running.operator_url + path, headers=headers) as answer,
    ):
        return answer.status


async def test_attack_o17_a_cookie_or_a_query_carries_no_right(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        assert await raw(house, "/api/v1/status", {"Authorization": f"Bearer {house.token}"}) == 200
        for path, headers in (
            ("/api/v1/status", {}),
            ("/api/v1/status", {"Cookie": f"token={house.token}; Authorization=Bearer {house.token}"}),
            (f"/api/v1/status?token={house.token}&access_token={house.token}", {}),
            ("/api/v1/status", {"Authorization": f"Basic {house.token}"}),
            ("/api/v1/status", {"Authorization": "Bearer "}),
        ):
            assert await raw(house, path, headers) == 401, (path, headers)


async def test_attack_o17_no_answer_opens_itself_to_a_foreign_origin(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        context = client_context(house.ca_pem)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            url = house.running.operator_url + "/api/v1/status"
            foreign = {"Origin": "https://evil.example", "Authorization": f"Bearer {house.token}"}
            for method in ("GET", "OPTIONS"):
                async with session.request(method, url, headers=foreign) as answer:
                    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
                    assert "Set-Cookie" not in answer.headers


async def test_attack_o17_guessing_tokens_is_slowed_down(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        codes = [(await house.ask("GET", "/api/v1/status", token=f"guess-{number}"))[0] for number in range(22)]
        assert codes == [401] * 20 + [429] * 2


async def test_attack_o17_who_guesses_from_a_shared_address_locks_nobody_out(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        for number in range(30):
            await house.ask("GET", "/api/v1/status", token=f"guess-{number}")
        assert (await house.ask("GET", "/api/v1/status"))[0] == 200


async def test_attack_o17_a_token_that_is_no_text_is_refused_and_nothing_fails(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        context = await asyncio.to_thread(client_context, house.ca_pem)
        port = urlsplit(house.running.operator_url).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        writer.write(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer gu\xffess\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def test_attack_o17_a_token_ends_after_its_year(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        house.now_ms += 366 * 86_400_000
        assert (await house.ask("GET", "/api/v1/status"))[0] == 401


async def test_attack_o17_operator_and_device_doors_do_not_mix(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        code, _, _ = await tractor.ask("GET", "/api/v1/status", headers={"Authorization": f"Bearer {house.token}"})
        assert code == 404
        assert (await house.ask("GET", "/v1/tuf/image/timestamp.json"))[0] == 404


async def test_attack_o17_a_token_made_for_one_door_opens_no_other(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        sync_token = (await tractor.sync()).sync_token
        enrolment = await house.make_token("tractor-2")
        secret = read_token(enrolment).secret
        for token in (enrolment, secret, sync_token):
            assert (await house.ask("GET", "/api/v1/status", token=token))[0] == 401
        stranger = Machine(house, "tractor-2")
        for token in (house.token, sync_token):
            code, answer = await stranger.enrol(token)
            assert (code, answer["reason"]) == (403, "token")
        assert (await stranger.enrol(enrolment))[0] == 200, "the right token at the right door"


async def test_attack_o17_who_holds_all_of_the_server_still_cannot_publish_a_release(tmp_path: Path) -> None:
    """The operator's token and every online key together sign nothing that is taken, and downgrade nothing."""
    async with published(tmp_path) as house:
        await house.release("1.0.0", 1, [b"model"])
        old = house.managers.image.files()
        await house.release("1.1.0", 2, [b"better"])
        before = (await house.must("GET", "/api/v1/status"))["repositories"]
        manifest = encode(make_manifest("6.6.6", 666, [b"evil"]))
        await house.put_blobs(b"evil", manifest)
        evil: Metadata[Targets] = Metadata.from_bytes(
            house.managers.release("6.6.6", 666, manifest, by=(), publish=False)
        )
        for roles in house.managers.online.values():
            for signer in roles.values():
                evil.sign(signer, append=True)
        downgraded = {name: data for name, data in old.items() if not ROOT_FILE.match(name)}
        for files, reason in (
            ({"pest-detector.json": evil.to_bytes()}, "signature"),
            (
                {"pest-detector.json": house.managers.release("6.6.6", 666, manifest, by=("alice",), publish=False)},
                "signature",
            ),
            (downgraded, "rollback"),
        ):
            code, answer = await house.push({"image": files})
            assert (code >= 400, answer["reason"]) == (True, reason)
        assert (await house.must("GET", "/api/v1/status"))["repositories"] == before
        code, answer = await house.ask(
            "POST", "/api/v1/rollouts", {"name": "evil", "product": "pest-detector", "release": "6.6.6", "group": "all"}
        )
        assert code == 409, answer
        assert [event["reason"] for event in await house.events("publish-refused")] == [
            "signature",
            "signature",
            "rollback",
        ]


def test_attack_o17_secrets_on_disk_are_for_their_owner_only(tmp_path: Path) -> None:
    layout = found(
        tmp_path / "server", FirstAnswers("127.0.0.1", 0, ("localhost",), "127.0.0.1", 0), lambda: START_MS, no_secret
    )
    secrets = [layout.operator, layout.ca / "ca.key", layout.tls / "server.key", *layout.keys.iterdir()]
    secrets.append(layout.state / "catalog.db")
    assert len(secrets) == 4 + 7 + 1  # online keys, and the one that opens sealed results
    for path in (*secrets, layout.state, layout.keys, layout.ca):
        assert path.stat().st_mode & 0o077 == 0, path
