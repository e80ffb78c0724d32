"""`init` and the parts that are made at start: complete, once, never replacing a key."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from protocol.errors import SettingsError, StateError
from server.ca import Authority, ensure_server_certificate
from server.cli import main
from server.clock import as_datetime
from server.founding import (
    FirstAnswers,
    Layout,
    found,
    hold,
    open_layout,
    write_operator_ca,
    write_operator_url,
)
from server.notify import Notifier
from server.settings import read_settings
from signing import durable
from signing.online_keys import parse_online_keys
from tests.fakes.server_house import START_MS, no_secret, published

ANSWERS = FirstAnswers("127.0.0.1", 0, ("farm.example", "127.0.0.1"), "127.0.0.1", 0)


def init(state: Path, now_ms: int = START_MS) -> None:
    found(state, ANSWERS, lambda: now_ms, no_secret)


def content(state: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(state)): path.read_bytes()
        for path in sorted(state.rglob("*"))
        if path.is_file() and not path.name.startswith("catalog.db")
    }


def test_init_makes_everything_once_and_again_changes_nothing(tmp_path: Path) -> None:
    init(tmp_path)
    before = content(tmp_path)
    assert {"ca/ca.key", "ca/ca.pem", "tls/server.key", "operator.json", "online-keys.json", "server.toml"} <= set(
        before
    )
    init(tmp_path, START_MS + 1000)
    assert content(tmp_path) == before


def test_init_beside_a_running_server_disturbs_neither_what_it_writes_nor_its_catalog(tmp_path: Path) -> None:
    init(tmp_path)
    half = tmp_path / "keys" / f"{durable.TEMPORARY_PREFIX}half"
    half.write_bytes(b"half")
    (tmp_path / "operator.json").unlink()
    with hold(Layout(tmp_path)):
        init(tmp_path)
        assert half.exists()
        assert (tmp_path / "operator.json").exists()
        (tmp_path / "catalog.db").unlink()
        with pytest.raises(StateError, match=r"catalog\.db is missing"):
            init(tmp_path)
    init(tmp_path)
    assert not half.exists()
    assert (tmp_path / "catalog.db").exists()


def test_init_brings_back_what_is_missing_and_keeps_the_rest(tmp_path: Path) -> None:
    init(tmp_path)
    before = content(tmp_path)
    for name in ("online-keys.json", "tls/server.pem", "operator.json", "keys/director.clock.pem"):
        (tmp_path / name).unlink()
    init(tmp_path)
    after = content(tmp_path)
    assert set(after) == set(before)
    assert after["ca/ca.key"] == before["ca/ca.key"]
    assert after["keys/image.timestamp.pem"] == before["keys/image.timestamp.pem"]
    old, new = (parse_online_keys(each["online-keys.json"]) for each in (before, after))
    assert old["image"]["timestamp"].keyid == new["image"]["timestamp"].keyid
    assert old["director"]["clock"].keyid != new["director"]["clock"].keyid


@pytest.mark.parametrize("edited", [b"", b"null", b'{"url": "https://typo', b"\xff"])
def test_an_operator_file_that_was_edited_wrong_stops_no_server_and_is_made_anew(tmp_path: Path, edited: bytes) -> None:
    init(tmp_path)
    layout = open_layout(tmp_path)
    layout.operator.write_bytes(edited)
    write_operator_url(layout, "https://farm.example:8444")
    write_operator_ca(layout, "another")
    assert layout.operator.read_bytes() == edited
    init(tmp_path)
    assert json.loads(layout.operator.read_bytes())["token"]


def test_the_exported_keys_are_those_of_the_files_one_a_role(tmp_path: Path) -> None:
    init(tmp_path)
    keys = parse_online_keys((tmp_path / "online-keys.json").read_bytes())
    assert {repository: sorted(roles) for repository, roles in keys.items()} == {
        "image": ["snapshot", "timestamp"],
        "director": ["assignments", "clock", "receipts", "snapshot", "timestamp"],
    }


def test_the_servers_certificate_names_all_names_and_is_renewed_in_time(tmp_path: Path) -> None:
    authority = Authority.make(as_datetime(START_MS))
    now = as_datetime(START_MS)

    def made() -> bytes:
        return (tmp_path / "server.pem").read_bytes()

    ensure_server_certificate(authority, tmp_path, ("farm.example", "10.0.0.1"), now)
    first = made()
    names = x509.load_pem_x509_certificate(first).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["farm.example"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    ensure_server_certificate(authority, tmp_path, ("farm.example", "10.0.0.1"), now + timedelta(days=400))
    assert made() == first
    ensure_server_certificate(authority, tmp_path, ("farm.example", "10.0.0.1"), now + timedelta(days=420))
    second = made()
    assert second != first
    ensure_server_certificate(authority, tmp_path, ("other.example",), now + timedelta(days=600))
    third = made()
    assert third != second
    ensure_server_certificate(Authority.make(now), tmp_path, ("other.example",), now + timedelta(days=600))
    assert made() != third


def test_a_wrong_setting_is_refused_with_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    init(tmp_path)
    path = tmp_path / "server.toml"
    path.write_text(path.read_text() + "polls_s = 3\n")
    with pytest.raises(
        SettingsError, match=r"server.toml, line \d+: unknown key 'polls_s' in \[contact\]; did you mean 'poll_s'"
    ):
        read_settings(tmp_path)
    path.write_bytes(b"# caf\xe9\n")
    with pytest.raises(SettingsError, match=r"server\.toml: cannot be read as text"):
        read_settings(tmp_path)
    path.write_text('[online_keys."director.clocks"]\nuri = "hsm:2"\npublic = "x"\n')
    with pytest.raises(SettingsError, match=r"director\.clocks"):
        init(tmp_path)
    path.write_text('[online_keys."director.clock"]\nuri = "hsm:2"\npublic = "/nowhere.json"\n')
    with pytest.raises(SettingsError, match=r"director\.clock "):
        init(tmp_path)


def test_an_online_key_may_live_elsewhere(tmp_path: Path) -> None:
    init(tmp_path)
    keys = json.loads((tmp_path / "online-keys.json").read_bytes())
    elsewhere = tmp_path / "vault.pem"
    (tmp_path / "keys" / "director.clock.pem").rename(elsewhere)
    public = tmp_path / "clock.json"
    public.write_text(json.dumps(keys["director"]["clock"]))
    path = tmp_path / "server.toml"
    path.write_text(f'[online_keys."director.clock"]\nuri = "file2:{elsewhere}"\npublic = "{public}"\n')
    init(tmp_path)
    assert json.loads((tmp_path / "online-keys.json").read_bytes()) == keys
    assert not (tmp_path / "keys" / "director.clock.pem").exists()


def test_a_folder_that_is_no_server_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="is not a server's state folder"):
        open_layout(tmp_path)
    result = CliRunner().invoke(main, ["status", "--state", str(tmp_path)])
    assert result.exit_code == StateError.exit_code
    assert "hint:" in result.output


def test_status_of_a_stopped_server_is_read_from_its_catalog(tmp_path: Path) -> None:
    init(tmp_path)
    result = CliRunner().invoke(main, ["status", "--state", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert (said["listening"], said["devices"]["total"], said["repositories"]["image"]) == (None, 0, {})
    assert "not running" in CliRunner().invoke(main, ["status", "--state", str(tmp_path)]).output


def test_a_command_that_looks_makes_no_catalog_where_there_is_none(tmp_path: Path) -> None:
    init(tmp_path)
    (tmp_path / "catalog.db").unlink()
    result = CliRunner().invoke(main, ["status", "--state", str(tmp_path)])
    assert result.exit_code == StateError.exit_code
    assert "catalog.db is missing" in result.output
    assert not (tmp_path / "catalog.db").exists()


def test_the_notifier_speaks_systemds_datagrams_and_is_silent_without_it(tmp_path: Path) -> None:
    Notifier({}).say("READY=1")
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(path)
        channel.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000"})
        notifier.say("READY=1")
        assert channel.recv(100) == b"READY=1"
        assert notifier.watchdog_s == 30.0


def test_the_process_tells_where_it_listens_and_stops_at_sigterm(tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = [sys.executable, "-m", "server.cli"]
    done = subprocess.run(
        [*command, "init", "--state", str(state), "--device-port", "0", "--operator-port", "0", "--json"],
        capture_output=True,
        timeout=60,
        check=True,
    )
    token = json.loads(Path(json.loads(done.stdout)["operator"]).read_bytes())["token"]
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(path)
        channel.settimeout(30)
        process = subprocess.Popen(
            [*command, "run", "--state", str(state)],
            env={**os.environ, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"},
            stderr=subprocess.PIPE,
        )
        try:
            assert channel.recv(100) == b"READY=1"
            assert channel.recv(100) == b"WATCHDOG=1"
            urls = json.loads((state / "run.json").read_bytes())
            assert urls["device_url"].startswith("https://localhost:")
            assert json.loads((state / "operator.json").read_bytes())["url"] == urls["operator_url"]
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
            assert process.returncode == 0
            assert time.monotonic() - started < 10
            assert token.encode() not in log
            assert not (state / "run.json").exists()
        finally:
            process.kill()
            process.wait(timeout=10)


def test_a_second_server_on_the_same_folder_is_refused_whatever_its_ports(tmp_path: Path) -> None:
    init(tmp_path)
    with hold(open_layout(tmp_path)):
        before = content(tmp_path)
        result = subprocess.run(
            [sys.executable, "-m", "server.cli", "run", "--state", str(tmp_path), "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == StateError.exit_code
        assert "another server runs on" in json.loads(result.stdout)["error"]
        assert "hint:" in result.stderr
        assert content(tmp_path) == before
    with hold(open_layout(tmp_path)):
        pass


@pytest.mark.parametrize("name", ["a b", "https://farm.example", "farm.example:8443", ""])
def test_a_wrong_answer_at_init_leaves_nothing_that_the_next_answer_could_not_change(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="neither a host name nor an IP address"):
        found(tmp_path, FirstAnswers("127.0.0.1", 0, (name,), "127.0.0.1", 0), lambda: START_MS, no_secret)
    with pytest.raises(SettingsError):
        found(tmp_path, FirstAnswers("127.0.0.1", 99999, ("a",), "127.0.0.1", 0), lambda: START_MS, no_secret)
    init(tmp_path)
    assert read_settings(tmp_path).devices.names == ANSWERS.names


def test_a_taken_port_is_said_in_words(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answers = FirstAnswers("127.0.0.1", port, ("localhost",), "127.0.0.1", 0)
        found(tmp_path, answers, lambda: START_MS, no_secret)
        result = subprocess.run(
            [sys.executable, "-m", "server.cli", "run", "--state", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == StateError.exit_code
    assert f"port {port}: Address already in use" in result.stderr
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stderr


async def test_an_empty_catalog_where_there_was_a_full_one_takes_no_results_until_a_person_says_so(tmp_path):
    async with published(tmp_path) as house:
        await house.stop()
        await asyncio.to_thread((house.state / "catalog.db").unlink)
        for _ in range(2):
            with pytest.raises(StateError, match="it had another one") as caught:
                await house.start()
            assert "restore" in caught.value.hint
        done = await asyncio.to_thread(CliRunner().invoke, main, ["init", "--state", str(house.state)])
        assert done.exit_code == 0, done.output
        await house.start()
        _, status = await house.ask("GET", "/api/v1/status")
        assert status["restored"]["how"].startswith("the catalog counts 0 of")


async def test_a_lost_tls_folder_is_made_anew_and_lost_online_keys_are_asked_for_from_the_backup(tmp_path):
    async with published(tmp_path) as house:
        await house.stop()
        await asyncio.to_thread(shutil.rmtree, house.state / "tls")
        await house.start()
        await house.stop()
        await asyncio.to_thread(shutil.rmtree, house.state / "keys")
        with pytest.raises(SettingsError, match="is missing") as caught:
            await house.start()
        assert "backup" in caught.value.hint
