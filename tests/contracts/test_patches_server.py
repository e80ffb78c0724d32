"""The catalog's promises about patches."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from protocol.errors import Reason
from protocol.messages import FailedPatch, TransferBytes
from protocol.objects import Budget
from server.parts import likely
from server.storage.catalog import Catalog
from server.storage.jobs import PATCH
from server.storage.records import Compressed, Likeness, Member, Pair, Patch, PatchFailure, Release
from tests.fakes.catalog_rows import a_device, a_rollout

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
PAYLOAD, INDEX = "e" * 64, "f" * 64
HOUR_MS = 3_600_000


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    catalog = Catalog(url)
    with catalog.write() as session:
        session.facts.put("fleet_changes", 0)
        for name in ("m1", "m2", "m3"):
            session.devices.enrol(a_device(name, product="p"))
        session.devices.enrol(a_device("stranger", product="q"))
        session.fleet.note_release("p", "1" * 64, {"model/m/cpu": A, "config/c": D})
        session.fleet.note_release("p", "2" * 64, {"model/m/cpu": B, "config/c": D})
        session.fleet.note_release("q", "3" * 64, {"model/m/cpu": C})
        for artifact in (A, B, C, D):
            session.payloads.put(Compressed(artifact, 10, artifact, 1000, None, 24))
    yield catalog
    catalog.close()


def made(pair: Pair, **more: object) -> Patch:
    patch = Patch(pair, made=1, payload=PAYLOAD, payload_bytes=7, index=INDEX, index_bytes=3)
    return replace(patch, **more)


PAIR = Pair(A, B, 1)


def failed(payload: str = PAYLOAD, base: str = A, lifted_ms: int = 0) -> FailedPatch:
    return FailedPatch(artifact=B, base=base, payload=payload, reason=Reason.HASH, lifted_ms=lifted_ms)


def test_what_machines_hold_says_for_whom_a_patch_would_serve(catalog: Catalog) -> None:
    with catalog.write() as session:
        before = session.fleet.changes()
        session.fleet.hold("m1", [A, D, "9" * 64])
        session.fleet.hold("m2", [A])
        session.fleet.hold("m3", [A, B])
        session.fleet.hold("stranger", [A, C])
        assert session.fleet.changes() != before
        before = session.fleet.changes()
        session.fleet.hold("m1", [D, A])
        assert session.fleet.changes() == before
        found = Likeness("1" * 64, "2" * 64, "model/m/cpu", A, B, goes_on=False, machines=2)
        assert session.fleet.alike({("p", "2" * 64)}, 1024) == [found]
        assert session.fleet.alike({("p", "2" * 64)}, 1025) == []
        assert session.fleet.alike(set(), 0) == []
        assert likely(session.fleet.alike({("p", "2" * 64), ("p", "1" * 64)}, 0)) == {(A, B): 2}
        session.devices.revoke("m1", 1)
        assert likely(session.fleet.alike({("p", "2" * 64)}, 0)) == {(A, B): 1}
        session.fleet.hold("m2", [])
        assert session.fleet.alike({("p", "2" * 64)}, 0) == []


def test_releases_whose_parts_were_never_noted_are_named(catalog: Catalog) -> None:
    with catalog.write() as session:
        entries = [Release("p", f"1.{n}.0", str(n) * 64, 1, n, 0, 1, 1, True) for n in (1, 2, 5, 6)]
        session.repositories.put_releases("p", entries)
        session.repositories.put_releases("p", entries[:3])
        assert session.fleet.unnoted() == [("p", "5" * 64)]
        assert session.fleet.parts("p", ["1" * 64, "9" * 64]) == {"1" * 64: {"model/m/cpu": A, "config/c": D}}


def test_a_wanted_patch_is_one_job_for_ever_and_its_weight_follows_the_fleet(catalog: Catalog) -> None:
    other = Pair(C, B, 1)
    with catalog.write() as session:
        session.patches.want({PAIR: 1, other: 2}, 1)
        session.patches.want({PAIR: 3, other: 2}, 2)
        assert session.jobs.waiting(PATCH) == 2
        assert session.jobs.waiting("compress") == 0
        claim = session.jobs.claim(PATCH, 10, 100)
        assert claim is not None and claim.subject == PAIR.id
        assert session.patches.put(made(PAIR), 20)
        assert not session.patches.put(made(PAIR, payload_bytes=1), 21)
        session.patches.want({PAIR: 3}, 30)
        assert session.jobs.waiting(PATCH) == 0  # one is made, nobody wants the other
        assert session.patches.get(PAIR.id) == made(PAIR)
        assert session.patches.get(other.id) is None
        assert session.patches.ready([B, C]) == [made(PAIR)]
        assert session.patches.for_results([B]) == ([made(PAIR)], 0)
        assert session.patches.count() == {"ready": 1, "bytes": 10, "waiting": 0}


def test_a_claimed_job_is_not_dropped_under_its_holder(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 1)
        claim = session.jobs.claim(PATCH, 10, 100)
        assert claim is not None
        session.patches.want({}, 50)
        assert session.patches.put(made(PAIR), 60)


def test_a_job_that_was_given_back_is_nobodys_and_its_try_did_not_count(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 1)
        claim = session.jobs.claim(PATCH, 10, 100)
        assert claim is not None
        session.jobs.release(claim)
        assert session.jobs.claim(PATCH, 11, 100) == claim


def test_only_its_number_stays_of_a_patch_without_a_payload(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 1)
        session.patches.put(made(PAIR, payload=None, index=None, why="worse"), 2)
        assert session.patches.ready([B]) == []
        kept = session.patches.get(PAIR.id)
        assert kept is not None and (kept.travels_bytes, kept.why) == (10, "worse")
        session.patches.want({PAIR: 5}, 3)
        assert session.jobs.waiting(PATCH) == 0


def test_failures_are_counted_by_machine_and_only_of_what_was_ours(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 1)
        session.patches.put(made(PAIR), 2)
        assert session.patches.fail("m1", failed(), 3) == made(PAIR)
        assert session.patches.fail("m1", failed(), 4) is None
        assert session.patches.fail("m2", failed("9" * 64), 4) is None
        assert session.patches.fail("m2", failed(base=C), 4) is None
        assert session.patches.fail("m2", failed(), 4) == made(PAIR)
        assert session.patches.failures(PAIR.id, PAYLOAD) == 2
        assert session.patches.failed_on("m1") == {(PAIR.id, PAYLOAD): "hash"}
        assert session.patches.failed_on("m3") == {}


def test_a_machine_is_forgiven_and_what_it_says_next_is_news(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 1)
        session.patches.put(made(PAIR), 2)
        session.patches.fail("m1", failed(), 3)
        session.patches.fail("m2", failed(), 3)
        assert session.patches.forgive("m1") == 1
        assert session.patches.forgive("m1") == 0
        assert session.patches.failed_on("m1") == {}
        assert session.patches.failures(PAIR.id, PAYLOAD) == 1
        assert session.patches.fail("m1", failed(), 4) == made(PAIR)


def test_a_lifted_patch_is_offered_again_and_words_from_before_do_not_count(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 1)
        session.patches.put(made(PAIR), 2)
        for name in ("m1", "m2"):
            session.patches.fail(name, failed(), 3)
        assert session.patches.troubled(10) == {
            made(PAIR): [PatchFailure("m1", PAYLOAD, "hash", 3), PatchFailure("m2", PAYLOAD, "hash", 3)]
        }
        session.patches.lift(made(PAIR), 1000)
        lifted = made(PAIR, lifted_ms=1000)
        assert session.patches.ready([B]) == [lifted]
        assert (session.patches.failed_on("m1"), session.patches.troubled(10)) == ({}, {})
        assert session.jobs.waiting(PATCH) == 0
        assert session.patches.fail("m1", failed(), 1001) is None, "it was said of the time before"
        assert session.patches.fail("m1", failed(lifted_ms=1000), 1002) == lifted
        session.patches.lift(lifted, 7)
        assert session.patches.ready([B]) == [made(PAIR, lifted_ms=1001)], "a clock that goes back lifts all the same"


@pytest.mark.parametrize("again", [2, None], ids=["waiting", "given up"])
def test_a_withdrawn_patch_that_is_lifted_is_made_as_if_for_the_first_time(catalog: Catalog, again: int | None) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 1)
        session.patches.put(made(PAIR), 2)
        session.patches.fail("m1", failed(), 3)
        patch = session.patches.get(PAIR.id)
        assert patch is not None
        session.patches.withdraw(patch, "it failed", 10, again=again)
        ((patch, _),) = session.patches.troubled(10).items()
        assert (patch.payload, patch.why) == (None, "it failed")
        session.patches.lift(patch, 20)
        assert session.jobs.waiting(PATCH) == 1
        assert session.patches.failures(PAIR.id, PAYLOAD) == 0
        unmade = session.patches.unmade(PAIR.id)
        assert unmade is not None and (unmade.made, unmade.why, unmade.lifted_ms) == (0, "", 20)
        assert session.patches.put(made(PAIR), 30)
        assert session.patches.ready([B]) == [made(PAIR, lifted_ms=20)]


def test_a_patch_is_found_by_the_beginning_of_its_id(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1, Pair(C, B, 1): 1}, 1)
        (patch,) = session.patches.find(PAIR.id[:8])
        assert patch.pair == PAIR
        assert session.patches.find("zz") == session.patches.find("%" * 8) == []
        assert len(session.patches.find("")) == 2


def test_a_withdrawn_patch_is_offered_to_nobody_and_its_blobs_go_after_the_last_assignment(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 1)
        session.patches.put(made(PAIR), 2)
        session.patches.name([PAIR.id], 1000)
        session.patches.name([PAIR.id], 900)
        patch = session.patches.get(PAIR.id)
        assert patch is not None and patch.named_until_ms == 1000 + HOUR_MS
        session.patches.withdraw(patch, "failed", 10, again=2)
        assert session.patches.ready([B]) == []
        assert session.jobs.waiting(PATCH) == 1
        assert list(session.condemned.due(1000, 10)) == []
        session.payloads.add_blob(PAYLOAD, 7, 1)
        assert sorted(session.condemned.due(1000 + HOUR_MS, 10)) == [PAYLOAD, INDEX]
        assert session.payloads.blob_bytes(PAYLOAD) is None
        assert list(session.condemned.due(1000 + HOUR_MS, 10)) == []
        again = made(PAIR, payload="8" * 64, made=2)
        assert session.patches.put(again, 20)
        kept = session.patches.get(PAIR.id)
        assert kept is not None and (kept.payload, kept.made, kept.why) == ("8" * 64, 2, "")


def test_a_blob_is_condemned_until_something_names_it(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.condemned.add([PAYLOAD, INDEX, A], 100)
        session.condemned.add([PAYLOAD], 50)
        session.patches.want({PAIR: 1}, 1)
        session.patches.put(made(PAIR), 2)  # spares its own
        session.condemned.add(["7" * 64], 100)
        assert list(session.condemned.due(99, 10)) == []
        assert list(session.condemned.due(100, 10)) == ["7" * 64]  # the artifact is named by a release
        session.condemned.add([PAYLOAD], 100)
        assert list(session.condemned.due(200, 10)) == []  # and this one by the patch


def test_what_nobody_wanted_for_long_is_pruned_unless_an_assignment_names_it(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 1)
        session.patches.put(made(PAIR), 2)
        session.patches.fail("m1", failed(), 3)
        session.patches.name([PAIR.id], 5000)
        assert session.patches.prune(1, 0, 10**12) == []
        assert session.patches.prune(2, 0, 5000) == []
        assert [patch.pair for patch in session.patches.prune(2, 0, 10**12)] == [PAIR]
        assert session.patches.get(PAIR.id) is None
        assert session.patches.failed_on("m1") == {}
        assert sorted(session.condemned.due(10**12, 10)) == [PAYLOAD, INDEX]


def test_being_wanted_is_remembered_to_the_hour(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 1)
        session.patches.put(made(PAIR), 2)
        session.patches.want({PAIR: 1}, 2 * HOUR_MS)
        assert session.patches.prune(2 * HOUR_MS, 0, 10**12) == []


def test_what_could_not_be_made_is_forgotten_sooner(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.patches.want({PAIR: 1}, 10**6)
        claim = session.jobs.claim(PATCH, 10**6, 100)
        assert claim is not None
        session.patches.give_up(claim, "fell", 10**6)
        assert session.jobs.waiting(PATCH) == 0
        assert session.patches.prune(0, 10**6, 10**7) == []
        assert len(session.patches.prune(0, 10**6 + 1, 10**7)) == 1


def test_many_threads_make_each_patch_once(catalog: Catalog) -> None:
    pairs = [Pair(f"{number:064x}", B, 1) for number in range(40)]
    done: list[str] = []

    def work() -> None:
        while True:
            with catalog.write() as session:
                session.fleet.lock()
                session.patches.want(dict.fromkeys(pairs, 1), 1)
                claim = session.jobs.claim(PATCH, 10, 10**6)
                patch = None if claim is None else session.patches.unmade(claim.subject)
            if patch is None:
                return
            with catalog.write() as session:
                assert session.patches.put(made(patch.pair), 20)
            done.append(patch.pair.base)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [pair.base for pair in pairs]


def test_a_rollout_keeps_its_budget_and_what_its_machines_took(catalog: Catalog) -> None:
    rollout = a_rollout(budget=Budget(release_bytes=5, day_bytes={"cellular": 7}))
    with catalog.write() as session:
        session.rollouts.add(rollout)
        found = session.rollouts.get("one")
        assert found is not None and found.budget == rollout.budget
        session.rollouts.join(Member("one", "m1", 0, 5))
        session.rollouts.price("one", "m1", 40, 400)
        session.rollouts.end("one", "m1", "deferred", Reason.BUDGET, 6, needs_bytes=40)
        session.rollouts.spend("one", "m1", TransferBytes(delta_bytes=3))
        (member,) = session.rollouts.members("one")
        assert member == Member(
            "one", "m1", 0, 5, "deferred", Reason.BUDGET, 6, 40, 400, 40, TransferBytes(delta_bytes=3)
        )
        session.rollouts.end("one", "m1", "committed", None, 7)
        (member,) = session.rollouts.members("one")
        assert (member.needs_bytes, member.outcome) == (None, "committed")


def test_a_base_that_the_new_release_keeps_is_told_apart(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.fleet.note_release("p", "4" * 64, {"image/c/p//bottom/0": A, "image/c/p//bottom/1": B})
        session.fleet.note_release("p", "5" * 64, {"image/c/p//bottom/0": C, "image/c/p//bottom/1": A})
        session.fleet.hold("m1", [A, B])
        (found,) = session.fleet.alike({("p", "5" * 64)}, 1)
        assert (found.part, found.base, found.result, found.goes_on) == ("image/c/p//bottom/0", A, C, True)
