"""Real container engines for all rooms. `shared_docker` and `shared_podman` are started once for all tests of a worker:
whoever uses them has an owner of his own and takes away what he made. Who kills, fills or freezes one takes a
`new_engine`. Property tests judge what they draw, never how long this machine took to draw it."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.private_engine import PrivateEngine

# On a fresh clone Hypothesis first reads Unicode's tables, within the time of the first test that draws a text.
settings.register_profile("slow-machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow-machine")


@pytest.fixture(scope="session")
def shared_docker() -> Iterator[PrivateEngine]:
    yield from _running(PrivateEngine("docker"))


@pytest.fixture(scope="session")
def shared_podman() -> Iterator[PrivateEngine]:
    yield from _running(PrivateEngine("podman"))


def _running(engine: PrivateEngine) -> Iterator[PrivateEngine]:
    try:
        engine.start()
        yield engine
    finally:
        engine.remove()


@pytest.fixture
def new_engine() -> Iterator[Callable[..., PrivateEngine]]:
    """`new_engine(kind, size_mib=..., live_restore=...)`: started, the test's alone, gone after it."""
    made: list[PrivateEngine] = []

    def make(*arguments: object, **options: object) -> PrivateEngine:
        engine = PrivateEngine(*arguments, **options)  # type: ignore[arg-type]  # checked by the class
        made.append(engine)
        engine.start()
        return engine

    yield make
    for engine in made:
        engine.remove()
