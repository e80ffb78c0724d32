"""What agent and patch child say to each other over the child's standard input and output.

To the child: frames `GROUP`, each the output offset (8 bytes) and a whole group. From the child: `READY` once it has
imported what it needs, and for each group any number of `OUTPUT` and then one `DONE`, `REFUSED` or `TROUBLE`. A frame
is its kind, its length in bytes (4, little-endian), and its content. The end of the input ends the child.
"""

import struct
from typing import IO, Final

from protocol import limits
from protocol.errors import Reason
from protocol.wire import Message

READY: Final = b"r"
GROUP: Final = b"g"
OUTPUT: Final = b"o"
DONE: Final = b"d"
REFUSED: Final = b"x"  # its content is a `Verdict`
TROUBLE: Final = b"t"  # the machine, not the patch: its content is a sentence

OFFSET: Final = struct.Struct("<Q")
HEAD: Final = struct.Struct("<cI")
LONGEST: Final = limits.GROUP_PAYLOAD_BYTES + OFFSET.size
VERDICT_BYTES: Final = 16 * limits.KIB
NO_MEMORY: Final = 75  # the exit code of a child for which the machine has no memory (EX_TEMPFAIL)


class Verdict(Message):
    """Why a group is refused."""

    reason: Reason
    message: str


def send(pipe: IO[bytes], kind: bytes, content: bytes = b"") -> None:
    """The child writes one frame. Blocking.

    Raises:
        OSError: The other side is gone.
    """
    pipe.write(HEAD.pack(kind, len(content)))
    pipe.write(content)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[int, bytes] | None:
    """The child reads one `GROUP`: the output offset and the group; None when the other side ended. Blocking."""
    head = pipe.read(HEAD.size + OFFSET.size)
    if len(head) < HEAD.size + OFFSET.size:
        return None
    kind, length = HEAD.unpack_from(head)
    assert kind == GROUP
    assert OFFSET.size <= length <= LONGEST
    group = pipe.read(length - OFFSET.size)
    return (OFFSET.unpack_from(head, HEAD.size)[0], group) if len(group) == length - OFFSET.size else None
