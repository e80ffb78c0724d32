"""One stage and one machine for each file of tests that wants them."""

from collections.abc import Iterator

import pytest

from tests.e2e.device_stage import FieldMachine, Stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """With 1.0.0 on its way to all."""
    stage = Stage(tmp_path_factory.mktemp("stage"))
    try:
        stage.open()
        stage.release("1.0.0")
        stage.rollout("first", "1.0.0")
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def tractor(stage: Stage) -> FieldMachine:
    """Enrolled, up, and running 1.0.0."""
    machine = stage.machine("tractor-1")
    machine.start()
    machine.show(30)
    machine.until_it_runs("1.0.0", 60)
    return machine
