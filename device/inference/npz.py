"""Reads `.npz` files that may be hostile: no pickle, no archive bomb, nothing allocated that a header only claims.

`numpy.load` believes an array's header and allocates what it says; here the header must agree with the length of its
member, and all lengths together with a limit, before a byte is decompressed.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from protocol import limits
from protocol.errors import Reason, Refused

Arrays = dict[str, NDArray[np.generic]]

_HEADER_BYTES: Final = 10_000  # numpy's own cap: longer headers are made to slow the parser down
_KINDS: Final = frozenset("biuf")  # numbers and truth values; no objects, no text, no records


def read_npz(data: bytes, *, limit_bytes: int = limits.TENSOR_BYTES) -> Arrays:
    """The arrays of an `.npz`, by name; they own no more memory than `limit_bytes` together.

    Args:
        data: The file; its hash was checked, or it is a frame that nobody signed.
        limit_bytes: The most that all arrays may take, decompressed.

    Raises:
        Refused: `LIMIT` when too large or too many; `METADATA` for what is not an `.npz` of plain numbers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(archive, limit_bytes)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, RuntimeError, KeyError) as error:
        raise Refused(Reason.METADATA, f"not an .npz of plain arrays: {error}") from error
    except Exception as error:
        if isinstance(error, Refused):
            raise
        # zlib and lzma raise types of their own for damaged streams.
        raise Refused(Reason.METADATA, f"an .npz that does not decompress: {error}") from error


def write_npz(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """An uncompressed `.npz`; it travels compressed anyway."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            npy.write_array(member, np.asarray(array), allow_pickle=False)
            # A fixed date, so that the same arrays give the same bytes and so the same digest.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0)), member.getvalue())
    return out.getvalue()


def _read(archive: zipfile.ZipFile, limit_bytes: int) -> Arrays:
    members = archive.infolist()
    if len(members) > limits.TENSORS:
        raise Refused(Reason.LIMIT, f"an .npz of {len(members)} arrays: at most {limits.TENSORS} are read")
    total = sum(member.file_size for member in members)
    if total > limit_bytes:
        raise Refused(Reason.LIMIT, f"an .npz of {total} bytes of arrays: at most {limit_bytes} are read")
    found: Arrays = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in found or name == member.filename:
            raise Refused(Reason.METADATA, f"an .npz with a member {member.filename!r:.80} that is no array of its own")
        with archive.open(member) as stream:
            found[name] = _array(stream.read(member.file_size), name)
    return found


def _array(raw: bytes, name: str) -> NDArray[np.generic]:
    stream = io.BytesIO(raw)
    version = npy.read_magic(stream)
    reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if reader is None:
        raise Refused(Reason.METADATA, f"array {name!r:.80} in an unknown format {version}")
    shape, fortran, dtype = reader(stream, max_header_size=_HEADER_BYTES)
    if dtype.kind not in _KINDS or dtype.hasobject:
        raise Refused(Reason.METADATA, f"array {name!r:.80} of {dtype}: only numbers are read")
    body = len(raw) - stream.tell()
    count = math.prod(shape)
    if any(side < 0 for side in shape) or count * dtype.itemsize != body:
        raise Refused(Reason.METADATA, f"array {name!r:.80}: its header says {shape} of {dtype}, it holds {body} bytes")
    flat = np.frombuffer(raw, dtype=dtype, offset=stream.tell())
    array = flat.reshape(shape[::-1]).transpose() if fortran else flat.reshape(shape)
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)
