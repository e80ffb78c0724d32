"""The main job, step by step. Each step ends in facts that machines and server gave, held against what must be true."""

import json
import random
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from enemy import Evil
from processes import SCRIPTS, DemoError, Machine, Manager, Process, Server, wait_for
from proxy import Link, Proxy
from report import MachineFacts, Report

PRODUCT = "pest-detector"
MANAGERS = ("alice", "bob", "carol")
MACHINES = ("tractor-1", "tractor-2", "sprayer-1")
MODELS = SCRIPTS / "demo_models"
SEGMENT_BYTES = 1 << 20
FRAMES_A_SECOND = 3.0
DROPS_AFTER_BYTES = (250_000, 230_000, 270_000, 210_000)
CONFIG_BYTES = 300_000
FRAME_BYTES_AT_LEAST = 20_000  # a JPEG of the camera, rather more

SERVER_SETTINGS = """\
[devices]
host = "127.0.0.1"
port = {device_port}
names = ["localhost", "127.0.0.1"]

[operators]
host = "127.0.0.1"
port = {operator_port}

[contact]
poll_s = 1.0
busy_poll_s = 0.5
"""

DEVICE_SETTINGS = """\
[server]
poll_min_s = 0.5
poll_max_s = 2.0
retry_first_s = 0.5
retry_longest_s = 1.0

[inference]
frames = "{frames}"

[[inference.alarms]]
kind = "file"
path = "{alarm}"
"""


class Story:
    """The cast on its stage: one folder, one server, three machines behind bad links."""

    def __init__(self, root: Path, report: Report) -> None:
        self.root = root
        self.report = report
        self.logs = root / "logs"
        self.logs.mkdir(parents=True)
        self.server = Server(root / "server", self.logs)
        self.managers = Manager(root / "workspace", root / "passphrases")
        self.machines = {
            name: Machine(name, root / name, root / f"{name}-frames", self.logs, seed=number + 1)
            for number, name in enumerate(MACHINES)
        }
        self.links: dict[str, Link] = {}
        self.proxy: Proxy | None = None
        self.evil = Evil(root / "evil", self.server.state)
        self.broken = root / "broken"
        command = [sys.executable, str(SCRIPTS / "make_broken_models.py"), str(self.broken)]
        self.maker = Process("broken models", command, self.logs / "broken-models.log")
        self.built: dict[str, dict[str, Any]] = {}
        self.seen_events = 0

    def play(self) -> None:
        self.maker.start()
        self.keys()
        self.fleet()
        self.first_release()
        self.out_of_range()
        self.better_model()
        self.broken_models()
        self.enemy()
        self.table()

    # The steps.

    def keys(self) -> None:
        with self.report.step("Keys: two repositories, 2 of 3 managers, private keys encrypted") as step:
            device_port, operator_port = free_ports(2)
            self.server.state.mkdir(parents=True)
            settings = SERVER_SETTINGS.format(device_port=device_port, operator_port=operator_port)
            (self.server.state / "server.toml").write_text(settings)
            self.server.init()
            self.server.start()
            self.proxy = Proxy(device_port)
            for name in MANAGERS:
                self.managers("keys", "add", name, person=name)
            state = self.server.state
            server = ("--server", state / "operator.json", "--online-keys", state / "online-keys.json")
            self.managers("keys", "init", "--product", PRODUCT, "--threshold", "2", *server)
            early = self.managers("release", "push", may_fail=True)
            expect(early["exit"] != 0, "a beginning that nobody signed was published", early)
            for name in ("alice", "bob"):
                self.managers("keys", "sign", "--as", name, "--yes", person=name)
            self.managers("release", "push")
            for path in self.managers.workspace.rglob("*"):
                expect(not path.is_file() or b"PRIVATE KEY" not in path.read_bytes(), "a private key lies open", path)
            roles = self.server.get("/status")["repositories"]
            expect(all(roles[kind] for kind in ("image", "director")), "the server publishes nothing", roles)
            step.detail = "signed by alice and bob of three; the server holds only keys that it made itself"

    def fleet(self) -> None:
        with self.report.step("Fleet: three machines enrol with one-time tokens") as step:
            assert self.proxy is not None
            for name, machine in self.machines.items():
                link = self.links[name] = self.proxy.link(name)
                token = self.managers("device", "token", name, "--group", "field")["token"]
                machine.state.mkdir(parents=True)
                (machine.state / "device.toml").write_text(
                    DEVICE_SETTINGS.format(frames=machine.frames, alarm=machine.state / "stop-line")
                )
                machine.enroll(token, link.url)
                machine.process.start()
            thief = Machine(name, self.root / "thief", self.root / "thief-frames", self.logs, seed=99)
            stolen = thief.enroll(token, link.url, may_fail=True)
            expect(stolen["exit"] != 0, "a token was good a second time", name)
            self.report.refuse("server", f"the token of {name}, used again by a thief", "token")
            for name in MACHINES:
                wait_for(f"{name} to call", lambda name=name: self.seen(name)["last_contact_ms"])
            step.detail = "each key was made on its machine; each token was good once"

    def first_release(self) -> None:
        with self.report.step(
            "First release: 1.0.0 built, signed by two, pushed, staged to a group, installed"
        ) as step:
            self.release("1.0.0")
            for machine in self.machines.values():
                machine.film(FRAMES_A_SECOND)
            self.rollout("first", "1.0.0", "percent=100")
            for name in MACHINES:
                self.until_committed(name, "1.0.0")
            for name in MACHINES:
                wait_for(f"results of {name} at the server", lambda name=name: self.ingested(name) > 0)
            self.evil.remember_published()
            step.detail = "all three infer, and their results come in"

    def out_of_range(self) -> None:
        name = "tractor-2"
        machine, link = self.machines[name], self.links[name]
        with self.report.step("Out of range: results queue, then drain, each once and in order") as step:
            link.down()
            before = self.ingested(name)
            queued = wait_for("results to queue", lambda: (n := self.queued(name)) >= 15 and n)
            expect(self.ingested(name) == before, "results came over a dead link", name)
            link.back()
            wait_for("the queue to drain", lambda: self.ingested(name) >= before + queued)
            rows = self.checked_rows(name)
            expect(machine.process.alive, "the machine stopped", name)
            step.detail = (
                f"{queued} queued while {name} was away; {len(rows)} of its results are in, each once, in order"
            )

    def better_model(self) -> None:
        with self.report.step(
            "A better model: 1.1.0 over a link that keeps dropping, to one machine, then to all"
        ) as step:
            first, second = "tractor-1", "tractor-2"
            link, machine = self.links[first], self.machines[first]
            self.release("1.1.0")
            before = machine.status()["bytes_received"]
            link.cap(400_000)
            link.cut_after(*DROPS_AFTER_BYTES)
            self.rollout("better", "1.1.0", f"devices={first}", "percent=100")
            wait_for("the drops", lambda: not link.cuts_left or self.at_rest(first) == "1.1.0", 60)
            drops = len(DROPS_AFTER_BYTES) - link.cuts_left
            expect(not link.cuts_left, f"only {drops} drops fell into the download", first)
            link.cap(None)
            self.until_trial(second, "1.1.0")
            for healthy_s in (0.2, 0.2, 0.0):  # none of these starts lasts long enough to count as a healthy one
                self.until_healthy_for(second, healthy_s)
                self.machines[second].process.kill()
                self.machines[second].process.start()
            for name in MACHINES:
                self.until_committed(name, "1.1.0")
            again = machine.status()["bytes_received"] - before - self.cost("1.1.0", held="1.0.0")
            expect(0 <= again <= drops * SEGMENT_BYTES, f"{again:,} bytes were fetched again over {drops} drops", first)
            self.report.extra["bytes_fetched_again"] = again
            self.report.extra["drops_in_download"] = drops
            self.no_frame_dropped()
            step.detail = (
                f"{drops} drops in mid-download cost {again:,} bytes again; {second} was switched off three times "
                "in its trial and committed; the swaps dropped no frame"
            )

    def broken_models(self) -> None:
        with self.report.step("Broken models, rightly signed: refused in CHECK, rolled back in TRIAL, halted") as step:
            self.await_broken_models()
            self.release("1.2.0", "--untried", "the bench was taken")
            self.rollout("broken", "1.2.0", "percent=100")
            self.until_halted("broken")
            name, end = self.ended("1.2.0")
            expect((end["outcome"], end["reason"]) == ("refused", "golden"), "1.2.0 was not refused in CHECK", end)
            self.report.refuse(name, f"{PRODUCT} 1.2.0", end["reason"])

            self.release("1.2.1")
            self.rollout("slow", "1.2.1", "devices=sprayer-1", "percent=100")
            self.until_halted("slow")
            name, end = self.ended("1.2.1")
            expect(end["outcome"] == "rolled-back" and name == "sprayer-1", "1.2.1 was not rolled back", end)
            expect(end["reason"].startswith("trial-"), "1.2.1 did not fail in its trial", end)
            self.report.refuse(name, f"{PRODUCT} 1.2.1", end["reason"])
            for each in MACHINES:
                wait_for(f"{each} to run 1.1.0", lambda each=each: self.at_rest(each) == "1.1.0")
            tried = [e for e in self.events(name) if e["kind"].startswith("update-")]
            time.sleep(2)
            expect(
                self.at_rest(name) == "1.1.0"
                and len(tried) == len([e for e in self.events(name) if e["kind"].startswith("update-")]),
                "the release that was rolled back was tried again",
                name,
            )
            step.detail = (
                f"1.2.0: never active; 1.2.1: {end['detail']}; not tried again; both rollouts halted by themselves"
            )

    def enemy(self) -> None:
        with self.report.step("An enemy: five attacks, each refused, the running model untouched") as step:
            self.swapped_blob("tractor-1")
            with self.server_in_enemy_hands():
                self.another_machines_assignment("tractor-1", of="tractor-2")
                self.replayed_metadata("tractor-2")
                self.signed_by_one_manager("sprayer-1")
                self.delisted_release("tractor-1")
            for name in MACHINES:
                expect(self.at_rest(name) == "1.1.0", "an attack changed what runs", (name, self.at_rest(name)))
            step.detail = "every machine still runs 1.1.0; every reason is on the server"

    def table(self) -> None:
        with self.report.step("The table: produced = ingested + lost, for every machine") as step:
            for machine in self.machines.values():
                machine.stop_filming()
            for name, machine in self.machines.items():
                wait_for(f"{name} to finish its frames", lambda machine=machine: not machine.waiting_frames())
                wait_for(f"{name} to hand over its results", lambda name=name: not self.queued(name))
            wait_for("the server to hear of it", self.server_knows_all)
            for name, machine in self.machines.items():
                status, seen = machine.printed_status(), self.seen(name)
                facts = MachineFacts(
                    id=name,
                    release=status["release"]["version"],
                    bytes_received=status["bytes_received"],
                    bytes_full=sum(self.full(version) for version in self.offered(name)),
                    frames_inferred=status["frames_inferred"],
                    frames_dropped=status["frames_dropped"],
                    results_produced=sum(lane["produced"] for lane in status["lanes"].values()),
                    results_ingested=len(self.checked_rows(name)),
                    results_lost=sum(seen["lost"].values()),
                )
                self.report.machines.append(facts)
                expect(facts.results_produced == facts.results_ingested + facts.results_lost, "the sum is off", facts)
            self.no_frame_dropped()
            self.frames_stayed()
            self.report.extra["alarm_latency_ms"] = {
                name: machine.status()["alarm_latency_ms"] for name, machine in self.machines.items()
            }
            step.detail = (
                "each result once, in order, under the digest of the model that made it; no frame left a machine"
            )

    # The attacks.

    def swapped_blob(self, name: str) -> None:
        description = self.with_config("1.3.0")
        self.managers("release", "build", description)
        self.sign_and_push()
        config = self.manifest("1.3.0")["configs"][0]["artifact"]["sha256"]
        made = wait_for("the payload of 1.3.0", lambda: self.evil.payloads().get(config))
        payload = next(self.server.state.joinpath("blobs").rglob(made.payload["sha256"] + "*"))
        good = payload.read_bytes()
        payload.write_bytes(good[: len(good) // 2] + b"enemy" + good[len(good) // 2 + 5 :])
        self.rollout("swapped", "1.3.0", f"devices={name}")
        self.until_reported(name, "hash")
        self.report.refuse(name, "a blob swapped on the server", "hash")
        self.managers("rollout", "halt", "swapped")
        wait_for(f"{name} to hear of the halt", lambda: self.at_rest(name) == "1.1.0")
        payload.write_bytes(good)

    def another_machines_assignment(self, name: str, *, of: str) -> None:
        self.evil.assign(name, signed=self.evil.sign_assignment(self.assignment_body(of, "1.3.0")))
        self.until_reported(name, "wrong-device")
        self.report.refuse(name, f"the assignment of {of}", "wrong-device")
        self.evil.stop_lying()

    def replayed_metadata(self, name: str) -> None:
        self.evil.replay()
        self.until_reported(name, "rollback")
        self.report.refuse(name, "metadata from before 1.1.0", "rollback")
        self.evil.stop_lying()

    def signed_by_one_manager(self, name: str) -> None:
        event = self.managers("release", "build", self.with_config("1.4.0"))["event"]["id"]
        self.managers("release", "sign", "--as", "alice", "--yes", person="alice")
        refused = self.managers("release", "push", may_fail=True)
        expect(refused["exit"] != 0, "one signature was enough to publish", refused)
        self.report.refuse("headland", f"{PRODUCT} 1.4.0, signed by one manager only", "signature")
        self.evil.publish_signed_by_one(self.managers.workspace / "events" / event, PRODUCT, "alice")
        self.until_reported(name, "signature")
        self.report.refuse(name, f"{PRODUCT} 1.4.0, signed by one manager only", "signature")
        self.managers("release", "cancel", "--yes")
        self.evil.stop_lying()

    def delisted_release(self, name: str) -> None:
        body = self.assignment_body(name, "1.3.0")
        self.managers("release", "delist", "1.3.0")
        self.sign_and_push()
        self.evil.assign(name, signed=self.evil.sign_assignment(body))
        reason = self.until_reported(name, "delisted", "not-listed")
        self.report.refuse(name, f"{PRODUCT} 1.3.0, which the managers delisted", reason)

    @contextmanager
    def server_in_enemy_hands(self) -> Iterator[None]:
        self.server.stop()
        self.server.hand_over(self.evil.folder)
        try:
            yield
        finally:
            self.evil.stop_lying()
            self.server.stop()
            self.server.start()

    # What the managers do.

    def release(self, version: str, *options: str) -> None:
        self.report.say(f"building {PRODUCT} {version}")
        folder = self.broken if version.startswith("1.2.") else MODELS
        self.managers("release", "build", folder / f"{PRODUCT}-{version}.toml", *options)
        self.sign_and_push()
        self.manifest(version)

    def await_broken_models(self) -> None:
        """Out of the committed 1.1.0: one with noise in its weights, one that is slow when it sees a pest."""
        maker = self.maker
        wait_for("the broken models to be made", lambda: not maker.alive, 120)
        expect((self.broken / f"{PRODUCT}-1.2.1.toml").exists(), "the broken models were not made", maker.tail())

    def sign_and_push(self) -> None:
        for name in ("bob", "carol"):
            self.managers("release", "sign", "--as", name, "--yes", person=name)
        self.managers("release", "push")

    def rollout(self, name: str, version: str, *phases: str) -> None:
        options = [part for phase in phases for part in ("--phase", phase)]
        self.managers("rollout", "create", name, "--release", version, "--group", "field", *options)

    def with_config(self, version: str) -> Path:
        """A release like 1.1.0 with a config file beside the model: what is new in it is the file."""
        folder = self.root / f"release-{version}"
        shutil.copytree(MODELS, folder)
        text = (folder / f"{PRODUCT}-1.1.0.toml").read_text()
        counter = 10 + int(version.split(".")[1])
        text = re.sub(r"^version = .*$", f'version = "{version}"', text, count=1, flags=re.MULTILINE)
        text = re.sub(r"^counter = .*$", f"counter = {counter}", text, count=1, flags=re.MULTILINE)
        rates = {"release": version, "rates": random.Random(version).randbytes(CONFIG_BYTES // 2).hex()}
        (folder / "rates.json").write_text(json.dumps(rates))
        text += '\n[[configs]]\nname = "rates.json"\nfile = "rates.json"\n'
        description = folder / "release.toml"
        description.write_text(text)
        return description

    # Facts of the server.

    def seen(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.server.get(f"/devices/{name}")
        return answer

    def events(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.get(f"/events?device={name}&after={after}&limit=1000")["events"]
        return found

    def ingested(self, name: str) -> int:
        return sum(self.seen(name)["ingested"].values())

    def checked_rows(self, name: str) -> list[dict[str, Any]]:
        """All rows of a machine that the server has, held against: each once, in order per lane, with its model."""
        rows: list[dict[str, Any]] = []
        while page := self.server.get(f"/devices/{name}/results?after={rows[-1]['id'] if rows else 0}&limit=1000")[
            "rows"
        ]:
            rows += page
        known = {model["sha256"] for version in self.built for model in self.models(version)}
        lanes: dict[tuple[str, str], int] = {}
        for row in rows:
            lane = (row["epoch"], row["lane"])
            expect(row["seq"] == lanes.get(lane, -1) + 1, f"lane {lane[1]} of {name} is out of order", row)
            lanes[lane] = row["seq"]
            expect(row["row"]["model"] in known, f"a result of {name} names no model of ours", row)
        return rows

    def models(self, version: str) -> list[dict[str, Any]]:
        manifest = self.manifest(version)
        return [variant["artifact"] for model in manifest["models"] for variant in model["variants"]]

    def manifest(self, version: str) -> dict[str, Any]:
        if version not in self.built:
            self.built[version] = self.managers("release", "show", version)
        found: dict[str, Any] = self.built[version]["manifest"]
        return found

    def artifacts(self, version: str) -> dict[str, int]:
        """What these machines need of a release, lengths in bytes by digest."""
        manifest = self.manifest(version)
        found = {
            config["artifact"]["sha256"]: config["artifact"]["length_bytes"] for config in manifest.get("configs", [])
        }
        for model in manifest["models"]:
            variant = next(v for v in model["variants"] if not v.get("hardware"))
            for part in (variant["artifact"], *(g[key] for g in variant["golden"] for key in ("input", "expected"))):
                found[part["sha256"]] = part["length_bytes"]
        return found

    def full(self, version: str) -> int:
        """A release uncompressed, in bytes."""
        return sum(self.artifacts(version).values())

    def cost(self, version: str, held: str) -> int:
        """What a machine that has `held` must fetch for `version` if no link ever dropped, in bytes."""
        new = self.artifacts(version).keys() - self.artifacts(held).keys()
        payloads = self.evil.payloads()
        return int(self.built[version]["length_bytes"]) + sum(payloads[digest].travels for digest in new)

    def assignment_body(self, name: str, version: str) -> bytes:
        """What the director would say, built from what the server has."""
        self.manifest(version)
        release = self.built[version]
        payloads = self.evil.payloads()
        steps = []
        for digest, length in self.artifacts(version).items():
            made = payloads[digest]
            step: dict[str, Any] = {
                "artifact": digest,
                "length_bytes": length,
                "method": "full",
                "payload": made.payload,
            }
            if made.index:
                step["index"] = made.index
            steps.append(step)
        body = {
            "kind": "assignment",
            "device": name,
            "product": PRODUCT,
            "rollout": "enemy",
            "release": version,
            "manifest": {"sha256": release["manifest_sha256"], "length_bytes": release["length_bytes"]},
            "plan": {"steps": steps, "full_bytes": sum(made.travels for made in payloads.values())},
        }
        return json.dumps(body).encode()

    def until_halted(self, name: str) -> None:
        wait_for(f"rollout {name} to halt", lambda: self.server.get(f"/rollouts/{name}")["state"] == "halted", 60)

    def ended(self, version: str) -> tuple[str, dict[str, Any]]:
        """The machine that ended this release badly, and the event that says how."""
        for name in MACHINES:
            for event in self.events(name):
                if event["kind"] in ("update-refused", "update-rolled-back") and event["what"].endswith(version):
                    return name, event | {"outcome": event["kind"].removeprefix("update-")}
        raise DemoError(f"the server knows no machine that refused {version}")

    def until_reported(self, name: str, *reasons: str) -> str:
        """Waits until the server hears from the machine that it refused something, for one of these reasons."""

        def look() -> str | None:
            for event in self.events(name, self.seen_events):
                if event.get("reason") in reasons:
                    self.seen_events = event["id"]
                    return str(event["reason"])
            return None

        found: str = wait_for(f"{name} to report {' or '.join(reasons)}", look)
        return found

    def offered(self, name: str) -> list[str]:
        return [event["what"].split()[-1] for event in self.events(name) if event["kind"] == "assigned"]

    def server_knows_all(self) -> bool:
        return all(
            self.ingested(name) + sum(self.seen(name)["lost"].values())
            == sum(lane["produced"] for lane in machine.status()["lanes"].values())
            for name, machine in self.machines.items()
        )

    # Facts of the machines.

    def queued(self, name: str) -> int:
        return sum(lane["queued"] for lane in self.machines[name].status()["lanes"].values())

    def at_rest(self, name: str) -> str | None:
        """The release that a machine runs, once its update machine rests and its workers serve."""
        status = self.machines[name].status()
        resting = status["update"]["state"] == "idle" and status["trial"] is None and status["serving"]
        return status["release"]["version"] if resting and status["release"] else None

    def until_committed(self, name: str, version: str) -> None:
        def look() -> bool:
            self.alive(name)
            return self.at_rest(name) == version and self.seen(name)["report"]["release"] == version

        wait_for(f"{name} to commit {version}", look, 60)

    def until_trial(self, name: str, version: str) -> None:
        def look() -> bool:
            update = self.machines[name].status()["update"]
            return update["state"] == "trial" and update["release"] == version

        wait_for(f"{name} to try {version}", look, 60, pause_s=0.3)

    def until_healthy_for(self, name: str, healthy_s: float) -> None:
        """Waits for so much more healthy time in a trial."""
        machine = self.machines[name]

        def on_trial() -> dict[str, Any] | None:
            status = machine.status()
            expect(status["release"]["version"] != "1.1.0", "the trial ended before it could be cut", name)
            return status["update"] if status["running"] and status["update"]["state"] == "trial" else None

        begun = wait_for(f"{name} to go on with its trial", on_trial, pause_s=0.2)["healthy_s"]

        def look() -> bool:
            update = on_trial()
            return update is not None and update["healthy_s"] >= begun + healthy_s

        wait_for(f"{name} to be healthy for {healthy_s} s", look, pause_s=0.2)

    def alive(self, name: str) -> None:
        process = self.machines[name].process
        expect(process.alive, f"{name} ended by itself", process.tail())

    def no_frame_dropped(self) -> None:
        for name, machine in self.machines.items():
            expect(machine.status()["frames_dropped"] == 0, "frames were dropped", name)

    def frames_stayed(self) -> None:
        """The frame policy is `never`: what went to the server is far less than the frames that were looked at."""
        for name, link in self.links.items():
            frames = self.machines[name].status()["frames_inferred"] * FRAME_BYTES_AT_LEAST
            sent = link.counts.to_server
            expect(sent < frames / 2, f"{sent} bytes went up beside {frames} bytes of frames", name)
        self.report.extra["bytes_sent_to_server"] = {name: link.counts.to_server for name, link in self.links.items()}

    def keep(self) -> dict[str, Any]:
        """Leaves everything running, over good links and with cameras, when this process ends."""
        assert self.proxy is not None
        ports = [str(link.port) for link in self.links.values()]
        self.proxy.close()
        proxy = Process(
            "proxy",
            [sys.executable, str(SCRIPTS / "demo_story" / "proxy.py"), str(self.proxy.server_port), *ports],
            self.logs / "proxy.log",
        )
        proxy.start()
        children = [proxy, self.server.process]
        for machine in self.machines.values():
            children += [machine.film(FRAMES_A_SECOND), machine.process]
        return {
            "folder": str(self.root),
            "server": str(self.server.state),
            "workspace": str(self.managers.workspace),
            "machines": {name: str(machine.state) for name, machine in self.machines.items()},
            "stop": "kill " + " ".join(str(child.child.pid) for child in children if child.child is not None),
        }

    def end(self) -> None:
        self.maker.stop()
        for machine in self.machines.values():
            machine.stop_filming()
            machine.process.stop()
        self.server.stop()
        if self.proxy is not None:
            self.proxy.close()


def expect(true: bool, otherwise: str, facts: object) -> None:
    """Ends the story when a fact is not as it must be."""
    if not true:
        raise DemoError(f"{otherwise}: {str(facts)[:600]}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
