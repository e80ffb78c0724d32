"""A machine as its people meet it: real agent, real server, real managers' tool, real models and frames."""

import base64
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.cast import BIN, MODELS, run_json, wait_for
from tests.e2e.device_stage import FieldMachine
from tests.fakes.demo_app import DemoApp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

IDLE_KIB = 60 * 1024  # DESIGN.md section 10


def secret_of(token: str) -> str:
    return str(json.loads(base64.urlsafe_b64decode(token[4:] + "=" * (-len(token[4:]) % 4)))["secret"])


def numbers_by_lane(rows: list[dict]) -> dict[tuple[str, str], list[int]]:
    found = defaultdict(list)
    for row in rows:
        found[(row["epoch"], row["lane"])].append(row["seq"])
    return found


def test_every_result_of_an_installed_release_arrives_once_in_order_under_its_model(stage, tractor):
    wait_for("all frames to be inferred", lambda: tractor.waiting_frames() == 0)
    wait_for("the outbox to drain", lambda: tractor.queued() == 0)
    status = tractor.printed_status()
    rows = stage.server.results("tractor-1")
    assert status["serving"]
    assert status["frames_dropped"] == 0
    assert len(rows) == status["results_produced"] == status["frames_inferred"] > 30
    for seqs in numbers_by_lane(rows).values():
        assert seqs == list(range(len(seqs)))
    model = json.loads((tractor.state / "active" / "manifest.json").read_bytes())["models"][0]
    digests = {variant["artifact"]["sha256"] for variant in model["variants"]}
    assert {row["row"]["model"] for row in rows} <= digests
    assert status["bytes_received"] > 1_000_000
    assert status["time"]["sure"]
    assert status["last_update"]["outcome"] == "committed"


def test_results_queue_while_the_server_is_away_and_drain_when_it_is_back(stage, tractor):
    wait_for("the outbox to drain", lambda: tractor.waiting_frames() == 0 and tractor.queued() == 0)
    before = len(stage.server.results("tractor-1"))
    stage.server.stop()
    tractor.show(25)
    try:
        wait_for("results to queue", lambda: tractor.queued() >= 25)
        wait_for("the trouble to be told", lambda: tractor.status()["contact"]["trouble"])
        assert tractor.status()["serving"]
    finally:
        stage.server.start()
    wait_for("the outbox to drain", lambda: tractor.queued() == 0)
    rows = stage.server.results("tractor-1")
    assert len(rows) == before + 25
    for seqs in numbers_by_lane(rows).values():
        assert seqs == list(range(len(seqs)))


def test_a_killed_machine_infers_again_without_any_server_and_loses_nothing(stage, tractor):
    wait_for("the outbox to drain", lambda: tractor.waiting_frames() == 0 and tractor.queued() == 0)
    before = tractor.status()["results_produced"]
    stage.server.stop()
    try:
        tractor.show(10)
        wait_for("some frames to be inferred", lambda: tractor.waiting_frames() < 8)
        tractor.process.kill()
        tractor.show(5)
        began = time.monotonic()
        tractor.start()
        wait_for("frames to be inferred after the restart", lambda: tractor.waiting_frames() == 0)
        assert time.monotonic() - began < 20
        assert tractor.status()["contact"]["last_ms"] is not None
    finally:
        stage.server.start()
    wait_for("the outbox to drain", lambda: tractor.queued() == 0)
    rows = stage.server.results("tractor-1")
    # A frame whose row became durable just before the cut is inferred again: twice at most, never not at all.
    assert 15 <= tractor.status()["results_produced"] - before <= 25
    assert len(rows) == tractor.status()["results_produced"]
    assert len({row["row"]["frame"] for row in rows}) == next(tractor.numbers)
    for seqs in numbers_by_lane(rows).values():
        assert seqs == list(range(len(seqs)))


def test_alarms_raise_the_stop_line(tractor):
    tractor.show(3)
    wait_for("the frames to be inferred", lambda: tractor.waiting_frames() == 0)
    status = wait_for("an alarm", lambda: (s := tractor.status())["alarms_fired"] and s)
    assert (tractor.state / "stop-line").exists()
    assert 0 < status["alarm_latency_ms"]["p50"] <= status["alarm_latency_ms"]["p99"]


def test_an_application_sees_the_model_and_hears_each_alarm_over_kills_of_the_agent(tractor, tmp_path):
    """As a container does, but for the container: see scripts/demo_apps."""
    (tractor.state / "run/link").mkdir(parents=True, exist_ok=True)
    app = DemoApp(tractor.state, tmp_path / "app")
    app.start()
    try:
        served = json.loads((tractor.state / "sets/active/manifest.json").read_bytes())["models"][0]
        sees = {variant["artifact"]["sha256"] for variant in served["variants"]}
        wait_for("the application to see the model", app.sees, pause_s=0.1)
        assert set(app.sees()) <= sees

        def sprayed() -> int:
            return sum(app.health()["sprayed"].values())

        wait_for("a nozzle to open", lambda: tractor.show(3) or sprayed(), pause_s=0.2)
        tractor.process.kill()
        before = sprayed()
        tractor.start()
        # From now on is from the moment on at which it is there again: what was made before, the server has.
        wait_for("a nozzle to open after the kill", lambda: tractor.show(3) or sprayed() > before, pause_s=0.2)
        assert "no results to follow" in app.said()
        assert app.check() == 0
    finally:
        assert app.stop() == 0


def test_a_second_agent_on_the_same_folder_is_refused(tractor):
    answer = run_json(BIN / "headland-device", "run", "--state", tractor.state, code=6)
    assert "another agent" in answer["stderr"]
    assert "another agent" in answer["error"]


def test_a_token_is_good_for_one_machine_and_repeating_it_changes_nothing(stage, tmp_path):
    token = stage.token("sprayer-9", group="none")
    first = FieldMachine("sprayer-9", tmp_path / "first")
    assert first.enroll(token)["device"] == "sprayer-9"
    assert first.enroll(token)["device"] == "sprayer-9"
    second = FieldMachine("sprayer-9", tmp_path / "second")
    answer = second.enroll(token, code=4)
    assert answer["reason"] == "token"
    assert "used" in answer["error"]
    # A cut between sending and keeping: the same key and request get the same certificate.
    kept = (first.state / "identity" / "cert.pem").read_bytes()
    (first.state / "identity" / "enrolment.json").unlink()
    assert first.enroll(token)["device"] == "sprayer-9"
    assert (first.state / "identity" / "cert.pem").read_bytes() == kept


def test_an_idle_agent_is_small_and_carries_no_runtime(stage):
    machine = stage.machine("idle-1", group="idle")
    machine.start()
    wait_for("a contact", lambda: machine.status()["contact"]["last_ms"])
    time.sleep(2)
    facts = Path("/proc", str(machine.process.pid))
    memory = dict(line.split(":", 1) for line in (facts / "status").read_text().splitlines() if ":" in line)
    maps = (facts / "maps").read_text()
    assert machine.process.stop() == 0, machine.process.said()
    assert int(memory["VmRSS"].split()[0]) <= IDLE_KIB, memory["VmRSS"]
    for library in ("onnxruntime", "PIL", "numpy", "litert"):
        assert library not in maps


def test_status_answers_without_the_agent_and_sigterm_is_a_clean_end(stage, tractor):
    assert tractor.process.stop() == 0, tractor.process.said()
    status = tractor.status()
    assert not status["running"]
    assert status["release"]["version"] == "1.0.0"
    assert status["results_produced"] == sum(lane["produced"] for lane in status["lanes"].values())
    assert status["frames_inferred"] >= status["results_produced"] - 20
    tractor.start()
    wait_for("it to serve again", lambda: tractor.status()["serving"])


def test_attack_o11_a_copied_identity_sets_both_apart_and_loses_no_result(stage):
    original = stage.machine("cloned-1", group="none")
    original.start()
    wait_for("a contact", lambda: original.status()["contact"]["last_ms"])
    assert original.process.stop() == 0
    copy = FieldMachine("cloned-1", original.state.with_name("cloned-copy"))
    stage.machines.append(copy)
    shutil.copytree(original.state, copy.state, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    for machine in (original, copy):
        machine.start()
    wait_for("both to be set apart", lambda: all(m.status()["contact"]["set_apart"] for m in (original, copy)))
    events = [event for event in stage.server.get("/events?after=0")["events"] if event.get("device") == "cloned-1"]
    assert "clone" in {event["kind"] for event in events}
    for machine in (original, copy):
        assert machine.process.stop() == 0


def alarms_of(stage, device: str) -> list[dict]:
    return [e for e in stage.server.get("/events?after=0")["events"] if e.get("device") == device]


def test_a_damaged_state_database_is_made_anew_and_reported_while_inference_goes_on(stage, tractor):
    wait_for("the outbox to drain", lambda: tractor.waiting_frames() == 0 and tractor.queued() == 0)
    tractor.process.kill()
    database = tractor.state / "state.db"
    database.write_bytes(b"\xff" * database.stat().st_size)
    for suffix in ("-wal", "-shm"):
        database.with_name(f"state.db{suffix}").unlink(missing_ok=True)
    before = tractor.produced()
    tractor.start()
    tractor.show(5)
    wait_for("frames to be inferred", lambda: tractor.waiting_frames() == 0)
    status = tractor.status()
    assert status["release"]["version"] == "1.0.0"
    assert "made anew from its seal" in status["trouble"][0]
    assert status["results_produced"] >= before + 5
    wait_for("the outbox to drain", lambda: tractor.queued() == 0)
    status = tractor.status()
    assert not status["contact"]["set_apart"]
    assert len(stage.server.results("tractor-1")) == status["results_produced"]
    events = alarms_of(stage, "tractor-1")
    assert [event["what"] for event in events if event["kind"] == "alert"].count("state-damaged") == 1
    assert "sync-token-lost" in {event["kind"] for event in events}
    assert "clone" not in {event["kind"] for event in events}


def test_damage_that_shows_itself_while_the_agent_runs_is_mended_by_the_running_agent(stage, tractor):
    wait_for("a contact", lambda: tractor.status()["contact"]["last_ms"] and not tractor.status()["contact"]["trouble"])
    pid = tractor.process.pid
    connection = sqlite3.connect(tractor.state / "state.db", timeout=20)
    connection.execute("UPDATE facts SET value = x'00' WHERE key = 'update/record'")
    connection.commit()
    connection.close()
    files = len(list(tractor.state.glob("state.damaged-*.db")))
    wait_for("it to be made anew", lambda: len(list(tractor.state.glob("state.damaged-*.db"))) == files + 1)
    tractor.show(5)
    wait_for("frames to be inferred", lambda: tractor.waiting_frames() == 0 and tractor.status()["serving"])
    wait_for("the outbox to drain", lambda: tractor.queued() == 0)
    assert tractor.process.pid == pid
    assert tractor.process.child.poll() is None
    assert not tractor.status()["contact"]["set_apart"]


def test_a_machine_without_database_and_seal_hears_what_it_had_and_goes_on(stage, tractor):
    wait_for("the outbox to drain", lambda: tractor.waiting_frames() == 0 and tractor.queued() == 0)
    tractor.process.kill()
    for path in tractor.state.glob("state.*"):
        path.unlink(missing_ok=True)  # the trust keeper ends a moment after the agent, and SQLite clears up after it
    tractor.start()
    status = wait_for("a contact", lambda: (s := tractor.status())["contact"]["last_ms"] and s)
    assert status["release"]["version"] == "1.0.0"
    wait_for("it to have heard", lambda: not any("made anew" in line for line in tractor.status()["trouble"]))
    assert "update/counter/0" in read_floors(tractor.state)
    tractor.show(3)
    wait_for("the outbox to drain", lambda: tractor.waiting_frames() == 0 and tractor.queued() == 0)
    assert len(stage.server.results("tractor-1")) == tractor.status()["results_produced"]
    assert not tractor.status()["contact"]["set_apart"]


def test_an_agent_that_starts_on_a_full_disk_infers_and_keeps_results_once_there_is_room(stage, tractor):
    wait_for("the outbox to drain", lambda: tractor.waiting_frames() == 0 and tractor.queued() == 0)
    before = tractor.produced()
    with small_disk(tractor):
        filler = fill(tractor.state)
        tractor.start()
        tractor.show(6)
        status = wait_for("the alarms of four frames", lambda: (s := tractor.status())["alarms_fired"] >= 4 and s)
        assert status["serving"]
        assert status["release"]["version"] == "1.0.0"
        # Whether SQLite opens it there depends on what the kill left of its log: the outbox says so, or the disk check.
        words = ("results cannot be kept", "no result can be kept")
        assert any(word in status["trouble"][0] for word in words), status["trouble"]
        found = run_json(BIN / "headland-device", "doctor", "--state", tractor.state, code=7)
        assert any("no result can be kept" in one["what"] for one in found["findings"]), found
        filler.unlink()
        wait_for("results to be kept", lambda: tractor.waiting_frames() == 0 and tractor.produced() == before + 6)
        wait_for("the outbox to drain", lambda: tractor.queued() == 0)
        assert len(stage.server.results("tractor-1")) == before + 6
        assert not any("results cannot be kept" in line for line in tractor.status()["trouble"])
    tractor.start()


def test_an_agent_that_starts_on_a_disk_that_takes_no_writes_infers(tractor):
    line = tractor.frames.with_name("line-on-another-disk")
    try:
        with small_disk(tractor):
            tractor.settle(pace_s=0.3, more=f'[[inference.alarms]]\nkind = "file"\npath = "{line}"\nhold_s = 60.0\n')
            for folder in ("store/sha256", "store/parts", "sets"):  # what a cut leaves, and nobody can sweep now
                (tractor.state / folder / ".tmp-of-a-cut").write_bytes(b"half")
            subprocess.run(["mount", "-o", "remount,ro", tractor.state], check=True)
            tractor.start()
            tractor.show(3)
            wait_for("an alarm", lambda: line.exists() and line.read_text() == "1")
            status = tractor.printed_status()
            assert status["running"]
            assert status["release"]["version"] == "1.0.0"
            assert "read-only" in status["trouble"][0]
            subprocess.run(["mount", "-o", "remount,rw", tractor.state], check=True)
    finally:
        tractor.settle(pace_s=0.3)
    tractor.start()
    wait_for("the frames to be inferred again", lambda: tractor.waiting_frames() == 0 and tractor.queued() == 0)


@contextlib.contextmanager
def small_disk(machine: FieldMachine) -> Iterator[None]:
    """Its state lies on a disk of its own, and comes back with what was done there. The agent is killed around it."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    machine.process.kill()
    folder = machine.state
    aside = folder.with_name(f"{folder.name}-aside")
    folder.rename(aside)
    folder.mkdir(mode=0o700)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=700", "tmpfs", folder], check=False)
    if mounted.returncode:
        folder.rmdir()
        aside.rename(folder)
        assert not os.environ.get("CI"), "root of this machine may not mount a small disk"
        pytest.skip("root may not mount a small disk here")
    try:
        shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
        yield
        machine.process.kill()
        shutil.rmtree(aside)
        shutil.copytree(folder, aside, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    finally:
        machine.process.kill()
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()
        aside.rename(folder)


def fill(folder: Path) -> Path:
    """Until not one more byte goes in."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return filler


def read_floors(state: Path) -> dict[str, int]:
    connection = sqlite3.connect(state / "state.db", timeout=20)
    try:
        return dict(connection.execute("SELECT name, value FROM floors"))
    finally:
        connection.close()


def test_attack_o22_neither_log_nor_status_nor_report_holds_a_secret(stage, tractor):
    key = (tractor.state / "identity" / "key.pem").read_text().splitlines()[1:-1]
    told = (
        tractor.process.said()
        + json.dumps(tractor.printed_status())
        + json.dumps(stage.server.get("/devices/tractor-1"))
    )
    told += (tractor.state / "run" / "status.json").read_text() + stage.server.process.said()
    assert not [line for line in key if line in told]
    assert stage.tokens
    assert not [token for token in stage.tokens if token[4:] in told or secret_of(token) in told]


def test_the_models_of_the_demo_are_the_ones_that_were_installed(tractor):
    installed = (tractor.state / "active" / "models" / "leaf").read_bytes()
    assert installed == (MODELS / "1.0.0" / "pest-detector.onnx").read_bytes()
