"""Matches two sequences by their longest common subsequence, with one wide integer for each item of the new one."""

from collections.abc import Hashable, Sequence

MAX_CELLS = 1 << 28  # 32 MiB of bits: two sequences of 16 thousand. Above, only equal ends are matched


def in_order(old: Sequence[Hashable], new: Sequence[Hashable]) -> dict[int, int]:
    """The new index -> the old index of each item that both have in the same order. Equal ends are matched first."""
    matched: dict[int, int] = {}
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        matched[start] = start
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
        matched[len(new) - end] = len(old) - end
    between_old, between_new = old[start : len(old) - end], new[start : len(new) - end]
    if len(between_old) * len(between_new) <= MAX_CELLS:
        for index, partner in _longest(between_old, between_new):
            matched[start + index] = start + partner
    return matched


def _longest(old: Sequence[Hashable], new: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Hyyrö's bit-parallel rows: a 0 at bit j of row i says that item j lengthens what the first i items match."""
    where: dict[Hashable, int] = {}
    for index, item in enumerate(old):
        where[item] = where.get(item, 0) | 1 << index
    ones = (1 << len(old)) - 1
    rows = [ones]
    for item in new:
        row = rows[-1]
        same = row & where.get(item, 0)
        rows.append((row + same | row - same) & ones)
    pairs: list[tuple[int, int]] = []
    i, j = len(new), len(old)
    while i and j:
        bit = 1 << j - 1
        if rows[i] & bit:
            j -= 1
        elif rows[i - 1] & bit:
            i -= 1
            j -= 1
            pairs.append((i, j))
        else:
            i -= 1
    return pairs
