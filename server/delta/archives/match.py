"""Finds for each member of a new archive the member of the old one that it most likely comes from."""

import hashlib
import re
from collections import defaultdict
from typing import Final

from server.delta.archives.tar_file import REGULAR, Member

_VARIABLE: Final = re.compile(r"[0-9a-f]{8,}|\d+(?:\.\d+)*")
"""Versions, and hashes that builds put into names."""
SIMILAR_SIZE: Final = 8  # times as large: no more likely to resemble than any other file


class Matcher:
    """Members of the old archive by what may be the same about a new one.

    Args:
        data: The old archive.
        members: Of it.
    """

    def __init__(self, data: memoryview, members: list[Member]) -> None:
        self._data = data
        self._by_name = {member.name: number for number, member in enumerate(members)}
        self._members = members
        self._by_size: dict[int, list[int]] = defaultdict(list)
        self._by_shape: dict[str, list[int]] = defaultdict(list)
        self._by_base: dict[str, list[int]] = defaultdict(list)
        for number, member in enumerate(members):
            if member.own.kind in REGULAR and member.own.size:
                self._by_size[member.own.size].append(number)
            shape = _shape(member.name)
            self._by_shape[shape].append(number)
            self._by_base[shape.rstrip("/").rpartition("/")[2]].append(number)
        self._digests: dict[int, bytes] = {}

    def same_content(self, data: memoryview, near: int) -> int:
        """Number of an old file with this content, the nearest behind `near`; -1: none."""
        candidates = self._by_size.get(len(data), [])
        if not candidates:
            return -1
        digest = _digest(data)
        same = [number for number in candidates if self._digest_of(number) == digest]
        return min(same, key=lambda number: (number < near, abs(number - near)), default=-1)

    def same_name(self, member: Member) -> int:
        """Number of the old member of this name and type; -1: none."""
        number = self._by_name.get(member.name, -1)
        return number if number >= 0 and self._members[number].own.kind == member.own.kind else -1

    def similar(self, member: Member, near: int) -> int:
        """Number of the old member that is called much alike; -1: none."""
        shape = _shape(member.name)
        size = member.own.size
        for candidates in (self._by_shape.get(shape), self._by_base.get(shape.rstrip("/").rpartition("/")[2])):
            alike = [
                number
                for number in candidates or ()
                if self._members[number].own.kind == member.own.kind
                and self._members[number].own.size <= size * SIMILAR_SIZE
                and size <= self._members[number].own.size * SIMILAR_SIZE
            ]
            if alike:
                return min(alike, key=lambda number: (_apart(self._members[number].own.size, size), abs(number - near)))
        return -1

    def _digest_of(self, number: int) -> bytes:
        if number not in self._digests:
            own = self._members[number].own
            self._digests[number] = _digest(self._data[own.content : own.content + own.size])
        return self._digests[number]


def _digest(data: memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _shape(name: str) -> str:
    return _VARIABLE.sub("#", name)


def _apart(one: int, other: int) -> int:
    """How different two sizes are, coarsely: sixteenths of the larger one."""
    return abs(one - other) * 16 // max(one, other, 1)
