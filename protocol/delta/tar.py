"""The operations that make tar archives: headers and what else follows from them, without sending it.

| kind | name | output |
|---|---|---|
| 2 | ENTRIES | whole entries of the base, one behind the other; headers and stamps with other mtimes |
| 3 | HEAD | one header block, made from one of the base |
| 4 | STAMP | the head of a compiled Python module, made from one of the base |
| 5 | DIGEST | hash (and size) of a file that the group made before, as text |
| 6 | PAD | zeros up to the next multiple of 512 |

A file's mtime is in its header and in the stamp of what was compiled from it; a build gives many files one mtime. So
`TarPlace` remembers which old mtime became which new one, and sizes likewise.
"""

from array import array
from enum import IntEnum
from typing import Final

from protocol import limits
from protocol.delta.base import Base
from protocol.delta.numbers import Numbers
from protocol.delta.tar_blocks import (
    BLOCK_BYTES,
    MTIME,
    NAME_BYTES,
    SIZE,
    STAMP_BYTES,
    STAMP_LIMIT,
    TYPE,
    is_stamped,
    padded,
    read_number,
    read_stamp,
    restamped,
    write_checksum,
    write_number,
)
from protocol.delta.tar_records import (
    FRACTION_DIGITS,
    SECONDS_DIGITS,
    Time,
    holds_times,
    read_records,
    times_of,
    with_times,
)
from protocol.errors import Reason, Refused

ENTRIES: Final = 2
HEAD: Final = 3
STAMP: Final = 4
DIGEST: Final = 5
PAD: Final = 6
KINDS: Final = range(ENTRIES, PAD + 1)

# Contexts: those of symbols lie from 512 on, those of numbers from 512 too (numbers use them 256 times higher).
_TIME, _SIZE, _NAME, _BYTE, _FORM, _FRACTION = (512 + 256 * field for field in range(6))
_COUNT, _LAST, _SHIFT, _GROWTH, _PLACE, _GONE, _COME, _SPANS, _GAP, _RUN, _REFERENCE = range(512, 523)

_ANNOUNCED, _ATTRIBUTE, _STAMP = 0xD, 0xE, 0xF  # as types of headers

MOST_TIMES: Final = 1 << 19  # of one group: its entries with all their times are fewer, and take 4 MiB
_REMEMBERED: Final = 4096  # mtimes and sizes; then it begins anew, so that memory is bounded


class Form(IntEnum):
    """How a digest is written."""

    RECORD = 0  # of a wheel's RECORD: URL-safe base64 of sha256 without padding, a comma, the size
    MD5SUMS = 1  # of a package's md5sums: hexadecimal md5
    SHA256 = 2  # as RECORD without the size, which is not known yet where the file comes later


class _Time(IntEnum):
    """What a new mtime is: the choices that take no number come first."""

    MAPPED = 0  # what this old mtime became before
    LAST = 1  # the same as the one before
    KEPT = 2
    SHIFTED = 3  # moved as far as the one before
    NEAR_LAST = 4  # a number from the one before
    NEAR_SHIFTED = 5


class TarPlace:
    """What a group's tar operations have learnt, and what they leave for the second pass.

    Args:
        base: The old file.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.next_header = -1  # behind the entry that was read last
        self.template = -1  # the header that HEAD read last
        self.times = array("q")  # of the ENTRIES' headers and stamps, in order; -1 where a header has none
        self.blocks = bytearray()  # what HEAD and STAMP made, in order
        self.contents = array("q")  # offset and size of each file behind a HEAD
        self._new_times: dict[int, int] = {}
        self._new_sizes: dict[int, int] = {}
        self._last = 0
        self._shift = 0
        self._choices: dict[int, int] = {}
        self._edit = (0, 0, b"")
        self._reference = 0
        self._announced = -1  # the mtime that attributes said of the next header
        self._made = bytes(BLOCK_BYTES)  # by the last HEAD

    def code_entries(self, numbers: Numbers, offset: int, count: int, room: int, target: memoryview | None) -> int:
        """Codes what changes in `count` entries from `offset` on.

        Args:
            numbers: Reader or writer.
            offset: Of the first header in the base.
            count: How many.
            room: What they may give at most, in bytes.
            target: What they give, when writing.

        Returns:
            Their length in bytes.
        """
        first = offset
        for _ in range(count):
            left = self.base.length_bytes - offset
            if left < BLOCK_BYTES:
                raise Refused(Reason.LIMIT, "a patch reads headers behind the end of its base")
            head = self.base.read(offset, min(left, BLOCK_BYTES + STAMP_BYTES))
            size = read_number(head, SIZE)
            if size < 0 or BLOCK_BYTES + padded(size) > min(left, room):
                raise Refused(Reason.LIMIT, "a patch reads an entry that is not there")
            wanted = target[offset - first :] if target is not None else None
            if len(self.times) > MOST_TIMES:
                raise Refused(Reason.LIMIT, "a patch says too many times in one group")
            self._code_entry_times(numbers, head, size, wanted)
            if holds_times(head, size):
                content = self.base.read(offset + BLOCK_BYTES, size)
                self._code_attributes(numbers, content, wanted)
            offset += BLOCK_BYTES + padded(size)
            room -= BLOCK_BYTES + padded(size)
        self.next_header = offset
        return offset - first

    def _code_entry_times(self, numbers: Numbers, head: bytes, size: int, target: memoryview | None) -> None:
        old = read_number(head[:BLOCK_BYTES], MTIME)
        if old < 0:
            self.times.append(-1)
        else:
            wanted = max(0, read_number(bytes(target[:BLOCK_BYTES]), MTIME)) if target is not None else 0
            self.times.append(self._code_time(numbers, self._kind(head), old, wanted))
        if size >= STAMP_BYTES and is_stamped(head[BLOCK_BYTES:]):
            old, _ = read_stamp(head[BLOCK_BYTES:])
            wanted = read_stamp(target[BLOCK_BYTES:])[0] if target is not None else 0
            self.times.append(self._code_stamp_time(numbers, old, wanted))

    def _code_attributes(self, numbers: Numbers, content: bytes, target: memoryview | None) -> None:
        """Codes the times in attributes: seconds, digits of the fraction and the fraction."""
        wanted = []
        if target is not None:
            size = max(0, read_number(bytes(target[:BLOCK_BYTES]), SIZE))
            wanted = times_of(read_records(bytes(target[BLOCK_BYTES : BLOCK_BYTES + size])))
        records = read_records(content)
        times: list[Time] = []
        for number, old in enumerate(times_of(records)):
            new = wanted[number] if number < len(wanted) else old
            seconds = self._code_time(numbers, _ATTRIBUTE, old.seconds, new.seconds)
            digits, fraction = old.digits, old.fraction
            if numbers.symbol(_FRACTION, 1, int(new[1:] != old[1:])):
                digits = numbers.symbol(_FRACTION + 1, 4, new.digits)
                if digits > FRACTION_DIGITS or seconds >= 10**SECONDS_DIGITS:
                    raise Refused(Reason.LIMIT, "a patch says a time that cannot be")
                fraction = numbers.plain((10**digits - 1).bit_length(), new.fraction)
                if fraction >= 10**digits:
                    raise Refused(Reason.LIMIT, "a patch says a time that cannot be")
            times.append(Time(seconds, digits, fraction))
            self.times.extend(times[-1])
            if not number:
                self._announced = seconds + int(2 * fraction >= 10**digits)  # as tarfile rounds it
        if records and len(with_times(records, times)) > BLOCK_BYTES:
            raise Refused(Reason.LIMIT, "a patch makes attributes longer than they may be")

    def code_head(self, numbers: Numbers, offset: int, output: int, target: memoryview | None) -> int:
        """Codes one header made from that at `offset` of the base, or from the one made last when that is -1.

        Returns:
            The size of the file behind it, in bytes.
        """
        self._hold_blocks(BLOCK_BYTES)
        template = self.base.read(offset, BLOCK_BYTES) if offset >= 0 else self._made
        wanted = bytes(target) if target is not None else template
        block = bytearray(template)
        self._code_name(numbers, block, wanted)
        old_size = read_number(template, SIZE)
        if old_size >= 0:
            size = self._code_size(numbers, old_size, max(0, read_number(wanted, SIZE)))
            write_number(block, SIZE, size)
        old_time = read_number(template, MTIME)
        if old_time >= 0:
            time = self._code_time(numbers, self._kind(template), old_time, max(0, read_number(wanted, MTIME)))
            write_number(block, MTIME, time)
        write_checksum(block)
        self._code_spans(numbers, block, wanted)
        self.blocks += block
        self._made = bytes(block)
        if offset >= 0:
            self.template = offset
            if old_size >= 0:
                self.next_header = offset + BLOCK_BYTES + padded(old_size)
        size = max(0, read_number(block, SIZE))
        self.contents.extend((output + BLOCK_BYTES, size))
        return size

    def code_stamp(self, numbers: Numbers, offset: int, target: memoryview | None) -> None:
        """Codes the stamp made from that at `offset` of the base."""
        self._hold_blocks(STAMP_BYTES)
        stamp = self.base.read(offset, STAMP_BYTES)
        wanted = read_stamp(target) if target is not None else (0, 0)
        old_time, old_size = read_stamp(stamp)
        time = self._code_stamp_time(numbers, old_time, wanted[0])
        size = self._code_size(numbers, old_size, wanted[1])
        if size >= STAMP_LIMIT:
            raise Refused(Reason.LIMIT, "a patch stamps a module with too large a size")
        self.blocks += restamped(stamp, time, size)

    def code_digest(self, numbers: Numbers, reference: int, form: int, output: int) -> tuple[int, int, int]:
        """Codes which file's digest is written, and how.

        Args:
            numbers: Reader or writer.
            reference: Number of the file among `contents`, when writing.
            form: One of `Form`, when writing.
            output: Where the digest is written. `RECORD` stands behind its file, the others may stand before.

        Returns:
            Both, and the length of the text in bytes.
        """
        form = numbers.symbol(_FORM, 2, form)
        reference = self._reference + numbers.signed(_REFERENCE, reference - self._reference)
        if form > Form.SHA256 or not 0 <= reference < limits.GROUP_OPERATIONS:
            raise Refused(Reason.METADATA, "a patch names a digest in an unknown way")
        self._reference = reference + 1
        size = 0
        if form == Form.RECORD:
            if reference >= len(self.contents) // 2:
                raise Refused(Reason.METADATA, "a patch names a digest of a file that is not there")
            first, size = self.contents[2 * reference : 2 * reference + 2]
            if first + size > output:
                raise Refused(Reason.METADATA, "a patch names a digest of a file that is not written yet")
        return reference, form, digest_bytes(form, size)

    def _hold_blocks(self, more: int) -> None:
        if len(self.blocks) + more > limits.GROUP_CODED_BYTES:
            raise Refused(Reason.LIMIT, "a patch makes too many headers in one group")

    def _code_name(self, numbers: Numbers, block: bytearray, wanted: bytes) -> None:
        """0: as it is; 1: changed as the last one that changed; 2: changed."""
        old = bytes(block[:NAME_BYTES])
        new = wanted[:NAME_BYTES]
        edit = find_edit(old, new)
        again = edited(old, self._edit) == new
        how = numbers.symbol(_NAME, 2, 0 if old == new else 1 if again else 2)
        if how > 1:
            start = numbers.unsigned(_PLACE, edit[0])
            gone = numbers.unsigned(_GONE, edit[1])
            length = numbers.unsigned(_COME, len(edit[2]))
            if how > 2 or max(start, gone, length) > NAME_BYTES:
                raise Refused(Reason.METADATA, "a patch changes a name in an unknown way")
            come = edit[2].ljust(length, b"\0")
            self._edit = (start, gone, bytes(numbers.symbol(_BYTE, 8, come[place]) for place in range(length)))
        if how:
            block[:NAME_BYTES] = edited(old, self._edit)

    def _code_spans(self, numbers: Numbers, block: bytearray, wanted: bytes) -> None:
        """What else differs, as bytes."""
        spans = find_spans(bytes(block), wanted)
        at = 0
        for number in range(numbers.unsigned(_SPANS, len(spans))):
            start, end = spans[number] if number < len(spans) else (0, 1)
            at += numbers.unsigned(_GAP, start - at)
            length = 1 + numbers.unsigned(_RUN, end - start - 1)
            if at + length > BLOCK_BYTES:
                raise Refused(Reason.LIMIT, "a patch changes bytes behind a header")
            for place in range(at, at + length):
                block[place] = numbers.symbol(_BYTE + 1, 8, wanted[place])
            at += length

    def _kind(self, block: bytes) -> int:
        """What a header's mtime is predicted by: its type, or what attributes said."""
        if self._announced < 0:
            return block[TYPE] & 0xF
        self._last, self._announced = self._announced, -1
        return _ANNOUNCED

    def _code_time(self, numbers: Numbers, kind: int, old: int, new: int) -> int:
        mapped = self._new_times.get(old)
        if kind == _ANNOUNCED:
            mapped = self._last
        given = self._choose_time(mapped, old, new)
        context = _TIME | kind << 4 | (mapped is not None) << 3 | self._choices.get(kind, 0)
        choice = numbers.symbol(context, 3, given)
        match choice:
            case _Time.MAPPED:
                time = old if mapped is None else mapped
            case _Time.LAST:
                time = self._last
            case _Time.KEPT:
                time = old
            case _Time.SHIFTED:
                time = old + self._shift
            case _Time.NEAR_LAST:
                time = self._last + numbers.signed(_LAST, new - self._last)
            case _Time.NEAR_SHIFTED:
                time = old + self._shift + numbers.signed(_SHIFT, new - old - self._shift)
            case _:
                raise Refused(Reason.METADATA, "a patch says an mtime in an unknown way")
        if not 0 <= time < 1 << 62:
            raise Refused(Reason.LIMIT, "a patch says an mtime that cannot be")
        self._choices[kind] = choice
        if len(self._new_times) == _REMEMBERED:
            self._new_times.clear()
        self._new_times[old] = time
        if time:  # the headers of names and attributes have none
            self._last = time
            self._shift = time - old
        return time

    def _choose_time(self, mapped: int | None, old: int, new: int) -> _Time:
        for choice, time in (
            (_Time.MAPPED, old if mapped is None else mapped),
            (_Time.LAST, self._last),
            (_Time.KEPT, old),
            (_Time.SHIFTED, old + self._shift),
        ):
            if time == new:
                return choice
        near_last = abs(new - self._last) <= abs(new - old - self._shift)
        return _Time.NEAR_LAST if near_last else _Time.NEAR_SHIFTED

    def _code_stamp_time(self, numbers: Numbers, old: int, new: int) -> int:
        time = self._code_time(numbers, _STAMP, old, new)
        if time >= STAMP_LIMIT:
            raise Refused(Reason.LIMIT, "a patch stamps a module with too late a time")
        return time

    def _code_size(self, numbers: Numbers, old: int, new: int) -> int:
        """0: as this old size became before, or as it is; 1: another."""
        expected = self._new_sizes.get(old, old)
        size = expected
        if numbers.symbol(_SIZE | (old in self._new_sizes), 1, int(new != expected)):
            size = old + numbers.signed(_GROWTH, new - old)
        if not 0 <= size < limits.ARTIFACT_BYTES:
            raise Refused(Reason.LIMIT, "a patch says a size that cannot be")
        if len(self._new_sizes) == _REMEMBERED:
            self._new_sizes.clear()
        self._new_sizes[old] = size
        return size


def digest_bytes(form: int, size: int) -> int:
    """Length of a digest as text."""
    if form == Form.MD5SUMS:
        return 32
    return 43 if form == Form.SHA256 else 44 + len(str(size))


def find_edit(old: bytes, new: bytes) -> tuple[int, int, bytes]:
    """How a NUL-padded field changes: where, how many bytes go, which come."""
    was, now = old.rstrip(b"\0"), new.rstrip(b"\0")
    shorter = min(len(was), len(now))
    start = next((place for place in range(shorter) if was[place] != now[place]), shorter)
    tail = next((place for place in range(shorter - start) if was[-1 - place] != now[-1 - place]), shorter - start)
    return start, len(was) - start - tail, now[start : len(now) - tail]


def edited(field: bytes, edit: tuple[int, int, bytes]) -> bytes:
    """The field after the edit, NUL-padded or cut to its length."""
    start, gone, come = edit
    text = field.rstrip(b"\0")
    return (text[:start] + come + text[start + gone :])[: len(field)].ljust(len(field), b"\0")


def find_spans(block: bytes, wanted: bytes) -> list[tuple[int, int]]:
    """Where two blocks differ: first and last but one of each run."""
    places = [place for place in range(BLOCK_BYTES) if block[place] != wanted[place]]
    spans: list[tuple[int, int]] = []
    for place in places:
        if spans and place <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], place + 1)
        else:
            spans.append((place, place + 1))
    return spans
