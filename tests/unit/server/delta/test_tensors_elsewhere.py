"""Tensors that another exporter cut or joined are found by their bytes."""

import numpy as np

from server.delta.tensors import Element, Match, pair_tensors
from server.delta.tensors.elsewhere import Elsewhere
from server.delta.tensors.found import tensor
from server.delta.tensors.pairs import whole

FLOATS = np.random.default_rng(8).normal(size=8000).astype("<f4").tobytes()


def test_a_tensor_joined_from_parts_in_another_order_is_all_copies() -> None:
    new = FLOATS[16000:] + FLOATS[:16000]
    before = [tensor(0, 32000, Element.F32, "a", (8000,))]
    after = [tensor(0, 32000, Element.F32, "b", (80, 100))]
    pairs = pair_tensors(FLOATS, before, new, after)
    assert [(pair.match, pair.new_offset, pair.old_offset) for pair in pairs] == [
        (Match.COPY, 0, 16000),
        (Match.COPY, 16000, 0),
    ]


def test_what_is_left_between_copies_is_whole_elements_that_cover_the_tensor() -> None:
    other = np.random.default_rng(9).normal(size=1000).astype("<f4").tobytes()
    # Behind one byte: what is equal does not begin between elements of the new tensor.
    new = other[:3001] + FLOATS[4000:20001] + other[:2998]
    after = tensor(0, len(new), Element.F32, "b", (len(new) // 4,))
    parts = list(Elsewhere(memoryview(FLOATS), memoryview(new)).copies(whole(after, Match.NONE, None)))
    assert [part.match for part in parts] == [Match.NONE, Match.COPY, Match.NONE]
    assert all(part.new_length_bytes % 4 == 0 for part in parts)
    at = 0
    for part in parts:
        assert part.new_offset == at
        at += part.new_length_bytes
        if part.match is Match.COPY:
            here = slice(part.new_offset, at)
            assert new[here] == FLOATS[part.old_offset : part.old_offset + part.old_length_bytes]
    assert at == len(new)


def test_a_tensor_that_is_nowhere_stays_as_it_was_explained() -> None:
    new = np.random.default_rng(9).normal(size=8000).astype("<f2").tobytes()
    cast = whole(tensor(0, 16000, Element.F16, "a"), Match.CAST, tensor(0, 32000, Element.F32, "a"))
    assert list(Elsewhere(memoryview(FLOATS), memoryview(new)).copies(cast)) == [cast]
