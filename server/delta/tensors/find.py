"""Finds the tensors of any file: by its format where that is known, by statistics elsewhere."""

import logging
from collections.abc import Callable

from server.delta.tensors import (
    archive,
    blind,
    gguf_file,
    npy_file,
    onnx_file,
    safetensors_file,
    tflite_file,
    zip_file,
)
from server.delta.tensors.found import File, Tensor, tidy
from server.delta.tensors.reading import Damaged, sampling

MAX_NESTING = 2  # a model in an archive in an archive
MIN_GAP_BYTES = 64 << 10  # what a front-end left over is looked at when it is this large

log = logging.getLogger(__name__)


def find_tensors(file: File) -> list[Tensor]:
    """The spans of a file that hold numbers of one type.

    A damaged file, or one in a format that is not known, is looked through for runs of floats. Nothing is copied.

    Args:
        file: All of it, of any size; map large ones.

    Returns:
        Sorted by offset, disjoint, inside the file, of whole elements. Never raises for what the file holds.
    """
    with memoryview(file).cast("B") as data, sampling(data):
        known = tidy(_by_format(data, 0), len(data))
        return tidy([*known, *_between(data, known)], len(data))


def _reader(data: memoryview, nesting: int) -> Callable[[memoryview], list[Tensor]] | None:
    start = bytes(data[:8])
    if start[4:] == tflite_file.MAGIC:
        return tflite_file.find
    if start.startswith(gguf_file.MAGIC):
        return gguf_file.find
    if start.startswith(npy_file.MAGIC):
        return npy_file.find
    if start.startswith(zip_file.MAGIC):
        return lambda data: archive.find(data, lambda part: _by_format(part, nesting + 1))
    if safetensors_file.looks_right(data):
        return safetensors_file.find
    # ONNX has no magic: its first field is in practice ir_version, and a varint of it is small.
    return onnx_file.find if data else None


def _by_format(data: memoryview, nesting: int) -> list[Tensor]:
    if nesting > MAX_NESTING:
        return []
    reader = _reader(data, nesting)
    if reader is None:
        return []
    try:
        return reader(data)
    except Damaged:
        return []
    except Exception as error:
        # The readers raise nothing else, and are fuzzed for it; but a patch must come about even if one is wrong.
        log.warning("A reader of tensors failed; the file goes the generic way: %r", error)
        return []


def _between(data: memoryview, known: list[Tensor]) -> list[Tensor]:
    found: list[Tensor] = []
    at = 0
    for end, behind in [*((each.offset, each.end) for each in known), (len(data), len(data))]:
        if end - at >= MIN_GAP_BYTES or (not known and end - at >= blind.MIN_RUN_BYTES):
            found += blind.runs(data, at, end)
        at = behind
    return found
