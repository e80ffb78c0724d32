"""O14: quotes, NUL and SQL in everything that a machine or a tool may write. It is text or it is refused."""

import secrets
from pathlib import Path
from urllib.parse import quote

import pytest

from protocol.messages import Alert
from tests.fakes.server_house import START_MS, published

HOSTILE = ("'; DROP TABLE devices; --", '" OR 1=1 --', "a\x00b", "%' UNION SELECT 1 --", "\U0001f69c" * 30, "../x")


@pytest.mark.parametrize("text", HOSTILE)
async def test_attack_o14_hostile_names_are_refused_and_hostile_texts_are_texts(tmp_path: Path, text: str) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        token = {"device": text, "product": "pest-detector", "groups": []}
        assert (await house.ask("POST", "/api/v1/tokens", token))[0] == 400
        assert (await house.ask("POST", "/api/v1/tokens", {**token, "device": "x", "groups": [text]}))[0] == 400
        assert (await house.ask("POST", "/api/v1/devices/tractor-1/groups", {"groups": [text]}))[0] == 400
        escaped = quote(text, safe="")
        for path in (
            f"/api/v1/devices/{escaped}",
            f"/api/v1/rollouts/{escaped}",
            f"/api/v1/devices/tractor-1/results?lane={escaped}",
            f"/api/v1/devices/tractor-1/results?after={escaped}",
            f"/api/v1/tuf/image/{escaped}",
            f"/api/v1/blobs/{escaped}",
        ):
            assert (await house.ask("GET", path))[0] in (400, 404, 409), path
        assert (await house.ask("GET", f"/api/v1/releases?product={escaped}"))[1] == {"releases": []}

        told = Alert(id=secrets.token_hex(16), kind="refused-metadata", at_ms=START_MS, detail=text)
        await tractor.sync(alerts=[told])
        assert (await tractor.send(tractor.batch("results", [text.encode()])))[0] == 200
        shown = await house.must("GET", "/api/v1/devices/tractor-1")
        assert shown["alerts"][0]["detail"] == text
        rows = (await house.must("GET", "/api/v1/devices/tractor-1/results"))["rows"]
        assert rows[0]["row"] == text
        assert "\x00" not in str(await house.events())
        assert (await house.must("GET", "/api/v1/status"))["devices"]["total"] == 1
