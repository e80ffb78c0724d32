"""One delta with nothing in place of the encoder: what the server hands out makes the new file of the old one."""

import random
from pathlib import Path

from protocol.delta.apply import apply_group
from protocol.delta.patch import read_group_header
from protocol.ids import digest
from tests.fakes.server_house import running
from tests.unit.server.test_deltas import machine, step_of

OLD = random.Random(1).randbytes(20_000)


async def test_the_real_encoders_patch_makes_the_new_file(tmp_path: Path) -> None:
    new = OLD[:10_000] + b"inserted" + OLD[10_000:]
    async with running(tmp_path) as house:
        await house.publish()
        await house.release("1.0.0", 1, [OLD])
        tractor = await machine(house, "tractor-1", OLD)
        await house.release("1.1.0", 2, [new])
        await house.patches()
        await house.rollout("second", "1.1.0")
        step = step_of(await tractor.sync(), new)
        assert (step.method, step.base) == ("delta", digest(OLD))
        assert step.payload is not None and step.travels_bytes() < 1000
        _, payload, _ = await tractor.ask("GET", f"/v1/blobs/{step.payload.sha256}")
        assert digest(payload) == step.payload.sha256
        made = bytearray()
        while payload:
            header = read_group_header(payload)
            assert header is not None
            apply_group(payload[: header.group_bytes], Bytes(OLD), len(made), made.extend)
            payload = payload[header.group_bytes :]
        assert bytes(made) == new


class Bytes:
    """A base in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length_bytes = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]
