"""Groups of every kind of stream and operation, to be damaged by tests and by `scripts/fuzz_delta.py`."""

import gzip
import random
import struct
from dataclasses import dataclass
from functools import cache

import numpy as np

from protocol.delta.apply import apply_group
from protocol.delta.patch import read_group_header, write_group
from protocol.errors import Refused
from server.delta.few import NEW
from server.delta.groups import ViewBase, cut_groups, encode_pieces
from server.delta.pieces import How, Piece
from tests.unit.server.delta.archive_files import archive, sent
from tests.unit.server.delta.archive_lists import package

MEMBER_HEAD = 10  # of a gzip file without a name


@dataclass(frozen=True)
class Seed:
    """A group as the encoder makes it.

    Args:
        name: What is in it.
        base: The old file.
        group: Its bytes.
        output: What it gives.
    """

    name: str
    base: bytes
    group: bytes
    output: bytes


class CarefulBase(ViewBase):
    """A base that fails the test when it is read outside of its bytes."""

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= self.length_bytes
        assert 0 <= length <= self.length_bytes - offset
        return super().read(offset, length)


def outcome(group: bytes, base: bytes, output_offset: int = 0) -> int | None:
    """Applies any bytes: how many were written, as many as the header says, or None when they are refused.

    Everything else fails the test: another exception, a read outside of the base, a byte too many.
    """
    header = None
    written = 0

    def write(data: bytes) -> None:
        nonlocal written
        assert header is not None
        written += len(data)
        assert written <= header.output_bytes

    try:
        header = read_group_header(group)
        said = apply_group(group, CarefulBase(memoryview(base)), output_offset, write)
    except Refused:
        return None
    assert header is not None
    assert said == written == header.output_bytes
    return written


def planned(name: str, base: bytes, output: bytes, *pieces: Piece, inline: bool = False) -> Seed:
    """The one group of these pieces, the new and edited ones among the operations or in streams."""
    (plan,) = cut_groups(pieces)
    hows = NEW | {How.EDITS} if inline else frozenset()
    return Seed(name, base, encode_pieces(plan, plan.pieces, memoryview(base), memoryview(output), hows), output)


@cache
def seeds() -> tuple[Seed, ...]:
    """A small group of each kind."""
    chance = random.Random(5)
    noise = np.random.default_rng(5)
    floats = noise.normal(size=1200).astype(np.float32)
    step = np.outer(noise.normal(size=40), noise.normal(size=30)).astype(np.float32).ravel() * 1e-3
    made = []
    for how, words in (
        (How.F32_DIFFERENCE, lambda values: values.tobytes()),
        (How.F16_DIFFERENCE, lambda values: values.astype(np.float16).tobytes()),
        (How.BF16_DIFFERENCE, lambda values: (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()),
        (How.I8_DIFFERENCE, lambda values: (values * 40).astype(np.int8).tobytes()),
        (How.I32_DIFFERENCE, lambda values: (values * 1e6).astype(np.int32).tobytes()),
    ):
        old, new = words(floats), words(floats + step)
        made.append(planned(how.name, old, new, Piece(how, len(new), 0, 30)))
        if how is How.F16_DIFFERENCE:
            made.append(planned("planes", old, new, Piece(How.BYTE_DIFFERENCE, len(new), 0)))
        if how is How.I8_DIFFERENCE:
            loud = noise.integers(0, 256, len(old), np.uint8).tobytes()
            made.append(planned("I8 loud", old, loud, Piece(how, len(old), 0, 30)))
    for how, form in ((How.F32_ALONE, np.float32), (How.F16_ALONE, np.float16), (How.BF16_ALONE, np.float16)):
        new = floats.astype(form).tobytes()
        made.append(planned(how.name, b"", new, Piece(how, len(new))))
    text = b" ".join(chance.choice((b"field", b"robot", b"leaf", b"pest", b"%d" % word)) for word in range(700))
    made.append(planned("text", text, text + b"!", Piece(How.TEXT, len(text) + 1)))
    noisy = chance.randbytes(300)
    made.append(planned("stored", b"", noisy, Piece(How.BINARY, 300)))
    made.append(planned("zstd", b"", b"ab" * 400, Piece(How.BINARY, 800)))
    longer = text[:900] + b"what is new" + text[900:] + b"what is new"
    behind = Piece(How.BEHIND, len(longer), 0)
    made.append(planned("behind", text + bytes(64), longer, behind))
    edited = bytearray(text)
    for place in range(50, len(text), 97):
        edited[place] ^= 1
    whole = Piece(How.EDITS, len(text), 0)
    made.append(planned("edits", text, bytes(edited), whole))
    made.append(planned("changed", text, bytes(edited), whole, inline=True))
    mixed = text[100:400] + bytes(900) + text[:64] + noisy
    pieces = Piece(How.COPY, 300, 100), Piece(How.FILL, 900), Piece(How.COPY, 64, 0), Piece(How.BINARY, 300)
    made.append(planned("copies", text, mixed, *pieces))
    made.append(planned("new", text, mixed, *pieces, inline=True))
    for machine in (183, 62):
        old, new = program(machine, 0), program(machine, 64)
        made.append(planned(f"code {machine}", old, new, Piece(How.CODE, len(old), 0)))
    members = [gzip.compress(part, 9, mtime=0)[MEMBER_HEAD:] for part in (text, text[:900] + b"new " + text[900:])]
    made.append(planned("deflated", members[0] + bytes(512), members[1], Piece(How.DEFLATED, len(members[1]), 0)))
    old, new = archive(package(1_700_000_000.25)), archive(package(1_700_086_400.75, "1.1", b"changed"))
    made.append(Seed("archive", old, sent(old, new)[0], new))
    return tuple(made)


def program(machine: int, moved: int) -> bytes:
    """Something like an ELF file of one segment, whose branches name what lies `moved` bytes further in its middle."""
    chance = random.Random(machine)
    code = bytearray()
    for number in range(500):
        if chance.random() < 0.3:
            target = chance.randrange(500) * 4
            distance = target + (moved if target > 1000 else 0) - number * 4
            code += (
                struct.pack("<i", distance - 4)
                if machine == 62
                else struct.pack("<I", 0x94000000 | (distance >> 2 & 0x3FFFFFF))
            )
        else:
            code += b"\xe8\x90\x90\xe8" if machine == 62 else struct.pack("<I", chance.getrandbits(32))
    names = b"\0.text\0.names\0"
    end = 64 + 56 + len(code)
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0x1000, 64, end + len(names) + 2, 0, 64, 56, 1, 64, 3, 2)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, end, end, 4096)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 6, 120, 120, len(code), 0, 0, 4, 0)
    sections += struct.pack("<IIQQQQIIQQ", 7, 3, 0, 0, end, len(names), 0, 0, 1, 0)
    return head + segment + bytes(code) + names + bytes(2) + sections


def taken_apart(group: bytes) -> tuple[int, bytes, list[tuple[int, int, bytes]]]:
    """What `write_group` put together."""
    header = read_group_header(group)
    assert header is not None
    at = header.header_bytes + header.control_bytes
    control = group[header.header_bytes : at]
    streams = []
    for stream in header.streams:
        streams.append((stream.kind, stream.length_bytes, group[at : at + stream.coded_bytes]))
        at += stream.coded_bytes
    return header.output_bytes, control, streams


def damaged(group: bytes, chance: random.Random) -> bytes:
    """The group with one to four things changed: a number of its header, or bytes of one of its parts."""
    output_bytes, control, streams = taken_apart(group)
    for _ in range(chance.randint(1, 4)):
        which = chance.randrange(-3, 2 * len(streams))
        if which == -3:
            output_bytes = other_number(output_bytes, chance)
        elif which < 0:
            control = other_bytes(control, chance)
        else:
            kind, length, coded = streams[which // 2]
            if which % 2:
                coded = other_bytes(coded, chance)
            elif chance.random() < 0.5:
                kind = chance.choice((0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 16, 32, 33, chance.randrange(64)))
            else:
                length = other_number(length, chance)
            streams[which // 2] = kind, length, coded
    return write_group(output_bytes, control, streams)


def other_number(number: int, chance: random.Random) -> int:
    """A number near it, or one that is on the edge of something."""
    near = number + chance.choice((-512, -4, -2, -1, 1, 2, 4, 512))
    edge = (1 << chance.randrange(63)) + chance.randint(-1, 1)
    return max(0, near if chance.random() < 0.7 else edge)


def other_bytes(data: bytes, chance: random.Random) -> bytes:
    """The bytes with a run of them changed, cut or grown."""
    out = bytearray(data)
    at = chance.randrange(len(out) + 1)
    match chance.randrange(4):
        case 0 if out:
            out[at % len(out)] ^= 1 << chance.randrange(8)
        case 1:
            out[at : at + chance.randint(1, 8)] = chance.choice((b"", bytes(4), b"\xff" * 4, chance.randbytes(3)))
        case 2:
            del out[at:]
        case _:
            out[at:at] = chance.choice((bytes(8), b"\xff" * 8, chance.randbytes(16)))
    return bytes(out)
