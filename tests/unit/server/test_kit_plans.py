"""What a server says a field kit needs, asked as the managers' tool does."""

import random
from typing import Any

import msgspec

from protocol.ids import digest
from tests.fakes.server_house import CPU, PATCHING, House, status

OLD = random.Random(1).randbytes(1_000_000)
NEW = OLD[:500_000] + b"something else" + OLD[500_000:]


async def ask(house: House, **question: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await house.must("POST", "/api/v1/kits/plan", {"product": "pest-detector", **question})
    return answer


def methods(release: dict[str, Any]) -> list[tuple[str, int]]:
    return sorted((each["step"]["method"], each.get("machines", 0)) for each in release["steps"])


async def test_a_kit_has_full_payloads_always_and_patches_from_what_its_machines_hold(house: House) -> None:
    await house.release("1.0.0", 1, [OLD])
    holds = await house.enrol("holds", groups=("north",))
    holds.inventory, holds.have = PATCHING, (digest(OLD), digest(b"golden"))
    await holds.sync()
    lost = await house.enrol("lost", groups=("north",))
    await lost.sync()
    await house.release("1.1.0", 2, [NEW])
    await house.patches()

    answer = await ask(house, groups=["north"])
    (release,) = answer["releases"]
    assert (release["release"], answer["machines"], release["waiting"]) == ("1.1.0", ["holds", "lost"], [])
    # The model in full for the one that holds nothing (and golden too), and the patch for the other.
    assert methods(release) == [("delta", 1), ("full", 1), ("full", 2)]
    delta = next(each["step"] for each in release["steps"] if each["step"]["method"] == "delta")
    assert (delta["base"], delta["artifact"]) == (digest(OLD), digest(NEW))
    for step in (each["step"] for each in release["steps"]):
        assert len(await house.must("GET", f"/api/v1/blobs/{step['payload']['sha256']}"))
    assert methods((await ask(house, machines=["lost"]))["releases"][0]) == [("full", 1), ("full", 1)]


async def test_what_fits_no_machine_of_the_kit_is_left_out_and_named(house: House) -> None:
    await house.release("1.0.0", 1, [OLD])
    npu = await house.enrol("npu")
    npu.inventory = msgspec.structs.replace(CPU, accelerators=("edgetpu",))
    await npu.sync()
    await house.enrol("asleep")  # its hardware is not known
    answer = await ask(house, machines=["npu"])
    assert answer["releases"][0]["steps"] == [] and "npu" in answer["releases"][0]["unsuited"]
    answer = await ask(house, machines=["npu", "asleep"])
    assert len(answer["releases"][0]["steps"]) == 2 and answer["unseen"] == ["asleep"]
    everybody = await ask(house)
    assert len(everybody["releases"][0]["steps"]) == 2 and everybody["machines"] is None


async def test_payloads_that_are_still_being_made_are_named(house: House) -> None:
    await house.release("1.0.0", 1, [OLD])
    await house.release("1.1.0", 2, [NEW], ready=False)
    waiting = (await ask(house))["releases"][0]["waiting"]
    await house.payloads()
    done = (await ask(house))["releases"][0]
    assert set(waiting) <= {digest(NEW), digest(b"golden")} and not done["waiting"] and len(done["steps"]) == 2


async def test_questions_that_nobody_can_answer_say_what_is_not_there(house: House) -> None:
    await house.release("1.0.0", 1, [OLD])
    for question, word in (
        ({"releases": ["9.9.9"]}, "9.9.9"),
        ({"machines": ["nobody"]}, "nobody"),
        ({"groups": ["nowhere"]}, "nowhere"),
        ({"product": "weeder"}, "weeder"),
    ):
        code, answer = await house.ask("POST", "/api/v1/kits/plan", {"product": "pest-detector", **question})
        assert code == 409 and word in answer["error"], answer


async def test_no_rollout_is_named_like_a_kit_and_what_a_kit_brought_is_shown(house: House) -> None:
    manifest = await house.release("1.0.0", 1, [OLD])
    body = {"name": "kit-spring", "product": "pest-detector", "release": "1.0.0", "group": "all"}
    code, answer = await house.ask("POST", "/api/v1/rollouts", body)
    assert code == 409 and "kit" in answer["error"]
    machine = await house.enrol("tractor-1")
    await machine.sync(statuses=[status(manifest, "kit-spring", "committed")])
    shown = await house.must("GET", "/api/v1/devices/tractor-1")
    assert shown["statuses"][0]["rollout"] == "kit-spring"
    (event,) = await house.events("update-committed")
    assert event["what"] == "pest-detector 1.0.0 by kit-spring"
