"""Reports by stick: verified, and read as the contacts that they stand for."""

from typing import Final

import msgspec

from protocol.ids import digest
from protocol.kits import StickReport
from protocol.messages import SyncRequest
from protocol.wire import encode
from server.storage.records import Device

NO_CONTACT: Final = "0" * 32  # where a contact has its id and its nonce: a stick is answered by receipts alone


def as_contact(report: StickReport) -> SyncRequest:
    """A report as the contact would have been that it stands for. Nothing is answered."""
    return SyncRequest(
        format=1,
        device=report.device,
        product=report.product,
        contact_id=NO_CONTACT,
        sync_token=report.sync_token,
        nonce=NO_CONTACT,
        report=report.report,
        inventory_sha256=digest(encode(report.inventory)),
        epoch=report.epoch,
        lanes=report.lanes,
        inventory=report.inventory,
        statuses=report.statuses,
        alerts=report.alerts,
        have=report.have,
        versions=report.versions,
        counters=report.counters,
        unsure_of_time=report.unsure_of_time,
        forces=report.forces,
        stick_number=report.number,
    )


def news_only(report: StickReport, device: Device) -> SyncRequest:
    """What of an older report is still news: what happened. How the machine is was told since."""
    return msgspec.structs.replace(as_contact(report), report=device.report, versions=dict(device.versions), have=())
