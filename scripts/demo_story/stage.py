"""The demo's stage: the whole cast in one folder, what people do on it, and the facts that server and machines give."""

import json
import random
import re
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripts.cast import MODELS, PRODUCT, SCRIPTS, CastError, Machine, Manager, Process, Server, expect, wait_for
from scripts.demo_story.containers import Engine
from scripts.demo_story.enemy import Evil
from scripts.demo_story.proxy import Link, Proxy
from scripts.demo_story.report import Report, Update

MANAGERS = ("alice", "bob", "carol")
MACHINES = ("tractor-1", "tractor-2", "sprayer-1")
CONTAINER_MACHINE = "sprayer-1"
FRAMES_A_SECOND = 3.0
CONFIG_BYTES = 300_000
PATCHES_S = 150.0  # the longest that the demo waits for patches: they take seconds here
FRAME_BYTES_AT_LEAST = 20_000  # a JPEG of the camera, rather more

SERVER_SETTINGS = """
# Every byte of these links is paid for: the plan with the fewest bytes wins, however fast this computer is.
[budget.day_bytes]
cellular = 20000000
"""

DEVICE_SETTINGS = """
[link]
kind = "cellular"
"""


class Stage:
    """The cast on its stage: one folder, one server, three machines behind bad links."""

    def __init__(self, root: Path, report: Report, engine: Engine | None = None) -> None:
        self.root = root
        self.engine = engine  # of one machine, when there is one
        self.report = report
        self.logs = root / "logs"
        self.logs.mkdir(parents=True)
        self.server = Server(root / "server", self.logs)
        self.managers = Manager(root / "workspace", root / "passphrases")
        self.machines = {
            name: Machine(name, root / name, root / f"{name}-frames", self.logs, seed=number + 1)
            for number, name in enumerate(MACHINES)
        }
        self.ends: list[Machine] = []  # of chapters of their own, to be stopped with the rest
        self.links: dict[str, Link] = {}
        self.proxy: Proxy | None = None
        self.evil = Evil(root / "evil", self.server.state)
        self.broken = root / "broken"
        command = [sys.executable, str(SCRIPTS / "make_broken_models.py"), str(self.broken)]
        self.maker = Process("broken models", command, self.logs / "broken-models.log")
        self.built: dict[str, dict[str, Any]] = {}
        self.seen_events = 0
        self.office = ThreadPoolExecutor(1, "managers")
        self.coming: dict[str, Future[None]] = {}

    # What the managers do.

    def publish(self, version: str, *options: str) -> None:
        """Builds a release, has two managers sign it, pushes it. No machine gets it before a rollout says so."""
        if version.startswith("1.2."):
            self.await_broken_models()
            description = self.broken / f"{PRODUCT}-{version}.toml"
        elif version.startswith("1.3."):
            description = self.with_config(version)
        else:
            description = MODELS / f"{PRODUCT}-{version}.toml"
        self.managers("release", "build", description, *options)
        self.sign_and_push()
        self.manifest(version)

    def publish_meanwhile(self, version: str, *options: str) -> None:
        """As `publish`, in the managers' own time: one release after the other, while the machines work."""
        self.coming[version] = self.office.submit(self.publish, version, *options)

    def await_published(self, version: str) -> None:
        self.report.say(f"{PRODUCT} {version}: built, signed by two, pushed")
        self.coming.pop(version).result(timeout=120)

    def await_broken_models(self) -> None:
        """Out of the committed 1.1.0: one with noise in its weights, one that is slow when it sees a pest."""
        maker = self.maker
        wait_for("the broken models to be made", lambda: not maker.alive, 120)
        expect((self.broken / f"{PRODUCT}-1.2.1.toml").exists(), "the broken models were not made", maker.tail())

    def sign_and_push(self) -> None:
        for name in ("bob", "carol"):
            self.managers("release", "sign", "--as", name, "--yes", person=name)
        self.managers("release", "push")

    def rollout(self, name: str, version: str, *phases: str, budget: str | None = None) -> None:
        options = [part for phase in phases for part in ("--phase", phase)]
        if budget is not None:
            options += ["--budget", budget]
        self.managers("rollout", "create", name, "--release", version, "--group", "field", *options)

    def await_patches(self, version: str) -> None:
        """Waits until the server has made the patches that it wants, and says from where they lead and what they save.

        A rollout would not wait: a machine that calls before its patch is ready is offered the whole.
        """
        began = time.monotonic()

        def made() -> dict[str, Any] | None:
            status = self.server.get("/status")
            patches = status["patches"]
            if status["payloads_waiting"] or patches["waiting"] or not patches["surveyed"]:
                return None
            releases: list[dict[str, Any]] = self.server.get(f"/releases?product={PRODUCT}")["releases"]
            release = next(each for each in releases if each["version"] == version)
            return None if release["full_bytes"] is None or release["patches_waiting"] else release

        self.report.say(f"waiting for the patches to {version}, at most {PATCHES_S:.0f} s")
        release = wait_for(f"the patches to {version}", made, PATCHES_S)
        self.report.say(f"the server wants no more of them after {time.monotonic() - began:.1f} s")
        for delta in release["deltas"]:
            sizes = self.told_sizes(delta["delta_bytes"], release["full_bytes"])
            self.report.say(f"from {delta['version']}: {delta['patches']} patches, all variants together {sizes}")
        if not release["deltas"]:
            self.report.say("none is smaller than the whole")

    @staticmethod
    def told_sizes(travels: int, whole: int) -> str:
        """In words; `whole` is what the same takes without patches, compressed too."""
        return f"{travels:,} bytes in place of {whole:,} ({travels / whole:.0%})"

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
        rows = self.server.results(name)
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
        for container in manifest.get("containers", []):
            image = container["images"][0]
            for part in (image["config"], *(layer["artifact"] for layer in image["layers"])):
                found[part["sha256"]] = part["length_bytes"]
        return found

    def full(self, version: str) -> int:
        """A release uncompressed, in bytes."""
        return sum(self.artifacts(version).values())

    def member(self, rollout: str, name: str) -> dict[str, Any] | None:
        """What the server knows of a machine in a rollout: outcome, the price of its plan, what it took."""
        phases = self.server.get(f"/rollouts/{rollout}")["phases"]
        found: dict[str, Any] | None = next((p["members"][name] for p in phases if name in p["members"]), None)
        return found

    def updates(self) -> list[Update]:
        """What each release took on each machine, from the rollouts; of two with one release the later one counts."""
        found = {
            (rollout["release"], name): Update(
                rollout=rollout["name"],
                release=rollout["release"],
                machine=name,
                outcome=member["outcome"] or "",
                reason=member["reason"] or "",
                **member["transfer"],
            )
            for rollout in reversed(self.server.get("/rollouts")["rollouts"])
            for phase in rollout["phases"]
            for name, member in sorted(phase["members"].items())
            if member["plan_bytes"] is not None
        }
        return list(found.values())

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
        raise CastError(f"the server knows no machine that refused {version}")

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
        stop = "kill " + " ".join(str(child.child.pid) for child in children if child.child is not None)
        if self.engine is not None:
            stop += f"; {SCRIPTS / 'engine'} remove {self.engine.folder}"
        return {
            "folder": str(self.root),
            "server": str(self.server.state),
            "workspace": str(self.managers.workspace),
            "machines": {name: str(machine.state) for name, machine in self.machines.items()},
            "stop": stop,
        }

    def end(self) -> None:
        self.office.shutdown(cancel_futures=True)
        self.maker.stop()
        for machine in (*self.machines.values(), *self.ends):
            machine.stop_filming()
            machine.process.stop()
        self.server.stop()
        if self.proxy is not None:
            self.proxy.close()
        if self.engine is not None:
            self.engine.remove()
