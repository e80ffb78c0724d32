"""A state folder as a machine has it that was enrolled and committed a release: every file real, no process."""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

from device import identity
from device.enrol import first_settings
from device.identity import Enrolment
from device.layout import Layout
from device.outbox import schema
from device.state_db import StateDb
from protocol.wire import encode
from server.ca import Authority, read_csr
from tests.fakes.field import DEVICE, PRODUCT, Field
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
FIRST = Release("1.0.0", 1, noise(2000, 1))
SECOND = Release("1.1.0", 2, noise(2000, 2))


async def make(state: Path) -> Layout:
    """Makes the folder; it must not exist."""
    layout = Layout(state)
    layout.identity.mkdir(parents=True)
    layout.run.mkdir()
    key = identity.keep_key(layout.identity / "key.pem")
    authority = Authority.make(NOW - timedelta(days=2))
    csr = read_csr(identity.make_csr(key, DEVICE), DEVICE)
    (layout.identity / "cert.pem").write_text(authority.issue_device(DEVICE, csr, NOW, 365))
    (layout.identity / "ca.pem").write_text(authority.pem())
    layout.settings.write_text(first_settings(layout.state / "frames"))
    enrolment = Enrolment(server="https://farm:8443", device=DEVICE, product=PRODUCT)
    schema.open_writer(layout.outbox_db).close()
    StateDb(layout.state_db).close()
    field = Field(state / "trust", NOW)
    for name, data in field.first_roots.items():
        (layout.identity / f"{name}.root.json").write_bytes(data)
    assert field.contact().may_install
    (layout.identity / "enrolment.json").write_bytes(encode(enrolment))
    bench = Bench(state, BlobSource(FIRST, SECOND))
    async with bench.running():
        await bench.install(FIRST, SECOND)
        await bench.install(SECOND, FIRST)
        assert bench.updater.record.committed.digest == SECOND.digest
    return layout


def tokens():
    """Ids, each another one."""
    numbers = itertools.count(1)
    return lambda: f"{next(numbers):032x}"
