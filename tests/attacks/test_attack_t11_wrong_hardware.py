"""T11: rightly signed, and for another accelerator, another board, or another machine: refused, told why, untouched."""

import pytest

from device.update.states import State
from protocol.errors import Reason
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(500, 1))


@pytest.mark.parametrize(
    ("release", "device", "reason"),
    [
        (Release("1.1.0", 2, noise(500, 2), accelerator="edgetpu"), "tractor-1", Reason.WRONG_HARDWARE),
        (Release("1.1.0", 2, noise(500, 2), hardware=("jetson-orin",)), "tractor-1", Reason.WRONG_HARDWARE),
        (Release("1.1.0", 2, noise(500, 2)), "tractor-2", Reason.WRONG_DEVICE),
    ],
)
async def test_attack_t11_what_is_not_for_this_machine_is_refused(tmp_path, release, device, reason):
    bench = Bench(tmp_path, BlobSource(OLD, release))
    async with bench.running() as updater:
        await bench.install(OLD)
        asked = len(bench.source.asked)
        for _ in range(3):
            verdict = await updater.offer(
                release.assignment(device=device), release.manifest_bytes, terms(OLD, release), may_install=True
            )
            assert verdict.reason is reason
        assert updater.record.state is State.IDLE
        assert bench.workers.history == [OLD.digest]
        assert len(bench.source.asked) == asked, "nothing was even fetched"
        assert bench.outcomes().count(("refused", reason.value)) == 1
        assert bench.db.refusals() == (), "a rule is no evidence: nothing is remembered against the release"
