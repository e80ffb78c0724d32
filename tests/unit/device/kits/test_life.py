"""Sticks come and go; each kit gets its word, and the best one is offered."""

import asyncio
import contextlib
import shutil
from pathlib import Path

import msgspec
import pytest

from device.clock import Reading
from device.kits.shown import KitState
from device.refusals import Refusal
from device.trust.port import Complaint
from device.update.states import State
from protocol.errors import LinkError, Reason, StateError
from protocol.kits import KIT_FILE
from tests.fakes.kit_yard import EXPIRES_MS, KitYard, kit_of, lay
from tests.fakes.updates import DEVICE, Release, noise, permit, terms

ONE = Release("1.0.0", 1, noise(2000, 1))
TWO = Release("1.1.0", 2, noise(2000, 2))
THREE = Release("1.2.0", 3, noise(2000, 3))
GPU = Release("1.3.0", 4, noise(2000, 4), accelerator="cuda")
DAY_MS = 86_400_000
PERMIT = permit(ONE, created_ms=EXPIRES_MS - 5 * DAY_MS)
TOKEN = "f" * 32


@pytest.fixture
async def yard(tmp_path):
    yard = KitYard(tmp_path)
    yard.trust.terms = terms(ONE, TWO, THREE, GPU)
    async with yard.running():
        yield yard


async def test_a_kit_is_found_judged_and_offered_with_the_plan_for_this_machine(yard):
    lay(yard.media / "stick", kit_of("kit-a", ONE), ONE)
    shown = (await yard.turn())["kit-a"]
    assert shown.state is KitState.APPLYING
    assert shown.release == "1.0.0"
    assert shown.sticks == (str(yard.media / "stick"),)
    ((assignment, forced),) = yard.updates.offered
    assert (assignment.rollout, assignment.device, assignment.manifest.sha256) == ("kit-a", DEVICE, ONE.digest)
    assert {step.artifact for step in assignment.plan.steps} == set(ONE.artifacts)
    assert forced is None
    assert not list(yard.copies.iterdir())
    await yard.turn()
    assert len(yard.updates.offered) == 1


async def test_a_stick_is_seen_soon_although_kits_were_up_before_the_update_machine(tmp_path):
    yard = KitYard(tmp_path)
    yard.trust.terms = terms(ONE)
    yard.updates.started = False
    async with yard.running():
        await asyncio.sleep(0.5)
        yard.updates.started = True
        await asyncio.sleep(0.5)
        lay(tmp_path / "fresh", kit_of("kit-a", ONE), ONE)
        (tmp_path / "fresh").rename(yard.media / "stick")
        await asyncio.sleep(4)
        assert yard.updates.offered


async def test_a_kit_is_judged_once_until_it_or_what_is_trusted_changes(yard):
    folder = lay(yard.media / "stick", kit_of("kit-a", ONE), ONE)
    await yard.turn()
    await yard.turn()
    assert yard.trust.judged == ["kit-a"]
    (folder / KIT_FILE).write_bytes(msgspec.json.encode(kit_of("kit-a", ONE, created_ms=2)))
    await yard.turn()
    assert yard.trust.judged == ["kit-a"] * 2
    await yard.updates.learn(terms(ONE, TWO, role_version=9))
    await yard.turn()
    assert yard.trust.judged == ["kit-a"] * 3


async def test_the_newest_of_several_kits_is_installed_and_the_others_say_why_not(yard):
    yard.updates.commit(ONE)
    lay(yard.media / "x", kit_of("kit-old", ONE), ONE)
    lay(yard.media / "y", kit_of("kit-new", TWO, THREE), TWO, THREE)
    lay(yard.media / "z", kit_of("kit-mid", TWO), TWO)
    shown = await yard.turn()
    assert {kit: one.state for kit, one in shown.items()} == {
        "kit-old": KitState.INSTALLED,
        "kit-new": KitState.APPLYING,
        "kit-mid": KitState.PASSED_OVER,
    }
    assert yard.under_way().release.digest == THREE.digest
    yard.updates.commit(THREE)
    shown = await yard.turn()
    assert {kit: one.state for kit, one in shown.items()} == {
        "kit-old": KitState.OLDER,
        "kit-new": KitState.INSTALLED,
        "kit-mid": KitState.OLDER,
    }
    assert "older than 1.2.0" in shown["kit-old"].sentence


async def test_what_of_a_kit_fits_this_machine_is_taken(yard):
    lay(yard.media / "stick", kit_of("kit-a", ONE, GPU), ONE, GPU)
    assert (await yard.turn())["kit-a"].release == "1.0.0"
    lay(yard.media / "other", kit_of("kit-gpu", GPU), GPU)
    shown = (await yard.turn())["kit-gpu"]
    assert shown.state is KitState.OTHER_HARDWARE
    assert "cuda" in shown.sentence


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (Reason.EXPIRED, KitState.EXPIRED),
        (Reason.WRONG_PRODUCT, KitState.OTHER_PRODUCT),
        (Reason.WRONG_DEVICE, KitState.OTHER_MACHINE),
        (Reason.SIGNATURE, KitState.REFUSED),
    ],
)
async def test_a_refused_kit_has_its_word_and_is_judged_again_when_a_person_asks(yard, reason, state):
    yard.trust.complaints["kit-a"] = Complaint(what="kit", reason=reason, detail="the facts", hint="what to do")
    lay(yard.media / "stick", kit_of("kit-a", ONE), ONE)
    shown = (await yard.turn())["kit-a"]
    assert (shown.state, shown.sentence, shown.hint) == (state, "the facts", "what to do")
    assert not yard.updates.offered
    await yard.turn()
    assert len(yard.trust.judged) == 1
    yard.trust.complaints.clear()
    assert (await yard.look())["kit-a"].state is KitState.APPLYING


async def test_a_damaged_copy_of_a_kit_does_not_hide_a_good_one(yard):
    yard.trust.refuses_next = 2
    for name in ("x", "y", "z"):
        lay(yard.media / name, kit_of("kit-a", ONE), ONE)
    assert (await yard.turn())["kit-a"].state is KitState.APPLYING
    assert len(yard.trust.judged) == 3


@pytest.mark.parametrize("is_none", [False, True])
async def test_a_good_copy_that_comes_after_a_damaged_one_is_taken_at_once(yard, is_none):
    folder = lay(yard.media / "bad", kit_of("kit-a", ONE), ONE)
    damaged = folder / "image" / "damaged.json"
    damaged.mkdir() if is_none else damaged.touch()
    shown = (await yard.turn())["kit-a"]
    assert shown.state is KitState.REFUSED
    assert ("no plain file" if is_none else "this copy is damaged") in shown.sentence
    judged = len(yard.trust.judged)
    await yard.turn()
    assert len(yard.trust.judged) == judged
    lay(yard.media / "good", kit_of("kit-a", ONE), ONE)
    assert (await yard.turn())["kit-a"].state is KitState.APPLYING


@pytest.mark.parametrize("again_s", [0.0, 60.0])
async def test_a_kit_that_cannot_be_copied_is_left_alone_for_a_while_and_then_tried_again(yard, monkeypatch, again_s):
    monkeypatch.setattr("device.kits.life.AGAIN_S", again_s)
    monkeypatch.setattr("device.kits.finding.SETTLED_S", 0.01)
    folder = lay(yard.media / "a", kit_of("kit-a", ONE), ONE)
    shutil.move(folder / "image", folder / "gone")
    assert (await yard.turn())["kit-a"].state is KitState.UNREADABLE
    before = yard.kits._turns
    await asyncio.sleep(0.5)
    assert yard.kits._turns - before < 3, "nothing new: nobody looks"
    shutil.move(folder / "gone", folder / "image")
    then = KitState.UNREADABLE if again_s else KitState.APPLYING
    assert (await yard.turn())["kit-a"].state is then
    assert (await yard.look())["kit-a"].state is KitState.APPLYING


async def test_a_kit_without_its_manifest_is_looked_at_no_more_often_than_others(yard, monkeypatch):
    monkeypatch.setattr("device.kits.finding.SETTLED_S", 0.01)
    folder = lay(yard.media / "a", kit_of("kit-a", ONE), ONE)
    (folder / "blobs" / ONE.digest).unlink()
    assert (await yard.turn())["kit-a"].state is KitState.DAMAGED
    before = yard.kits._turns
    await asyncio.sleep(0.5)
    assert yard.kits._turns - before < 3


async def test_the_update_machine_is_told_of_a_stick_once_and_of_each_new_one(yard):
    lay(yard.media / "a", kit_of("kit-a", ONE), ONE)
    for _ in range(3):
        await yard.turn()
    assert yard.updates.there == ["kit-a"], "or it would read a bad stick without ever waiting"
    lay(yard.media / "b", kit_of("kit-a", ONE), ONE)
    await yard.turn()
    assert yard.updates.there == ["kit-a"] * 2
    await yard.look()
    assert yard.updates.there == ["kit-a"] * 3


async def test_nothing_is_offered_that_was_judged_before_what_another_kit_brought(yard):
    lay(yard.media / "a", kit_of("kit-a", THREE), THREE)
    yard.updates.puts_off = "not yet"
    await yard.turn()
    yard.updates.puts_off = ""

    def bring(kit):
        if kit == "kit-b":
            yard.trust.terms = terms(ONE, TWO, THREE, role_version=2)
            yard.trust.complaints["kit-a"] = Complaint(what="kit", reason=Reason.SIGNATURE, detail="revoked")

    yard.trust.on_judged = bring
    lay(yard.media / "b", kit_of("kit-b", TWO), TWO)
    await yard.turn()
    assert [assignment.rollout for assignment, _ in yard.updates.offered] == ["kit-b"]


async def test_a_kit_expires_while_it_is_plugged_in_only_by_sure_time(yard):
    yard.updates.reading = Reading(EXPIRES_MS + 1, sure=False)
    lay(yard.media / "stick", kit_of("kit-a", ONE), ONE)
    assert (await yard.turn())["kit-a"].state is KitState.APPLYING
    yard.updates.reading = Reading(EXPIRES_MS + 1, sure=True)
    assert (await yard.turn())["kit-a"].state is KitState.EXPIRED


async def test_a_kit_is_held_against_each_new_word_on_who_signs_kits(yard):
    lay(yard.media / "stick", kit_of("kit-a", ONE), ONE)
    yard.updates.puts_off = "not yet"
    await yard.turn()
    yard.trust.complaints["kit-a"] = Complaint(what="kit", reason=Reason.SIGNATURE, detail="its keys were taken away")
    await yard.trusts("carol", "dora", version=2)
    yard.updates.puts_off = ""
    assert (await yard.turn())["kit-a"].state is KitState.REFUSED
    assert not yard.updates.offered


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("is_pulled", [False, True])
async def test_a_revoked_kit_is_not_gone_on_with(tmp_path, is_restarted, is_pulled):
    yard = KitYard(tmp_path)
    yard.trust.terms = terms(ONE)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(yard.running())
        await yard.trusts("alice", "bob", "carol", version=1)
        stick = yard.media / "stick"
        lay(stick, kit_of("kit-a", ONE), ONE)
        await yard.turn()
        await asyncio.to_thread(yard.store.put, ONE.manifest_bytes)
        if is_pulled:
            shutil.rmtree(stick)
            await yard.turn()
        if is_restarted:
            record = yard.updates.record
            await stack.aclose()
            yard = KitYard(tmp_path)
            yard.updates.record = record
            await stack.enter_async_context(yard.running())
        await yard.trusts("alice", "bob", "dora", version=2)
        await yard.turn()
        assert yard.updates.withdrawn == [], "who signed it still may"
        yard.trust.complaints["kit-a"] = Complaint(what="kit", reason=Reason.SIGNATURE, detail="taken away")
        await yard.trusts("alice", "carol", "dora", version=3)
        await yard.turn()
        assert yard.updates.withdrawn == ["kit-a"]
        assert yard.under_way() is None


async def test_nobody_stops_a_kit_with_a_stick_that_bears_its_name(yard):
    await yard.trusts("alice", "bob", version=1)
    lay(yard.media / "stick", kit_of("kit-a", ONE), ONE)
    await yard.turn()
    yard.trust.complaints["kit-a"] = Complaint(what="kit", reason=Reason.SIGNATURE, detail="not signed")
    lay(yard.media / "other", kit_of("kit-a", TWO, created_ms=9), TWO)
    await yard.look()
    assert yard.updates.withdrawn == []


async def test_where_a_person_decides_nothing_is_installed_before(tmp_path):
    yard = KitYard(tmp_path, apply="ask")
    yard.trust.terms = terms(ONE, TWO)
    async with yard.running():
        lay(yard.media / "stick", kit_of("kit-a", ONE), ONE)
        shown = (await yard.turn())["kit-a"]
        assert shown.state is KitState.OFFERED
        assert shown.can_apply
        assert "kit apply kit-a" in shown.hint
        assert not yard.updates.offered
        assert (await yard.kits.apply("kit-a")).state is KitState.APPLYING
        with pytest.raises(StateError):
            await yard.kits.apply("kit-unknown")


async def test_a_person_is_told_that_the_stick_went_before_its_kit_was_looked_at(tmp_path):
    yard = KitYard(tmp_path, apply="ask")
    yard.trust.terms = terms(ONE)
    async with yard.running():
        lay(yard.media / "stick", kit_of("kit-a", ONE), ONE)
        await yard.turn()
        shutil.rmtree(yard.media / "stick")
        with pytest.raises(StateError, match="is gone"):
            await yard.kits.apply("kit-a")


async def test_the_word_of_a_person_takes_a_permit_back_and_nothing_else_does(yard):
    yard.updates.commit(TWO)
    yard.trust.terms = msgspec.structs.replace(yard.trust.terms, permits=(PERMIT,))
    lay(yard.media / "stick", kit_of("kit-a", ONE, TWO), ONE, TWO)
    lay(yard.media / "other", kit_of("kit-b", ONE), ONE)
    shown = await yard.turn()
    assert shown["kit-a"].state is KitState.INSTALLED
    assert shown["kit-b"].state is KitState.OLDER
    assert shown["kit-b"].can_apply
    assert "permit" in shown["kit-b"].hint
    assert (await yard.kits.apply("kit-b")).release == "1.0.0"
    assert yard.under_way().permit_ms == PERMIT.created_ms


async def test_a_kit_for_this_machine_alone_takes_its_permit_by_itself(yard):
    yard.updates.commit(TWO)
    yard.trust.terms = msgspec.structs.replace(yard.trust.terms, permits=(PERMIT,))
    lay(yard.media / "stick", kit_of("kit-a", ONE, machines=(DEVICE,)), ONE)
    assert (await yard.turn())["kit-a"].release == "1.0.0"


async def test_no_permit_takes_a_machine_back_from_the_newest_release_of_a_kit_once_that_runs(yard):
    yard.trust.terms = msgspec.structs.replace(yard.trust.terms, permits=(PERMIT,))
    lay(yard.media / "a", kit_of("kit-a", ONE, TWO, machines=(DEVICE,)), ONE, TWO)
    await yard.turn()
    assert (await yard.kits.apply("kit-a")).release == "1.1.0"
    yard.updates.commit(TWO)
    shown = await yard.turn()
    assert shown["kit-a"].state is KitState.INSTALLED
    assert yard.under_way() is None


async def test_no_permit_takes_a_machine_back_because_a_newer_release_of_the_kit_is_damaged(yard):
    yard.updates.commit(TWO)
    yard.trust.terms = msgspec.structs.replace(yard.trust.terms, permits=(PERMIT,))
    folder = lay(yard.media / "a", kit_of("kit-a", ONE, THREE, machines=(DEVICE,)), ONE, THREE)
    (folder / "blobs" / THREE.digest).unlink()
    assert (await yard.turn())["kit-a"].state is KitState.DAMAGED
    assert yard.under_way() is None


async def test_a_force_is_for_the_release_that_it_names_and_not_for_the_next_one_of_the_kit(yard):
    lay(yard.media / "a", kit_of("kit-a", ONE), ONE)
    await yard.turn()
    await yard.kits.force("kit-a", ONE.digest, TOKEN)
    assert yard.under_way().forced == TOKEN
    lay(yard.media / "b", kit_of("kit-a", ONE, TWO, created_ms=2), ONE, TWO)
    await yard.turn()
    assert yard.under_way().release.digest == TWO.digest
    assert yard.under_way().forced is None


async def test_a_force_is_good_for_one_try_and_its_retries_and_not_for_ever(yard):
    lay(yard.media / "a", kit_of("kit-a", ONE), ONE)
    await yard.turn()
    await yard.kits.force("kit-a", ONE.digest, TOKEN)
    yard.updates.give_up()
    shown = await yard.turn()
    assert shown["kit-a"].state is KitState.WAITING
    assert "used up its retries" in shown["kit-a"].sentence
    assert yard.under_way() is None


async def test_a_force_waits_as_long_as_its_release_does(yard):
    lay(yard.media / "a", kit_of("kit-a", ONE), ONE)
    await yard.turn()
    yard.updates.puts_off = "another"
    await yard.kits.force("kit-a", ONE.digest, TOKEN)
    assert yard.under_way().forced is None
    yard.updates.puts_off = ""
    await yard.turn()
    assert yard.under_way().forced == TOKEN


async def test_a_release_that_was_refused_here_is_not_offered_again(yard):
    yard.state.write_record(
        yard.updates.record,
        refusal=Refusal(manifest=TWO.digest, release="1.1.0", reason=Reason.GOLDEN, at_ms=1, detail="off by 3"),
    )
    lay(yard.media / "stick", kit_of("kit-a", ONE, TWO), ONE, TWO)
    lay(yard.media / "other", kit_of("kit-b", TWO), TWO)
    shown = await yard.turn()
    assert shown["kit-a"].release == "1.0.0"
    assert shown["kit-b"].state is KitState.REFUSED_HERE
    assert "off by 3" in shown["kit-b"].sentence


async def test_a_stick_that_goes_takes_its_kits_along_but_for_the_one_under_way(yard):
    lay(yard.media / "a", kit_of("kit-a", THREE), THREE)
    lay(yard.media / "b", kit_of("kit-b", ONE), ONE)
    await yard.turn()
    shutil.move(yard.media / "a", yard.media.parent / "a")
    shutil.rmtree(yard.media / "b")
    await asyncio.to_thread(
        yard.store.put, THREE.manifest_bytes
    )  # as the update machine does when it takes an offer up
    shown = await yard.turn()
    assert list(shown) == ["kit-a"]
    assert shown["kit-a"].sticks == ()
    assert not yard.updates.withdrawn
    there = len(yard.updates.there)
    shutil.move(yard.media.parent / "a", yard.media / "again")
    shown = await yard.turn()
    assert shown["kit-a"].sticks == (str(yard.media / "again"),)
    assert len(yard.updates.there) == there + 1


async def test_damaged_files_pause_a_kit_with_words_and_the_next_one_has_its_turn(yard):
    folder = lay(yard.media / "a", kit_of("kit-a", TWO), TWO)
    shown = await yard.turn()
    assert shown["kit-a"].state is KitState.APPLYING
    assignment = yard.updates.offered[-1][0]
    for step in assignment.plan.steps:
        (folder / "blobs" / step.payload.sha256).unlink()
    with pytest.raises(LinkError) as error:
        await yard.fetcher.fetch(assignment.plan, TWO.manifest.artifacts(), lambda _: None, None)
    assert not error.value.retryable
    shown = await yard.turn()
    assert shown["kit-a"].state is KitState.DAMAGED
    assert "another copy" in shown["kit-a"].hint
    assert yard.updates.record.state is State.FETCH
    lay(yard.media / "b", kit_of("kit-b", ONE), ONE)
    shown = await yard.turn()
    assert yard.updates.withdrawn == []  # what is at hand changed: it is tried again
    with pytest.raises(LinkError):
        await yard.fetcher.fetch(assignment.plan, TWO.manifest.artifacts(), lambda _: None, None)
    shown = await yard.turn()
    assert yard.updates.withdrawn == ["kit-a"]
    assert shown["kit-b"].state is KitState.APPLYING


async def test_a_stick_with_wrong_bytes_is_passed_over_for_one_with_the_right_ones(yard):
    for name in ("a", "b"):
        lay(yard.media / name, kit_of("kit-a", ONE), ONE)
    first = (await yard.turn())["kit-a"].sticks[0]  # the one that is asked first
    bad = Path(first) / "headland-kits" / "kit-a"
    assignment = yard.updates.offered[-1][0]
    for step in assignment.plan.steps:
        path = bad / "blobs" / step.payload.sha256
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    await yard.fetcher.fetch(assignment.plan, ONE.manifest.artifacts(), lambda _: None, None)
    assert all(yard.store.has(artifact) for artifact in ONE.artifacts)


async def test_what_came_meanwhile_is_not_planned_again(yard):
    lay(yard.media / "a", kit_of("kit-a", ONE), ONE)
    await yard.turn()
    name = next(iter(ONE.artifacts))
    await asyncio.to_thread(yard.store.put, ONE.artifacts[name])
    await yard.turn()
    assert {step.method for step in yard.updates.offered[-1][0].plan.steps if step.artifact == name} == {"have"}


async def test_a_kit_json_that_cannot_be_read_says_so(yard, monkeypatch):
    folder = lay(yard.media / "a", kit_of("kit-a", ONE), ONE)
    with (folder / KIT_FILE).open("ab") as file:
        file.truncate(6_000_000)
    shown = (await yard.turn())["kit-a"]
    assert shown.state is KitState.UNREADABLE
    assert "5000000" in shown.sentence


async def test_a_folder_named_by_hand_is_looked_into(yard, tmp_path):
    lay(tmp_path / "elsewhere", kit_of("kit-a", ONE), ONE)
    found = await yard.kits.look(tmp_path / "elsewhere")
    assert [one.kit for one in found.kits] == ["kit-a"]
