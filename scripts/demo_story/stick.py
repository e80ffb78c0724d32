"""The demo's chapter on field kits: a machine without any link, a stick, and a technician.

The stick is a folder that moves: in the office, or below the folder in which the machine's sticks are mounted.
"""

import shutil
import time
from pathlib import Path
from typing import Any

from protocol.kits import KIT_FILE, KITS_FOLDER, RESULTS_FOLDER
from scripts.cast import BIN, PRODUCT, Machine, expect, run_json, wait_for
from scripts.demo_story.stage import FRAMES_A_SECOND, Stage

ISLAND = "island-1"
TECHNICIAN = "theo"
VERSION = "1.1.0"
HOURS_OFF_MIN = 12 * 60  # the kit's window is half a day away: nobody waits for it here
RESULTS = 20


class StickChapter:
    """What happens to a machine that no signal reaches.

    Args:
        stage: With a server, managers, and release 1.1.0 published.
    """

    def __init__(self, stage: Stage) -> None:
        root = stage.root
        self.stage = stage
        self.stick = root / "stick"
        self.media = root / "media"
        self.key = root / f"{TECHNICIAN}.key"
        self.machine = Machine(ISLAND, root / ISLAND, root / f"{ISLAND}-frames", stage.logs, seed=17)

    def play(self) -> None:
        """The whole chapter."""
        with self.stage.report.step(
            "By stick: a machine without a link is updated, forced, and its results come home"
        ) as step:
            self._enrol()
            self._list_technician()
            kit = self._build()
            self._refuse_changed(kit)
            self._install(kit)
            counted = self._bring_results_home()
            self._bring_receipts_back()
            step.detail = (
                f"{VERSION} by {kit}, forced by {TECHNICIAN}; {counted} results came home on the stick, each once; "
                f"{ISLAND} never had a contact"
            )

    def _enrol(self) -> None:
        """In the yard, where there is a signal; it never has one again."""
        stage = self.stage
        assert stage.proxy is not None
        link = stage.proxy.link(ISLAND)
        token = stage.managers("device", "token", ISLAND, "--group", "islands")["token"]
        self.media.mkdir()
        self.machine.settle(pace_s=1.0, more=f'\n[kits]\nfolders = ["{self.media}"]\n')
        self.machine.enroll(token, url=link.url)
        link.down()
        self.machine.process.start()
        wait_for(f"{ISLAND} to look around", lambda: self.machine.status()["running"])

    def _list_technician(self) -> None:
        managers = self.stage.managers
        managers("technicians", "key", TECHNICIAN, "--out", self.key, person=TECHNICIAN)
        managers("technicians", "add", TECHNICIAN, "--key", f"{self.key}.pub", "--machine", ISLAND)
        self.stage.sign_and_push()

    def _build(self) -> str:
        """A kit whose window is far from now, signed by two."""
        begins = (int(time.time()) // 60 + HOURS_OFF_MIN) % 1440
        ends = (begins + 60) % 1440
        window = f"{begins // 60:02}:{begins % 60:02}-{ends // 60:02}:{ends % 60:02}"
        what = ("--product", PRODUCT, "--release", VERSION, "--machine", ISLAND, "--window", window)
        managers = self.stage.managers
        self.stick.mkdir()
        built = managers("kit", "build", self.stick, *what, "--as", "alice", "--yes", person="alice")
        folder = self.stick / KITS_FOLDER / built["kit"]
        expect(not (folder / KIT_FILE).exists(), "a kit that one manager signed is a kit", built)
        managers("kit", "sign", self.stick, "--as", "bob", "--yes", person="bob")
        managers("kit", "verify", self.stick)
        name: str = built["kit"]
        return name

    def _refuse_changed(self, kit: str) -> None:
        """A copy of the stick with one byte of the kit changed: the machine says so and takes nothing."""
        bad = self.media / "found-on-the-way"
        shutil.copytree(self.stick, bad)
        path = bad / KITS_FOLDER / kit / KIT_FILE
        data = bytearray(path.read_bytes())
        at = data.index(VERSION.encode())
        data[at] ^= 1
        path.write_bytes(data)
        found = wait_for("the changed kit to be judged", lambda: self._kit("refused"))
        expect("signature" in found["sentence"] or "sign" in found["sentence"], "another word than signature", found)
        self.stage.report.refuse(ISLAND, "a kit with one byte changed", "signature")
        shutil.rmtree(bad)
        wait_for("the machine to see that it is gone", lambda: not self._kits())

    def _install(self, kit: str) -> None:
        """The machine finds the kit and waits for the window; the technician does not."""
        self._plug()
        wait_for(f"{ISLAND} to wait for the window", lambda: self.machine.status()["update"]["state"] == "wait", 60)
        self.machine.film(FRAMES_A_SECOND)
        env = {"HEADLAND_PASSPHRASE_FILE": str(self.stage.managers.passphrase_file(TECHNICIAN))}
        force = ("--force", "--technician", self.key, "--reason", "pests in the field, and nobody comes before May")
        done = self._command("kit", "apply", kit, *force, env=env)
        expect(done["state"] == "installed", "the kit was not installed", done)
        status = self.machine.status()
        expect(status["release"]["version"] == VERSION, "another release runs", status["release"])
        expect(status["bytes_received"] == 0, "bytes came over a link that is not there", status["bytes_received"])

    def _bring_results_home(self) -> int:
        """All that the machine produced is at the server once the stick is: no more, no less."""
        machine, stage = self.machine, self.stage
        wait_for("results to queue", lambda: self._produced() >= RESULTS, 60)
        machine.stop_filming()
        wait_for("the last frame", lambda: not machine.waiting_frames() and not machine.status()["frames_waiting"])
        produced = self._produced()
        # By name: a folder that is no mount may be the machine's own disk, to which results do not go by themselves.
        self._command("kit", "export", self.media / self.stick.name)
        self._unplug()
        copy = stage.root / "copy-of-the-stick"
        shutil.copytree(self.stick, copy)
        server = (BIN / "headland-server", "kit", "import", "--state", stage.server.state)
        run_json(*server, self.stick)
        run_json(*server, copy)
        expect(stage.ingested(ISLAND) == produced, "the count is off", (stage.ingested(ISLAND), produced))
        rows = stage.checked_rows(ISLAND)
        expect(len(rows) == produced, "rows are missing or double", len(rows))
        seen = stage.seen(ISLAND)
        expect(seen["report"]["release"] == VERSION, "the server was not told what runs", seen["report"])
        expect(any(event["kind"] == "forced" for event in stage.events(ISLAND)), "no audit of the force", ISLAND)
        return produced

    def _bring_receipts_back(self) -> None:
        expect(any((self.stick / RESULTS_FOLDER).rglob("receipts/*")), "no receipts are on the stick", self.stick)
        self._plug()

        def settled() -> bool:
            return not sum(lane["queued"] for lane in self.machine.status()["lanes"].values())

        wait_for(f"{ISLAND} to hear that its results arrived", settled)
        self._unplug()
        self.machine.process.stop()

    # Small things.

    def _plug(self) -> None:
        self.stick.rename(self.media / self.stick.name)

    def _unplug(self) -> None:
        (self.media / self.stick.name).rename(self.stick)

    def _produced(self) -> int:
        return sum(lane["produced"] for lane in self.machine.status()["lanes"].values())

    def _kits(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.machine.status()["kits"]["kits"]
        return found

    def _kit(self, state: str) -> dict[str, Any] | None:
        return next((kit for kit in self._kits() if kit["state"] == state), None)

    def _command(self, *words: str | Path, env: dict[str, str] | None = None) -> dict[str, Any]:
        return run_json(BIN / "headland-device", *words, "--state", self.machine.state, env=env)
