"""Sets of sequence numbers as sorted, disjoint spans: what a lane has sent, lost, and been receipted."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

Span = tuple[int, int]
"""First and last, both included."""


@dataclass(frozen=True)
class Spans:
    """An immutable set of numbers. Neighbours are merged, so a lane that drains in order is one span.

    Args:
        spans: Sorted and disjoint; `Spans.of` makes them so.
    """

    spans: tuple[Span, ...] = ()

    @classmethod
    def of(cls, spans: Iterable[Span]) -> "Spans":
        """The set of all numbers in `spans`, which may overlap and come in any order."""
        merged: list[Span] = []
        for first, last in sorted(spans):
            if first > last:
                continue
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return cls(tuple(merged))

    def union(self, *others: "Spans") -> "Spans":
        """Numbers in this or any of the others."""
        return Spans.of(span for part in (self, *others) for span in part.spans)

    def add(self, first: int, last: int) -> "Spans":
        """With `first` to `last` as well."""
        return Spans.of((*self.spans, (first, last)))

    def minus(self, other: "Spans") -> "Spans":
        """Numbers in this and not in the other."""
        kept: list[Span] = []
        holes = other.spans
        index = 0
        for first, last in self.spans:
            start = first
            while index < len(holes) and holes[index][1] < start:
                index += 1
            look = index
            while look < len(holes) and holes[look][0] <= last:
                if holes[look][0] > start:
                    kept.append((start, holes[look][0] - 1))
                start = holes[look][1] + 1
                look += 1
            if start <= last:
                kept.append((start, last))
        return Spans(tuple(kept))

    def within(self, first: int, last: int) -> "Spans":
        """The part that lies in `first` to `last`."""
        return Spans(tuple((max(a, first), min(b, last)) for a, b in self.spans if b >= first and a <= last))

    def head(self, count: int) -> "Spans":
        """The lowest `count` numbers."""
        taken: list[Span] = []
        for first, last in self.spans:
            if count <= 0:
                break
            end = min(last, first + count - 1)
            taken.append((first, end))
            count -= end - first + 1
        return Spans(tuple(taken))

    def tail(self, count: int) -> "Spans":
        """The highest `count` numbers."""
        taken: list[Span] = []
        for first, last in reversed(self.spans):
            if count <= 0:
                break
            begin = max(first, last - count + 1)
            taken.append((begin, last))
            count -= last - begin + 1
        return Spans(tuple(reversed(taken)))

    def covers(self, other: "Spans") -> bool:
        """Whether every number of the other is in this."""
        return not other.minus(self)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self.spans, number, key=lambda span: span[0]) - 1
        return place >= 0 and self.spans[place][1] >= number

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.spans)

    def __bool__(self) -> bool:
        return bool(self.spans)

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)


EMPTY: Final = Spans()
