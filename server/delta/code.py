"""The writing side of `protocol.delta.code`."""

from typing import Final

import numpy as np

from protocol.delta.addresses import Places
from protocol.delta.code import code_blocks, code_lanes
from protocol.delta.patch import varint
from protocol.delta.programs import Program, code_programs
from server.delta.lanes import LaneWriter
from server.delta.numbers import NumberWriter
from server.delta.programs import Stream, find_programs

WORDS_A_LANE: Final = 48  # wrong words: a lane costs about three bytes, and more lanes make fewer steps
MOST_LANES: Final = 256  # twice as many cost two per cent of what is coded, and save little time


def encode_code(old: memoryview, new: memoryview, places: Places) -> bytes:
    """Codes the stream that a group's operations make from the base.

    Args:
        old: The base.
        new: The result.
        places: The operations of the group that read the base.
    """
    stream = Stream(old, new, places)
    programs = find_programs(old, new, stream)
    wrong = stream.look(programs).wrong.size
    return encode_with(stream, programs, min(max(wrong // WORDS_A_LANE, 1), MOST_LANES))


def encode_with(stream: Stream, programs: tuple[Program, ...], lanes: int) -> bytes:
    """Codes a stream with what is known of its programs."""
    numbers = NumberWriter()
    code_lanes(numbers, lanes)
    code_programs(numbers, programs)
    head = numbers.finish()
    writer = LaneWriter(lanes)
    code_blocks(writer, stream.old.copy(), programs, stream.places, stream.new)
    return varint(len(head)) + head + writer.finish(np.zeros(lanes, np.uint16))
