"""The command: what a technician sees, what a program gets, and how each error comes out."""

import fcntl
import json
import os
import time
import tomllib
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from device import agent, identity
from device.accounts import Ledger
from device.agent import held
from device.cli import main
from device.clock import now_here
from device.contact import ContactRecord
from device.day import Day
from device.hardware import agent_version
from device.identity import Enrolment
from device.inference.pump import PumpNumbers
from device.inference.workers import ModelStatus, WorkersStatus
from device.layout import Layout
from device.outbox.box import Outbox
from device.refusals import Refusal
from device.settings import DeviceSettings, load
from device.shown import update_line
from device.state_db import StateDb
from device.status import AgentStatus, UpdateNow, blank_status, read_agent_status, write_status
from device.transfer.patch_book import PatchBook
from device.update.states import Ended, Held, Offer, State, UpdateRecord
from protocol.errors import Reason, SettingsError, StateError
from protocol.messages import Alert, Counters, FailedPatch, TransferBytes
from protocol.wire import encode

DIGEST = "ab" * 32


def command(*arguments: object, code: int = 0):
    done = CliRunner().invoke(main, [str(part) for part in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture
async def machine(tmp_path) -> Layout:
    """A state folder as an agent leaves it."""
    layout = Layout(tmp_path / "machine")
    layout.identity.mkdir(parents=True)
    layout.run.mkdir()
    identity.keep_key(layout.identity / "key.pem")
    enrolment = Enrolment(server="https://farm:8443", device="tractor-1", product="pest-detector")
    (layout.identity / "enrolment.json").write_bytes(encode(enrolment))
    state = StateDb(layout.state_db)
    held = Held(digest=DIGEST, version="1.1.0", release_counter=7)
    failed = Held(digest="cd" * 32, version="1.2.1", release_counter=9)
    ended = Ended(
        release=failed,
        rollout="r",
        outcome="rolled-back",
        reason=Reason.TRIAL_LATENCY,
        detail="980 ms where 250 may be",
    )
    state.write_record(
        UpdateRecord(active=DIGEST, committed=held, last=ended),
        refusal=Refusal(manifest=failed.digest, release="1.2.1", reason=Reason.TRIAL_LATENCY, at_ms=1, detail="slow"),
    )
    state.add_alert(Alert(id="0" * 32, kind="stale-metadata", at_ms=1, reason=Reason.EXPIRED))
    state.count("bytes_received", 12345)
    state.count("frames_inferred", 20)
    state.put("contact", encode(ContactRecord(last_ms=1_790_000_000_000)))
    state.close()
    box = await Outbox.opened(
        layout.outbox_db, "tractor-1", budget_bytes=1 << 20, now_ms=lambda: 0, draw_token=lambda: "e" * 32
    )
    for number in range(5):
        await box.enqueue("results", b"row %d" % number)
    await box.close()
    return layout


def test_status_without_the_agent_is_read_from_the_databases(machine):
    status = json.loads(command("status", "--state", machine.state, "--json").stdout)
    assert status["running"] is False
    assert (status["device"], status["product"]) == ("tractor-1", "pest-detector")
    assert status["release"] == {"version": "1.1.0", "manifest": DIGEST, "release_counter": 7}
    assert status["last_update"]["reason"] == "trial-latency"
    assert status["lanes"]["results"] == {"produced": 5, "queued": 5, "receipted": 0, "lost": 0}
    assert status["results_produced"] == 5
    assert (status["bytes_received"], status["frames_inferred"]) == (12345, 20)
    assert status["contact"]["last_ms"] == 1_790_000_000_000
    assert status["alerts"][0]["kind"] == "stale-metadata"
    assert status["refusals"][0]["release"] == "1.2.1"


def test_the_status_tells_what_travelled_and_what_may(machine):
    state = StateDb(machine.state_db)
    spent = TransferBytes(delta_bytes=4000, full_bytes=50, saved_bytes=9000)
    ledger = Ledger(
        day=Day(date=20_000, boot_id=now_here().boot_id, boot_ms=now_here().boot_ms, lasted_ms=5),
        day_bytes={"cellular": 4050, "wifi": 1},
        releases={DIGEST: spent, "ef" * 32: TransferBytes(delta_bytes=123)},
    )
    state.count_all({"delta_bytes": 4000, "full_bytes": 50, "saved_bytes": 9000}, {"accounts": encode(ledger)})
    state.close()
    machine.settings.write_text('[link]\nkind = "cellular"\n[budget]\nday_bytes = { cellular = 5000 }\n')
    status = json.loads(command("status", "--state", machine.state, "--json").stdout)
    assert (status["delta_bytes"], status["full_bytes"], status["saved_bytes"]) == (4000, 50, 9000)
    assert status["air"] == {
        "link": "cellular",
        "day_bytes": 4050,
        "own_day_bytes": 5000,
        "own_release_bytes": None,
    }
    assert status["update"]["transfer"] == {"delta_bytes": 4000, "full_bytes": 50, "saved_bytes": 9000}
    shown = command("status", "--state", machine.state).stdout
    assert "4,000 as patches, which saved 9,000" in shown
    assert "cellular: 4,050 of 5,000 bytes today" in shown
    put_record(machine, State.FETCH)
    write_status(
        machine.status,
        AgentStatus(
            pid=1,
            agent="0.1.0",
            started_ms=1,
            at_ms=2,
            sure_of_time=True,
            update=UpdateNow(state="fetch", release="1.3.0", needs_bytes=777, why="budget: no"),
        ),
    )
    update = status_beside_agent(machine)["update"]
    assert (update["needs_bytes"], update["transfer"]["delta_bytes"]) == (777, 123)
    assert "777 bytes would still travel" in update_line(msgspec.convert(update, UpdateNow))


def put_record(machine: Layout, state_now: State) -> None:
    """An update to 1.3.0 that has come so far."""
    state = StateDb(machine.state_db)
    offer = Offer(release=Held(digest="ef" * 32, version="1.3.0", release_counter=10), rollout="r")
    state.write_record(msgspec.structs.replace(state.record(), state=state_now, offer=offer, healthy_s=2.5))
    state.close()


def status_beside_agent(machine: Layout) -> dict:
    """The status while somebody holds the folder as a running agent does."""
    with machine.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return json.loads(command("status", "--state", machine.state, "--json").stdout)


@pytest.mark.parametrize("told", [None, UpdateNow(), UpdateNow(state="check", release="1.3.0")])
def test_an_account_that_lags_behind_the_record_does_not_say_where_the_update_is(machine, told):
    put_record(machine, State.TRIAL)
    write_status(
        machine.status,
        AgentStatus(pid=1, agent="0.1.0", started_ms=1, at_ms=2, sure_of_time=True, update=told),
    )
    update = status_beside_agent(machine)["update"]
    assert (update["state"], update["release"], update["healthy_s"]) == ("trial", "1.3.0", 2.5)


def test_an_agent_starts_without_the_account_of_the_one_before_it(machine):
    write_status(machine.status, AgentStatus(pid=4711, agent="0.1.0", started_ms=1, at_ms=2, sure_of_time=True))
    with held(machine):
        status = json.loads(command("status", "--state", machine.state, "--json").stdout)
        assert "has not told of itself yet" in command("status", "--state", machine.state).stdout
    assert (status["running"], status["pid"]) == (True, None)


def test_status_with_the_agent_has_its_own_account_too(machine):
    put_record(machine, State.WAIT)
    account = AgentStatus(
        pid=4711,
        agent="0.1.0",
        started_ms=1,
        at_ms=2,
        sure_of_time=True,
        update=UpdateNow(state="wait", release="1.3.0", why="signals: driving"),
        workers=WorkersStatus(
            manifest=DIGEST,
            serving=True,
            models={
                "leaf": ModelStatus(model_digest=DIGEST, variant="gpu", accelerator="cpu", fallback="no CUDA here")
            },
        ),
        counters=Counters(frames_inferred=99, frames_dropped=1, results_given_up=3),
        contact_trouble="no route to host",
    )
    write_status(machine.status, account)
    assert read_agent_status(machine.status) == account
    stale = json.loads(command("status", "--state", machine.state, "--json").stdout)
    assert stale["models"] == {}, "an account of an agent that is gone is not believed"
    with machine.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status = json.loads(command("status", "--state", machine.state, "--json").stdout)
        shown = command("status", "--state", machine.state).stdout
    assert (status["running"], status["pid"], status["serving"]) == (True, 4711, True)
    assert status["models"]["leaf"]["fallback"] == "no CUDA here"
    assert status["frames_inferred"] == 99
    assert status["update"]["why"] == "signals: driving"
    assert status["contact"]["trouble"] == "no route to host"
    assert status["results_given_up"] == 3
    for words in (
        "1.1.0",
        "waits: signals: driving",
        "3: the disk did not take them",
        "no CUDA here",
        "no route to host",
        "1.2.1: rolled-back",
    ):
        assert words in shown


def test_a_refusal_is_listed_and_lifted_by_name(machine):
    listed = json.loads(command("refusals", "list", "--state", machine.state, "--json").stdout)
    assert listed["refusals"][0]["reason"] == "trial-latency"
    assert "1.2.1" in command("refusals", "list", "--state", machine.state).stdout
    lifted = json.loads(command("refusals", "lift", "1.2.1", "--state", machine.state, "--json").stdout)
    assert lifted["lifted"][0]["release"] == "1.2.1"
    again = command("refusals", "lift", "1.2.1", "--state", machine.state, code=6)
    assert "not refused here" in again.stderr
    assert "Nothing is refused" in command("refusals", "list", "--state", machine.state).stdout


def test_a_patch_that_failed_is_listed_and_lifted_by_its_digest(machine):
    database = StateDb(machine.state_db)
    book = PatchBook(database, agent_version())
    book.note_failure(FailedPatch(artifact="a" * 64, base="b" * 64, payload="c0ffee" * 10 + "0000", reason=Reason.HASH))
    listed = json.loads(command("patches", "list", "--state", machine.state, "--json").stdout)
    assert listed["patches"][0]["reason"] == "hash"
    assert "c0ffeec0ffee" in command("patches", "list", "--state", machine.state).stdout
    lifted = json.loads(command("patches", "lift", "c0ffeec0", "--state", machine.state, "--json").stdout)
    assert lifted["lifted"][0]["payload"].startswith("c0ffee")
    assert book.lifted() == ("c0ffee" * 10 + "0000",)
    database.close()
    assert "no patch" in command("patches", "lift", "c0ffeec0", "--state", machine.state, code=6).stderr
    assert "No patch failed" in command("patches", "list", "--state", machine.state).stdout


def test_a_machine_that_is_not_enrolled_says_what_to_do(tmp_path):
    for arguments in (("status",), ("refusals", "list")):
        done = command(*arguments, "--state", tmp_path, code=6)
        assert "error:" in done.stderr
        assert "hint: headland-device" in done.stderr


def test_a_bad_token_is_a_refusal_for_people_and_programs(tmp_path):
    done = command("enroll", "--state", tmp_path / "m", "--token", "HL1.nonsense", "--json", code=4)
    assert json.loads(done.stdout)["reason"] == "token"
    assert "hint:" in done.stderr


def test_settings_with_an_unknown_key_are_refused_with_line_and_nearest_name(tmp_path):
    path = tmp_path / "device.toml"
    path.write_text("[inference]\nframes = 'x'\n\n[outbox]\nbudgetbytes = 1\n")
    with pytest.raises(SettingsError, match=r"line 5.*budgetbytes.*budget_bytes"):
        load(path)
    path.write_text("[outbox]\nbudget_bytes = 5\n")
    with pytest.raises(SettingsError, match="line 2"):
        load(path)
    with pytest.raises(StateError):
        load(tmp_path / "nothing.toml")
    path.write_text("")
    assert load(path) == DeviceSettings()


def test_an_agent_that_hangs_shows(machine):
    write_status(machine.status, AgentStatus(pid=1, agent="0.1.0", started_ms=1, at_ms=2, sure_of_time=True))
    long_ago = time.time() - 60
    os.utime(machine.status, (long_ago, long_ago))
    with machine.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status = json.loads(command("status", "--state", machine.state, "--json").stdout)
    assert "not renewed" in status["trouble"][0]


def test_unreadable_frames_are_not_lost_silently(machine):
    account = AgentStatus(
        pid=1, agent="0.1.0", started_ms=1, at_ms=2, sure_of_time=True, pump=PumpNumbers(frames_unreadable=4)
    )
    write_status(machine.status, account)
    assert status_beside_agent(machine)["frames_unreadable"] == 4


def test_a_full_disk_is_named(machine, monkeypatch):
    monkeypatch.setattr("device.status.free_bytes", lambda folder: 4096)
    status = json.loads(command("status", "--state", machine.state, "--json").stdout)
    assert status["trouble"] == ["the disk of the state folder is full: 4096 bytes are free"]


def test_an_agent_that_cannot_start_says_so_to_a_program(tmp_path, capsys):
    (tmp_path / "device.toml").write_text("[inferrence]\n")
    assert agent.main(["--state", str(tmp_path), "--json"]) == SettingsError.exit_code
    said = capsys.readouterr()
    assert "line 1: unknown key 'inferrence'; did you mean 'inference'?" in json.loads(said.out)["error"]
    assert said.err.count("did you mean") == 1


def test_an_account_that_was_cut_short_is_no_account(machine):
    machine.status.write_bytes(b'{"pid": 1')
    assert read_agent_status(machine.status) is None
    assert [path.name for path in machine.run.iterdir()] == ["status.json"]


def test_the_readme_lists_every_setting_with_the_value_that_holds_without_it(tmp_path):
    text = (Path(__file__).resolve().parents[3] / "device" / "README.md").read_text()
    listed, alarms = text.split("```toml\n")[1:3]
    path = tmp_path / "device.toml"
    path.write_text(listed.split("```")[0])
    assert load(path) == DeviceSettings()
    shown = tomllib.loads(path.read_text())
    assert shown == json.loads(msgspec.json.encode(DeviceSettings())), "every key, none forgotten"
    path.write_text(alarms.split("```")[0])
    assert [type(alarm).__name__ for alarm in load(path).inference.alarms] == [
        "CommandAlarm",
        "FileAlarm",
        "SocketAlarm",
    ]


def test_on_a_full_disk_the_agents_account_takes_the_place_of_the_one_before(machine, monkeypatch):
    account = AgentStatus(pid=1, agent="0.1.0", started_ms=1, at_ms=2, sure_of_time=True)
    write_status(machine.status, account)

    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    blank_status(machine.status)
    assert read_agent_status(machine.status) is None, "an agent that is gone says nothing"
    newer = msgspec.structs.replace(account, pid=2, trouble=("results cannot be kept",))
    write_status(machine.status, newer)
    assert read_agent_status(machine.status) == newer
    assert list(machine.run.iterdir()) == [machine.status]
