"""T5 on the machine: frozen metadata raises the alarm `stale-metadata`, once, and inference does not notice."""

from device.trust.port import Complaint, Terms
from protocol.errors import Reason
from tests.fakes.contact_machine import assignment, opened


async def test_attack_t5_stale_metadata_is_told_here_and_to_the_server_and_installs_nothing(tmp_path):
    async with opened(tmp_path) as machine:
        machine.server.assignment = assignment()
        machine.trust.terms = Terms(product="pest-detector", role_version=1)
        machine.trust.complaints = (Complaint(what="image", reason=Reason.EXPIRED, detail="timestamp expired"),)
        machine.trust.may_install = False
        await machine.meets()
        [alert] = machine.state.pending_alerts(10)
        assert (alert.kind, alert.reason) == ("stale-metadata", Reason.EXPIRED)
        assert all(not may_install for *_, may_install in machine.updates.offers), "nothing may be installed"
        assert await machine.outbox.enqueue("results", b"inference goes on") == 0
        await machine.meets()
        await machine.meets()
        assert [alert.kind for alert in machine.server.alerts.values()] == ["stale-metadata"]
        assert await machine.drain.run() == 1
