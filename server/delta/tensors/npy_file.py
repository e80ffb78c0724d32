"""Finds the one array of a .npy file (versions 1 to 3). The header is matched, never evaluated."""

import re

from server.delta.tensors.found import Element, Tensor, tensor
from server.delta.tensors.reading import Damaged, check, u16, u32

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000  # numpy's own limit

HEADER = re.compile(
    rb"\{'descr': '[<|]([a-z]\d)', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,512})\),? ?\} *\n?"
)
ELEMENTS = {
    b"f8": (Element.F64, 1),
    b"f4": (Element.F32, 1),
    b"f2": (Element.F16, 1),
    b"c8": (Element.F32, 2),
    b"i8": (Element.I64, 1),
    b"i4": (Element.I32, 1),
    b"i2": (Element.I16, 1),
    b"i1": (Element.I8, 1),
    b"u8": (Element.U64, 1),
    b"u4": (Element.U32, 1),
    b"u2": (Element.U16, 1),
    b"u1": (Element.U8, 1),
    b"b1": (Element.U8, 1),
}


def find(data: memoryview) -> list[Tensor]:
    """The array, unless its type is none of ours (big-endian, strings, records).

    Raises:
        Damaged: The header does not read, or states more than the file holds.
    """
    check(data, 0, 8)
    wide = data[6] > 1
    length = u32(data, 8) if wide else u16(data, 8)
    start = 12 if wide else 10
    if length > MAX_HEADER_BYTES:
        raise Damaged("a header longer than numpy takes")
    check(data, start, length)
    header = HEADER.fullmatch(bytes(data[start : start + length]))
    if header is None or header[1] not in ELEMENTS:
        return []
    element, parts = ELEMENTS[header[1]]
    shape = [int(axis) for axis in header[3].replace(b" ", b"").split(b",") if axis]
    if header[2] == b"True":
        shape.reverse()  # what changes slowest comes first
    count = parts
    for axis in shape:
        count *= axis
    check(data, start + length, count * element.width_bytes)
    return [tensor(start + length, count * element.width_bytes, element, "", shape if parts == 1 else [*shape, parts])]
