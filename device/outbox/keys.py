"""How a row is found: epoch, lane and number in one integer, the table's own order, so that no second index is written.

Each row carries a seal over its place and its bytes: a flipped bit in a number shows as surely as one in a body, and a
row that is found in the ruins of a file says whose it is. Seals are CRCs: they are against a disk that errs, at a
twentieth of what a cryptographic hash would cost each new row; whoever can write the file needs no collision.
"""

from binascii import crc32
from typing import Final

from protocol import limits
from protocol.results import LANES

SEQ_LIMIT: Final = limits.ROW_NUMBERS
_SEQ_BITS: Final = SEQ_LIMIT.bit_length() - 1
_LANE_BITS: Final = 3
EPOCH_LIMIT: Final = 1 << 24


def row_id(epoch: int, lane: str, seq: int) -> int:
    """The key of a row: sorted by epoch, then lane, then number."""
    return (((epoch << _LANE_BITS) | LANES.index(lane)) << _SEQ_BITS) | seq


def place_of(key: int) -> tuple[int, str, int] | None:
    """Epoch, lane and number of a key; None when it can be no row's."""
    head, seq = divmod(key, SEQ_LIMIT)
    epoch, lane = divmod(head, 1 << _LANE_BITS)
    return (epoch, LANES[lane], seq) if lane < len(LANES) and 0 < epoch < EPOCH_LIMIT else None


def seq_of(key: int) -> int:
    """The number in its lane."""
    return key & (SEQ_LIMIT - 1)


def lane_prefix(token: str, lane: str) -> int:
    """What the seals of a lane's rows begin with: made once for many rows."""
    return crc32(f"{token}/{lane}/".encode())


def row_seal(prefix: int, seq: int, body: bytes) -> int:
    """The seal of a row, from `lane_prefix`, its number and its bytes."""
    return crc32(body, (prefix + seq) & 0xFFFFFFFF)


def seal(*values: str | int | None) -> int:
    """The seal of a row of accounts."""
    return crc32("\x1f".join(map(str, values)).encode())
