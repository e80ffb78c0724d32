"""A technician's key, lent for one signature: real key files, a real process."""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from device.desk import lent_key
from device.desk.lent_key import KeyLent, Lent, sign
from device.kits.forcing import Challenge
from protocol.errors import LinkError, Refused, StateError
from protocol.kits import FORCE_CONTEXT, ForceRequest
from protocol.wire import decode
from signing.keyfile import generate, write_key_file

PASSPHRASE = "seven lean cows"
CHALLENGE = Challenge(
    id="1" * 32,
    at_ms=5,
    device="tractor-1",
    product="pest-detector",
    release="1.2.0",
    manifest="ab" * 32,
    offer="kit-spring",
)


@pytest.fixture
def signer():
    return generate("ed25519")


@pytest.fixture
def lent(tmp_path, signer):
    path = tmp_path / "theo.key"
    write_key_file(path, signer, PASSPHRASE, os.urandom)
    public = signer.public_key.keyval["public"]
    return Lent(
        challenge=CHALLENGE, key=path.read_text(), passphrase=PASSPHRASE, reason="harvest", names={public: "theo"}
    )


def changed(lent, **changes):
    return msgspec.structs.replace(lent, **changes)


def header(lent, **changes):
    line, _, rest = lent.key.partition("\n")
    return changed(lent, key=f"{json.dumps(json.loads(line) | changes, separators=(',', ':'))}\n{rest}")


def instead(monkeypatch, program):
    """Another program in the place of the one that signs."""
    monkeypatch.setattr(lent_key, "python_command", lambda _: (sys.executable, "-c", program))


def words_of_children():
    """Arguments and environments of the processes that sign now."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if b"lent_key" in words:
                found.append(words + (process / "environ").read_bytes())
    return found


async def test_the_right_key_signs_what_the_machine_asked(lent, signer):
    signed = await sign(lent)
    request = decode(signed.request, ForceRequest, limit=10_000)
    assert (request.id, request.device, request.offer) == (CHALLENGE.id, CHALLENGE.device, CHALLENGE.offer)
    assert (request.technician, request.reason, request.manifest) == ("theo", "harvest", CHALLENGE.manifest)
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer.public_key.keyval["public"]))
    public.verify(bytes.fromhex(signed.signature), FORCE_CONTEXT + signed.request.encode())


async def test_a_wrong_passphrase_is_said_and_not_repeated(lent):
    with pytest.raises(StateError) as said:
        await sign(changed(lent, passphrase="eight fat cows"))
    assert "passphrase" in said.value.message
    assert "cows" not in f"{said.value!r} {said.value.message} {said.value.hint}"


async def test_a_strangers_key_is_turned_away_before_it_is_opened(lent):
    with pytest.raises(Refused, match="nobody in the list"):
        await sign(changed(lent, names={}, passphrase="not even looked at"))


@pytest.mark.parametrize("key", ["", "hello", "{}\n", "-----BEGIN PRIVATE KEY-----\n", "\0" * 1000, "é"])
async def test_what_is_no_key_file_is_said_to_be_none(lent, key):
    with pytest.raises(Refused):
        await sign(changed(lent, key=key))


async def test_a_key_file_that_asks_for_a_gibibyte_gets_none(lent):
    with pytest.raises(LinkError, match="memory"):
        await sign(header(lent, n=1 << 20))
    with pytest.raises(Refused):
        await sign(header(lent, n=1 << 21))


async def test_a_process_that_is_killed_is_an_error_that_may_pass(lent, monkeypatch):
    instead(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(LinkError):
        await sign(lent)


async def test_a_process_that_takes_too_long_is_ended(lent, monkeypatch, tmp_path):
    pid = tmp_path / "pid"
    instead(monkeypatch, f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    monkeypatch.setattr(lent_key, "ANSWER_S", 1.0)
    async with asyncio.timeout(20):
        with pytest.raises(LinkError, match="too long"):
            await sign(lent)
    assert not os.path.exists(f"/proc/{pid.read_text()}")  # noqa: ASYNC240, PTH110  (of /proc: answers at once)


async def test_the_passphrase_is_in_no_argument_no_environment_and_no_log(lent, caplog):
    caplog.set_level(0)
    task = asyncio.create_task(sign(lent))
    seen = []
    while not task.done():
        seen += words_of_children()
        await asyncio.sleep(0.05)
    await task
    assert seen
    assert not [words for words in seen if b"lean" in words]
    assert "lean" not in caplog.text


def test_a_body_that_is_refused_does_not_repeat_it():
    with pytest.raises(Refused) as said:
        decode(json.dumps({"offer": "x", "key": 5, "passphrase": PASSPHRASE}).encode(), KeyLent, limit=10_000)
    assert "cows" not in said.value.message
