"""Spans against plain sets of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.spans import Spans

span_lists = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8)


def numbers(spans: Spans) -> set[int]:
    return {number for first, last in spans for number in range(first, last + 1)}


def members(pairs: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in pairs for number in range(first, last + 1)}


@given(span_lists)
def test_any_spans_become_sorted_disjoint_and_merged(pairs):
    spans = Spans.of(pairs)
    assert numbers(spans) == members(pairs)
    assert len(spans) == len(members(pairs))
    assert all(left[1] + 1 < right[0] for left, right in zip(spans.spans, spans.spans[1:], strict=False))


@given(span_lists, span_lists)
def test_union_minus_covers_and_membership_are_those_of_sets(left, right):
    a, b = Spans.of(left), Spans.of(right)
    assert numbers(a.union(b)) == members(left) | members(right)
    assert numbers(a.minus(b)) == members(left) - members(right)
    assert a.covers(b) == (members(right) <= members(left))
    assert {number for number in range(-1, 42) if number in a} == members(left)


@given(span_lists, st.integers(0, 40), st.integers(0, 40), st.integers(0, 50))
def test_within_head_and_tail_take_the_named_part(pairs, first, last, count):
    spans = Spans.of(pairs)
    assert numbers(spans.within(first, last)) == {n for n in members(pairs) if first <= n <= last}
    assert sorted(numbers(spans.head(count))) == sorted(members(pairs))[:count]
    assert sorted(numbers(spans.tail(count))) == sorted(members(pairs))[len(members(pairs)) - min(count, len(spans)) :]
