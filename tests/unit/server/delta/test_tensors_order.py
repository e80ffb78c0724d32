"""Two sequences are matched by a longest common subsequence."""

from hypothesis import given
from hypothesis import strategies as st

from server.delta.tensors.order import in_order


def longest(old: list[int], new: list[int]) -> int:
    row = [0] * (len(old) + 1)
    for item in new:
        above = row
        row = [0]
        for index, other in enumerate(old):
            row.append(above[index] + 1 if item == other else max(row[-1], above[index + 1]))
    return row[-1]


@given(st.lists(st.integers(0, 4), max_size=40), st.lists(st.integers(0, 4), max_size=40))
def test_the_match_is_in_order_and_as_long_as_any(old: list[int], new: list[int]) -> None:
    matched = sorted(in_order(old, new).items())
    assert all(old[partner] == new[index] for index, partner in matched)
    partners = [partner for _, partner in matched]
    assert partners == sorted(set(partners))
    assert len(matched) == longest(old, new)


def test_sequences_too_long_for_a_table_are_matched_at_their_ends() -> None:
    old = [0, *range(1, 20_000), 7]
    new = [0, *range(30_000, 50_000), 7]
    assert in_order(old, new) == {0: 0, len(new) - 1: len(old) - 1}
