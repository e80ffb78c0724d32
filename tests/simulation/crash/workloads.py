"""All work that can be cut, by name."""

from tests.simulation.crash.calibration import CALIBRATIONS
from tests.simulation.workload import Workload


def workload_named(name: str) -> Workload:
    """One of them."""
    return CALIBRATIONS[name]
