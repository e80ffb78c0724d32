"""Each new tensor is explained by the old one that makes it cheapest, whatever the exporter did to the names."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.delta.tensors import Element, Match, Pair, Tensor, find_tensors, pair_tensors
from tests.unit.server.delta.tensor_files import Floats, npy, onnx_model, raw_tensor, safetensors, tuned, weights

Named = list[tuple[str, Floats]]


def paired(old: Named, new: Named) -> list[Pair]:
    old_file, new_file = (
        safetensors({name: ("F32", array.shape, array.tobytes()) for name, array in each}) for each in (old, new)
    )
    return checked(old_file, new_file)


def checked(old_file: bytes, new_file: bytes) -> list[Pair]:
    old, new = find_tensors(old_file), find_tensors(new_file)
    pairs = pair_tensors(old_file, old, new_file, new)
    spans = [(each.new_offset, each.new_offset + each.new_length_bytes) for each in pairs]
    assert spans == sorted(spans)
    assert sum(each.new_length_bytes for each in pairs) == sum(each.length_bytes for each in new)
    for each in pairs:
        assert each.new.offset <= each.new_offset
        assert each.new_offset + each.new_length_bytes <= each.new.end
        assert 0 <= each.old_offset <= each.old_offset + each.old_length_bytes <= len(old_file)
        if each.match is Match.COPY:
            old_end = each.old_offset + each.old_length_bytes
            assert old_file[each.old_offset : old_end] == new_file[each.new_offset : each.new.end]
    return pairs


def explained(pairs: list[Pair]) -> list[tuple[str, Match, str | None]]:
    return [(each.new.name, each.match, each.old.name if each.old else None) for each in pairs]


def test_equal_tensors_are_copies_under_any_name_and_changed_ones_differences() -> None:
    a, b = weights(900, 1).reshape(30, 30), weights(900, 2).reshape(30, 30)
    assert explained(paired([("a", a), ("b", b)], [("x", b), ("b", tuned(a)), ("a", b)])) == [
        ("x", Match.COPY, "b"),
        ("b", Match.DELTA, "a"),
        ("a", Match.COPY, "b"),
    ]


def test_of_equal_tensors_the_one_of_the_same_name_is_taken() -> None:
    ones = np.ones(900, np.float32)
    assert [each[2] for each in explained(paired([("a", ones), ("b", ones)], [("b", ones), ("c", ones)]))] == ["b", "a"]


def test_renamed_and_shuffled_tensors_are_found_by_what_they_cost() -> None:
    old = [(f"old.{index}", weights(900, index)) for index in range(12)]
    order = np.random.default_rng(4).permutation(12)
    pairs = paired(old, [(f"new.{index}", tuned(old[index][1])) for index in order])
    assert [each.old and each.old.name for each in pairs] == [f"old.{index}" for index in order]
    assert {each.match for each in pairs} == {Match.DELTA}


def test_renamed_layers_keep_their_order_when_some_were_put_between() -> None:
    shapes = [(10, 90), (900,), (30, 30), (9, 100), (10, 90), (30, 30)]
    old = [(f"o{index}", weights(900, index).reshape(shape)) for index, shape in enumerate(shapes)]
    new = [(f"n{index}", tuned(array)) for index, (_, array) in enumerate(old)]
    new.insert(3, ("added", weights(900, 77).reshape(90, 10)))
    pairs = {each.new.name: each for each in paired(old, new)}
    assert [pairs[f"n{index}"].old for index in range(6)] == [
        each.old for each in (pairs[f"n{index}"] for index in range(6)) if each.old and each.old.name.startswith("o")
    ]
    assert pairs["added"].match is Match.NONE


def test_a_tensor_trained_far_keeps_its_partner_as_a_weak_one_and_one_trained_anew_has_none() -> None:
    old, other = weights(5000, 1), weights(5000, 2)
    assert explained(paired([("a", old)], [("a", (0.7 * old + 0.7 * other).astype(np.float32))])) == [
        ("a", Match.WEAK, "a")
    ]
    assert explained(paired([("a", old)], [("a", other)])) == [("a", Match.NONE, None)]


def test_a_head_with_more_classes_is_explained_up_to_the_new_ones() -> None:
    old = weights(10 * 1280, 1).reshape(10, 1280)
    grown = np.concatenate([tuned(old), weights(2 * 1280, 5).reshape(2, 1280)])
    first, rest = paired([("head", old)], [("head", grown)])
    assert (first.match, first.new_length_bytes, first.old_length_bytes) == (Match.DELTA, old.nbytes, old.nbytes)
    assert first.old is not None
    assert (first.old_offset, first.new_offset) == (first.old.offset, first.new.offset)
    assert (rest.match, rest.new_length_bytes, rest.old_length_bytes) == (Match.NONE, 2 * 1280 * 4, 0)


def test_rows_put_before_or_between_are_explained_on_both_sides() -> None:
    old = weights(2000 * 64, 1).reshape(2000, 64)
    added = weights(100 * 64, 5).reshape(100, 64)
    pairs = paired([("e", old)], [("e", np.concatenate([added, tuned(old)]))])
    assert [each.match for each in pairs] == [Match.NONE, Match.DELTA]
    assert pairs[1].new_length_bytes == old.nbytes
    between = np.concatenate([tuned(old[:1130]), added, tuned(old[1130:])])
    pairs = paired([("e", old)], [("e", between)])
    covered = sum(each.new_length_bytes for each in pairs if each.match is Match.DELTA)
    assert covered > 0.98 * old.nbytes
    assert len({each.old_offset - each.new_offset for each in pairs if each.match is Match.DELTA}) == 2
    row_bytes = 64 * 4
    assert 1125 <= pairs[0].new_length_bytes / row_bytes <= 1235


def test_a_removed_row_leaves_the_rest_explained_under_new_names_too() -> None:
    old = weights(12 * 1280, 1).reshape(12, 1280)
    between = weights(500, 3)
    pairs = paired([("a", between), ("head", old)], [("x", tuned(between)), ("y", tuned(old[:10]))])
    assert explained(pairs) == [("x", Match.DELTA, "a"), ("y", Match.DELTA, "head")]


def test_a_tensor_in_another_float_type_is_reported_as_cast() -> None:
    array = weights(900).reshape(30, 30)
    old = onnx_model([raw_tensor("w", array)])
    new = onnx_model([raw_tensor("w", array.astype(np.float16), 10)])
    (pair,) = checked(old, new)
    assert (pair.match, pair.new.element, pair.old_length_bytes) == (Match.CAST, Element.F16, 3600)


def test_a_run_without_a_name_is_explained_where_it_moved_to() -> None:
    old = weights(400_000, 1)
    first, second = tuned(old[:200_000]), tuned(old[200_000:])
    put_between = weights(30_000, 9)
    old_file = b"old header".ljust(512) + old.tobytes()
    new_file = b"new".ljust(1024) + first.tobytes() + put_between.tobytes() + second.tobytes()
    pairs = checked(old_file, new_file)
    covered = sum(each.new_length_bytes for each in pairs if each.match is Match.DELTA)
    assert covered > 0.99 * old.nbytes
    shifts = {each.old_offset - each.new_offset for each in pairs if each.match is Match.DELTA}
    assert shifts == {-512, len(old_file) - len(new_file)}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 900),
    row=st.integers(65, 90),
    cut=st.tuples(st.integers(0, 900), st.integers(0, 900)),
    added=st.integers(0, 300),
    named=st.booleans(),
    lead=st.integers(0, 9),
)
def test_however_rows_came_and_went_the_spans_lie_inside(
    rows: int, row: int, cut: tuple[int, int], added: int, named: bool, lead: int
) -> None:
    old = weights(rows * row, 1).reshape(rows, row)
    new = np.concatenate([tuned(old[: cut[0]]), weights(added * row, 2).reshape(added, row), tuned(old[cut[1] :])])
    if named:
        if len(new):
            paired([("w", old)], [("w", new)])
    else:
        checked(bytes(lead) + old.tobytes(), new.tobytes())


@pytest.mark.parametrize("empty", [b"", b"x", npy(weights(900))])
def test_nothing_to_explain_or_to_explain_by_is_no_error(empty: bytes) -> None:
    checked(empty, npy(weights(900, 3)))
    checked(npy(weights(900, 3)), empty)


def test_thousands_of_tensors_alike_are_paired_within_bounded_time() -> None:
    count, each = 5_000, 256
    old = [Tensor(index * each, each, Element.F32, "", (each // 4,)) for index in range(count)]
    new = [Tensor(index * each, each, Element.F32, f"n{index}", (each // 4,)) for index in range(count)]
    old_file, new_file = (weights(count * each // 4, seed).tobytes() for seed in (1, 2))
    started = time.process_time()
    assert len(pair_tensors(old_file, old, new_file, new)) == count
    assert time.process_time() - started < 20
