"""Deltas as people meet them: machines report bases, patches are made for them, offered, refused, withdrawn, paid."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from protocol.errors import Reason
from protocol.ids import digest
from protocol.messages import FailedPatch, SyncAnswer, TransferBytes, VersionReport
from protocol.objects import Budget, Step, TransferPlan
from tests.fakes.encoder import FakeEncoder
from tests.fakes.server_house import PATCHING, House, Machine, body_of, running, status

OLDER, OLD, NEW = (random.Random(number).randbytes(20_000) for number in (1, 2, 3))
PATCH = b"patch" * 100


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    """In place of the child process: what the codec makes of these bytes is not the point here."""
    fake = FakeEncoder()
    fake.payload = lambda attempt: PATCH + bytes(attempt - 1)
    monkeypatch.setattr("server.app.ProcessEncoder", lambda settings: fake)
    return fake


@pytest.fixture
async def house(tmp_path: Path, encoder: FakeEncoder) -> AsyncIterator[House]:
    async with running(tmp_path) as house:
        await house.publish()
        yield house


async def machine(house: House, name: str, *held: bytes) -> Machine:
    made = await house.enrol(name)
    made.inventory = PATCHING
    made.have = tuple(digest(data) for data in (*held, b"golden"))
    await made.sync()
    return made


def plan_of(answer: SyncAnswer) -> TransferPlan:
    assert answer.assignment is not None
    return msgspec.convert(body_of(answer.assignment)["plan"], TransferPlan)


def step_of(answer: SyncAnswer, result: bytes = NEW) -> Step:
    (step,) = [step for step in plan_of(answer).steps if step.artifact == digest(result)]
    return step


async def staged(house: House, *held: bytes, **rollout: object) -> list[Machine]:
    """Two releases, machines on the first, a rollout of the second; all patches are made."""
    await house.release("1.0.0", 1, [OLD])
    machines = [await machine(house, f"tractor-{number}", data) for number, data in enumerate(held or (OLD,), 1)]
    await house.release("1.1.0", 2, [NEW])
    await house.patches()
    await house.rollout("second", "1.1.0", **rollout)
    return machines


def broken(payload: str, base: bytes = OLD) -> FailedPatch:
    return FailedPatch(artifact=digest(NEW), base=digest(base), payload=payload, reason=Reason.HASH)


async def test_a_machine_on_the_old_release_gets_a_patch_at_its_measured_price(house: House) -> None:
    (tractor,) = await staged(house)
    answer = await tractor.sync()
    step = step_of(answer)
    assert (step.method, step.base, step.codec) == ("delta", digest(OLD), 1)
    assert step.payload is not None and step.index is None
    assert step.travels_bytes() == len(PATCH) < 20_000 < step.full_bytes
    assert plan_of(answer).travels_bytes() == len(PATCH)
    status, payload, _ = await tractor.ask("GET", f"/v1/blobs/{step.payload.sha256}")
    assert (status, payload) == (200, PATCH)
    (event,) = await house.events("patch-made")
    assert event["detail"] == f"{len(PATCH)} bytes"


async def test_an_old_agent_gets_everything_in_full_and_nothing_is_made_for_it(
    house: House, encoder: FakeEncoder
) -> None:
    await house.release("1.0.0", 1, [OLD])
    old_agent = await house.enrol("tractor-1")
    old_agent.have = (digest(OLD), digest(b"golden"))
    await old_agent.sync()
    await house.release("1.1.0", 2, [NEW])
    await house.patches()
    await house.rollout("second", "1.1.0")
    assert step_of(await old_agent.sync()).method == "full"
    assert encoder.made == []


async def test_a_patch_that_is_not_made_yet_is_not_waited_for_and_a_transfer_under_way_is_not_thrown_away(
    house: House, encoder: FakeEncoder
) -> None:
    await house.release("1.0.0", 1, [OLD])
    early, late = await machine(house, "early", OLD), await machine(house, "late", OLD)
    encoder.hold.set()
    await house.release("1.1.0", 2, [NEW])
    await house.rollout("second", "1.1.0")
    full = step_of(await early.sync())
    assert full.method == "full" and full.payload is not None
    encoder.hold.clear()
    await house.patches()
    # Who has begun goes on where less is left than the patch takes; who has only just begun changes over.
    nearly = {full.payload.sha256: full.payload.length_bytes - len(PATCH) + 1}
    assert step_of(await early.sync(parts=nearly)).method == "full"
    assert step_of(await early.sync(parts={full.payload.sha256: 100})).method == "delta"
    assert step_of(await late.sync()).method == "delta"


async def test_a_failed_patch_is_not_offered_again_and_the_new_price_is_on_the_trail(house: House) -> None:
    one, two = await staged(house, OLD, OLD)
    step = step_of(await one.sync())
    assert step.payload is not None
    again = step_of(await one.sync(failed_patches=(broken(step.payload.sha256),)))
    assert again.method == "full"
    assert step_of(await one.sync()).method == "full"  # remembered, whether or not it is told again
    assert step_of(await two.sync()).method == "delta"  # one machine may have bad memory
    (failed,) = await house.events("patch-failed")
    assert (failed["device"], failed["reason"]) == ("tractor-1", "hash")
    (renewed,) = await house.events("plan-renewed")
    assert f"{again.travels_bytes()} bytes now" in renewed["detail"]
    shown = await house.must("GET", "/api/v1/devices/tractor-1")
    assert [failure["payload"] for failure in shown["failed_patches"]] == [step.payload.sha256]
    assert shown["rollouts"]["second"]["plan_bytes"] == again.travels_bytes()


async def test_a_retry_that_tells_of_a_failed_patch_is_not_answered_with_it(house: House) -> None:
    (tractor,) = await staged(house)
    request = tractor.request()
    _, lost = await tractor.contact(request)
    step = step_of(msgspec.convert(lost, SyncAnswer))
    assert step.method == "delta" and step.payload is not None
    told = msgspec.structs.replace(request, failed_patches=(broken(step.payload.sha256),))
    _, answer = await tractor.contact(told)
    assert step_of(msgspec.convert(answer, SyncAnswer)).method == "full"
    assert not answer.get("set_apart")


async def test_a_patch_that_fails_on_two_machines_is_made_once_more_and_then_given_up(
    house: House, encoder: FakeEncoder
) -> None:
    machines = await staged(house, OLD, OLD, OLD)
    for attempt in (1, 2):
        step = step_of(await machines[2].sync())
        assert step.method == "delta" and step.payload is not None
        assert step.travels_bytes() == len(PATCH) + attempt - 1
        for tractor in machines[:2]:
            await tractor.sync(failed_patches=(broken(step.payload.sha256),))
        await house.patches()
    assert step_of(await machines[2].sync()).method == "full"
    assert len(encoder.made) == 2
    assert len(await house.events("patch-withdrawn")) == 2


async def test_a_withdrawn_patch_can_be_fetched_as_long_as_an_assignment_names_it(house: House) -> None:
    machines = await staged(house, OLD, OLD, OLD)
    steps = [step_of(await tractor.sync()) for tractor in machines]
    assert steps[0].payload is not None
    sha256 = steps[0].payload.sha256
    for tractor in machines[:2]:
        await tractor.sync(failed_patches=(broken(sha256),))
    house.now_ms += 13 * 86_400_000
    await asyncio.sleep(1.5)  # the next look for work tidies up
    assert (await machines[2].ask("GET", f"/v1/blobs/{sha256}"))[0] == 200
    house.now_ms += 2 * 86_400_000
    for _ in range(100):
        if (answered := (await machines[2].ask("GET", f"/v1/blobs/{sha256}"))[0]) == 404:
            break
        await asyncio.sleep(0.05)
    assert answered == 404


async def test_a_machine_with_another_agent_is_offered_once_more_what_failed_under_the_old_one(house: House) -> None:
    (tractor,) = await staged(house)
    payload = step_of(await tractor.sync()).payload
    assert payload is not None
    await tractor.sync(failed_patches=(broken(payload.sha256),))
    assert step_of(await tractor.sync()).method == "full"
    tractor.inventory = msgspec.structs.replace(tractor.inventory, disk_bytes=1)
    assert step_of(await tractor.sync()).method == "full", "another disk is no other agent"
    tractor.inventory = msgspec.structs.replace(tractor.inventory, agent="9.0.0")
    assert step_of(await tractor.sync()).payload == payload
    (event,) = await house.events("patches-forgiven")
    assert (event["device"], "9.0.0" in event["detail"]) == (tractor.name, True)
    await tractor.sync(failed_patches=(broken(payload.sha256),))
    assert step_of(await tractor.sync()).method == "full", "once"


async def test_a_person_lifts_what_failed_on_a_machine(house: House) -> None:
    (tractor,) = await staged(house)
    payload = step_of(await tractor.sync()).payload
    assert payload is not None
    await tractor.sync(failed_patches=(broken(payload.sha256),))
    (trouble,) = (await house.must("GET", "/api/v1/patches"))["patches"]
    assert (trouble["result"], trouble["base"], trouble["state"]) == (digest(NEW), digest(OLD), "offered")
    assert [(word["device"], word["reason"]) for word in trouble["failures"]] == [(tractor.name, "hash")]
    house.now_ms += 1000
    lifted = await house.must("POST", f"/api/v1/patches/{trouble['patch'][:8]}/lift", {})
    assert (lifted["state"], lifted["failures"]) == ("offered", [])
    assert (await house.must("GET", "/api/v1/patches"))["patches"] == []
    step = step_of(await tractor.sync())
    assert (step.payload, step.lifted_ms) == (payload, house.now_ms), "so the machine knows that it may try again"
    (event,) = await house.events("patch-lifted")
    assert (event["who"], event["detail"]) == ("operator", "it failed on 1 machines")
    for prefix, said in (
        (trouble["patch"], "failed nowhere"),
        ("0" * 8, "no patch"),
        (trouble["patch"][:7], "no patch"),
    ):
        status, answer = await house.ask("POST", f"/api/v1/patches/{prefix}/lift", {})
        assert (status, said in answer["error"]) == (409, True)


async def test_what_a_technician_lifted_on_the_machine_is_offered_there_again(house: House) -> None:
    (tractor,) = await staged(house)
    payload = step_of(await tractor.sync()).payload
    assert payload is not None
    await tractor.sync(failed_patches=(broken(payload.sha256),))
    assert step_of(await tractor.sync(lifted_patches=("0" * 64,))).method == "full"
    assert step_of(await tractor.sync(lifted_patches=(payload.sha256,))).payload == payload
    await tractor.sync(lifted_patches=(payload.sha256,))  # told twice
    (event,) = await house.events("patches-forgiven")
    assert (event["device"], event["detail"]) == (tractor.name, "by a technician on the machine")


async def test_a_rollout_that_nobody_will_get_is_made_and_says_so(house: House) -> None:
    await staged(house)
    made = await house.rollout("typo", "1.1.0", group="al")
    (warning,) = made["warnings"]
    assert "no machine of pest-detector is in the group 'al'" in warning and "all" in warning
    made = await house.rollout("elsewhere", "1.1.0", phases=[{"devices": ["tractor-1", "tractor-9"]}, {"percent": 100}])
    assert made["warnings"] == ["a phase waits for tractor-9: not in the group 'all'"]
    assert (await house.rollout("fine", "1.1.0"))["warnings"] == []


async def test_a_person_lifts_what_was_given_up(house: House, encoder: FakeEncoder) -> None:
    machines = await staged(house, OLD, OLD)
    encoder.payload = lambda attempt: PATCH
    for one in machines:
        step = step_of(await one.sync())
        assert step.payload is not None
        await one.sync(failed_patches=(broken(step.payload.sha256),))
    await house.patches()
    (trouble,) = (await house.must("GET", "/api/v1/patches"))["patches"]
    assert (trouble["state"], "made again" in trouble["why"]) == ("withheld", True)
    await house.must("POST", f"/api/v1/patches/{trouble['patch']}/lift", {})
    await house.patches()
    assert [step_of(await one.sync()).method for one in machines] == ["delta", "delta"]


async def test_a_machine_that_was_set_apart_withdraws_nothing(house: House) -> None:
    one, two = await staged(house, OLD, OLD)
    step = step_of(await one.sync())
    assert step.payload is not None
    clone = two.request()
    await two.sync()
    assert (await two.contact(clone))[1]["set_apart"]
    two.sync_token = clone.sync_token
    await two.sync(failed_patches=(broken(step.payload.sha256),))
    assert await house.events("patch-failed") == []


async def test_the_budget_is_signed_and_a_deferred_machine_has_not_failed(house: House) -> None:
    budget = {"release_bytes": 10_000, "day_bytes": {"cellular": 400}}
    (tractor,) = await staged(house, budget=budget)
    answer = await tractor.sync(link="cellular")
    assert answer.assignment is not None
    said = msgspec.convert(body_of(answer.assignment)["budget"], Budget)
    assert said == Budget(release_bytes=10_000, day_bytes={"cellular": 400})
    manifest = body_of(answer.assignment)["manifest"]["sha256"]
    waits = msgspec.structs.replace(
        status(manifest, "second", "deferred", Reason.BUDGET), needs_bytes=500, transfer=TransferBytes(delta_bytes=7)
    )
    again = await tractor.sync(statuses=[waits], link="cellular")
    assert step_of(again).method == "delta"  # still offered: it decides for itself
    shown = await house.must("GET", "/api/v1/rollouts/second")
    assert shown["state"] == "active" and shown["budget"] == budget
    (phase,) = shown["phases"]
    assert (phase["deferred"], phase["failed"], phase["contacted"]) == (1, 0, 1)
    member = phase["members"]["tractor-1"]
    assert (member["outcome"], member["reason"], member["needs_bytes"]) == ("deferred", "budget", 500)
    assert member["plan_bytes"] == len(PATCH)
    assert (await house.must("GET", "/api/v1/devices/tractor-1"))["link"] == "cellular"
    # It ends well over another link, and what it said it needed is forgotten.
    tractor.manifest = manifest
    done = msgspec.structs.replace(
        status(manifest, "second", "committed"), transfer=TransferBytes(delta_bytes=500, saved_bytes=19_000)
    )
    await tractor.sync(statuses=[done], link="wifi")
    shown = await house.must("GET", "/api/v1/rollouts/second")
    assert shown["transfer"] == {"delta_bytes": 500, "full_bytes": 0, "saved_bytes": 19_000}
    member = shown["phases"][0]["members"]["tractor-1"]
    assert (member["outcome"], member["needs_bytes"]) == ("committed", None)


async def test_what_an_update_took_is_known_from_the_report_too_when_the_status_was_lost(house: House) -> None:
    (tractor,) = await staged(house)
    answer = await tractor.sync()
    assert answer.assignment is not None
    manifest = body_of(answer.assignment)["manifest"]["sha256"]
    report = VersionReport(manifest=manifest, transfer=TransferBytes(delta_bytes=500, full_bytes=3))
    await tractor.sync(report=report)
    shown = await house.must("GET", "/api/v1/rollouts/second")
    assert shown["transfer"] == {"delta_bytes": 500, "full_bytes": 3, "saved_bytes": 0}
    device = await house.must("GET", "/api/v1/devices/tractor-1")
    assert device["report"]["transfer"] == {"delta_bytes": 500, "full_bytes": 3, "saved_bytes": 0}
    assert set(device["counters"]) >= {"delta_bytes", "full_bytes", "saved_bytes"}


async def test_a_rollout_that_says_nothing_has_the_servers_budget(tmp_path: Path, encoder: FakeEncoder) -> None:
    settings = "\n[budget]\nrelease_bytes = 1000\n[budget.day_bytes]\nsatellite = 10\n"
    async with running(tmp_path, settings) as house:
        await house.publish()
        await house.release("1.0.0", 1, [OLD])
        default = await house.rollout("default", "1.0.0")
        assert default["budget"] == {"release_bytes": 1000, "day_bytes": {"satellite": 10}}
        assert (await house.rollout("free", "1.0.0", budget={}))["budget"] == {}
        body = {"name": "bad", "product": "pest-detector", "release": "1.0.0", "group": "all"}
        for wrong in ({"release_bytes": -1}, {"day_bytes": {"Not A Name": 1}}, {"hour_bytes": 1}):
            answered, _ = await house.ask("POST", "/api/v1/rollouts", {**body, "budget": wrong})
            assert answered == 400


async def test_speed_counts_where_bytes_are_free_and_not_where_they_are_counted(house: House) -> None:
    (tractor,) = await staged(house, budget={"day_bytes": {"cellular": 10**9}})
    slow = msgspec.structs.replace(PATCHING, patch_rate_kib_s=1)
    tractor.inventory = slow
    assert step_of(await tractor.sync(link="ethernet", link_rate_kib_s=100_000)).method == "full"
    assert step_of(await tractor.sync(link="cellular", link_rate_kib_s=100_000)).method == "delta"


async def test_releases_show_what_they_take_in_full_and_from_each_base(house: House) -> None:
    await staged(house, OLD)
    newest, oldest = (await house.must("GET", "/api/v1/releases"))["releases"]
    assert newest["full_bytes"] > 20_000 and oldest["deltas"] == []
    (delta,) = newest["deltas"]
    assert (delta["version"], delta["delta_bytes"], delta["patches"]) == ("1.0.0", len(PATCH), 1)
    assert newest["patches_waiting"] == 0
    await house.patches()
    counted = (await house.must("GET", "/api/v1/status"))["patches"]
    assert counted == {"ready": 1, "bytes": len(PATCH), "waiting": 0, "surveyed": True}


async def test_a_stop_in_the_middle_of_a_patch_is_short_and_the_next_start_makes_it(
    tmp_path: Path, encoder: FakeEncoder
) -> None:
    async with running(tmp_path) as house:
        await house.publish()
        await house.release("1.0.0", 1, [OLD])
        await machine(house, "tractor-1", OLD)
        encoder.hold.set()
        await house.release("1.1.0", 2, [NEW])
        for _ in range(500):
            if encoder.made:
                break
            await asyncio.sleep(0.02)
        await house.stop()
        encoder.hold.clear()
        await house.start()
        await house.patches()
        assert len(await house.events("patch-made")) == 1
        assert encoder.made == [(OLD, NEW)] * 2
