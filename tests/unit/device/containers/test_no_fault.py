"""What looks like the fault of a container, or of its release, and is none."""

import asyncio

import pytest

from protocol.container import Restart, RunSpec
from protocol.ids import digest
from tests.fakes.container_sets import make_container_release, pack_container, with_containers
from tests.fakes.engine import Behaviour
from tests.fakes.release_sets import ModelSpec, make_release
from tests.fakes.whole_sets import RULES, Field, make_releases, play

MODEL = digest(b"a model")
SEES = RunSpec(command=("/sees",), sees_model=True, sees_within_s=10.0)
SHAKY = RunSpec(command=("/shaky",), restart=Restart(in_trial=20))


@pytest.fixture
def story(tmp_path):
    def run(tell) -> None:
        async def whole_story() -> None:
            bare = make_release(tmp_path / "sees", ModelSpec(b"a model"), version="5.0.0")
            releases = make_releases(tmp_path)
            releases["sees"] = with_containers(bare, tmp_path / "sees", pack_container("sees", SEES))
            shaky = pack_container("shaky", SHAKY)
            releases["shaky"] = make_container_release(tmp_path / "shaky", shaky, version="6.0.0", trial=RULES)
            field = Field(tmp_path / "state", releases)
            field.behaves("sees", "sees", Behaviour(says=((0.0, f"headland-sees {MODEL}"),)))
            try:
                await tell(field)
            finally:
                await field.machine.end_agent()

        (tmp_path / "state").mkdir()
        play(whole_story)

    return run


def test_one_that_waits_for_its_next_start_is_not_late_meanwhile(story):
    """It ended less often than the release bears; the waits become longer than it may take to come up."""

    async def tell(field):
        await field.serve("old")
        await field.whole.converge(field.releases["shaky"], trial=True)
        field.behaves("shaky", "shaky", Behaviour(lives_s=0.5))
        for _ in range(1500):
            await asyncio.sleep(0.2)
            health = field.whole.health()
            assert (health.faults, health.late) == ((), ())
        assert field.whole.engine_status().containers["shaky"].restarts > 5

    story(tell)
