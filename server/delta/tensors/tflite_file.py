"""Finds the tensors of a TFLite model: in its flatbuffer (schema.fbs, version 3), and above 2 GB behind it."""

from server.delta.tensors.found import MAX_RANK, MIN_BYTES, Element, Tensor, tensor
from server.delta.tensors.reading import Budget, Damaged, check, i32, text, u16, u32, u64

MAGIC = b"TFL3"  # at byte 4

# TensorType -> the element and how many make one value. Four-bit integers travel as bytes.
ELEMENTS = {
    0: (Element.F32, 1),
    1: (Element.F16, 1),
    2: (Element.I32, 1),
    3: (Element.U8, 1),
    4: (Element.I64, 1),
    6: (Element.U8, 1),
    7: (Element.I16, 1),
    8: (Element.F32, 2),
    9: (Element.I8, 1),
    10: (Element.F64, 1),
    11: (Element.F64, 2),
    12: (Element.U64, 1),
    15: (Element.U32, 1),
    16: (Element.U16, 1),
    17: (Element.U8, 1),
    18: (Element.BF16, 1),
}


def find(data: memoryview) -> list[Tensor]:
    """The weights and the tables of per-channel scales, in no particular order.

    Raises:
        Damaged: An offset leads outside.
    """
    budget = Budget()
    model = u32(data, 0)
    buffers, buffer_count = _vector(data, _field(data, model, 4), 4)
    graphs, graph_count = _vector(data, _field(data, model, 2), 4)
    found: dict[int, Tensor] = {}  # by offset: graphs share buffers
    for graph in range(graph_count):
        tensors, count = _vector(data, _field(data, _follow(data, graphs + 4 * graph), 0), 4)
        for index in range(count):
            budget.spend()
            table = _follow(data, tensors + 4 * index)
            name = _name(data, _field(data, table, 3))
            number = _u32_or_0(data, _field(data, table, 2))
            if number and number < buffer_count:
                each = _weights(data, table, _follow(data, buffers + 4 * number), name)
                if each is not None:
                    found.setdefault(each.offset, each)
            for each in _scales(data, _field(data, table, 4), name):
                found.setdefault(each.offset, each)
    return list(found.values())


def _field(data: memoryview, table: int, index: int) -> int:
    """Where a field of a table lies; 0 when it has its default value."""
    vtable = table - i32(data, table)
    slot = 4 + 2 * index
    if slot + 2 > u16(data, vtable):
        return 0
    offset = u16(data, vtable + slot)
    return table + offset if offset else 0


def _follow(data: memoryview, at: int) -> int:
    return at + u32(data, at)


def _vector(data: memoryview, field: int, width_bytes: int) -> tuple[int, int]:
    """The first item and the count; an absent vector is empty."""
    if not field:
        return 0, 0
    start = _follow(data, field)
    count = u32(data, start)
    check(data, start + 4, count * width_bytes)
    return start + 4, count


def _u32_or_0(data: memoryview, field: int) -> int:
    return u32(data, field) if field else 0


def _name(data: memoryview, field: int) -> str:
    start, length = _vector(data, field, 1)
    return text(data, start, length)


def _weights(data: memoryview, table: int, buffer: int, name: str) -> Tensor | None:
    at_kind = _field(data, table, 1)
    if at_kind:
        check(data, at_kind, 1)
    kind = data[at_kind] if at_kind else 0
    offset_field, size_field = _field(data, buffer, 1), _field(data, buffer, 2)
    outside = u64(data, offset_field) if offset_field else 0
    if outside > 1:  # 1 is the writer's mark for "not yet known"
        start, length = outside, u64(data, size_field) if size_field else 0
        check(data, start, length)
    else:
        start, length = _vector(data, _field(data, buffer, 0), 1)
    if kind not in ELEMENTS or length < MIN_BYTES:
        return None
    element, parts = ELEMENTS[kind]
    dims, rank = _vector(data, _field(data, table, 0), 4)
    if rank > MAX_RANK:
        raise Damaged("a shape of too many axes")
    shape = [i32(data, dims + 4 * axis) for axis in range(rank)]
    return tensor(start, length, element, name, shape if parts == 1 else [*shape, parts])


def _scales(data: memoryview, field: int, name: str) -> list[Tensor]:
    """Per-channel tables: they change at every quantisation, and as floats they cost half."""
    if not field:
        return []
    table = _follow(data, field)
    found: list[Tensor] = []
    for index, part, element in ((0, "min", Element.F32), (1, "max", Element.F32), (2, "scale", Element.F32)):
        start, count = _vector(data, _field(data, table, index), 4)
        if count * 4 >= MIN_BYTES:
            found.append(tensor(start, count * 4, element, f"{name}/{part}"))
    return found
