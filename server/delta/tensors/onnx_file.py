"""Finds the tensors of an ONNX model by walking its protobuf fields (onnx.proto, IR version 3 and later).

Data that lies in another file, or as varints (int32_data, int64_data), is not found: neither has a fixed width here.
"""

from collections.abc import Iterator

from server.delta.tensors.found import MAX_RANK, MIN_BYTES, Element, Tensor, tensor
from server.delta.tensors.reading import Budget, Damaged, check, text

MAX_DEPTH = 32  # graphs in graphs; exporters nest three or four
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types

# TensorProto.DataType -> the element and how many make one value. Types narrower than a byte travel as bytes.
ELEMENTS = {
    1: (Element.F32, 1),
    2: (Element.U8, 1),
    3: (Element.I8, 1),
    4: (Element.U16, 1),
    5: (Element.I16, 1),
    6: (Element.I32, 1),
    7: (Element.I64, 1),
    9: (Element.U8, 1),
    10: (Element.F16, 1),
    11: (Element.F64, 1),
    12: (Element.U32, 1),
    13: (Element.U64, 1),
    14: (Element.F32, 2),
    15: (Element.F64, 2),
    16: (Element.BF16, 1),
    17: (Element.U8, 1),
    18: (Element.U8, 1),
    19: (Element.U8, 1),
    20: (Element.U8, 1),
    21: (Element.U8, 1),
    22: (Element.U8, 1),
    23: (Element.U8, 1),
    24: (Element.U8, 1),
}


def find(data: memoryview) -> list[Tensor]:
    """The tensors of a model, in no particular order.

    Raises:
        Damaged: This is no ONNX model, or a cut one.
    """
    return _Model(data).read()


class _Model:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._budget = Budget()
        self._found: list[Tensor] = []

    def read(self) -> list[Tensor]:
        graphs = 0
        for field, wire, start, end in self._fields(0, len(self._data)):
            if wire != LENGTH:
                continue
            if field == 7:  # ModelProto.graph
                graphs += 1
                self._graph(start, end, "", 0)
            elif field == 20:  # training_info: initialization and algorithm are graphs
                for inner, inner_wire, s, e in self._fields(start, end):
                    if inner in (1, 2) and inner_wire == LENGTH:
                        self._graph(s, e, "training/", 0)
            elif field == 25:  # functions
                for inner, inner_wire, s, e in self._fields(start, end):
                    if inner == 7 and inner_wire == LENGTH:
                        self._node(s, e, "function/", 0)
                    elif inner == 11 and inner_wire == LENGTH:
                        self._attribute(s, e, "function/", 0)
        if not graphs:
            raise Damaged("a model has a graph")
        return self._found

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:  # ten bytes hold 64 bits
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
        raise Damaged("a number does not end")

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields number, wire type, and the span of the content, or for a varint its value and 0."""
        while at < end:
            self._budget.spend()
            key, at = self._varint(at, end)
            field, wire = key >> 3, key & 7
            if not field:
                raise Damaged("there is no field 0")
            if wire == VARINT:
                value, at = self._varint(at, end)
                yield field, wire, value, 0
                continue
            if wire == LENGTH:
                length, at = self._varint(at, end)
            elif wire == FIXED32:
                length = 4
            elif wire == FIXED64:
                length = 8
            else:
                raise Damaged("a wire type that ONNX does not use")
            if at + length > end:
                raise Damaged("a field ends behind its message")
            yield field, wire, at, at + length
            at += length

    def _graph(self, start: int, end: int, path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Damaged("graphs nested deeper than any exporter does")
        for field, wire, s, e in self._fields(start, end):
            if wire != LENGTH:
                continue
            if field == 1:
                self._node(s, e, path, depth)
            elif field == 5:
                self._tensor(s, e, path)
            elif field == 15:
                self._sparse(s, e, path)

    def _node(self, start: int, end: int, path: str, depth: int) -> None:
        # A constant's tensor seldom has a name of its own; the node's first output has. It comes before attributes.
        own = ""
        for field, wire, s, e in self._fields(start, end):
            if wire != LENGTH:
                continue
            if field == 2 and not own:
                own = text(self._data, s, e - s) + "/"
            elif field == 5:
                self._attribute(s, e, path + own, depth)

    def _attribute(self, start: int, end: int, path: str, depth: int) -> None:
        for field, wire, s, e in self._fields(start, end):
            if wire != LENGTH:
                continue
            if field in (5, 10):  # t, tensors
                self._tensor(s, e, path)
            elif field in (6, 11):  # g, graphs
                self._graph(s, e, path, depth + 1)
            elif field in (22, 23):  # sparse_tensor, sparse_tensors
                self._sparse(s, e, path)
            elif field == 7:  # floats, packed
                self._add(s, e, (Element.F32, 1), path + "floats", [])

    def _sparse(self, start: int, end: int, path: str) -> None:
        for field, wire, s, e in self._fields(start, end):
            if field in (1, 2) and wire == LENGTH:  # values, indices
                self._tensor(s, e, path + ("values/" if field == 1 else "indices/"))

    def _tensor(self, start: int, end: int, path: str) -> None:
        kind = 0
        name = ""
        dims: list[int] = []
        spans: dict[int, tuple[int, int]] = {}
        for field, wire, s, e in self._fields(start, end):
            if field == 1 and wire == VARINT:
                dims.append(s)
            elif field == 1 and wire == LENGTH:
                dims += self._packed(s, e)
            elif field == 2 and wire == VARINT:
                kind = s
            elif field == 8 and wire == LENGTH:
                name = text(self._data, s, e - s)
            elif field in (4, 9, 10) and wire == LENGTH:  # float_data and double_data (packed), raw_data
                spans[field] = (s, e)
        if 9 in spans and kind in ELEMENTS:
            self._add(*spans[9], ELEMENTS[kind], path + name, dims)
        elif 4 in spans and kind in (1, 14):
            self._add(*spans[4], ELEMENTS[kind], path + name, dims)
        elif 10 in spans and kind in (11, 15):
            self._add(*spans[10], ELEMENTS[kind], path + name, dims)

    def _packed(self, at: int, end: int) -> list[int]:
        values: list[int] = []
        while at < end and len(values) <= MAX_RANK:
            value, at = self._varint(at, end)
            values.append(value)
        return values

    def _add(self, start: int, end: int, kind: tuple[Element, int], name: str, dims: list[int]) -> None:
        if end - start < MIN_BYTES:
            return
        check(self._data, start, end - start)
        element, parts = kind
        self._found.append(tensor(start, end - start, element, name, dims if parts == 1 else [*dims, parts]))
