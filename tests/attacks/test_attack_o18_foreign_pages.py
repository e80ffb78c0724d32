"""O18: forms of foreign pages, and script in a machine's words. JSON is required in, nothing is a page out."""

import secrets
from pathlib import Path

from protocol.messages import Alert
from tests.fakes.server_house import START_MS, published

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "")


async def test_attack_o18_a_form_changes_nothing_even_with_the_right_token(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        await house.enrol("tractor-1")
        for path in (
            "/api/v1/publish",
            "/api/v1/tokens",
            "/api/v1/rollouts",
            "/api/v1/devices/tractor-1/revoke",
            "/api/v1/devices/tractor-1/groups",
            "/api/v1/devices/tractor-1/readmit",
        ):
            for kind in FORMS:
                code, _ = await house.ask("POST", path, data=b"{}", headers={"Content-Type": kind})
                assert code == 415, (path, kind)
        assert not (await house.must("GET", "/api/v1/devices/tractor-1"))["revoked"]


async def test_attack_o18_script_in_a_machines_words_stays_data(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        script = "<script>alert(1)</script><svg onload=alert(2)>"
        await tractor.sync(alerts=[Alert(id=secrets.token_hex(16), kind="a", at_ms=START_MS, detail=script)])
        code, _, headers = await tractor.ask("GET", f"/v1/tuf/image/{script.replace('/', '%2f')}")
        assert code == 404
        assert headers["Content-Type"].startswith("application/json")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        shown = await house.must("GET", "/api/v1/devices/tractor-1")
        assert shown["alerts"][0]["detail"] == script
