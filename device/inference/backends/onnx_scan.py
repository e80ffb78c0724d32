"""Looks through an ONNX file for references to other files, before any runtime sees it.

Weights kept "externally" name a path, and such paths have read what they should not (CVE-2022-25882, CVE-2024-27318,
CVE-2025-51480). A release's models are whole files, so any reference is refused, wherever it stands: in the graph, in
a graph inside a node, in a function, in training information. An `EPContext` node names a compiled engine that a
provider would load as code, and goes the same way.

This is a walk over the protobuf wire format with the field numbers of onnx.proto, not a parser: it allocates nothing,
and what it cannot follow it refuses, so that the runtime's own parser cannot read more into the bytes than was seen
here.
"""

from typing import Final

from protocol.errors import Reason, Refused

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# For each message that is walked: which field holds which message. Fields that are not named are passed over.
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_TENSOR_EXTERNAL_DATA: Final = 13
_TENSOR_DATA_LOCATION: Final = 14
_NODE_OP_TYPE: Final = 4
_EXTERNAL_OPS: Final = frozenset({b"EPContext"})

_DEPTH: Final = 100  # protobuf's own limit on nesting
_FIELDS: Final = 2_000_000  # a network of a hundred thousand nodes has fewer; it bounds the time of the walk
_TAG_BYTES: Final = 5  # a tag has 32 bits; parsers differ on what they make of longer ones
_VARINT_BYTES: Final = 10


def refuse_external_data(model: bytes, *, most_fields: int = _FIELDS) -> None:
    """Returns when the file refers to no other.

    Args:
        model: The file.
        most_fields: A walk over more is given up.

    Raises:
        Refused: `EXTERNAL_DATA`; `MODEL_LOAD` for what is not the wire format of an ONNX model; `LIMIT` for too many
            fields.
    """
    if model[4:8] == b"ORTM":
        raise Refused(Reason.MODEL_LOAD, "a model in onnxruntime's own format: releases carry ONNX")
    _Walk(model, most_fields).message("model", 0, len(model), 0)


class _Walk:
    def __init__(self, data: bytes, most_fields: int) -> None:
        self._data = data
        self._most_fields = most_fields
        self._fields = 0

    def message(self, kind: str, start: int, end: int, depth: int) -> None:
        if depth > _DEPTH:
            raise _malformed(start, "nested too deeply")
        children = _CHILDREN[kind]
        at = start
        while at < end:
            self._fields += 1
            if self._fields > self._most_fields:
                raise Refused(Reason.LIMIT, f"an ONNX model of more than {self._most_fields} fields")
            tag, at = self._varint(at, end, _TAG_BYTES)
            field, wire = tag >> 3, tag & 7
            if tag > 0xFFFF_FFFF or field == 0:
                raise _malformed(at, f"tag {tag}")
            value = 0
            body = at
            if wire == _VARINT:
                value, at = self._varint(at, end, _VARINT_BYTES)
            elif wire == _BYTES:
                length, body = self._varint(at, end, _VARINT_BYTES)
                at = body + length
            elif wire == _FIXED64:
                at += 8
            elif wire == _FIXED32:
                at += 4
            else:  # groups were never part of ONNX
                raise _malformed(at, f"wire type {wire}")
            if at > end:
                raise _malformed(body, "a field longer than its message")
            self._judge(kind, field, wire, value, self._data[body:at] if at - body <= 32 else b"")
            if field in children:
                if wire != _BYTES:
                    raise _malformed(body, f"field {field} of a {kind} is no message")
                self.message(children[field], body, at, depth + 1)

    def _judge(self, kind: str, field: int, wire: int, value: int, short: bytes) -> None:
        if kind == "tensor" and field == _TENSOR_EXTERNAL_DATA:
            raise _external("it keeps weights in another file")
        if kind == "tensor" and field == _TENSOR_DATA_LOCATION and (wire != _VARINT or value != 0):
            raise _external("it says that weights lie elsewhere")
        if kind == "node" and field == _NODE_OP_TYPE and short in _EXTERNAL_OPS:
            raise _external("it names a compiled engine in another file")

    def _varint(self, at: int, end: int, most: int) -> tuple[int, int]:
        value = 0
        for index in range(most):
            if at >= end:
                raise _malformed(at, "it ends in the middle of a number")
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, at
        raise _malformed(at, "a number of too many bytes")


def _malformed(at: int, text: str) -> Refused:
    return Refused(Reason.MODEL_LOAD, f"not an ONNX model: {text}, at byte {at}")


def _external(text: str) -> Refused:
    return Refused(
        Reason.EXTERNAL_DATA,
        f"the ONNX model is not a whole file: {text}",
        hint="save it with its weights inside, e.g. `onnx.save(model, path, save_as_external_data=False)`",
    )
