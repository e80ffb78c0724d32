"""A real process, killed with SIGKILL at any moment of a patch: what it left is gone on from, and what that costs."""

import asyncio
import random
import signal
import sys
from pathlib import Path

import pytest

from protocol.wire import encode
from tests.fakes.cutting_proxy import BlobServer, CuttingProxy, serving
from tests.fakes.patches import SEGMENT, PlainPatch, Rig
from tests.fakes.updates import BlobSource

ROOT = Path(__file__).resolve().parents[3]
PATCH = PlainPatch([(0, 400_000, 300_000), (5, 400_000, 10), (7, 10, 500_000), (9, 300_000, 600_000)])
LIFE = """
import asyncio, sys
from pathlib import Path
from device.link import Link
from device.store import Store
from device.transfer import Transfer, TransferSettings
from device.transfer.applier import in_process
from protocol.objects import TransferPlan
from protocol.artifact import Artifact
from protocol.wire import decode
from tests.fakes.patches import apply_plainly

folder, port = Path(sys.argv[1]), sys.argv[2]

async def live():
    plan = decode((folder / "plan").read_bytes(), TransferPlan, limit=1 << 20)
    step = plan.steps[0]
    begun = folder / "begun"

    def apply(data, base, output_offset, write):
        with begun.open("a") as file:
            file.write(f"{output_offset}\\n")
        return apply_plainly(data, base, output_offset, write)

    link = Link(f"http://127.0.0.1:{port}", None)
    store = Store(folder / "store")
    transfer = Transfer(link, store, TransferSettings(), count=lambda _: None, appliers=in_process(apply))
    artifact = Artifact(sha256=step.artifact, length_bytes=step.length_bytes, media_type="application/onnx")
    print("ready", flush=True)
    await transfer.fetch(plan, [artifact])
    await link.close()

asyncio.run(live())
"""


class CountingServer(BlobServer):
    """Counts the bytes that are asked for from where on."""

    def __init__(self, blobs):
        super().__init__(blobs)
        self.firsts = []

    async def handle(self, request):
        answer = await super().handle(request)
        self.firsts.append(self.asked[-1])
        return answer


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_killed_at_any_moment_it_goes_on_from_the_last_whole_segment_and_group(tmp_path, seed):
    chance = random.Random(seed)
    Rig(tmp_path, BlobSource(), PATCH).db.close()
    (tmp_path / "plan").write_bytes(encode(PATCH.plan))
    server = CountingServer(dict(PATCH.blobs))
    kills = 0
    async with serving(server.handle) as port, CuttingProxy(port).running() as proxy:
        proxy.chunk, proxy.pause_s = 16384, 0.006  # half a second for all of it
        while True:
            agent = await asyncio.create_subprocess_exec(
                sys.executable, "-c", LIFE, str(tmp_path), str(proxy.port), cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            await agent.stdout.readline()
            try:
                await asyncio.wait_for(agent.wait(), chance.uniform(0.02, 0.2) if kills < 4 else 60)
            except TimeoutError:
                agent.send_signal(signal.SIGKILL)
                kills += 1
            if await agent.wait() == 0:
                break
            assert agent.returncode == -signal.SIGKILL
    assert kills
    whole = Rig(tmp_path, BlobSource(), PATCH)
    assert whole.is_complete()
    assert whole.parts() == []
    begun = (tmp_path / "begun").read_text().split()
    assert len(begun) <= len(PATCH.groups) + kills
    firsts = [first for name, first in server.firsts if name == PATCH.step.payload.sha256]
    assert all(first % SEGMENT == 0 for first in firsts)
    assert firsts == sorted(firsts), "no start goes on from before where an earlier one did"
