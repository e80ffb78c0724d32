"""All workloads, by name."""

from tests.simulation.workload import Workload
from tests.simulation.workloads import calibration, enrolment, outbox, renewal, sealing, server, trust, updates

WORKLOADS: dict[str, Workload] = {
    work.name: work
    for work in (
        *updates.workloads(),
        *outbox.workloads(),
        *sealing.workloads(),
        trust.Trusting(),
        enrolment.Enrolling(),
        renewal.Renewing(),
        renewal.RotatingCa(),
        renewal.RotatingOnlineKey(),
        server.Publishing(),
        server.Ingesting(),
    )
}

CALIBRATIONS: dict[str, Workload] = {work.name: work for work in calibration.workloads()}
"""Work whose truth is known: what the harness is measured by."""
