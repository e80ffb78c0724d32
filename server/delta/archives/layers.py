"""Says how a new archive follows from an old one: unchanged entries in runs, changed ones by header and content."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from protocol import limits
from protocol.delta.tar import Form, find_edit
from protocol.delta.tar_blocks import (
    BLOCK_BYTES,
    NAME_BYTES,
    SIZE,
    STAMP_BYTES,
    is_stamped,
    retimed,
    write_number,
)
from protocol.delta.tar_records import holds_times, read_records, times_of, with_times
from server.delta.archives.digests import digest_text, find_mentions, is_list
from server.delta.archives.match import Matcher
from server.delta.archives.tar_file import ATTRIBUTES, REGULAR, Entry, Member, Tar, read_tar
from server.delta.pieces import How, Piece

FilePieces = Callable[[slice, slice, str], list[Piece]]
"""Pieces of a changed file: where its old content stands in the old archive (empty: nowhere), where its new content
stands in the new one, and its path. Offsets of the base are those of the old archive."""

RUN_BYTES: Final = 8 * limits.MIB  # of unchanged entries in one piece: groups are cut between pieces
COMPARED_BYTES: Final = limits.MIB  # at a time
SHA256_BYTES: Final = 43  # as base64 without padding


def archive_pieces(old: memoryview, new: memoryview, *, file_pieces: FilePieces) -> list[Piece] | None:
    """What a new archive is made of, or None when one of the two is no archive.

    Args:
        old: The base.
        new: The result.
        file_pieces: For the contents that changed.
    """
    old_tar, new_tar = read_tar(old), read_tar(new)
    if old_tar is None or new_tar is None:
        return None
    return _Layer(old, new, old_tar, new_tar, file_pieces).pieces()


class _Layer:
    """A pair of archives on its way to pieces."""

    def __init__(self, old: memoryview, new: memoryview, old_tar: Tar, new_tar: Tar, file_pieces: FilePieces) -> None:
        self._old = old
        self._new = new
        self._old_bytes = np.frombuffer(old, np.uint8)
        self._new_bytes = np.frombuffer(new, np.uint8)
        self._old_members = old_tar.members
        self._new_tar = new_tar
        self._file_pieces = file_pieces
        self._matcher = Matcher(old, old_tar.members)
        self._near = 0  # number of the old member behind the one that was matched last
        self._template = old_tar.members[0].entries[0]
        self._made: bytes | None = None
        self._headed: dict[str, Entry] = {}
        self._lists: list[tuple[int, int, str, Entry]] = []  # pieces of lists of hashes: from, to
        self._pieces: list[Piece] = []

    def pieces(self) -> list[Piece]:
        for member in self._new_tar.members:
            number = self._matcher.same_name(member)
            if number >= 0 and self._is_retimed(member, self._old_members[number]):
                self._add_unchanged(member, self._old_members[number])
            else:
                number = self._add_changed(member, number)
            if number >= 0:
                self._near = number + 1
        self._add_end(self._new_tar.end)
        return self._with_digests()

    # Unchanged

    def _is_retimed(self, new: Member, old: Member) -> bool:
        """Whether all follows from the old member and mtimes."""
        if len(new.entries) != len(old.entries):
            return False
        return all(self._is_entry_retimed(one, other) for one, other in zip(new.entries, old.entries, strict=True))

    def _is_entry_retimed(self, new: Entry, old: Entry) -> bool:
        if new.kind == old.kind == ATTRIBUTES and holds_times(bytes(self._old[old.offset : old.content]), old.size):
            return self._are_attributes_retimed(new, old)
        if new.size != old.size or new.kind != old.kind or new.end - new.offset > RUN_BYTES:
            return False
        block = bytes(self._old[old.offset : old.content])
        if retimed(block, new.mtime) != self._new[new.offset : new.content]:
            return False
        skipped = 0
        if new.size >= STAMP_BYTES and is_stamped(self._old[old.content : old.content + STAMP_BYTES]):
            old_stamp = bytes(self._old[old.content : old.content + STAMP_BYTES])
            new_stamp = bytes(self._new[new.content : new.content + STAMP_BYTES])
            if old_stamp[:8] != new_stamp[:8] or old_stamp[12:] != new_stamp[12:]:
                return False
            skipped = STAMP_BYTES
        return self._equal(new.content + skipped, old.content + skipped, new.end - new.content - skipped)

    def _are_attributes_retimed(self, new: Entry, old: Entry) -> bool:
        if not 0 < new.size <= BLOCK_BYTES:
            return False
        block = bytearray(self._old[old.offset : old.content])
        write_number(block, SIZE, new.size)
        if retimed(block, new.mtime) != self._new[new.offset : new.content]:
            return False
        content = bytes(self._new[new.content : new.end])
        was = read_records(bytes(self._old[old.content : old.content + old.size]))
        now = read_records(content[: new.size])
        if was is None or now is None:
            return bytes(self._old[old.content : old.end]) == content
        times = times_of(now)
        return len(times) == len(times_of(was)) and with_times(was, times).ljust(BLOCK_BYTES, b"\0") == content

    def _equal(self, new: int, old: int, length: int) -> bool:
        for at in range(0, length, COMPARED_BYTES):
            end = min(length, at + COMPARED_BYTES)
            if not np.array_equal(self._new_bytes[new + at : new + end], self._old_bytes[old + at : old + end]):
                return False
        return True

    def _add_unchanged(self, new: Member, old: Member) -> None:
        first, last = old.entries[0], old.own
        length = last.end - first.offset
        before = self._pieces[-1] if self._pieces else None
        if (
            before is not None
            and before.how is How.ENTRIES
            and before.base + before.length == first.offset
            and before.length + length <= RUN_BYTES
        ):
            self._pieces[-1] = before._replace(length=before.length + length, value=before.value + len(new.entries))
        else:
            self._pieces.append(Piece(How.ENTRIES, length, first.offset, len(new.entries)))
        self._template = last

    # Changed

    def _add_changed(self, member: Member, number: int) -> int:
        """Adds header and content. Returns the number of the old member that it was made from, or -1."""
        regular = member.own.kind in REGULAR and member.own.size > 0
        content = self._new[member.own.content : member.own.content + member.own.size]
        if number < 0 and regular:
            number = self._matcher.same_content(content, self._near)
        if number < 0:
            number = self._matcher.similar(member, self._near)
        old = self._old_members[number] if number >= 0 else None
        for place, entry in enumerate(member.entries):
            counterpart = None
            if old is not None:
                alike = [other for other in old.entries if other.kind == entry.kind]
                counterpart = alike[0] if alike else None
            self._add_head(entry, counterpart)
            if place < len(member.entries) - 1 or not regular:
                self._add_content(member.name, entry, counterpart)
            else:
                self._headed[member.name] = entry
                same = self._matcher.same_content(content, self._near)
                self._add_content(member.name, entry, self._old_members[same].own if same >= 0 else counterpart)
            self._add_padding(entry)
        return number

    def _add_head(self, entry: Entry, counterpart: Entry | None) -> None:
        template = counterpart or self._template
        base = template.offset
        if counterpart is None and self._made is not None:
            name = bytes(self._new[entry.offset : entry.offset + NAME_BYTES])
            from_old = find_edit(bytes(self._old[base : base + NAME_BYTES]), name)
            from_made = find_edit(self._made[:NAME_BYTES], name)
            if len(from_made[2]) <= len(from_old[2]):
                base = -1
        self._pieces.append(Piece(How.HEAD, BLOCK_BYTES, base))
        self._made = bytes(self._new[entry.offset : entry.content])
        if base >= 0:
            self._template = template

    def _add_content(self, name: str, new: Entry, old: Entry | None) -> None:
        if not new.size:
            return
        start, end = new.content, new.content + new.size
        old_start, old_end = (old.content, old.content + old.size) if old is not None else (0, 0)
        if (
            old_end - old_start >= STAMP_BYTES
            and new.size >= STAMP_BYTES
            and is_stamped(self._old[old_start : old_start + STAMP_BYTES])
            and self._old[old_start : old_start + 8] == self._new[start : start + 8]
        ):
            self._pieces.append(Piece(How.STAMP, STAMP_BYTES, old_start))
            start += STAMP_BYTES
            old_start += STAMP_BYTES
        if start == end:
            return
        if end - start == old_end - old_start and self._equal(start, old_start, end - start):
            self._pieces.append(Piece(How.COPY, end - start, old_start))
            return
        first = len(self._pieces)
        self._pieces += self._file_pieces(slice(old_start, old_end), slice(start, end), name)
        if is_list(name):
            self._lists.append((first, len(self._pieces), name, new))

    def _with_digests(self) -> list[Piece]:
        """Puts digests of files in the place of what was found for them."""
        out: list[Piece] = []
        done = 0
        for first, last, name, entry in self._lists:
            out += self._pieces[done:first]
            spans = list(self._digests(name, entry))
            found = self._pieces[first:last]
            out += _overlaid(entry.content, found, spans) if spans else found
            done = last
        return out + self._pieces[done:]

    def _digests(self, name: str, entry: Entry) -> Iterator[tuple[int, Piece]]:
        """The hashes in a list that follow from files which are made by header and content, and where they stand."""
        content = bytes(self._new[entry.content : entry.content + entry.size])
        for mention in find_mentions(name, content):
            file = self._headed.get(mention.name)
            if file is None or (is_list(mention.name) and file.offset > entry.offset):
                continue
            form, text = mention.form, mention.text
            if digest_text(form, self._new[file.content : file.content + file.size]) != text:
                continue
            if form is Form.RECORD and file.offset > entry.offset:
                form, text = Form.SHA256, text[:SHA256_BYTES]
            yield entry.content + mention.start, Piece(How.DIGEST, len(text), file.content, int(form))

    def _add_padding(self, entry: Entry) -> None:
        at, end = entry.content + entry.size, entry.end
        if at == end:
            return
        if any(self._new[at:end]):
            self._pieces.append(Piece(How.BINARY, end - at))
        else:
            self._pieces.append(Piece(How.PAD, end - at))

    def _add_end(self, at: int) -> None:
        rest = len(self._new) - at
        if not rest:
            return
        if self._new_bytes[at:].any():
            self._pieces.append(Piece(How.BINARY, rest))
        else:
            self._pieces.append(Piece(How.FILL, rest))


def _overlaid(at: int, found: list[Piece], spans: list[tuple[int, Piece]]) -> Iterator[Piece]:
    """The pieces `found` from `at` on, with others laid over them."""
    waiting = iter([*spans, (-1, Piece(How.FILL, 0))])
    start, over = next(waiting)
    for whole in found:
        piece = whole
        while piece.length:
            if start < 0 or at + piece.length <= start:
                yield piece
                at += piece.length
                break
            if at < start:
                yield piece._replace(length=start - at)
                piece = _later(piece, start - at)
                at = start
            if piece.length and at == start:
                yield over
            cut = min(piece.length, start + over.length - at)
            piece = _later(piece, cut)
            at += cut
            if at == start + over.length:
                start, over = next(waiting)


def _later(piece: Piece, cut: int) -> Piece:
    """What is left of a piece behind its first bytes."""
    return piece._replace(length=piece.length - cut, base=piece.base + cut if piece.base >= 0 else -1)
