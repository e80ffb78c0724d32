"""Staging as people meet it: phases that fill as machines call, halts by themselves, publishing whole or not at all."""

import secrets

import msgspec

from protocol.errors import Reason
from protocol.ids import digest
from protocol.messages import Alert, Inventory
from protocol.wire import encode
from tests.fakes.managers import Managers
from tests.fakes.server_house import House, body_of, make_manifest, status


async def test_a_release_goes_to_one_machine_first_and_then_to_all(house: House) -> None:
    manifest = await house.release("1.0.0", 1, [b"model"])
    first, second = await house.enrol("tractor-1"), await house.enrol("tractor-2")
    await house.rollout("staged", "1.0.0", phases=[{"devices": ["tractor-1"]}, {"percent": 100}])
    assert (await second.sync()).assignment is None
    assert (await first.sync()).assignment is not None
    assert (await second.sync()).assignment is None
    first.manifest = manifest
    await first.sync(statuses=[status(manifest, "staged", "committed")])
    assert (await second.sync()).assignment is not None
    assert [event["what"] for event in await house.events("rollout-widened")] == ["staged"]


async def test_a_machine_whose_report_says_so_has_committed_even_if_the_status_was_lost(house: House) -> None:
    manifest = await house.release("1.0.0", 1, [b"model"])
    first, second = await house.enrol("tractor-1"), await house.enrol("tractor-2")
    await house.rollout("staged", "1.0.0", phases=[{"count": 1}, {"percent": 100}])
    await first.sync()
    assert (await second.sync()).assignment is None
    first.manifest = manifest
    await first.sync()
    assert (await second.sync()).assignment is not None


async def test_a_broken_release_halts_by_itself_and_the_reason_is_on_the_server(house: House) -> None:
    await house.release("1.0.0", 1, [b"model"])
    broken = await house.release("1.2.0", 2, [b"broken"])
    one, two = await house.enrol("tractor-1"), await house.enrol("tractor-2")
    await house.rollout("bad", "1.2.0")
    assert (await one.sync()).assignment is not None
    after = await one.sync(statuses=[status(broken, "bad", "refused", Reason.GOLDEN)])
    assert after.assignment is None
    assert (await two.sync()).assignment is None
    shown = await house.must("GET", "/api/v1/rollouts/bad")
    assert (shown["state"], "golden" in shown["halted"]) == ("halted", True)
    member = shown["phases"][0]["members"]["tractor-1"]
    assert (member["outcome"], member["reason"], member["ended_ms"]) == ("refused", "golden", house.now_ms)
    (event,) = await house.events("update-refused")
    assert (event["device"], event["what"], event["reason"]) == ("tractor-1", "pest-detector 1.2.0", "golden")

    # A person looks, resumes; the old failure does not halt it again, a new one does.
    house.now_ms += 1000
    await house.must("POST", "/api/v1/rollouts/bad/resume", {})
    assert (await one.sync()).assignment is None
    assert (await two.sync()).assignment is not None
    await two.sync(statuses=[status(broken, "bad", "rolled-back", Reason.TRIAL_CRASH)])
    assert (await house.must("GET", "/api/v1/rollouts/bad"))["state"] == "halted"


async def test_a_machine_that_has_the_release_already_counts_as_committed(house: House) -> None:
    manifest = await house.release("1.0.0", 1, [b"model"])
    first, second = await house.enrol("tractor-1"), await house.enrol("tractor-2")
    first.manifest = manifest  # by a stick
    await house.rollout("staged", "1.0.0", phases=[{"devices": ["tractor-1"]}, {"percent": 100}])
    assert (await first.sync()).assignment is None
    assert (await second.sync()).assignment is not None
    (named, _) = (await house.must("GET", "/api/v1/rollouts/staged"))["phases"]
    assert named["members"]["tractor-1"]["outcome"] == "committed"


async def test_a_retry_after_a_season_gets_what_holds_now_under_the_same_token(house: House) -> None:
    await house.release("1.0.0", 1, [b"model"])
    await house.rollout("first", "1.0.0")
    tractor = await house.enrol("tractor-1")
    request = tractor.request()
    _, lost = await tractor.contact(request)
    assert lost["assignment"]
    await house.must("POST", "/api/v1/rollouts/first/halt", {})
    _, soon = await tractor.contact(request)
    assert soon["assignment"] == lost["assignment"]
    house.now_ms += 180 * 86_400_000
    _, late = await tractor.contact(request)
    assert late.get("assignment") is None
    assert late["sync_token"] == lost["sync_token"]
    tractor.sync_token = late["sync_token"]
    assert not (await tractor.sync()).set_apart


async def test_pausing_offers_nothing_until_it_is_resumed(house: House) -> None:
    await house.release("1.0.0", 1, [b"model"])
    tractor = await house.enrol("tractor-1")
    await house.rollout("first", "1.0.0")
    await house.must("POST", "/api/v1/rollouts/first/pause", {})
    assert (await tractor.sync()).assignment is None
    assert (await house.ask("POST", "/api/v1/rollouts/first/pause", {}))[0] == 409
    await house.must("POST", "/api/v1/rollouts/first/resume", {})
    assert (await tractor.sync()).assignment is not None
    assert (await house.ask("POST", "/api/v1/rollouts/first/explode", {}))[0] == 404


async def test_a_machine_that_slept_goes_straight_to_the_newest(house: House) -> None:
    for number, version in enumerate(("1.0.0", "1.1.0", "1.2.0"), 1):
        await house.release(version, number, [f"model {number}".encode()])
        await house.rollout(f"r{number}", version)
    tractor = await house.enrol("tractor-1")
    answer = await tractor.sync()
    assert answer.assignment is not None and body_of(answer.assignment)["release"] == "1.2.0"


async def test_a_delisted_release_is_no_longer_assigned(house: House) -> None:
    await house.release("1.0.0", 1, [b"model"])
    await house.rollout("first", "1.0.0")
    tractor = await house.enrol("tractor-1")
    assert (await tractor.sync()).assignment is not None
    house.managers.delist("1.0.0")
    await house.publish()
    assert (await tractor.sync()).assignment is None
    shown = await house.must("GET", "/api/v1/rollouts/first")
    assert (shown["state"], shown["halted"]) == ("halted", "the managers delisted the release")
    assert (await house.must("GET", "/api/v1/releases"))["releases"][0]["listed"] is False
    assert (await house.ask("POST", "/api/v1/rollouts/first/resume", {}))[0] == 409
    body = {"name": "again", "product": "pest-detector", "release": "1.0.0", "group": "all"}
    assert (await house.ask("POST", "/api/v1/rollouts", body))[0] == 409


async def test_a_machine_that_the_release_does_not_fit_is_told_nothing_and_shown(house: House) -> None:
    manifest = make_manifest("1.0.0", 1, [b"model"])
    (model,) = manifest.models
    (variant,) = model.variants
    variants = (msgspec.structs.replace(variant, accelerator="edgetpu"),)
    edge = msgspec.structs.replace(manifest, models=(msgspec.structs.replace(model, variants=variants),))
    data = encode(edge)
    await house.put_blobs(b"model", b"golden", data)
    house.managers.release("1.0.0", 1, data)
    await house.publish()
    await house.payloads()
    await house.rollout("first", "1.0.0")
    plain, coral = await house.enrol("plain"), await house.enrol("coral")
    coral.inventory = Inventory(agent="0.1.0", platform="linux-aarch64", accelerators=("edgetpu", "cpu"))
    for _ in range(2):
        assert (await plain.sync()).assignment is None
    assert (await coral.sync()).assignment is not None
    assert [event["reason"] for event in await house.events("not-suited")] == ["wrong-hardware"]
    assert (await house.must("GET", "/api/v1/rollouts/first"))["state"] == "active"


async def test_groups_decide_who_is_asked(house: House) -> None:
    await house.release("1.0.0", 1, [b"model"])
    await house.rollout("early", "1.0.0", group="early")
    tractor = await house.enrol("tractor-1", groups=("late",))
    assert (await tractor.sync()).assignment is None
    await house.must("POST", "/api/v1/devices/tractor-1/groups", {"groups": ["late", "early"]})
    assert (await tractor.sync()).assignment is not None


async def test_each_status_is_kept_and_told_once(house: House) -> None:
    manifest = await house.release("1.0.0", 1, [b"model"])
    tractor = await house.enrol("tractor-1")
    await house.rollout("first", "1.0.0")
    await tractor.sync()
    ended = status(manifest, "first", "committed")
    for _ in range(3):
        await tractor.sync(statuses=[ended, ended])
    assert len((await house.must("GET", "/api/v1/devices/tractor-1"))["statuses"]) == 1
    assert len(await house.events("update-committed")) == 1


async def test_a_push_without_its_blobs_changes_nothing(house: House) -> None:
    manifest = encode(make_manifest("1.0.0", 1, [b"model"]))
    product = house.managers.release("1.0.0", 1, manifest, publish=False)
    before = (await house.must("GET", "/api/v1/status"))["repositories"]
    for blobs, missing in (((), "manifest"), ((manifest,), "artifacts"), ((manifest, b"golden"), digest(b"model"))):
        await house.put_blobs(*blobs)
        code, answer = await house.push({"image": {"pest-detector.json": product}})
        assert (code, missing in answer["error"]) == (409, True), answer
    assert (await house.must("GET", "/api/v1/status"))["repositories"] == before
    await house.put_blobs(b"model")
    assert (await house.push({"image": {"pest-detector.json": product}}))[0] == 200


async def test_a_push_is_all_or_nothing_over_both_repositories(house: House) -> None:
    house.managers.rotate_online("director", "clock")  # a key that this server does not hold
    files = {"image": {"targets.json": house.managers.sign(house.managers.make_image_targets(2))}}
    before = (await house.must("GET", "/api/v1/status"))["repositories"]
    code, answer = await house.push({**files, "director": house.managers.director.files()})
    assert (code, "this server's key" in answer["error"]) == (409, True)
    assert (await house.must("GET", "/api/v1/status"))["repositories"] == before
    assert (await house.push(files))[0] == 200


async def test_a_manifest_that_says_something_else_than_its_listing_is_refused(house: House) -> None:
    data = encode(make_manifest("1.0.1", 1, [b"model"]))
    await house.put_blobs(b"model", b"golden", data)
    product = house.managers.release("1.0.0", 1, data, publish=False)
    code, answer = await house.push({"image": {"pest-detector.json": product}})
    assert (code, answer["reason"]) == (400, "manifest")


async def test_a_foreign_root_is_refused(house: House) -> None:
    stranger = Managers(house.now())
    code, answer = await house.push({"image": stranger.image.files()})
    assert (code, answer["reason"]) == (400, "rollback")


async def test_a_damaged_manifest_in_the_store_stops_its_release_and_nothing_else(house: House) -> None:
    manifest = await house.release("1.0.0", 1, [b"model"])
    await house.rollout("first", "1.0.0")
    (house.state / "blobs" / "sha256" / manifest[:2] / manifest).write_bytes(b"swapped")
    tractor = await house.enrol("tractor-1")
    for _ in range(2):
        assert (await tractor.sync()).assignment is None
    assert [event["what"] for event in await house.events("blob-damaged")] == [manifest]


async def test_a_server_that_is_behind_its_machines_says_so(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    for _ in range(2):
        await tractor.sync(versions={"image/pest-detector": 9, "image/root": 1})
    assert [event["what"] for event in await house.events("server-behind")] == ["image/pest-detector"]


async def test_rollouts_need_a_listed_release_a_new_name_and_sound_phases(house: House) -> None:
    await house.release("1.0.0", 1, [b"model"])
    await house.rollout("first", "1.0.0")
    good = {"name": "x", "product": "pest-detector", "release": "1.0.0", "group": "all"}
    for change, code in (
        ({"name": "first"}, 409),
        ({"release": "9.9.9"}, 409),
        ({"product": "other"}, 409),
        ({"phases": [{}]}, 409),
        ({"phases": [{"count": 1, "percent": 5}]}, 409),
        ({"phases": [{"count": 0}]}, 400),
        ({"phases": [{"percent": 101}]}, 400),
        ({"name": "Not A Name"}, 400),
        ({"surprise": 1}, 400),
    ):
        assert (await house.ask("POST", "/api/v1/rollouts", {**good, **change}))[0] == code, change


async def test_tokens_are_made_for_published_products_only(house: House) -> None:
    body = {"device": "tractor-1", "product": "weed-detector", "groups": []}
    code, answer = await house.ask("POST", "/api/v1/tokens", body)
    assert (code, "pest-detector" in answer["error"]) == (409, True)


async def test_the_online_keys_are_told_to_the_tool(house: House) -> None:
    keys = await house.must("GET", "/api/v1/online-keys")
    assert set(keys["director"]) == {"snapshot", "timestamp", "assignments", "clock", "receipts"}
    assert keys["director"]["clock"]["keyid"] == house.managers.online["director"]["clock"].public_key.keyid


async def test_an_alert_becomes_an_event_naming_machine_what_and_reason(house: House) -> None:
    tractor = await house.enrol("tractor-1")
    alert = Alert(
        id=secrets.token_hex(16), kind="refused-assignment", at_ms=1, reason=Reason.WRONG_DEVICE, detail="for tractor-2"
    )
    for _ in range(2):
        await tractor.sync(alerts=[alert])
    (event,) = await house.events("alert")
    assert (event["device"], event["what"], event["reason"]) == ("tractor-1", "refused-assignment", "wrong-device")
