"""All workloads, by name."""

from tests.simulation.workload import Workload
from tests.simulation.workloads import enrolment, outbox, server, trust, updates

WORKLOADS: dict[str, Workload] = {
    work.name: work
    for work in (
        *updates.workloads(),
        *outbox.workloads(),
        trust.Trusting(),
        enrolment.Enrolling(),
        server.Publishing(),
        server.Ingesting(),
    )
}
