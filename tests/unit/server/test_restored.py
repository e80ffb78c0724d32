"""A server out of last week's backup: nothing goes back, what it lacks comes home, and no machine is left behind."""

import asyncio
import json
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tuf.api.metadata import DelegatedRole, Targets

from protocol.kits import Technician
from protocol.messages import GivenBack, LanePosition, RenewRequest, SignedFile
from protocol.wire import encode
from server import restored
from server.restoring import Marker
from server.storage.catalog import Catalog
from signing.metadata import parse
from tests.fakes.server_house import START_MS, House, Machine, body_of, make_csr
from tests.fakes.trusting_machine import TrustingMachine
from tests.unit.server.test_online_keys import next_keys, sign_rotation

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS


async def back_up(house: House) -> tuple[Path, int]:
    """The catalog as it is now, and when that was."""
    copy = house.state.parent / "catalog.backup"

    def work() -> None:
        with closing(sqlite3.connect(house.state / "catalog.db")) as live, closing(sqlite3.connect(copy)) as kept:
            live.backup(kept)

    await asyncio.to_thread(work)
    return copy, house.now_ms


async def restore(house: House, backup: tuple[Path, int], revoke: tuple[str, ...] = (), *, told: bool = True) -> None:
    """As `headland-server restore` leaves a folder, and its first start."""
    await house.stop()

    def work() -> None:
        for path in house.state.glob("catalog.db*"):
            path.unlink()
        (house.state / "catalog.db").write_bytes(backup[0].read_bytes())
        (house.state / "starts").unlink()
        if told:
            marker = Marker(id=secrets.token_hex(16), backup_ms=backup[1], how="out of a backup", revoke=revoke)
            (house.state / "restored.json").write_bytes(encode(marker))

    await asyncio.to_thread(work)
    await house.start()


async def machine(house: House, name: str) -> TrustingMachine:
    found = TrustingMachine(house, name, house.state.parent / name)
    status, answer = await found.enrol(await house.make_token(name))
    assert status == 200, answer
    return found


async def versions(house: House) -> dict[str, int]:
    repositories = (await house.must("GET", "/api/v1/status"))["repositories"]
    return {f"{kind}/{role}": state["version"] for kind, of in repositories.items() for role, state in of.items()}


async def later(house: House, ms: int = WEEK_MS // 2) -> None:
    house.now_ms += ms
    house.managers.now = house.now()


def next_root(house: House, kind: str) -> None:
    """Managers sign a root that changes nothing but its version."""
    current = house.managers.image if kind == "image" else house.managers.director
    number = max(current.roots) + 1
    house.managers._accept(kind, {f"{number}.root.json": house.managers.sign(house.managers.make_root(kind, number))})


async def a_lost_week(house: House) -> tuple[TrustingMachine, TrustingMachine]:
    """Backed up after 1.0.0. Roots, targets and 2.0.0 came after: one machine saw them all, one none of them."""
    await house.release("1.0.0", 1, [b"one"])
    keen, asleep = await machine(house, "keen"), await machine(house, "asleep")
    await keen.visit()
    await asleep.visit()
    backup = await back_up(house)
    await later(house)
    for _ in range(2):
        next_root(house, "image")
    next_root(house, "director")
    house.managers.era(1)
    await house.release("2.0.0", 2, [b"two"])
    await keen.visit()
    assert keen.verdicts[-1].may_install and keen.versions["image/root"] == 3
    await later(house, 2 * DAY_MS)
    await restore(house, backup)
    return keen, asleep


LACKING = [
    "director/2.root.json",
    "image/2.root.json",
    "image/3.root.json",
    "image/pest-detector.json",
    "image/targets.json",
]


async def test_nothing_is_published_and_contact_results_and_time_go_on(house: House) -> None:
    keen, _ = await a_lost_week(house)
    before, trusted = await versions(house), dict(keen.versions)
    keen.gives_back = False
    answer, verdict = await keen.visit()
    assert await versions(house) == before
    assert (answer.image_timestamp, answer.director_timestamp, verdict.complaints) == ("", "", ())
    assert (verdict.time_ms, verdict.may_install, verdict.versions) == (house.now_ms, True, trusted)
    assert sorted(answer.want_metadata) == LACKING
    batch = keen.batch("results", [b"row"])
    assert (await keen.send(batch))[0] == 200
    house.now_ms += DAY_MS
    await house.stop()
    await house.start()  # not at a start either
    assert await versions(house) == before
    status = await house.must("GET", "/api/v1/status")
    assert (status["restored"]["held"], status["restored"]["called"]) == (True, 1)
    assert sorted(each["file"] for each in status["missing"]) == [LACKING[0], *LACKING[2:]]
    assert {tuple(each["devices"]) for each in status["missing"]} == {("keen",)}
    assert (await house.events("server-behind"))[0]["device"] == "keen"


async def test_a_list_of_technicians_that_was_lost_is_asked_back_from_machines_and_waited_for(house: House) -> None:
    tractor = await machine(house, "tractor-1")
    backup = await back_up(house)
    tom = Technician(name="tom", public_key="1" * 64, expires_ms=house.now_ms + 90 * DAY_MS)
    data = house.managers.technicians(tom)
    await house.publish()
    trusted = await versions(house)
    assert trusted["director/technicians"] == 2
    await restore(house, backup)
    answer = await tractor.sync(versions=trusted)
    assert (list(answer.want_metadata), answer.director_timestamp) == (["director/technicians.json"], "")
    file = SignedFile(repository="director", name="technicians.json", content=data.decode())
    assert (await tractor.ask("POST", "/v1/metadata", encode(GivenBack(files=(file,)))))[0] == 204
    status = await house.must("GET", "/api/v1/status")
    assert (status["missing"], status["restored"]["held"]) == ([], True), "no machine's word stands for the managers'"
    assert await house.push_again() == ""
    assert (await versions(house))["director/technicians"] == 2


async def test_a_hold_that_lasts_is_told_by_the_machines_as_stale_metadata(house: House) -> None:
    keen, _ = await a_lost_week(house)
    keen.gives_back = False
    await keen.visit()
    house.now_ms += WEEK_MS
    _, verdict = await keen.visit()
    assert {(one.what, one.reason) for one in verdict.complaints} == {("image", "expired"), ("director", "expired")}
    assert verdict.time_ms == house.now_ms and not verdict.may_install


async def test_the_managers_push_again_brings_all_back_and_no_machine_refuses_anything(house: House) -> None:
    keen, asleep = await a_lost_week(house)
    keen.gives_back = False
    await keen.visit()
    await asleep.visit()
    seen = max(keen.versions.values())
    assert await house.push_again() == ""
    now = await versions(house)
    for role in ("timestamp", "snapshot"):
        assert now[f"image/{role}"] == now[f"director/{role}"] == house.now_ms // 1000 > seen
    for tractor in (keen, asleep):
        _, verdict = await tractor.visit()
        assert (verdict.complaints, verdict.may_install) == ((), True)
        assert {**now, **tractor.versions} == now
    status = await house.must("GET", "/api/v1/status")
    assert (status["missing"], status["restored"]["held"]) == ([], False)
    assert not [one for tractor in (keen, asleep) for verdict in tractor.verdicts for one in verdict.complaints]


async def test_a_machine_brings_back_what_it_trusts_and_a_person_lets_it_be_published(house: House) -> None:
    keen, asleep = await a_lost_week(house)
    before = await versions(house)
    await keen.visit()
    assert sorted(keen.given[0]) == LACKING
    status = await house.must("GET", "/api/v1/status")
    assert (status["missing"], status["restored"]["held"]) == ([], True)
    kept = await versions(house)
    assert (kept["image/root"], kept["image/targets"], kept["director/root"]) == (3, 2, 2)
    assert kept["image/timestamp"] == before["image/timestamp"]
    assert [event["device"] for event in await house.events("metadata-returned")] == ["keen"]
    assert (await keen.visit())[0].want_metadata == ()

    status = await house.must("POST", "/api/v1/unhold", {})
    assert not status["restored"]["held"]
    for tractor in (keen, asleep):
        _, verdict = await tractor.visit()
        assert (verdict.complaints, verdict.may_install) == ((), True)
        assert tractor.versions["image/pest-detector"] == keen.versions["image/pest-detector"]
    # Its blobs come from the managers: until then the release is on the list that they signed, and not offered.
    assert [event["what"] for event in await house.events("blobs-missing")] == ["pest-detector 2.0.0"]
    house.managers.delist("1.0.0")
    await house.publish()  # even while they are missing
    assert [event["what"] for event in await house.events("delisted")] == ["pest-detector 1.0.0"]


async def test_what_a_machine_and_the_managers_bring_adds_up(house: House) -> None:
    keen, _ = await a_lost_week(house)
    await keen.visit()
    # A copy of the workspace that never saw the newest role.
    code, old = await house.ask("GET", "/api/v1/tuf/image/2.pest-detector.json")
    assert code == 200
    old = old if isinstance(old, bytes) else json.dumps(old).encode()
    stale = house.managers.image.files() | {"pest-detector.json": old}
    status, answer = await house.push({"image": stale, "director": house.managers.director.files()}, again=True)
    assert (status, answer.get("held", "")) == (200, "")
    assert (await keen.visit())[1].may_install


async def test_a_push_that_lacks_what_machines_trust_is_kept_and_not_published(house: House) -> None:
    keen, _ = await a_lost_week(house)
    keen.gives_back = False
    await keen.visit()
    before = await versions(house)
    files = {name: data for name, data in house.managers.image.files().items() if name.endswith("root.json")}
    status, answer = await house.push({"image": files, "director": house.managers.director.files()})
    assert status == 200 and "image/pest-detector.json (version" in answer["held"]
    now = await versions(house)
    assert (now["image/root"], now["image/timestamp"]) == (3, before["image/timestamp"])
    # The rest comes from the machine. That is all that machines know of, and not all that managers may have signed.
    keen.gives_back = True
    await keen.visit()
    status = await house.must("GET", "/api/v1/status")
    assert (status["missing"], status["restored"]["held"]) == ([], True)
    assert await house.push_again() == ""
    assert (await keen.visit())[1].may_install


async def test_a_push_of_something_else_is_kept_and_ends_no_hold(house: House) -> None:
    """Its manager knows nothing of the restore, nor of the delisting that was pushed from another workspace."""
    await house.release("1.0.0", 1, [b"one"])
    keen = await machine(house, "keen")
    await keen.visit()
    backup = await back_up(house)
    await later(house)
    house.managers.delist("1.0.0")
    await house.publish()  # and no machine fetched it
    await later(house, DAY_MS)
    await restore(house, backup)
    before = await versions(house)
    next_root(house, "director")
    files = {"2.root.json": house.managers.director.roots[2]}
    for whole in (False, True):  # what the tool never sends: a part that says that it is everything
        status, answer = await house.push({"director": files}, again=whole)
        assert status == 200 and "have not pushed all that they have" in answer["held"]
    now = await versions(house)
    assert (now["director/root"], now["image/timestamp"]) == (2, before["image/timestamp"])
    assert [each["listed"] for each in (await house.must("GET", "/api/v1/releases"))["releases"]] == [True]
    assert await house.push_again() == ""
    assert [each["listed"] for each in (await house.must("GET", "/api/v1/releases"))["releases"]] == [False]
    _, verdict = await keen.visit()
    assert (verdict.complaints, keen.versions["director/root"]) == ((), 2)


async def test_the_first_workspace_does_not_end_the_wait_for_the_second(house: House) -> None:
    north, south, gone = "1" * 32, "2" * 32, "3" * 32

    def long_ago() -> None:
        with closing(Catalog(f"sqlite:///{house.state / 'catalog.db'}")) as catalog, catalog.write() as session:
            restored.note_workspace(session, gone, house.now_ms - 366 * DAY_MS)

    await asyncio.to_thread(long_ago)
    await house.release("1.0.0", 1, [b"one"])
    for each in (north, south):
        assert await house.push_again(workspace=each) == ""
    backup = await back_up(house)
    old = {"image": house.managers.image.files(), "director": house.managers.director.files()}
    await later(house)
    house.managers.delist("1.0.0")
    assert await house.push_again(workspace=south) == ""
    await restore(house, backup)
    _, answer = await house.push(old, again=True, workspace=north)
    assert "22222222 (last on " in answer["held"] and "1111" not in answer["held"] and "3333" not in answer["held"]
    assert await house.push_again(workspace=south) == ""
    assert [each["listed"] for each in (await house.must("GET", "/api/v1/releases"))["releases"]] == [False]
    # Whose push comes late brings what is older: let lie.
    assert (await house.push(old, again=True, workspace=north))[0] == 200
    assert [each["listed"] for each in (await house.must("GET", "/api/v1/releases"))["releases"]] == [False]


async def test_a_role_that_only_a_machine_brought_back_waits_for_the_workspace_that_signed_it(house: House) -> None:
    keen, _ = await a_lost_week(house)
    whole = {"image": house.managers.image.files(), "director": house.managers.director.files()}
    await keen.visit()
    managers = house.managers
    top = parse(managers.image.targets, Targets, "targets.json").signed
    assert top.delegations is not None and top.delegations.roles is not None
    role = top.delegations.roles["pest-detector"].to_dict()
    role |= {"name": "weed-finder", "paths": ["weed-finder/*", "weed-finder/*/*"]}
    top.delegations.roles["weed-finder"] = DelegatedRole.from_dict(role)
    top.version += 1
    from_elsewhere = {
        "targets.json": managers.sign(top),
        "weed-finder.json": managers.sign(managers.make_product(1, product="weed-finder")),
    }
    managers._accept("image", from_elsewhere)
    assert (await house.push({"image": from_elsewhere}))[1]["held"]
    status, answer = await house.push(whole, again=True)
    assert status == 200 and "no workspace has pushed image/weed-finder again" in answer["held"]
    assert await house.push_again() == ""


async def test_a_machine_that_lies_about_what_it_trusts_holds_nothing_up_for_good(house: House) -> None:
    await a_lost_week(house)
    liar = await machine(house, "liar")
    await liar.sync(versions={"image/pest-detector": 1000, "image/root": 1 << 40, "image/../x": 7, "nonsense": 1})
    assert "version 1000 on liar" in await house.push_again()
    await house.must("POST", "/api/v1/devices/liar/revoke", {})
    assert await house.push_again() == ""


async def test_what_a_machine_brings_is_judged_like_a_push(house: House) -> None:
    _, asleep = await a_lost_week(house)
    before = await versions(house)

    async def gives(**files: bytes) -> tuple[int, bytes]:
        named = tuple(
            SignedFile(repository="image", name=name.replace("_", ".") + ".json", content=data.decode())
            for name, data in files.items()
        )
        status, body, _ = await asleep.ask("POST", "/v1/metadata", encode(GivenBack(files=named)))
        return status, body

    await asleep.visit()
    genuine = house.managers.image.delegated["pest-detector"]
    roots = {"2_root": house.managers.image.roots[2], "3_root": house.managers.image.roots[3]}
    top = house.managers.image.targets
    alone = house.managers.sign(parse(genuine, Targets, "").signed, by=("alice",))
    swapped = genuine.replace(b"2.0.0", b"6.6.6")
    for bad in (swapped, alone, b"{}", b""):
        status, _ = await gives(**roots, targets=top, **{"pest-detector": bad})
        assert status in (400, 403), bad
    assert (await gives(**{"3_root": roots["3_root"]}))[0] == 400  # a chain has no gap
    assert (await gives(targets=house.managers.sign(house.managers.make_image_targets(1))))[0] != 204
    assert await versions(house) == before
    assert (await gives(**roots, targets=top, **{"pest-detector": genuine}))[0] == 204
    # Again, and when nothing is missing: it is told so.
    assert (await gives(**roots, targets=top, **{"pest-detector": genuine}))[0] == 409
    stranger = Machine(house, "stranger")
    assert (await stranger.ask("POST", "/v1/metadata", b"{}"))[0] == 403


async def test_a_role_that_expired_since_comes_back_so_that_managers_can_sign_on_top_of_it(house: House) -> None:
    keen, _ = await a_lost_week(house)
    await later(house, 200 * 86_400_000)
    await house.stop()
    await house.start()
    assert await house.push_again() == ""
    house.managers.delist("1.0.0")
    await house.publish()
    _, verdict = await keen.visit()
    assert (verdict.complaints, verdict.may_install) == ((), True)


async def test_nothing_is_assigned_before_a_person_looked_at_the_rollouts(house: House) -> None:
    manifest = await house.release("1.0.0", 1, [b"one"])
    tractor = await machine(house, "tractor-1")
    await house.rollout("first", "1.0.0")
    assert (await tractor.visit())[0].assignment is not None
    token = await house.make_token("tractor-2")
    backup = await back_up(house)
    await house.must("POST", "/api/v1/rollouts/first/halt", {})
    house.now_ms += 60_000
    await restore(house, backup)
    assert (await tractor.visit())[0].assignment is None
    assert await house.push_again() == ""
    assert (await tractor.visit())[0].assignment is None
    rollout = await house.must("GET", "/api/v1/rollouts/first")
    assert (rollout["state"], "restored" in rollout["why"]) == ("paused", True)
    await house.must("POST", "/api/v1/rollouts/first/resume", {})
    answer, _ = await tractor.visit()
    assert answer.assignment is not None and body_of(answer.assignment)["manifest"]["sha256"] == manifest
    # A token of before may have been used since, by whom nobody knows.
    assert (await Machine(house, "tractor-2").enrol(token))[1]["reason"] == "token"


async def test_a_machine_that_enrolled_after_the_backup_is_taken_back_and_shown(house: House) -> None:
    await house.release("1.0.0", 1, [b"one"])
    backup = await back_up(house)
    await later(house, DAY_MS)
    tractor = await machine(house, "newcomer")
    await tractor.visit()
    assert (await tractor.send(tractor.batch("results", [b"one", b"two"])))[0] == 200
    await later(house, DAY_MS)
    await restore(house, backup)
    answer, verdict = await tractor.visit()
    assert (verdict.time_ms, answer.set_apart, verdict.complaints) == (house.now_ms, False, ())
    assert (await tractor.send(tractor.batch("results", [b"one", b"two"], first=0)))[0] == 200
    assert await house.push_again() == ""
    await house.rollout("first", "1.0.0")
    await house.must("POST", "/api/v1/devices/newcomer/groups", {"groups": ["all"]})
    assert (await tractor.visit())[0].assignment is None
    shown = await house.must("GET", "/api/v1/devices/newcomer")
    assert "after the backup" in shown["returned"] and shown["ingested"]["results"] == 2
    assert (await house.must("GET", "/api/v1/status"))["devices"]["returned"] == 1
    assert [event["device"] for event in await house.events("returned")] == ["newcomer"]
    assert not await house.events("clone")
    await house.must("POST", "/api/v1/devices/newcomer/readmit", {})
    assert (await tractor.visit())[0].assignment is not None


async def test_only_certificates_of_the_lost_time_come_back(house: House) -> None:
    early = await machine(house, "early")
    later_key = TrustingMachine(house, "changed", house.state.parent / "changed-before")
    await later_key.enrol(await house.make_token("changed"))
    await later_key.visit()
    house.now_ms += 3_600_000
    backup = await back_up(house)
    await later(house)
    status, body, _ = await later_key.ask(
        "POST", "/v1/renew", encode(RenewRequest(csr_pem=make_csr(later_key.key, "changed")))
    )
    assert status == 200
    later_key.use(json.loads(body)["certificate_pem"])  # renewed in the lost time, and replaced after that
    await later(house, 60_000)
    changed = await machine(house, "changed")  # a new computer, a new key
    await later(house)

    def forget_early() -> None:
        with closing(sqlite3.connect(backup[0])) as kept:
            kept.execute("DELETE FROM group_members WHERE device = 'early'")
            kept.execute("DELETE FROM devices WHERE id = 'early'")
            kept.commit()

    await asyncio.to_thread(forget_early)
    await restore(house, backup)
    # Our CA signed it before the backup, and the backup does not know it: that is nobody.
    assert (await early.contact(early.request()))[1]["reason"] == "certificate"
    assert (await changed.contact(changed.request()))[0] == 200
    assert "enrolled anew" in (await house.must("GET", "/api/v1/devices/changed"))["returned"]
    # The key of before is a stranger's from now on.
    assert (await later_key.contact(later_key.request()))[1]["reason"] == "certificate"


async def test_machines_that_a_person_revokes_again_at_the_restore_stay_out(house: House) -> None:
    known = await machine(house, "known")
    await known.visit()
    backup = await back_up(house)
    await later(house)
    unknown = await machine(house, "unknown")
    await unknown.visit()
    for name in ("known", "unknown"):
        await house.must("POST", f"/api/v1/devices/{name}/revoke", {})
    await restore(house, backup, revoke=("known", "unknown"))
    for tractor in (known, unknown):
        assert (await tractor.contact(tractor.request()))[0] == 403
    # Nothing of it is undone by a start or by another restore of the same backup.
    await restore(house, backup)
    assert (await unknown.contact(unknown.request()))[0] == 200  # which is why `restore` asks for the names


async def test_tokens_of_the_lost_time_are_no_clones_and_the_fleet_sends_again_once(house: House) -> None:
    fleet = [await machine(house, f"tractor-{number}") for number in range(3)]
    for tractor in fleet:
        await tractor.visit()
    backup = await back_up(house)
    old = (await house.must("GET", "/api/v1/status"))["generation"]
    for _ in range(3):
        for tractor in fleet:
            await tractor.visit()
    house.now_ms += 60_000
    await restore(house, backup)
    generations = {(await tractor.visit())[0].generation for tractor in fleet for _ in range(2)}
    assert len(generations) == 1 and old not in generations
    assert not await house.events("clone") and not await house.events("sync-token-lost")
    assert len(await house.events("server-restored")) == 1


async def test_rows_that_no_machine_holds_any_more_are_counted_as_gone(house: House) -> None:
    tractor = await machine(house, "tractor-1")
    await tractor.visit()
    await tractor.send(tractor.batch("results", [b"row"] * 10))
    backup = await back_up(house)
    kept, dropped = [b"kept"] * 3, [b"dropped"] * 4
    await tractor.send(tractor.batch("results", dropped))
    await tractor.send(tractor.batch("results", kept))
    house.now_ms += 60_000
    await restore(house, backup)

    async def gone(queued: int) -> dict[str, int]:
        lanes = {"results": LanePosition(next_seq=17, queued=queued), "alarms": LanePosition(next_seq=0, queued=0)}
        await tractor.visit(lanes=lanes)
        found: dict[str, int] = (await house.must("GET", "/api/v1/devices/tractor-1"))["gone"]
        return found

    assert await gone(queued=3) == {"results": 4, "alarms": 0}  # what is still to come is not gone
    await tractor.send(tractor.batch("results", kept, first=14))
    assert await gone(queued=0) == {"results": 4, "alarms": 0}


async def test_a_folder_that_was_put_back_behind_our_back_is_noticed_by_the_first_machine(house: House) -> None:
    fleet = [await machine(house, f"tractor-{number}") for number in range(3)]
    for tractor in fleet:
        await tractor.visit()
    backup = await back_up(house)
    await later(house)
    await house.release("1.0.0", 1, [b"one"])
    for tractor in fleet:
        await tractor.visit()
    house.now_ms += 60_000
    await restore(house, backup, told=False)
    generations = set()
    for tractor in fleet:
        tractor.gives_back = False
        answer, verdict = await tractor.visit()
        generations.add(answer.generation)
        assert (answer.image_timestamp, verdict.complaints) == ("", ())
    assert len(generations) == 1
    known = (await house.must("GET", "/api/v1/status"))["restored"]
    assert known["held"]
    assert known["backup_ms"] == START_MS  # until when the catalog says that it was alive: what came after is not known
    assert len(await house.events("server-restored")) == 1
    assert await house.push_again() == ""
    for tractor in fleet:
        _, verdict = await tractor.visit()
        assert (verdict.complaints, verdict.may_install) == ((), True)


async def test_online_keys_that_the_backup_does_not_have_keep_what_was_pushed_and_say_what_to_do(house: House) -> None:
    tractor = await machine(house, "tractor-1")
    await tractor.visit()
    old = {kind: dict(keys) for kind, keys in house.managers.online.items()}
    house.managers.rotate_online("image", "timestamp", "snapshot")
    before = await versions(house)
    backup = await back_up(house)
    house.now_ms += 60_000
    await restore(house, backup)
    assert "headland keys rotate --online" in await house.push_again()
    assert (await versions(house))["image/timestamp"] == before["image/timestamp"]
    house.managers.online = old
    next_root(house, "image")
    await house.publish()
    _, verdict = await tractor.visit()
    assert (verdict.complaints, tractor.versions["image/root"]) == ((), 3)


@pytest.mark.parametrize("old_kept", [False, True])
async def test_contact_results_and_time_go_on_where_the_keys_are_newer_than_the_catalog(
    house: House, old_kept: bool
) -> None:
    await house.publish()
    keen, asleep = await machine(house, "keen"), await machine(house, "asleep")
    await keen.visit()
    await asleep.visit()
    backup = await back_up(house)
    keys, names = house.state / "keys", ("director.clock", "director.receipts")
    old = {name: (keys / f"{name}.pem").read_bytes() for name in names}
    await later(house, DAY_MS)
    await asyncio.to_thread(next_keys, house, *names)
    sign_rotation(house)
    await house.publish()
    await keen.visit()
    await later(house, DAY_MS)
    if old_kept:  # as `restore` lays them
        for name in names:
            (keys / f"{name}.pem").rename(keys / f"{name}.next.pem")
            (keys / f"{name}.pem").write_bytes(old[name])
    await restore(house, backup)
    keen.gives_back = False
    for _ in range(2):
        for tractor in (keen, asleep) if old_kept else (keen,):
            _, verdict = await tractor.visit()
            assert (verdict.complaints, verdict.time_ms) == ((), house.now_ms)
            code, answer = await tractor.send(tractor.batch("results", [b"row"]))
            trusted = house.managers.online["director"]["receipts"].public_key.keyid
            assert code == 200 and (answer["signatures"][0]["keyid"] == trusted) == (tractor is keen)
        keen.gives_back = True  # what the machine trusts is here then, and still held
    assert await house.push_again() == ""
    for tractor in (keen, asleep):
        assert (await tractor.visit())[1].may_install


async def test_a_first_start_that_was_cut_takes_its_steps_once(house: House) -> None:
    await machine(house, "tractor-1")
    backup = await back_up(house)
    house.now_ms += 60_000
    await restore(house, backup)
    generation = (await house.must("GET", "/api/v1/status"))["generation"]
    (event,) = await house.events("server-restored")
    assert not (house.state / "restored.json").exists() and event["detail"] == "out of a backup"
    assert await house.push_again() == ""
    await house.stop()
    marker = Marker(id="f" * 32, backup_ms=backup[1], how="out of a backup")
    for _ in range(2):  # the second time as after a cut between the commit and the removal
        await asyncio.to_thread((house.state / "restored.json").write_bytes, encode(marker))
        await house.start()
        assert (await house.must("GET", "/api/v1/status"))["generation"] != generation
        assert len(await house.events("server-restored")) == 2
        assert await house.push_again() == ""
        await house.stop()
    await house.start()


async def test_a_person_who_resumes_where_nothing_is_held_is_told_so(house: House) -> None:
    assert (await house.ask("POST", "/api/v1/unhold", {}))[0] == 409
