"""All workloads, by name. A workload is imported when it is first used: a fork of a small parent is a quick one."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from tests.simulation.workload import Promises, Workload
from tests.simulation.workloads import calibration


class Later:
    """A workload of the module that has it in its `workloads()`."""

    def __init__(self, name: str, module: str) -> None:
        self.name = name
        self._module = f"tests.simulation.workloads.{module}"

    def load(self) -> Workload:
        """The workload itself."""
        found: Iterable[Workload] = import_module(self._module).workloads()
        return next(work for work in found if work.name == self.name)

    @property
    def volatile(self) -> tuple[str, ...]:
        """As `Workload` has it."""
        return getattr(self.load(), "volatile", ())

    def prepare(self, home: Path) -> None:
        """As `Workload.prepare`."""
        self.load().prepare(home)

    def act(self, home: Path, promise: Promises) -> None:
        """As `Workload.act`."""
        self.load().act(home, promise)

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        """As `Workload.recover`."""
        self.load().recover(home, promised)

    def check(self, home: Path, promised: Sequence[str]) -> None:
        """As `Workload.check`."""
        self.load().check(home, promised)


MODULES = {
    "updates": ("update", "rollback", "dying", "images", "kit"),
    "outbox": ("outbox", "outbox-full", "outbox-damaged"),
    "frames": ("frames",),
    "sealing": ("sealed", "rebuilt", "rebuilt-from-link"),
    "trust": ("trust",),
    "enrolment": ("enrolment",),
    "renewal": ("renewal", "ca-rotation", "online-key-rotation"),
    "server": ("publish", "ingest"),
    "backups": ("backup", "restore"),
}

WORKLOADS: dict[str, Workload] = {name: Later(name, module) for module, names in MODULES.items() for name in names}

WHOLE: dict[str, Workload] = {"agent": Later("agent", "agent")}
"""All of a machine at once, with real processes: slower than the others, and nothing else to know."""

CALIBRATIONS: dict[str, Workload] = {work.name: work for work in calibration.workloads()}
"""Work whose truth is known: what the harness is measured by."""
