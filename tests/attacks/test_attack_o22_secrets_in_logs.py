"""O22 on the machine: neither a token's secret nor a private key is in what the machine prints, logs or reports."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

from device import identity
from device.identity import Enrolment
from device.layout import Layout
from protocol.messages import TokenContent
from protocol.wire import encode

SECRET = "very-secret-words-of-one-token"
BIN = Path(sys.executable).parent


def token() -> str:
    content = TokenContent(
        server="https://127.0.0.1:9",
        secret=SECRET,
        device="tractor-1",
        product="pest-detector",
        ca_sha256="0" * 64,
        image_root_sha256="0" * 64,
        director_root_sha256="0" * 64,
    )
    return "HL1." + base64.urlsafe_b64encode(encode(content)).decode().rstrip("=")


def everything(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(BIN / "headland-device"), *command],
        capture_output=True,
        timeout=60,
        env=os.environ | (env or {}),
        check=False,
    )
    return (done.stdout + done.stderr).decode()


def test_attack_o22_a_token_that_does_not_work_is_not_repeated(tmp_path):
    text = token()
    for arguments in (("--token", text[:-9] + "!"), ("--token", text, "--json")):
        said = everything("enroll", "--state", str(tmp_path / "m"), *arguments)
        assert "error" in said
        assert SECRET not in said
        assert text[4:60] not in said


def test_attack_o22_a_token_need_not_stand_on_the_command_line(tmp_path):
    said = everything("enroll", "--state", str(tmp_path / "m"), env={"HEADLAND_TOKEN": token()})
    assert "https://127.0.0.1:9" in said or "/v1/ca" in said
    assert SECRET not in said


def test_attack_o22_no_record_shows_a_private_key(tmp_path):
    layout = Layout(tmp_path)
    layout.identity.mkdir()
    identity.keep_key(layout.identity / "key.pem")
    (layout.identity / "enrolment.json").write_bytes(
        encode(Enrolment(server="https://x", device="tractor-1", product="pest-detector"))
    )
    pem = (layout.identity / "key.pem").read_text().splitlines()[1]
    who = identity.load(layout.identity)
    number = str(who.key.private_numbers().private_value)
    for said in (repr(who), str(who), everything("status", "--state", str(tmp_path))):
        assert pem not in said
        assert number not in said
    said = everything("run", "--state", str(tmp_path), "--log-level", "debug")
    assert "device.toml" in said
    assert pem not in said
    assert json.dumps(pem)[1:-1] not in said
