"""O11, server's side: a copied machine is told from a machine that lost an answer, and nothing is deleted."""

import secrets
from pathlib import Path

from server.settings import Contact
from tests.fakes.server_house import Machine, body_of, published, status


def copy_of(machine: Machine) -> Machine:
    """The second unit after somebody copied the disk."""
    twin = Machine(machine.house, machine.name)
    twin.key, twin.epoch, twin.sync_token = machine.key, machine.epoch, machine.sync_token
    twin.known_inventory, twin.next_seq = machine.known_inventory, dict(machine.next_seq)
    twin.use(machine.certificate)
    return twin


async def test_attack_o11_the_same_token_from_another_contact_sets_both_apart(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        manifest = await house.release("1.0.0", 1, [b"model"])
        tractor = await house.enrol("tractor-1")
        await tractor.sync()
        twin = copy_of(tractor)
        assert not (await tractor.sync()).set_apart
        await house.rollout("first", "1.0.0")
        answer = await twin.sync()
        assert answer.set_apart and answer.assignment is None
        again = await tractor.sync()
        assert again.set_apart and again.assignment is None
        assert [event["device"] for event in await house.events("clone")] == ["tractor-1"]

        # Results of both are still kept, and a person may vouch for one.
        assert (await tractor.send(tractor.batch("results", [b"kept"])))[0] == 200
        await house.must("POST", "/api/v1/devices/tractor-1/readmit", {})
        restored = await tractor.sync()
        assert not restored.set_apart and restored.assignment is not None
        assert body_of(restored.assignment)["manifest"]["sha256"] == manifest
        assert (await twin.sync()).set_apart


async def test_attack_o11_a_readmitted_machine_whose_answer_is_lost_is_not_set_apart_again(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        await tractor.sync()
        twin = copy_of(tractor)
        await tractor.sync()
        assert (await twin.sync()).set_apart
        await house.must("POST", "/api/v1/devices/tractor-1/readmit", {})
        contact = secrets.token_hex(16)
        code, _lost = await tractor.contact(tractor.request(contact_id=contact))
        assert code == 200
        assert not (await tractor.sync(contact_id=contact)).set_apart
        assert not (await tractor.sync()).set_apart


async def test_a_machine_whose_last_answer_was_lost_before_it_was_readmitted_is_to_call_again_soon(
    tmp_path: Path,
) -> None:
    async with published(tmp_path) as house:
        await house.release("1.0.0", 1, [b"model"])
        await house.rollout("first", "1.0.0")
        tractor = await house.enrol("tractor-1")
        await tractor.sync()
        twin = copy_of(tractor)
        await tractor.sync()
        assert (await twin.sync()).set_apart
        asked = tractor.request(contact_id=secrets.token_hex(16))
        await tractor.contact(asked)  # its answer is lost
        await house.must("POST", "/api/v1/devices/tractor-1/readmit", {})
        _, late = await tractor.contact(asked)
        assert late.get("assignment") is None
        settings = Contact()
        assert late["poll_s"] == settings.busy_poll_s < settings.poll_s
        tractor.sync_token = late["sync_token"]
        assert (await tractor.sync()).assignment


async def test_attack_o11_an_old_token_shown_after_weeks_is_a_clone_too(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        await tractor.sync()
        twin = copy_of(tractor)
        for _ in range(5):
            await tractor.sync()
        assert (await twin.sync()).set_apart


async def test_attack_o11_a_lost_answer_is_a_retry_with_a_fresh_time(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        await house.release("1.0.0", 1, [b"model"])
        await house.rollout("first", "1.0.0")
        tractor = await house.enrol("tractor-1")
        contact = secrets.token_hex(16)
        lost = status("a" * 64, "none", None)
        code, first = await tractor.contact(tractor.request(contact_id=contact))
        assert code == 200
        house.now_ms += 5_000
        answer = await tractor.sync(contact_id=contact, statuses=[lost])
        assert not answer.set_apart
        assert answer.sync_token == first["sync_token"]
        assert answer.assignment == first["assignment"]
        assert body_of(answer.time)["time_ms"] == house.now_ms
        assert not await house.events("clone")
        # What the repeated contact told is kept: the device forgets it on the answer.
        shown = await house.must("GET", "/api/v1/devices/tractor-1")
        assert [entry["id"] for entry in shown["statuses"]] == [lost.id]
        await tractor.sync()
        assert not await house.events("clone")


async def test_attack_o11_a_lost_token_is_renewed_by_certificate_and_reported(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        await tractor.sync()
        tractor.sync_token = None
        assert not (await tractor.sync()).set_apart
        tractor.sync_token = secrets.token_hex(16)
        assert not (await tractor.sync()).set_apart
        assert len(await house.events("sync-token-lost")) == 2
        assert not await house.events("clone")


async def test_attack_o11_another_machines_token_is_no_token(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        one, two = await house.enrol("tractor-1"), await house.enrol("tractor-2")
        await one.sync()
        two.sync_token = one.sync_token
        assert not (await two.sync()).set_apart
        assert [event["device"] for event in await house.events("sync-token-lost")] == ["tractor-2"]


async def test_attack_o11_more_rows_of_an_epoch_than_it_numbered_raise_the_alarm(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        await tractor.sync()
        await tractor.send(tractor.batch("results", [b"0", b"1", b"2"]))
        tractor.next_seq["results"] = 1
        assert (await tractor.sync()).set_apart
        assert [event["what"] for event in await house.events("clone")] == ["results"]
        # A new epoch of its own ends it.
        tractor.epoch = secrets.token_hex(16)
        assert not (await tractor.sync()).set_apart


async def test_attack_o11_a_contact_in_another_machines_name_is_refused(tmp_path: Path) -> None:
    async with published(tmp_path) as house:
        one = await house.enrol("tractor-1")
        await house.enrol("tractor-2")
        code, answer = await one.contact(one.request(device="tractor-2"))
        assert (code, answer["reason"]) == (403, "wrong-device")
        code, answer = await one.contact(one.request(product="weed-detector"))
        assert (code, answer["reason"]) == (403, "wrong-product")


async def test_attack_o11_a_request_that_was_held_up_for_two_contacts_is_no_clone_and_changes_nothing(
    tmp_path: Path,
) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        await tractor.sync()
        contact = secrets.token_hex(16)
        held_up = tractor.request(contact_id=contact)
        await tractor.sync(contact_id=contact)
        assert (await tractor.send(tractor.batch("results", [b"0", b"1"])))[0] == 200
        # The same contact's first try, from before the rows were sent, and then again after the next contact.
        for _ in range(2):
            code, answer = await tractor.contact(held_up)
            assert (code, answer.get("set_apart", False)) == (200, False)
            await tractor.sync()
        assert not await house.events("clone")
        shown = await house.must("GET", "/api/v1/devices/tractor-1")
        assert shown["lanes"]["results"]["next_seq"] == 2, "what it said of itself then is not taken in"
        # A copy that goes on from there shows a token that was used.
        twin = copy_of(tractor)
        twin.sync_token = answer["sync_token"]
        assert (await twin.sync()).set_apart
