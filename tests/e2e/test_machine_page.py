"""The machine's page of a real agent, in a real browser: a stick brings a kit, a person applies it, another forces it,
and results leave on the stick. The machines never meet their server meanwhile."""

import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.cast import BIN, PRODUCT, free_ports, run_json, wait_for
from tests.e2e.device_stage import ALICE
from tests.fakes.browser import PHONE, open_browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TECHNICIAN = "theo"
CABS = "cabs"
USED_KIB = 80 * 1024
"""With the page's server loaded and used, beside a release that runs. An idle agent holds 60 MiB."""


@pytest.fixture(scope="module")
def cabs(stage):
    """Three machines that were enrolled in the yard."""

    def enrolled(name, apply):
        (stage.root / f"{name}-media").mkdir()
        kits = f'[kits]\nfolders = ["{stage.root / f"{name}-media"}"]\napply = "{apply}"\n'
        page = f'[page]\nlisten = "127.0.0.1:{free_ports(1)[0]}"\n'
        return stage.machine(name, CABS, settings=kits + page)

    return [enrolled("cab-1", "ask"), enrolled("cab-2", "auto"), enrolled("cab-3", "auto")]


@pytest.fixture(scope="module")
def key(stage, cabs):
    """The file of a technician who may force in the cabs."""
    file = stage.root / f"{TECHNICIAN}.key"
    stage.managers("technicians", "key", TECHNICIAN, "--out", file, person=TECHNICIAN)
    stage.managers("technicians", "add", TECHNICIAN, "--key", f"{file}.pub", "--group", CABS)
    stage.sign_and_push()
    return file


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def stick(stage, key, tmp_path):
    """Makes a stick with a kit, which lies beside the machine until it is plugged in."""

    def make(*more):
        out = tmp_path / "stick"
        out.mkdir()
        kit = ("kit", "build", out, "--product", PRODUCT, "--release", "1.0.0", *more)
        stage.managers(*kit, "--as", ALICE, "--yes", person=ALICE)
        return out

    return make


@pytest.fixture
def cab(stage, cabs):
    """Starts a machine where no server answers."""
    started = []

    def start(name):
        machine = next(one for one in cabs if one.name == name)
        stage.server.stop()
        machine.start()
        started.append(machine)
        return machine, stage.root / f"{name}-media"

    yield start
    for machine in started:
        machine.process.stop()
    if not stage.server.process.alive:
        stage.server.start()


def open_page(browser, machine):
    """The page on a phone, paired by the code that the machine shows."""
    shown = run_json(BIN / "headland-device", "page", "--state", machine.state)
    visit = browser.visit(shown["url"], PHONE)
    visit.page.get_by_label("Pairing code").fill(shown["code"])
    visit.page.get_by_role("button", name="Pair").click()
    visit.page.get_by_text("Runs now").wait_for()
    return visit


def film_until(machine, visit, done):
    """Frames come, as models on trial want them, until the page shows what is waited for."""
    ends = time.monotonic() + 60
    while not done():
        assert time.monotonic() < ends, visit.page.locator("body").inner_text()
        machine.show(1)
        visit.page.wait_for_timeout(100)


def memory_kib(machine):
    facts = Path(f"/proc/{machine.process.pid}/status").read_text()
    return int(facts.split("VmRSS:")[1].split()[0])


@contextmanager
def mounted(folder: Path, at: Path):
    """A file system of its own with what is in `folder`, as a stick has one."""
    at.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounts, which takes root")
    held = folder.with_name("held")
    held.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,nosuid,nodev,noexec", "tmpfs", held], check=True)
    try:
        shutil.copytree(folder, held, dirs_exist_ok=True)
        subprocess.run(["mount", "--bind", held, at], check=True)
    finally:
        subprocess.run(["umount", held], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


def test_a_person_with_a_phone_and_a_stick_updates_a_machine(browser, cab, stick):
    built = stick()
    machine, media = cab("cab-1")
    visit = open_page(browser, machine)
    page = visit.page
    page.get_by_text("No release yet").wait_for()
    page.get_by_text("No stick with a kit is in this machine.").wait_for()
    built.rename(media / "stick")
    page.get_by_role("button", name=re.compile("Apply kit-")).click(timeout=5_000)  # nobody waits for a slow look
    page.get_by_role("progressbar").wait_for()
    page.get_by_text(re.compile("On trial: 1.0.0")).wait_for()
    page.get_by_text(re.compile(r"\d of \d healthy seconds")).wait_for()
    film_until(machine, visit, page.get_by_text("1.0.0 was installed and runs.").is_visible)
    assert page.locator("#release").inner_text() == "1.0.0"
    page.get_by_role("progressbar").wait_for(state="hidden")
    page.locator("article .sentence", has_text="runs").wait_for()
    assert not page.get_by_role("button", name=re.compile("Apply kit-")).is_visible()
    (media / "stick").rename(built)
    page.get_by_text("No stick with a kit is in this machine.").wait_for()
    visit.blame()
    assert machine.status()["contact"]["last_ms"] is None
    assert memory_kib(machine) <= USED_KIB


def test_a_technician_forces_what_waits_with_a_key_that_is_lent(stage, browser, cab, stick, key):
    begins, ends = (time.strftime("%H:%M", time.gmtime(time.time() + hours * 3600)) for hours in (12, 13))
    built = stick("--window", f"{begins}-{ends}")  # half a day away: nobody waits for it here
    machine, media = cab("cab-2")
    visit = open_page(browser, machine)
    page = visit.page
    built.rename(media / "stick")
    page.get_by_text("Ready, and waiting for its moment: 1.0.0").wait_for()
    before = memory_kib(machine)
    page.get_by_role("button", name="Force this update").click()
    page.get_by_label("Your key file").set_input_files(key)
    page.get_by_label("Its passphrase").fill("not mine")
    page.get_by_label("Why").fill("the crop does not wait")
    page.get_by_role("button", name="Force", exact=True).click()
    page.get_by_text(re.compile("passphrase")).first.wait_for()
    page.get_by_role("alert").filter(has_text=re.compile("passphrase|does not open")).wait_for(timeout=30_000)
    assert machine.status()["update"]["state"] == "wait"
    page.get_by_label("Its passphrase").fill(stage.managers.passphrase_file(TECHNICIAN).read_text().strip())
    page.get_by_role("button", name="Force", exact=True).click()
    page.get_by_text("1.0.0 is forced by theo.").wait_for(timeout=30_000)
    film_until(machine, visit, page.get_by_text("1.0.0 was installed and runs.").is_visible)
    visit.blame(expected=("the server responded with a status of 409",))
    assert memory_kib(machine) <= min(USED_KIB, before + 16 * 1024)  # opening a key takes 128 MiB, elsewhere
    log = machine.process.log.read_text()
    assert "not mine" not in log
    stage.server.start()

    def told():
        return [one for one in stage.server.get("/events?device=cab-2&limit=100")["events"] if one["kind"] == "forced"]

    (event,) = wait_for("the server to be told", told)
    assert {"theo", "the crop does not wait"} <= set(re.findall("theo|the crop does not wait", str(event)))


def test_results_leave_on_a_stick_that_is_mounted(browser, cab, stick):
    built = stick()
    machine, media = cab("cab-3")
    visit = open_page(browser, machine)
    at = media / "stick"
    with mounted(built, at):
        film_until(machine, visit, visit.page.get_by_text("1.0.0 was installed and runs.").is_visible)
        visit.page.get_by_role("button", name="Write results").click()
        visit.page.locator("#results", has_text="safe to pull").wait_for()
        assert list(at.glob("headland-results/cab-3/*.piece"))
        visit.blame()
