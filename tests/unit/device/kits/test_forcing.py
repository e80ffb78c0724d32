"""A technician's request is carried out once, for what this machine asked about, and told before it is done."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from device.kits.forces import untold_forces
from device.kits.forcing import CHALLENGES, Forcing
from device.kits.shown import KitShown, KitState
from device.state_db import StateDb
from device.update.states import Held, Offer, State, UpdateRecord
from protocol.errors import Reason, Refused, StateError
from protocol.ids import digest
from protocol.kits import CHALLENGE_S, ForceRequest
from protocol.messages import SignedForce
from protocol.wire import decode, encode

MANIFEST = digest(b"manifest")
KIT = "kit-a"


class World:
    """Kits and updates, and what was done to them."""

    def __init__(self, state: StateDb) -> None:
        self.state = state
        self.now_s = 0.0
        self.done: list[tuple[str, str]] = []
        self.choice: tuple[str, str] | None = ("1.0.0", MANIFEST)
        self.record = UpdateRecord()
        self.refusal: Refused | None = None
        self.is_late = False
        tokens = (f"{number:032x}" for number in range(1, 1000))
        self.forcing = Forcing(
            device="tractor-1",
            product="pest-detector",
            kits=SimpleNamespace(choice_of=self.choice_of, force=self.force_kit),
            updates=self,
            state=state,
            judge=self.judge,
            draw_token=lambda: next(tokens),
            now_ms=lambda: 5,
            monotonic=lambda: self.now_s,
        )

    def judge(self, signed, challenge):
        if self.refusal is not None:
            raise self.refusal
        return decode(signed.request, ForceRequest, limit=5000)

    def choice_of(self, offer):
        return self.choice if offer == KIT else None

    async def force_kit(self, kit, release, request):
        assert await asyncio.to_thread(untold_forces, self.state)
        self.done.append((kit, release, request))
        return KitShown(kit=kit, sticks=(), state=KitState.APPLYING, sentence="")

    async def force(self, release, request):
        assert await asyncio.to_thread(untold_forces, self.state)
        if self.is_late:
            raise StateError("its trial has begun")
        self.done.append((release, request))


@pytest.fixture
def world(tmp_path):
    state = StateDb(tmp_path / "state.db")
    yield World(state)
    state.close()


def signed(challenge, **other):
    fields = {name: getattr(challenge, name) for name in ("id", "device", "product", "offer", "release", "manifest")}
    request = ForceRequest(at_ms=5, technician="theo", reason="harvest", **{**fields, **other})
    return SignedForce(request=encode(request).decode(), signature="0" * 128)


async def test_a_kit_is_forced_once_and_the_server_will_hear_of_it(world):
    challenge = await world.forcing.challenge(KIT)
    assert (challenge.release, challenge.manifest, challenge.device) == ("1.0.0", MANIFEST, "tractor-1")
    said = await world.forcing.force(signed(challenge))
    assert (said.technician, said.offer) == ("theo", KIT)
    assert world.done == [(KIT, MANIFEST, challenge.id)]
    assert untold_forces(world.state) == (signed(challenge),)
    (alert,) = world.state.pending_alerts(9)
    assert (alert.kind, alert.id) == ("forced", challenge.id)
    assert "theo forced release 1.0.0 of kit-a: harvest" in alert.detail
    with pytest.raises(Refused) as refused:
        await world.forcing.force(signed(challenge))
    assert refused.value.reason is Reason.TOKEN
    assert len(world.done) == 1


async def test_what_the_server_has_under_way_is_forced(world):
    held = Held(digest=MANIFEST, version="1.0.0", release_counter=1)
    world.record = UpdateRecord(state=State.WAIT, offer=Offer(release=held, rollout="spring"))
    challenge = await world.forcing.challenge("spring")
    await world.forcing.force(signed(challenge))
    assert world.done == [(MANIFEST, challenge.id)]


@pytest.mark.parametrize("offer", [KIT, "spring"])
async def test_nothing_is_forced_nor_said_to_be_once_its_trial_has_begun(world, offer):
    held = Held(digest=MANIFEST, version="1.0.0", release_counter=1)
    world.record = UpdateRecord(state=State.WAIT, offer=Offer(release=held, rollout=offer))
    challenge = await world.forcing.challenge(offer)
    for state in (State.TRIAL, State.COMMIT):
        world.record = msgspec.structs.replace(world.record, state=state)
        with pytest.raises(StateError):
            await world.forcing.challenge(offer)
        with pytest.raises(StateError):
            await world.forcing.force(signed(challenge))
    world.record = msgspec.structs.replace(world.record, state=State.ACTIVATE)
    world.is_late = True  # it begins in this very moment
    with pytest.raises(StateError):
        await world.forcing.force(signed(challenge))
    assert not world.done
    assert not untold_forces(world.state)
    assert not world.state.pending_alerts(9)


async def test_a_challenge_ends_after_ten_minutes(world):
    challenge = await world.forcing.challenge(KIT)
    world.now_s = CHALLENGE_S + 1
    with pytest.raises(Refused) as refused:
        await world.forcing.force(signed(challenge))
    assert refused.value.reason is Reason.TOKEN
    assert not world.done


async def test_a_technician_who_may_not_changes_nothing_and_may_try_again(world):
    challenge = await world.forcing.challenge(KIT)
    world.refusal = Refused(Reason.SIGNATURE, "not signed by the key")
    with pytest.raises(Refused):
        await world.forcing.force(signed(challenge))
    assert not world.done
    assert not untold_forces(world.state)
    assert not world.state.pending_alerts(9)
    world.refusal = None
    await world.forcing.force(signed(challenge))
    assert world.done


async def test_what_is_not_on_offer_any_more_is_not_forced(world):
    with pytest.raises(StateError):
        await world.forcing.challenge("autumn")
    challenge = await world.forcing.challenge(KIT)
    world.choice = ("1.1.0", digest(b"another"))
    with pytest.raises(StateError):
        await world.forcing.force(signed(challenge))
    assert not world.done
    assert not untold_forces(world.state)


async def test_who_asks_often_takes_nobodys_challenge_away(world):
    first = await world.forcing.challenge(KIT)
    for _ in range(2 * CHALLENGES):
        assert await world.forcing.challenge(KIT) == first
    await world.forcing.force(signed(first))
    assert await world.forcing.challenge(KIT) != first  # that was used


async def test_a_challenge_is_given_again_only_while_there_is_time_to_sign_it(world):
    first = await world.forcing.challenge(KIT)
    world.now_s = CHALLENGE_S / 2 + 1
    second = await world.forcing.challenge(KIT)
    assert second != first
    await world.forcing.force(signed(first))
    world.now_s = CHALLENGE_S + 2
    await world.forcing.force(signed(second))


async def test_challenges_are_few(world):
    first = await world.forcing.challenge(KIT)
    for number in range(CHALLENGES):
        world.choice = (f"1.1.{number}", MANIFEST)
        await world.forcing.challenge(KIT)
    world.choice = ("1.0.0", MANIFEST)
    with pytest.raises(Refused):
        await world.forcing.force(signed(first))


async def test_a_request_that_is_none_is_refused(world):
    with pytest.raises(Refused):
        await world.forcing.force(SignedForce(request="{}", signature="0" * 128))
    challenge = await world.forcing.challenge(KIT)
    with pytest.raises(Refused):
        await world.forcing.force(signed(msgspec.structs.replace(challenge, id="f" * 32)))
