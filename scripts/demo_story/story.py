"""The main job, step by step. Each step ends in facts that machines and server gave, held against what must be true."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from device.transfer.fetch import COUNTED_BYTES
from scripts.cast import PRODUCT, Machine, expect, wait_for
from scripts.demo_apps.images import Image
from scripts.demo_apps.sprayer_images import sprayer
from scripts.demo_story.containers import (
    BETTER,
    BROKEN,
    FIRST,
    ContainerRelease,
    pulled_bytes,
    sees,
    write_description,
)
from scripts.demo_story.cuts import Cuts
from scripts.demo_story.proxy import Proxy
from scripts.demo_story.report import MachineFacts
from scripts.demo_story.stage import (
    CONTAINER_MACHINE,
    DEVICE_SETTINGS,
    FRAMES_A_SECOND,
    MACHINES,
    MANAGERS,
    SERVER_SETTINGS,
    Stage,
)
from scripts.demo_story.stick import StickChapter

DROPS = 4
CONTAINER_CUTS = (4_000, 20_000)  # bytes to the machine, one after the other
CONTAINERS_S = 150.0


class Story(Stage):
    """What happens, in order."""

    def play(self) -> None:
        self.maker.start()
        self.keys()
        self.fleet()
        self.first_release()
        self.out_of_range()
        self.better_model()
        self.broken_models()
        self.enemy()
        if self.engine is not None:
            self.containers()
        self.by_stick()
        self.table()

    # The steps.

    def keys(self) -> None:
        with self.report.step("Keys: two repositories, 2 of 3 managers, private keys encrypted") as step:
            self.server.init(poll_s=1.0, busy_poll_s=0.5, more=SERVER_SETTINGS)
            self.server.start()
            self.proxy = Proxy(self.server.device_port)
            for name in MANAGERS:
                self.managers("keys", "add", name, person=name)
            state = self.server.state
            server = ("--server", state / "operator.json", "--online-keys", state / "online-keys.json")
            self.managers("keys", "init", "--product", PRODUCT, "--threshold", "2", *server)
            early = self.managers("release", "push", code=None)
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
                more = DEVICE_SETTINGS
                if self.engine is not None and name == CONTAINER_MACHINE:
                    more += f'\n[containers]\nsocket = "{self.engine.socket}"\n'
                machine.settle(pace_s=0.5, more=more)
                machine.enroll(token, url=link.url)
                machine.process.start()
            thief = Machine(name, self.root / "thief", self.root / "thief-frames", self.logs, seed=99)
            stolen = thief.enroll(token, url=link.url, code=None)
            expect(stolen["exit"] != 0, "a token was good a second time", name)
            self.report.refuse("server", f"the token of {name}, used again by a thief", "token")
            for name in MACHINES:
                wait_for(f"{name} to call", lambda name=name: self.seen(name)["last_contact_ms"])
            step.detail = "each key was made on its machine; each token was good once"

    def first_release(self) -> None:
        with self.report.step(
            "First release: 1.0.0 built, signed by two, pushed, staged to a group, installed"
        ) as step:
            self.publish("1.0.0")
            self.evil.remember_published()
            self.publish_meanwhile("1.1.0")
            for machine in self.machines.values():
                machine.film(FRAMES_A_SECOND)
            self.rollout("first", "1.0.0", "percent=100")
            for name in MACHINES:
                self.until_committed(name, "1.0.0")
            for name in MACHINES:
                wait_for(f"results of {name} at the server", lambda name=name: self.ingested(name) > 0)
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
            "A better model: 1.1.0 as a patch over a link that keeps dropping, to one machine, then to all"
        ) as step:
            first, second, third = MACHINES
            machine = self.machines[first]
            self.await_published("1.1.0")
            self.await_patches("1.1.0")
            self.publish_meanwhile("1.2.0", "--untried", "the bench was taken")
            self.publish_meanwhile("1.2.1")
            price = self.over_budget(third)
            before, began = machine.status(), self.links[first].counts.to_machine
            cuts = Cuts(machine, self.links[first], "1.1.0", price)
            self.rollout("better", "1.1.0", f"devices={first}", "percent=100")
            cuts.make(DROPS)
            self.until_trial(first, "1.1.0")
            on_the_wire = self.links[first].counts.to_machine - began
            self.until_trial(second, "1.1.0")
            for healthy_s in (0.2, 0.2, 0.0):  # none of these starts lasts long enough to count as a healthy one
                self.until_healthy_for(second, healthy_s)
                self.machines[second].process.kill()
                self.machines[second].process.start()
            for name in MACHINES:
                self.until_committed(name, "1.1.0")
            told = self.came_as_patch(first, cuts, before, price, on_the_wire)
            self.no_frame_dropped()
            step.detail = (
                f"{told}; {third} was over its budget and waited for a larger one; {second} was switched off three "
                "times in its trial and committed; the swaps dropped no frame"
            )

    def over_budget(self, name: str) -> int:
        """A rollout whose budget is half of what the patch takes: the machine waits, and says what it needs."""
        releases = self.server.get(f"/releases?product={PRODUCT}")["releases"]
        release = next(each for each in releases if each["version"] == "1.1.0")
        least = min(delta["delta_bytes"] for delta in release["deltas"] if delta["version"] == "1.0.0")
        allowed = least // 10  # the sum is over all variants; a machine takes one of them
        self.rollout("thrifty", "1.1.0", f"devices={name}", budget=f"release={allowed}")

        def deferred() -> dict[str, Any] | None:
            found = self.member("thrifty", name)
            return found if found is not None and found["outcome"] == "deferred" else None

        before = self.machines[name].status()["bytes_received"]
        member = wait_for(f"{name} to be deferred by its budget", deferred)
        needs = int(member["needs_bytes"] or 0)
        expect(member["reason"] == "budget" and needs > allowed, "it was not the budget", member)
        status = self.machines[name].status()
        expect(status["update"]["needs_bytes"] == needs, "the machine shows another price", status["update"])
        expect(status["bytes_received"] - before < allowed, "it spent what it may not", status["bytes_received"])
        self.managers("rollout", "halt", "thrifty")
        self.report.say(f"{name}: deferred (budget): needs {needs:,} bytes, {allowed:,} were allowed; none travelled")
        self.report.extra["deferred_by_budget"] = {"machine": name, "needs_bytes": needs, "allowed_bytes": allowed}
        return needs

    def came_as_patch(self, name: str, cuts: Cuts, before: dict[str, Any], price: int, on_the_wire: int) -> str:
        """Holds what the machine, the server and the proxy counted of 1.1.0 against each other."""
        member = wait_for(
            f"the server to hear what 1.1.0 took on {name}",
            lambda: (m := self.member("better", name)) and m["transfer"]["delta_bytes"] and m,
        )
        status = self.machines[name].status()
        took = member["transfer"]
        received, whole = took["delta_bytes"] + took["full_bytes"], price + took["saved_bytes"]
        said = status["update"]["transfer"]  # zeros are left out
        expect({**dict.fromkeys(took, 0), **said} == took, "machine and server count differently", (said, took))
        expect(status["delta_bytes"] - before["delta_bytes"] == took["delta_bytes"], "the totals are off", took)
        expect(took["saved_bytes"] > 0, "the patch saved nothing", member)
        made, groups = cuts.told()
        self.report.cuts += made
        again, kills = sum(cut.bytes_again for cut in made), sum(cut.how == "kill" for cut in made)
        # A kill may forget the count of as much as a cut may cost.
        expect(
            price - kills * COUNTED_BYTES <= received <= price + again,
            f"{received:,} bytes were received of {price:,}, {again:,} of them again at most",
            made,
        )
        expect(received < on_the_wire, "the proxy saw less than the machine", (received, on_the_wire))
        for other in MACHINES:
            patches = self.machines[other].status()["delta_bytes"]
            expect(patches > 0, f"1.1.0 came to {other} without a patch", self.member("better", other))
        self.report.extra["better_model"] = {
            "machine": name,
            "price_bytes": price,
            "whole_bytes": whole,
            "saved_bytes": took["saved_bytes"],
            "received_bytes": received,
            "on_the_wire_bytes": on_the_wire,
            "drops": len(made) - kills,
            "kills": kills,
            "segments_again": sum(cut.segments_again for cut in made),
            "groups": groups,
            "groups_again": sum(cut.groups_again for cut in made),
        }
        return (
            f"{self.told_sizes(price, whole)}; {len(made) - kills} drops and {kills} kills on the way, none of which "
            f"cost more than one segment and one group again; {on_the_wire:,} bytes on the wire, with all that "
            "travelled again, TLS, contacts and metadata until the trial"
        )

    def broken_models(self) -> None:
        with self.report.step("Broken models, rightly signed: refused in CHECK, rolled back in TRIAL, halted") as step:
            self.await_published("1.2.0")
            self.await_published("1.2.1")
            for version in ("1.2.0", "1.2.1"):
                self.await_patches(version)
            self.rollout("broken", "1.2.0", "percent=100")
            self.until_halted("broken")
            name, end = self.ended("1.2.0")
            expect((end["outcome"], end["reason"]) == ("refused", "golden"), "1.2.0 was not refused in CHECK", end)
            self.report.refuse(name, f"{PRODUCT} 1.2.0", end["reason"])

            self.publish_meanwhile("1.3.0")
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

    def containers(self) -> None:
        with self.report.step("Containers: an application changes together with its model, or not at all") as step:
            assert self.engine is not None
            name = CONTAINER_MACHINE
            link = self.links[name]
            images = {each: sprayer(each.sprayer, self.root / "layers") for each in (FIRST, BETTER, BROKEN)}
            for each, image in images.items():
                self.publish_containers(each, image)
            self.rollout("sprayer", FIRST.version, f"devices={name}")
            self.until_whole(name, FIRST, images[FIRST])
            self.await_patches(BETTER.version)
            began, drops = link.counts.to_machine, link.counts.dropped
            link.cut_after(*CONTAINER_CUTS)
            self.rollout("sprayer-better", BETTER.version, f"devices={name}")
            self.until_whole(name, BETTER, images[BETTER])
            on_the_wire, cuts = link.counts.to_machine - began, link.counts.dropped - drops
            expect(cuts >= 1, "the link did not drop", cuts)
            took = self.until_told("sprayer-better", name)["transfer"]
            expect(took["delta_bytes"] > 0 and took["saved_bytes"] > 0, "nothing came as a patch", took)
            pull = pulled_bytes(self.root, images[FIRST], images[BETTER], self.report.say)
            came = took["delta_bytes"] + took["full_bytes"]
            expect(came < pull, "a registry would have moved less", (came, pull))

            self.await_patches(BROKEN.version)
            self.rollout("sprayer-broken", BROKEN.version, f"devices={name}")
            self.until_halted("sprayer-broken")
            machine, end = self.ended(BROKEN.version)
            ended = (machine, end["outcome"], end["reason"])
            expect(ended == (name, "rolled-back", "trial-container"), "it was not rolled back for its container", end)
            self.report.refuse(name, f"{PRODUCT} {BROKEN.version}", end["reason"])
            self.until_whole(name, BETTER, images[BETTER])
            self.report.extra["containers"] = {
                "machine": name,
                "received_bytes": came,
                "saved_bytes": took["saved_bytes"],
                "on_the_wire_bytes": on_the_wire,
                "pull_bytes": pull,
                "drops": cuts,
            }
            step.detail = (
                f"model and application of {BETTER.version} came in {came:,} bytes over a link that dropped {cuts} "
                f"times ({on_the_wire:,} on the wire, with TLS, contacts and metadata); `docker pull` of the "
                f"application alone moved {pull:,}; {BROKEN.version}, whose container was unhealthy, was rolled back "
                "with its model"
            )

    def publish_containers(self, release: ContainerRelease, image: Image) -> None:
        folder = self.root / f"release-{release.version}"
        self.managers("release", "build", write_description(release, image, folder))
        shutil.rmtree(folder)
        self.sign_and_push()
        self.manifest(release.version)

    def until_whole(self, name: str, release: ContainerRelease, image: Image) -> None:
        """Committed, with exactly its container running, which sees the model of the same release."""
        models = {artifact["sha256"] for artifact in self.models(release.version)}

        def look() -> bool:
            self.alive(name)
            status = self.machines[name].status()
            return (
                self.at_rest(name) == release.version
                and bool(status["engine"] and status["engine"]["complete"])
                and sees(status).get("sees") in models
            )

        wait_for(f"{name} to run {release.version} whole", look, CONTAINERS_S)
        assert self.engine is not None
        expect(self.engine.running() == [image.id], "the engine runs something else", self.engine.running())

    def until_told(self, rollout: str, name: str) -> dict[str, Any]:
        """What the server was told that a machine took in a rollout."""
        found: dict[str, Any] = wait_for(
            f"the server to hear what {rollout} took on {name}",
            lambda: (m := self.member(rollout, name)) and m["transfer"]["delta_bytes"] and m,
        )
        return found

    def by_stick(self) -> None:
        chapter = StickChapter(self)
        self.ends.append(chapter.machine)
        chapter.play()

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
                    bytes_as_patches=status["delta_bytes"],
                    bytes_whole=status["full_bytes"],
                    bytes_saved=status["saved_bytes"],
                    bytes_on_the_wire=self.links[name].counts.to_machine,
                    bytes_full=sum(self.full(version) for version in self.offered(name)),
                    frames_inferred=status["frames_inferred"],
                    frames_dropped=status["frames_dropped"],
                    results_produced=sum(lane["produced"] for lane in status["lanes"].values()),
                    results_ingested=len(self.checked_rows(name)),
                    results_lost=sum(seen["lost"].values()),
                )
                self.report.machines.append(facts)
                counted = seen["counters"]
                told = {key: status[key] for key in ("delta_bytes", "full_bytes", "saved_bytes")}
                expect(all(counted[key] == told[key] for key in told), "the server heard of other bytes", counted)
                expect(facts.bytes_received < facts.bytes_on_the_wire, "the proxy saw less than the machine", facts)
                expect(facts.results_produced == facts.results_ingested + facts.results_lost, "the sum is off", facts)
            self.report.updates += self.updates()
            self.no_frame_dropped()
            self.frames_stayed()
            self.report.extra["alarm_latency_ms"] = {
                name: {key: round(value, 1) for key, value in machine.status()["alarm_latency_ms"].items()}
                for name, machine in self.machines.items()
            }
            step.detail = (
                "each result once, in order, under the digest of the model that made it; no frame left a machine"
            )

    # The attacks.

    def swapped_blob(self, name: str) -> None:
        self.await_published("1.3.0")
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
        refused = self.managers("release", "push", code=None)
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
