"""A machine that lost its state: its token is renewed by its certificate, and it hears how far it had come."""

from protocol.messages import VersionReport
from tests.fakes.server_house import House, body_of, signed_by, status


async def test_a_lost_token_is_renewed_by_the_certificate_and_reported_and_is_no_clone(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    await tractor.sync()
    before = await tractor.sync()
    tractor.sync_token = None
    answer = await tractor.sync()
    assert answer.sync_token not in (None, before.sync_token)
    assert not answer.set_apart
    (event,) = await house.events("sync-token-lost")
    assert event["device"] == "tractor-1"
    assert not (await tractor.sync()).set_apart, "the new token counts"
    assert await house.events("clone") == []


async def test_the_token_given_before_the_loss_is_a_clones_if_it_comes_again(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    old = (await tractor.sync()).sync_token
    tractor.sync_token = None
    await tractor.sync()
    tractor.sync_token = old
    assert (await tractor.sync()).set_apart


async def test_a_machine_that_asks_hears_the_highest_release_that_it_committed(house: House) -> None:
    await house.release("1.0.0", 1, [b"one"])
    two = await house.release("1.1.0", 2, [b"two"])
    tractor = await house.enrol("tractor-1")
    await house.rollout("spring", "1.1.0")
    assert (await tractor.sync()).assignment is not None
    tractor.manifest = two
    assert (await tractor.sync(statuses=[status(two, "spring", "committed")])).reported is None
    # What it says while it does not know replaces nothing, however often it has to ask.
    tractor.sync_token, tractor.manifest = None, None
    for _ in range(2):
        request = tractor.request(recovering=True)
        for again in (request, tractor.request(recovering=True, contact_id=request.contact_id)):
            code, answer = await tractor.contact(again)
            assert code == 200
            body = body_of(answer["reported"])
            assert (body["kind"], body["device"], body["nonce"]) == ("reported", "tractor-1", again.nonce)
            assert (body["manifest"], body["release"], body["release_counter"]) == (two, "1.1.0", 2)
            assert signed_by(answer["reported"], house, "assignments")
            assert answer.get("assignment") is None, "by what it reported before, it runs what it should"
        tractor.sync_token = answer["sync_token"]
    shown = await house.must("GET", "/api/v1/devices/tractor-1")
    assert shown["report"]["manifest"] == two
    (member,) = (await house.must("GET", "/api/v1/rollouts/spring"))["phases"][0]["members"].values()
    assert member["outcome"] == "committed"


async def test_a_release_that_could_not_serve_when_the_state_was_lost_counts_all_the_same(house: House) -> None:
    one = await house.release("1.0.0", 1, [b"one"])
    tractor = await house.enrol("tractor-1")
    await house.rollout("spring", "1.0.0")
    await tractor.sync()
    await tractor.sync(statuses=[status(one, "spring", "committed")])
    await tractor.sync(report=VersionReport())  # a damaged release is not named, so that it is offered again
    answer = await tractor.sync(recovering=True)
    assert answer.reported is not None
    assert body_of(answer.reported)["manifest"] == one


async def test_a_machine_that_never_committed_anything_hears_that(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    answer = await tractor.sync(recovering=True)
    assert answer.reported is not None
    body = body_of(answer.reported)
    assert (body.get("manifest"), body.get("release_counter", 0)) == (None, 0)
