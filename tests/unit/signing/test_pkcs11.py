"""A manager whose key is in a PKCS#11 token: SoftHSM stands for the hardware."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.managers_tool import ManagersTool

PIN = "987654321"
LABEL = "headland test"


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A token with one P-256 key; its URI."""
    modules = [*Path("/usr/lib/softhsm").glob("*.so"), *Path("/usr/lib").glob("*/softhsm/libsofthsm2.so")]
    module = next((str(path) for path in modules), None)
    if module is None:
        pytest.skip("SoftHSM is not installed: apt-get install softhsm2 (scripts/test-setup does, as root)")
    pkcs11: Any = pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed: pip install 'headland[hsm]'")
    from pkcs11.util.ec import encode_named_curve_parameters

    (tmp_path / "tokens").mkdir()
    config = tmp_path / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(config))
    monkeypatch.setenv("PYKCS11LIB", module)
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--so-pin", PIN, "--pin", PIN],
        check=True,
        capture_output=True,
        timeout=30,
    )
    library = pkcs11.lib(module)
    library.reinitialize()  # it read the tokens of whoever asked first in this process
    with library.get_token(token_label=LABEL).open(rw=True, user_pin=PIN) as session:
        curve = session.create_domain_parameters(
            pkcs11.KeyType.EC,
            {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
            local=True,
        )
        curve.generate_keypair(store=True, id=b"\x02", label="release key")
    return "hsm:2?label=headland+test"


def test_a_release_is_signed_by_a_key_that_never_left_its_token(tmp_path: Path, token: str) -> None:
    tool = ManagersTool(tmp_path)
    tool.run("keys", "add", "alice")
    added = tool.run("keys", "add", "bob", "--uri", token)
    assert added["scheme"] == "ecdsa-sha2-nistp256"
    tool.run("keys", "init", "--product", "pest-detector", "--threshold", 2, "--server", tool.operator_json)
    tool.sign("alice")
    tool.passphrase.write_text(f"{PIN}\n")
    tool.sign("bob")
    tool.push()
    tool.build("1.0.0", 1)
    tool.sign("bob")
    tool.passphrase.write_text("correct horse battery\n")
    tool.sign("alice")
    tool.push()
    assert tool.run("release", "show", "1.0.0")["signed_by"] == ["alice", "bob"]


def test_a_wrong_pin_is_told_and_nothing_is_signed(tmp_path: Path, token: str) -> None:
    tool = ManagersTool(tmp_path)
    tool.run("keys", "add", "bob", "--uri", token)
    tool.run("keys", "init", "--product", "pest-detector", "--server", tool.operator_json)
    tool.passphrase.write_text("123456789\n")
    said = tool.fail("keys", "sign", "--as", "bob", "--yes", code=6)
    assert "could not sign" in said
    tool.fail("release", "push", code=4)
