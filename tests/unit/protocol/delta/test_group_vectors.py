"""Patches that were made once are applied for good: see `group_vectors`."""

import pytest

from protocol.delta.apply import apply_group
from server.delta.groups import ViewBase
from tests.unit.protocol.delta.group_vectors import read_vectors
from tests.unit.protocol.delta.hostile_groups import Seed, seeds


@pytest.mark.parametrize("kept", read_vectors(), ids=lambda kept: kept.name)
def test_a_group_that_was_kept_gives_the_bytes_it_gave(kept: Seed) -> None:
    output = bytearray()
    apply_group(kept.group, ViewBase(memoryview(kept.base)), 0, output.extend)
    assert bytes(output) == kept.output


def test_a_group_of_every_kind_is_kept() -> None:
    assert len(read_vectors()) == len(seeds())
