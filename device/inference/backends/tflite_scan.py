"""Looks at the head of a TFLite file for references to other files, before any runtime sees it.

Newer schemas let a model name "external buffers": weights in other files. A release's models are whole files.
"""

import struct
from typing import Final

from protocol.errors import Reason, Refused

_IDENTIFIER: Final = b"TFL3"
_EXTERNAL_SLOTS: Final = (8, 9)  # Model.external_buffer_groups and Model.external_buffers of schema.fbs


def refuse_external_buffers(model: bytes) -> None:
    """Returns when the file is a TFLite model that refers to no other file.

    Raises:
        Refused: `EXTERNAL_DATA`; `MODEL_LOAD` for what is not a TFLite model.
    """
    if model[4:8] != _IDENTIFIER:
        raise Refused(Reason.MODEL_LOAD, "not a TFLite model: its identifier is missing")
    try:
        (table,) = struct.unpack_from("<I", model, 0)
        (back,) = struct.unpack_from("<i", model, table)
        vtable = table - back
        if not 0 <= vtable <= len(model) - 4:
            raise Refused(Reason.MODEL_LOAD, "not a TFLite model: its first table lies outside the file")
        (vtable_bytes,) = struct.unpack_from("<H", model, vtable)
        for slot in _EXTERNAL_SLOTS:
            place = 4 + 2 * slot
            if place + 2 <= vtable_bytes and struct.unpack_from("<H", model, vtable + place)[0]:
                raise Refused(Reason.EXTERNAL_DATA, "the TFLite model keeps buffers in another file")
    except struct.error as error:
        raise Refused(Reason.MODEL_LOAD, f"not a TFLite model: {error}") from error
