"""Finds the tensors of a safetensors file: eight bytes of length, a JSON table, then the data."""

import msgspec

from server.delta.tensors.found import MAX_TENSORS, Element, Tensor, tensor
from server.delta.tensors.reading import Damaged, check, u64

MAX_HEADER_BYTES = 32 << 20  # the format allows 100 MB; 100 thousand tensors take 15

ELEMENTS = {
    "F64": (Element.F64, 1),
    "F32": (Element.F32, 1),
    "F16": (Element.F16, 1),
    "BF16": (Element.BF16, 1),
    "C64": (Element.F32, 2),
    "I64": (Element.I64, 1),
    "I32": (Element.I32, 1),
    "I16": (Element.I16, 1),
    "I8": (Element.I8, 1),
    "U64": (Element.U64, 1),
    "U32": (Element.U32, 1),
    "U16": (Element.U16, 1),
    "U8": (Element.U8, 1),
    "BOOL": (Element.U8, 1),
}
BYTES = (Element.U8, 1)  # float8 and the narrower types: as bytes


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def looks_right(data: memoryview) -> bool:
    """True when the first bytes can be those of a safetensors file."""
    return len(data) > 10 and data[8] == ord("{") and 2 <= u64(data, 0) <= min(len(data) - 8, MAX_HEADER_BYTES)


def find(data: memoryview) -> list[Tensor]:
    """The tensors, in the order of the table.

    Raises:
        Damaged: The table does not read, or leads outside.
    """
    header_bytes = u64(data, 0)
    if header_bytes > MAX_HEADER_BYTES:
        raise Damaged("the table is larger than any real one")
    check(data, 8, header_bytes)
    try:
        table = msgspec.json.decode(data[8 : 8 + header_bytes], type=dict[str, msgspec.Raw])
        if len(table) > MAX_TENSORS:
            raise Damaged("more tensors than any real file has")
        entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in table.items() if name != "__metadata__"}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Damaged(str(error)) from error
    start = 8 + header_bytes
    found: list[Tensor] = []
    for name, entry in entries.items():
        first, end = entry.data_offsets
        if first < 0:
            raise Damaged("a tensor before the data")
        check(data, start + first, end - first)
        element, parts = ELEMENTS.get(entry.dtype, BYTES)
        found.append(
            tensor(start + first, end - first, element, name, entry.shape if parts == 1 else [*entry.shape, parts])
        )
    return found
