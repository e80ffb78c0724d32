"""O19: paths, ranges and encodings that reach for something else. A blob is 64 hexadecimal digits and nothing else."""

import gzip
import json
from pathlib import Path

import pytest

from tests.fakes.server_house import House, published

NAMES = (
    "..%2f..%2fca%2fca.key",
    "%2e%2e/ca.key",
    "..%5cca.key",
    "0" * 63,
    "0" * 65,
    "A" * 64,
    "0" * 64 + "%0a",
    "0" * 63 + "%00",
    "sha256:" + "0" * 57,
    "http:%2f%2f169.254.169.254%2f",
)


@pytest.fixture
async def names(tmp_path: Path):
    async with published(tmp_path) as house:
        yield house


async def test_attack_o19_no_name_reaches_a_file(names: House) -> None:
    tractor = await names.enrol("tractor-1")
    for name in NAMES:
        for method in ("GET", "HEAD"):
            assert (await tractor.ask(method, f"/v1/blobs/{name}"))[0] == 404, name
        assert (await names.ask("GET", f"/api/v1/blobs/{name}"))[0] == 404, name
        assert (await names.ask("PUT", f"/api/v1/blobs/{name}", data=b"x"))[0] == 404, name
    for name in ("..%2fimage%2ftimestamp.json", "1.root.json%00", ".json", "1..json", "root.json", "01.root.json"):
        assert (await tractor.ask("GET", f"/v1/tuf/image/{name}"))[0] == 404, name
    for repository in ("images", "..", "%2e%2e"):
        assert (await tractor.ask("GET", f"/v1/tuf/{repository}/timestamp.json"))[0] == 404


async def test_attack_o19_compressed_requests_are_refused_unopened(names: House) -> None:
    tractor = await names.enrol("tractor-1")
    bomb = gzip.compress(bytes(50 << 20))
    for path in ("/v1/sync", "/v1/results", "/v1/enrol", "/v1/renew"):
        for encoding in ("gzip", "deflate", "br", "zstd"):
            code, _, _ = await tractor.ask("POST", path, bomb, {"Content-Encoding": encoding})
            assert code == 415, (path, encoding)
    code, _ = await names.ask("POST", "/api/v1/publish", data=bomb, headers={"Content-Encoding": "gzip"})
    assert code == 415


async def test_attack_o19_an_address_in_a_body_is_never_followed(names: House) -> None:
    code, answer = await names.ask(
        "POST", "/api/v1/tokens", {"device": "x", "product": "pest-detector", "server": "http://169.254.169.254/"}
    )
    assert code == 400 and "unknown field" in answer["error"]


async def test_attack_o19_errors_say_nothing_of_the_server(names: House) -> None:
    tractor = await names.enrol("tractor-1")
    for path, body in (("/v1/sync", b"{"), ("/v1/nothing", b""), ("/v1/results", b"\xff")):
        _, answer, _ = await tractor.ask("POST", path, body)
        said = json.loads(answer)
        assert set(said) <= {"error", "reason", "hint"}
        assert str(names.state) not in answer.decode() and "Traceback" not in answer.decode()
