"""Self-repair: each fault is found, named, mended and told; a healthy machine has none; a cut in mending is no harm."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
from dataclasses import dataclass
from functools import partial

import pytest
from click.testing import CliRunner

from device.agent import held
from device.cli import main
from device.doctor import FAULTS_LEFT
from device.layout import Layout
from device.outbox.box import Outbox
from device.repair.examine import CHECKS, KIND, TOLD, examine, tell
from device.repair.fault import Fault, Finding, Place
from device.seal import Seals, read
from device.state_db import RECOVERING, StateDb
from device.store import Store
from device.update.sets import Sets
from protocol.errors import StateError
from signing.durable import Disk
from tests.fakes.machines import Bench
from tests.fakes.power import Fuse, PowerCut
from tests.fakes.updates import BlobSource, terms
from tests.fakes.whole_machine import FIRST, SECOND, make, tokens

MODEL = SECOND.manifest.models[0].variants[0].artifact.sha256


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return asyncio.run(make(tmp_path_factory.mktemp("template") / "machine")).state


@pytest.fixture
def layout(template, tmp_path):
    """Every test begins with files of its own; what is one file under two names stays so."""
    shutil.copytree(template, tmp_path / "machine", symlinks=True, copy_function=_same_inodes({}))
    return Layout(tmp_path / "machine")


def _same_inodes(seen):
    def copy(source, target, *, follow_symlinks=True):
        inode = shutil.os.stat(source, follow_symlinks=False).st_ino
        if inode in seen:
            shutil.os.link(seen[inode], target)
        else:
            shutil.copy2(source, target, follow_symlinks=follow_symlinks)
            seen[inode] = target
        return target

    return copy


def place(layout, **more):
    return Place(layout, tokens(), **({"thorough": True, "keep_free_bytes": 0} | more))


def look(layout, **more):
    return examine(place(layout, **more), mend=False)


def look_at_disk(layout, free_bytes):
    return examine(
        place(layout, free=lambda _: free_bytes, keep_free_bytes=1 << 30),
        mend=True,
        checks={"disk-space": CHECKS["disk-space"]},
    )


def mend(layout, **more):
    return examine(place(layout, **more), mend=True)


def snapshot(layout):
    return {
        str(path.relative_to(layout.state)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in sorted(layout.state.rglob("*"))
        if (path.is_file() or path.is_symlink()) and not path.name.endswith(("-shm", "-wal"))
    }


def replace(path, data):
    """As another file: what has this one under a second name keeps it."""
    path.unlink()
    path.write_bytes(data)


# Faults: by what they do to a machine


def temporary_files(layout):
    for folder in (layout.state, layout.identity, layout.store / "sha256", layout.store / "parts"):
        (folder / ".tmp-8x2").write_bytes(b"half of")
    (layout.state / "sets" / ".tmp-set").mkdir()


def left_in_run(layout):
    (layout.run / "canary").mkdir()
    (layout.run / "canary" / "socket").write_bytes(b"")


def readable_key(layout):
    (layout.identity / "key.pem").chmod(0o644)


def readable_database(layout):
    layout.state_db.chmod(0o660)


def damaged_database(layout):
    layout.state_db.write_bytes(b"\xff" * layout.state_db.stat().st_size)


def deleted_database(layout):
    layout.state_db.unlink()


def damaged_seal(layout):
    path = Seals(layout.state_db).paths[0]
    path.write_bytes(path.read_bytes()[:-3])


def lost_seals(layout):
    for path in Seals(layout.state_db).paths:
        path.unlink()


def lost_first_root(layout):
    (layout.identity / "image.root.json").unlink()


def damaged_first_root(layout):
    (layout.identity / "director.root.json").write_bytes(b"")


def damaged_snapshot(layout):
    (layout.state / "trust" / "image" / "snapshot.json").write_bytes(b"\0" * 500)


def damaged_root(layout):
    (layout.state / "trust" / "director" / "root.json").write_bytes(b"{}")


def stray_part(layout):
    (layout.store / "parts" / f"{'ab' * 32}.result").write_bytes(b"x" * 100)


def damaged_model(layout):
    path = layout.store / "sha256" / MODEL
    replace(path, path.read_bytes()[::-1])


def truncated_model(layout):
    path = layout.store / "sha256" / MODEL
    replace(path, path.read_bytes()[:-1])


def damaged_model_before(layout):
    path = layout.store / "sha256" / FIRST.manifest.models[0].variants[0].artifact.sha256
    replace(path, path.read_bytes()[::-1])


def damaged_manifest_before(layout):
    path = layout.store / "sha256" / FIRST.digest
    replace(path, b"{" + path.read_bytes())


def lost_model(layout):
    (layout.store / "sha256" / MODEL).unlink()


def damaged_manifest(layout):
    path = layout.store / "sha256" / SECOND.digest
    replace(path, b"{" + path.read_bytes())


def set_of_nothing(layout):
    shutil.copytree(layout.state / "sets" / SECOND.digest, layout.state / "sets" / ("ab" * 32))


def set_without_manifest(layout):
    (layout.state / "sets" / SECOND.digest / "manifest.json").unlink()


def lost_link(layout):
    layout.active.unlink()


def wrong_link(layout):
    layout.active.unlink()
    layout.active.symlink_to(FIRST.digest)


def broken_link(layout):
    layout.active.unlink()
    layout.active.symlink_to("nowhere")


def lost_shortcut(layout):
    layout.shortcut.unlink()


def wrong_shortcut(layout):
    layout.shortcut.unlink()
    layout.shortcut.symlink_to(f"sets/{SECOND.digest}")


def lost_store(layout):
    shutil.rmtree(layout.store)


def folder_as_database(layout):
    damaged_seal(layout)
    layout.state_db.unlink()
    (layout.state_db / "lost+found").mkdir(parents=True)


def folder_as_outbox(layout):
    layout.outbox_db.unlink()
    layout.outbox_db.mkdir()


def folder_as_certificate(layout):
    (layout.identity / "cert.pem").unlink(missing_ok=True)
    (layout.identity / "cert.pem").mkdir()


def folder_as_seal(layout):
    path = Seals(layout.state_db).paths[0]
    path.unlink()
    path.mkdir()


def file_as_store(layout):
    shutil.rmtree(layout.store)
    layout.store.write_bytes(b"x")


def folder_as_link(layout):
    lost_link(layout)
    layout.active.mkdir()


def folder_as_shortcut(layout):
    lost_shortcut(layout)
    layout.shortcut.mkdir()


@dataclass(frozen=True)
class Case:
    """A fault, the check that finds it, and whether it can be mended here and is told to the managers."""

    fault: object
    check: str
    mended: bool = True
    told: bool = True


CASES = [
    Case(temporary_files, "leftovers", told=False),
    Case(left_in_run, "run-folder", told=False),
    Case(readable_key, "who-may-read"),
    Case(readable_database, "who-may-read"),
    Case(damaged_database, "state-database", told=False),  # rebuilding queues an alert of its own
    Case(deleted_database, "state-database", told=False),
    Case(damaged_seal, "seals"),
    Case(lost_seals, "seals"),
    Case(lost_first_root, "first-roots"),
    Case(damaged_first_root, "first-roots"),
    Case(damaged_snapshot, "trust-files"),
    Case(damaged_root, "trust-files"),
    Case(stray_part, "stray-parts", told=False),
    Case(damaged_model, "release-files", mended=False),
    Case(truncated_model, "release-files", mended=False),
    Case(damaged_model_before, "release-files"),
    Case(damaged_manifest_before, "release-files"),
    Case(lost_store, "release-files", mended=False),
    Case(lost_model, "release-files", mended=False),
    Case(damaged_manifest, "release-files", mended=False),
    Case(set_of_nothing, "release-sets", told=False),
    Case(set_without_manifest, "release-sets"),
    Case(lost_link, "active-link", told=False),
    Case(wrong_link, "active-link", told=False),
    Case(broken_link, "active-link", told=False),
    Case(lost_shortcut, "active-link", told=False),
    Case(wrong_shortcut, "active-link", told=False),
    Case(folder_as_outbox, "wrong-kind"),
    Case(folder_as_certificate, "wrong-kind"),
    Case(folder_as_seal, "wrong-kind"),
    Case(file_as_store, "wrong-kind"),
    Case(folder_as_link, "wrong-kind"),
    Case(folder_as_shortcut, "wrong-kind"),
    Case(folder_as_database, "wrong-kind"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault.__name__)


def test_a_healthy_machine_has_no_fault_and_looking_changes_nothing(layout):
    before = snapshot(layout)
    assert look(layout) == ()
    assert mend(layout) == ()
    assert snapshot(layout) == before


def test_the_folder_that_containers_have_mounted_is_the_same_one_after_every_start(layout):
    layout.link.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(layout.link / "s"))
    before = layout.link.stat().st_ino
    assert mend(layout) == ()
    assert layout.link.stat().st_ino == before
    layout.link.rename(layout.run / "old")
    layout.link.write_bytes(b"")
    assert [one.check for one in mend(layout)] == ["run-folder"]
    assert not layout.link.exists()


def test_a_machine_that_is_still_to_hear_what_it_had_keeps_its_unfinished_downloads(layout):
    stray_part(layout)
    with contextlib.closing(StateDb(layout.state_db)) as state:
        state.put(RECOVERING, b"1")
    before = snapshot(layout)
    assert mend(layout) == ()
    assert snapshot(layout) == before


@every_case
def test_each_fault_is_found_named_mended_and_told(layout, case):
    case.fault(layout)
    before = snapshot(layout)
    found = look(layout)
    assert case.check in {one.check for one in found}
    assert not any(one.mended for one in found)
    assert snapshot(layout) == before, "looking changes nothing"
    done = [one for one in mend(layout) if one.check == case.check]
    assert done
    assert all(one.mended is case.mended for one in done), done
    assert all(one.what and (one.done if case.mended else one.advice) for one in done)
    assert any(one.is_news for one in done) is case.told
    if case.mended:
        assert case.check not in {one.check for one in look(layout)}
    state = StateDb(layout.state_db, create=False)
    state.check()
    assert state.record().committed.digest == SECOND.digest
    assert state.floor("update/counter/0") == 2
    state.close()


@pytest.mark.parametrize(
    "case", {case.check: case for case in CASES if case.check != "who-may-read"}.values(), ids=lambda case: case.check
)
def test_a_cut_before_every_effect_of_mending_is_mended_by_the_next_start(layout, case, tmp_path):
    case.fault(layout)
    broken = tmp_path / "broken"
    shutil.copytree(layout.state, broken, symlinks=True, copy_function=_same_inodes({}))
    at, cut = 0, True
    while cut:
        folder = tmp_path / "cut"
        shutil.copytree(broken, folder, symlinks=True, copy_function=_same_inodes({}))
        try:
            mend(Layout(folder), disk=Disk(Fuse(at).before))
            cut = False
        except PowerCut:
            pass
        mend(Layout(folder))
        left = {one.check for one in look(Layout(folder))}
        assert left == (set() if case.mended else {case.check}), at
        shutil.rmtree(folder)
        at += 1


@pytest.mark.parametrize("case", [c for c in CASES if c.check in ("release-files", "release-sets", "active-link")])
async def test_the_next_start_and_contact_make_the_release_whole_again(layout, case):
    case.fault(layout)
    mend(layout)
    bench = Bench(layout.state, BlobSource(FIRST, SECOND))
    async with bench.running() as updater:
        if not case.mended:
            # The old release serves meanwhile, and the server offers the committed one again.
            assert updater.report().manifest is None
            await updater.offer(SECOND.assignment(), SECOND.manifest_bytes, terms(FIRST, SECOND), may_install=True)
        await bench.until(lambda: bench.workers.serving == SECOND.digest and bench.active == SECOND.digest)
        await bench.settled()
    assert look(layout) == ()


def test_a_quick_look_at_a_start_reads_no_large_files(layout):
    damaged_model(layout)
    assert mend(layout, thorough=False) == (), "the worker hashes what it loads"


def test_on_a_full_disk_what_can_be_had_again_makes_room_for_results(layout):
    part = layout.store / "parts" / f"{'ab' * 32}.result"
    folder = layout.store / "parts" / "aa-lost+found"
    (folder / "inside").mkdir(parents=True)
    old = layout.state / "outbox.salvaged-000000000000005.db"
    log = layout.state / "outbox.salvaged-000000000000005.db-wal"
    for path in (part, old, log):
        path.write_bytes(b"x")
    assert [one.mended for one in look_at_disk(layout, 1 << 20)] == [False]
    assert part.exists(), "low is not full"
    (found,) = look_at_disk(layout, (1 << 20) - 1)
    assert not any(path.exists() for path in (part, folder, old, log))
    assert "no result can be kept" in found.what
    assert "removed 4 files" in found.done
    assert layout.outbox_db.exists()


def test_what_cannot_be_mended_here_says_what_to_do(layout):
    layout.settings.write_text("[inferense]\n")
    (layout.identity / "cert.pem").unlink()
    found = {one.check: one for one in mend(layout, keep_free_bytes=1 << 60)}
    assert found.keys() == {"settings", "identity", "disk-space"}
    assert not any(one.mended for one in found.values())
    assert "inference" in found["settings"].line(), "the nearest right name"
    assert "enroll" in found["identity"].advice


@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "ca.pem", "enrolment.json"])
def test_a_missing_piece_of_the_identity_is_named(layout, name):
    (layout.identity / name).unlink()
    assert [one.check for one in look(layout)][:1] == ["identity"]


def test_a_check_that_cannot_look_keeps_no_other_from_it(layout):
    def fails(place):
        raise OSError("a disk error")

    def finds(place):
        return [Fault("it is late")]

    found = examine(place(layout), mend=True, checks={"one": fails, "two": finds})
    assert [(one.check, one.mended) for one in found] == [("one", False), ("two", False)]
    assert "a disk error" in found[0].what


def test_a_bug_in_a_check_keeps_no_agent_from_starting(layout, caplog):
    def broken(place):
        raise ValueError("not a digest")

    checks = {"one": broken, "two": lambda place: [Fault("a fault", partial(broken, place))]}
    one, two = examine(place(layout), mend=True, checks=checks)
    assert one.what == "it could not be looked at: ValueError: not a digest"
    assert (two.mended, two.done) == (False, "not mended: ValueError: not a digest")
    assert caplog.text.count("Traceback") == 2, "its author hears where"


def test_a_name_that_is_no_text_keeps_no_agent_from_starting_and_is_told(layout):
    """A disk that damages a folder leaves such names; it may be mounted read-only then, and each start finds them."""
    with os.fdopen(os.open(os.fsencode(layout.state / "trust" / "image") + b"/\xff.json", os.O_CREAT | os.O_WRONLY)):
        pass
    for mends in (False, True):
        [finding] = examine(place(layout), mend=mends)
        assert r"image/\udcff.json is damaged" in finding.what
        with contextlib.closing(StateDb(layout.state_db)) as state:
            tell(state, [finding], tokens(), 5)
            assert r"\udcff.json" in state.pending_alerts(9)[-1].detail


def test_what_was_told_in_words_of_another_version_is_told_once_more(layout):
    with contextlib.closing(StateDb(layout.state_db)) as state:
        state.put(TOLD, b'{"since": 5}')
        for _ in range(2):
            tell(state, [Finding(check="disk-space", what="full")], tokens(), 5)
        assert [alert.kind for alert in state.pending_alerts(100)].count(KIND) == 1


def test_what_fails_to_be_mended_says_why(layout):
    def breaks():
        raise OSError("No space left on device")

    (found,) = examine(place(layout), mend=True, checks={"one": lambda place: [Fault("a fault", breaks)]})
    assert not found.mended
    assert "No space" in found.done


def test_managers_hear_of_what_lasts_once_and_of_each_mending(layout):
    state = StateDb(layout.state_db)
    draw = tokens()
    lasting, mended = Finding(check="disk-space", what="full"), Finding(check="seals", what="lost", mended=True)
    for findings in ((lasting, mended), (lasting,), (), (lasting, Finding(check="leftovers", what="x", quiet=True))):
        tell(state, findings, draw, 5)
    alerts = [alert for alert in state.pending_alerts(100) if alert.kind == KIND]
    assert [alert.detail.partition(":")[0] for alert in alerts] == ["disk-space", "seals", "disk-space"]
    state.close()


def test_every_check_has_a_test():
    elsewhere = {"settings", "disk-space", "identity", "outbox-database", "container-images"}
    assert {case.check for case in CASES} | elsewhere == set(CHECKS)


@pytest.mark.parametrize(
    ("hurt", "says"),
    [
        (lambda data: data[:4096] + bytes(len(data) - 4096), "damaged"),
        (lambda data: data.replace(b"a result", b"A result"), "1 of its rows"),
        (lambda data: data[:18] + b"\x07" + data[19:], "header"),
    ],
    ids=["pages", "row", "header"],
)
async def test_the_doctor_sees_a_damaged_outbox_and_leaves_it_to_the_agent(layout, hurt, says):
    box = await Outbox.opened(
        layout.outbox_db, "m", budget_bytes=1 << 20, now_ms=lambda: 1, draw_token=lambda: secrets.token_hex(16)
    )
    await box.enqueue("results", b"a result")
    await box.close()
    assert look(layout) == ()
    replace(layout.outbox_db, hurt(layout.outbox_db.read_bytes()))
    layout.outbox_db.chmod(0o600)
    before = snapshot(layout)
    (found,) = look(layout)
    assert (found.check, found.mended, bool(found.advice)) == ("outbox-database", False, True)
    assert says in found.what
    assert snapshot(layout) == before, "looking changes nothing"
    assert mend(layout, thorough=False) == (), "at a start the agent looks itself"


def test_a_damaged_outbox_is_the_agents_to_salvage(layout):
    layout.outbox_db.with_name("outbox.damaged-000000000000001.db").write_bytes(b"rows")
    (found,) = mend(layout)
    assert found.check == "outbox-database"
    assert "looks for its rows" in found.advice


# The command


def doctor(layout, *arguments, code=0):
    done = CliRunner().invoke(main, ["doctor", "--state", str(layout.state), *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


@pytest.fixture
def roomy(layout):
    with layout.settings.open("a") as file:
        file.write("\n[store]\nkeep_free_bytes = 0\n")
    return layout


def test_the_doctor_finds_nothing_on_a_healthy_machine(roomy):
    assert "Nothing is wrong" in doctor(roomy)
    assert json.loads(doctor(roomy, "--json"))["findings"] == []


def test_the_doctor_only_looks_unless_told_to_mend(roomy):
    damaged_database(roomy)
    before = snapshot(roomy)
    shown = doctor(roomy, "--dry-run", code=FAULTS_LEFT)
    assert "state-database" in shown
    assert "--fix" in shown
    assert snapshot(roomy) == before
    answer = json.loads(doctor(roomy, "--fix", "--json"))
    assert answer["fixed"]
    assert [(one["check"], one["mended"]) for one in answer["findings"]] == [("state-database", True)]
    doctor(roomy)


def test_the_doctors_exit_code_says_that_something_is_left(roomy):
    damaged_model(roomy)
    answer = json.loads(doctor(roomy, "--fix", "--json", code=FAULTS_LEFT))
    (one,) = answer["findings"]
    assert (one["done"], one["mended"]) == ("dropped", False)
    assert "fetches" in one["advice"]


def test_beside_a_running_agent_the_doctor_only_looks(roomy):
    damaged_seal(roomy)
    temporary_files(roomy)
    with held(roomy):
        answer = json.loads(doctor(roomy, "--json", code=FAULTS_LEFT))
        assert answer["running"]
        assert [one["check"] for one in answer["findings"]] == ["seals"], "temporary files may be in use"
        assert "another agent" in CliRunner().invoke(main, ["doctor", "--fix", "--state", str(roomy.state)]).output
    assert read(Seals(roomy.state_db).paths[0]) is None
    assert (roomy.state / ".tmp-8x2").exists()


def test_a_folder_that_is_none_is_named(tmp_path):
    doctor(Layout(tmp_path / "nowhere"), code=StateError.exit_code)


def test_looking_beside_an_agent_sweeps_nothing(layout):
    temporary_files(layout)
    Store(layout.store, sweep=False)
    assert (layout.store / "parts" / ".tmp-8x2").exists()
    Store(layout.store)
    Sets(layout.state)
    assert not (layout.store / "parts" / ".tmp-8x2").exists()


@pytest.mark.parametrize("what", ["run", "lock"])
def test_what_lies_where_the_lock_belongs_keeps_no_agent_from_starting(layout, what):
    shutil.rmtree(layout.run)
    if what == "run":
        layout.run.write_bytes(b"x")
    else:
        layout.lock.mkdir(parents=True)
    with held(layout):
        assert layout.lock.is_file()
