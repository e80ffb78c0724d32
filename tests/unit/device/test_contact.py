"""A contact over links that break anywhere: nothing is told twice or never, and nothing unjudged is acted upon."""

import contextlib

import pytest
from msgspec.structs import replace

from device.contact import read_record
from device.trust.port import WALL_CLOCK, Complaint, Terms
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import digest
from protocol.messages import Alert, ErrorAnswer, FailedPatch, Inventory, UpdateStatus
from protocol.objects import ReceiptsBody, RowRange
from tests.fakes.contact_machine import DEVICE, MANIFEST, assignment, opened


@pytest.fixture
async def machine(tmp_path):
    async with opened(tmp_path) as machine:
        yield machine


def status(number: int) -> UpdateStatus:
    return UpdateStatus(id=f"{number:032x}", manifest="0" * 64, rollout="r", state="fetch", at_ms=1)


async def test_a_first_contact_tells_who_where_and_what(machine):
    await machine.outbox.enqueue("alarms", b"a")
    held = machine.store.put(b"an artifact")
    await machine.meets()
    [request] = machine.server.requests
    assert (request.device, request.product, request.sync_token) == (DEVICE, "pest-detector", None)
    assert request.inventory == machine.inventory
    assert request.have == (held,)
    assert request.lanes["alarms"].next_seq == 1
    assert request.epoch == machine.outbox.epoch
    assert request.counters.bytes_received == 7
    assert request.unsure_of_time
    assert machine.trust.judged == [(request.nonce, 12.5)]
    assert machine.clock.reloads == 1


async def test_what_the_engine_holds_is_told_as_held(machine):
    held = machine.store.put(b"an artifact")
    layer = digest(b"a layer")
    machine.in_engine = (layer, held)
    await machine.meets()
    assert machine.server.requests[0].have == tuple(sorted([held, layer]))


async def test_the_token_rolls_and_the_inventory_is_sent_only_when_it_changed(machine):
    await machine.meets()
    await machine.meets()
    machine.inventory = Inventory(agent="0.2.0", platform="linux-x86_64", accelerators=("cpu",))
    await machine.meets()
    first, second, third = machine.server.requests
    assert len({first.contact_id, second.contact_id, third.contact_id}) == 3
    assert len({first.nonce, second.nonce, third.nonce}) == 3
    assert second.sync_token is not None
    assert second.inventory is None
    assert third.inventory == machine.inventory
    assert third.versions == {"image/timestamp": 1}
    assert machine.server.clones == []


@pytest.mark.parametrize("where", ["request", "answer"])
async def test_a_broken_contact_is_repeated_under_its_id_even_after_a_restart(machine, where):
    await machine.meets()
    machine.state.tell([status(1)], {})
    setattr(machine.server, f"cut_{where}s", 2)
    for _ in range(2):
        with pytest.raises(LinkError):
            await machine.meets()
        machine.restarted()
        machine.state.tell([status(2)], {})  # what happened since belongs to the next contact
    await machine.meets()
    tries = machine.server.requests[1:]
    assert len({request.contact_id for request in tries}) == 1
    assert len({request.nonce for request in tries}) == len(tries)
    assert {s.id for request in tries for s in request.statuses} == {status(1).id}
    assert machine.server.clones == [], "a repetition is no clone"
    assert [s.id for s in machine.state.pending_statuses(10)] == [status(2).id]
    await machine.meets()
    assert set(machine.server.statuses) == {status(1).id, status(2).id}
    assert machine.state.pending_statuses(10) == ()


async def test_a_database_that_went_back_behind_a_contact_is_known_by_its_seal(machine):
    seen = [machine.state.sealed().serial]
    for _ in range(3):
        await machine.meets()
        sealed = machine.state._seals.newest().serial
        assert sealed == machine.state.sealed().serial > seen[-1]
        seen.append(sealed)
    machine.server.cut_requests = 1
    with pytest.raises(LinkError):
        await machine.meets()
    begun = machine.state._seals.newest().serial
    assert begun > seen[-1], "before the token is shown"
    await machine.meets()
    assert machine.state._seals.newest().serial == begun, "a repetition is no other contact"


async def test_a_contact_whose_metadata_did_not_come_counts_as_told(machine):
    machine.state.add_alert(Alert(id="f" * 32, kind="test", at_ms=1))
    machine.trust.fails = True
    with pytest.raises(LinkError):
        await machine.meets()
    machine.trust.fails = False
    await machine.meets()
    assert machine.server.clones == []
    assert len(machine.server.requests[1].alerts) == 0
    assert machine.updates.link_up == 1


async def test_an_answer_to_another_contact_is_refused(machine, monkeypatch):
    await machine.meets()
    machine.server._contact = None
    real = machine.server._sync
    monkeypatch.setattr(
        machine.server, "_sync", lambda body: real(body.replace(b'"contact_id":"', b'"contact_id":"0', 1))
    )
    with pytest.raises((Refused, LinkError)):
        await machine.meets()


async def test_an_assignment_is_offered_with_its_manifest_and_the_terms(machine):
    machine.server.assignment = assignment()
    machine.trust.terms = Terms(product="pest-detector", role_version=3)
    await machine.meets()
    assert machine.updates.offers == [(assignment(), MANIFEST, machine.trust.terms, True)]
    machine.store.put(MANIFEST)
    await machine.meets()
    assert machine.manifests.fetched == [digest(MANIFEST)], "what is in the store is not fetched again"


async def test_terms_are_passed_on_when_nothing_is_assigned(machine):
    machine.trust.terms = Terms(product="pest-detector", role_version=4)
    await machine.meets()
    assert machine.updates.learnt == [machine.trust.terms]
    assert (machine.updates.offers, machine.updates.withdrawn) == ([], 1)


async def test_a_refused_assignment_is_not_taken_for_a_withdrawn_one(machine, monkeypatch):
    machine.server.assignment = assignment()
    machine.trust.terms = Terms(product="pest-detector", role_version=4)
    machine.trust.refuses_assignments = True
    await machine.meets()
    assert (machine.updates.offers, machine.updates.withdrawn) == ([], 0)


async def test_a_rollout_under_the_name_of_a_kit_is_reported_and_neither_offered_nor_taken_for_withdrawn(machine):
    machine.server.assignment = replace(assignment(), rollout="kit-a")
    machine.trust.terms = Terms(product="pest-detector", role_version=3)
    await machine.meets()
    await machine.meets()
    assert (machine.updates.offers, machine.updates.withdrawn) == ([], 0)
    [alert] = machine.server.alerts.values()
    assert "kit-a" in alert.detail


async def test_a_swapped_manifest_is_reported_and_not_offered(machine):
    machine.server.assignment = assignment()
    machine.trust.terms = Terms(product="pest-detector", role_version=3)
    machine.manifests.error = Refused(Reason.HASH, "other bytes")
    await machine.meets()
    await machine.meets()
    assert machine.updates.offers == []
    [alert] = machine.server.alerts.values()
    assert (alert.kind, alert.reason) == ("refused-manifest", Reason.HASH)


async def test_a_manifest_that_stays_swapped_is_reported_once_until_one_came_whole(machine):
    machine.server.assignment = assignment()
    machine.trust.terms = Terms(product="pest-detector", role_version=3)

    async def reported(*errors):
        for error in errors:
            machine.manifests.error = error
            with contextlib.suppress(LinkError):
                await machine.meets()
        machine.server.assignment = None  # one more contact takes along what waits to be told
        await machine.meets()
        machine.server.assignment = assignment()
        return len(machine.server.alerts)

    swapped = Refused(Reason.HASH, "other bytes")
    assert await reported(swapped, swapped, swapped) == 1
    assert await reported(LinkError("no way through", retryable=True), swapped) == 1
    assert await reported(Refused(Reason.LENGTH, "too short"), swapped) == 2, "another fault is news"
    assert await reported(None, swapped) == 3


async def test_a_complaint_is_reported_once_while_it_goes_on_and_again_when_it_returns(machine):
    complaint = Complaint(what="assignment", reason=Reason.WRONG_DEVICE, detail="for tractor-2")
    machine.trust.complaints = (complaint, complaint)
    await machine.meets()
    await machine.meets()
    await machine.meets()
    assert len(machine.server.alerts) == 1
    machine.trust.complaints = ()
    await machine.meets()
    machine.trust.complaints = (complaint,)
    await machine.meets()
    await machine.meets()
    assert len(machine.server.alerts) == 2


async def test_stale_metadata_is_an_alarm_of_its_own(machine):
    machine.trust.complaints = (Complaint(what="image", reason=Reason.EXPIRED, detail="timestamp expired"),)
    await machine.meets()
    [alert] = machine.state.pending_alerts(10)
    assert alert.kind == "stale-metadata"


async def test_a_wall_clock_that_is_off_is_an_alarm_of_its_own_for_nothing_was_refused(machine):
    machine.trust.complaints = (Complaint(what=WALL_CLOCK, reason=Reason.TIME, detail="+3650.0 days"),)
    await machine.meets()
    [alert] = machine.state.pending_alerts(10)
    assert alert.kind == "wall-clock"


async def test_a_revoked_machine_is_told_so(machine):
    machine.server.refuse = (403, ErrorAnswer(error="revoked by ann", reason="revoked"))
    with pytest.raises(Refused) as caught:
        await machine.meets()
    assert caught.value.reason is Reason.REVOKED


async def test_a_server_out_of_a_backup_gets_the_signed_files_that_it_asks_for_and_that_are_here(machine):
    machine.server.want_metadata = ("image/2.root.json", "image/targets.json")
    await machine.meets()
    assert [[file.name for file in given.files] for given in machine.server.given] == [["targets.json"]]
    assert read_record(machine.state).pending is None  # that it did not want them after all fails no contact
    machine.server.want_metadata = ("image/2.root.json",)
    await machine.meets()
    assert len(machine.server.given) == 1  # nothing is sent where nothing is here


async def test_a_machine_that_is_set_apart_numbers_its_rows_anew_once(machine):
    epoch = machine.outbox.epoch
    machine.server.set_apart = True
    await machine.meets()
    fresh = machine.outbox.epoch
    await machine.meets()
    assert fresh != epoch
    assert machine.outbox.epoch == fresh
    assert read_record(machine.state).set_apart


async def test_a_backlog_drains_in_order_each_row_once_over_a_link_that_breaks(machine):
    for number in range(300):
        await machine.outbox.enqueue("results", b"row %d" % number)
    await machine.meets()
    machine.server.cut_requests = 2
    for cut in (0, 1, 0, 1):
        machine.server.cut_answers = cut
        try:
            await machine.drain.run()
        except LinkError:
            continue
    assert machine.outbox.queued() == 0
    keys = [(machine.outbox.epoch, "results", number) for number in range(300)]
    assert machine.server.order == keys
    assert [machine.server.rows[key] for key in keys] == [b"row %d" % number for number in range(300)]


async def test_rows_stay_when_receipts_do_not_verify(machine):
    await machine.outbox.enqueue("results", b"row")
    await machine.meets()
    machine.trust.distrusts_receipts = True
    with pytest.raises(LinkError, match="no receipt"):
        await machine.drain.run()
    assert machine.outbox.queued() == 1
    machine.trust.distrusts_receipts = False
    assert await machine.drain.run() == 1


async def test_rows_that_the_server_knows_otherwise_go_in_a_fresh_epoch(machine):
    await machine.meets()
    epoch = machine.outbox.epoch
    machine.server.rows[(epoch, "results", 1)] = b"another life of this machine"
    for number in range(3):
        await machine.outbox.enqueue("results", b"row %d" % number)
    await machine.drain.run()
    assert machine.server.conflicts == [(epoch, "results", 1)]
    assert machine.outbox.epoch != epoch
    assert machine.server.rows[(epoch, "results", 1)] == b"another life of this machine"
    ours = [row for row in machine.server.rows.values() if row.startswith(b"row")]
    assert sorted(ours) == [b"row 0", b"row 1", b"row 2"]
    assert machine.outbox.counts()["results"].produced == 3


async def test_a_restored_server_gets_the_kept_rows_again(machine):
    for number in range(5):
        await machine.outbox.enqueue("results", b"row %d" % number)
    await machine.meets()
    await machine.drain.run()
    machine.server.generation = "b" * 32
    machine.server.rows.clear()
    await machine.meets()
    await machine.drain.run()
    assert len(machine.server.rows) == 5


async def test_a_receipt_in_a_contact_settles_rows(machine):
    await machine.outbox.enqueue("results", b"row")
    await machine.meets()
    [part] = (await machine.outbox.next_batch()).lanes
    covered = RowRange(lane="results", first=0, last=0, rows_sha256=digest(bytes.fromhex(digest(part.rows[0]))))
    receipt = ReceiptsBody(
        device=DEVICE, epoch=machine.outbox.epoch, generation=machine.server.generation, rows=(covered,)
    )
    assert await machine.outbox.apply_receipt(receipt) == 1


def failed_patch(number: int) -> FailedPatch:
    return FailedPatch(artifact="a" * 64, base="b" * 64, payload=f"{number:064x}", reason=Reason.HASH)


async def test_the_link_and_what_is_under_way_are_told(machine):
    machine.parts = {"c" * 64: 4711}
    await machine.meets()
    [request] = machine.server.requests
    assert (request.link, request.link_rate_kib_s, request.parts) == ("cellular", 90, {"c" * 64: 4711})


async def test_patches_that_failed_are_told_until_a_contact_was_answered(machine):
    book = machine.book
    book.note_failure(failed_patch(1))
    machine.server.cut_answers = 1
    with pytest.raises(LinkError):
        await machine.meets()
    machine.restarted()
    book.note_failure(failed_patch(2))
    await machine.meets()
    await machine.meets()
    told = [request.failed_patches for request in machine.server.requests]
    assert told == [(failed_patch(1),), (failed_patch(1), failed_patch(2)), ()]


async def test_patches_that_a_technician_lifted_are_told_until_a_contact_was_answered(machine):
    machine.book.note_failure(failed_patch(1))
    machine.book.lift(f"{1:064x}")
    machine.server.cut_answers = 1
    with pytest.raises(LinkError):
        await machine.meets()
    machine.restarted()
    await machine.meets()
    await machine.meets()
    told = [(request.failed_patches, request.lifted_patches) for request in machine.server.requests]
    assert told == [((), (f"{1:064x}",)), ((), (f"{1:064x}",)), ((), ())]


async def test_more_failures_than_a_request_holds_come_with_the_next(machine):
    book = machine.book
    for number in range(40):
        book.note_failure(failed_patch(number))
    await machine.meets()
    await machine.meets()
    assert [len(request.failed_patches) for request in machine.server.requests] == [32, 8]


async def test_a_request_stays_within_its_limit_with_everything_pending(machine):
    for number in range(300):
        machine.book.note_failure(failed_patch(number))
    machine.parts = {f"{number:064x}": 1 << 53 for number in range(200)}
    long = "x" * 2000
    for number in range(64):
        told = UpdateStatus(
            id=f"{number:032x}", manifest="0" * 64, rollout="r" * 64, state="fetch", at_ms=1, detail=long
        )
        machine.state.tell([told], {})
        machine.state.add_alert(Alert(id=f"{number:032x}", kind="k" * 64, at_ms=1, detail=long))
    machine.trust.versions = {f"director/role-{number}": 1 << 50 for number in range(200)}
    await machine.meets()
    machine.inventory = Inventory(
        agent="0.1.0", platform="p", accelerators=("cpu",), hardware=tuple("h" * 64 for _ in range(100))
    )
    machine.store.digests = lambda: tuple(f"{number:064x}" for number in range(5000))
    await machine.meets()
    assert len(machine.server.requests) == 2, "a longer one is refused by the server"
