"""Finds runs of floats in bytes of unknown form: external data, checkpoints and archives that nobody has described.

Looks at samples of windows, so that the time is bounded for a file of any size, and is conservative: what it takes for
weights and is not, would only be tried in vain by the encoder.
"""

from server.delta.tensors.found import Element, Tensor
from server.delta.tensors.guess import fit, float_run, sample

MIN_WINDOW_BYTES = 16 << 10  # four times the sample
MAX_WINDOWS = 2048  # about two seconds of looking, and where the file is mapped a gigabyte read ahead
EDGE_BYTES = 1 << 10  # how exactly the ends of a run are found
MIN_RUN_BYTES = 32 << 10  # shorter ones are for the generic path


def runs(data: memoryview, start: int, end: int) -> list[Tensor]:
    """The runs of fp32, fp16 and bf16 between two offsets, in order, with no name and a flat shape."""
    length = end - start
    if length < MIN_RUN_BYTES:
        return []
    window = max(MIN_WINDOW_BYTES, -(-length // MAX_WINDOWS) + 4095 & ~4095)
    first = start + -start % 8
    kinds: list[tuple[Element, int] | None] = []
    kind: tuple[Element, int] | None = None
    for at in range(first, end, window):
        size = min(window, end - at)
        kind = float_run(sample(data, at, size), kind) if size >= EDGE_BYTES else None
        kinds.append(kind)
    found: list[Tensor] = []
    done = start
    index = 0
    while index < len(kinds):
        kind = kinds[index]
        if kind is None:
            index += 1
            continue
        last = index
        while last + 1 < len(kinds) and kinds[last + 1] == kind:
            last += 1
        low = _grow_down(data, max(done, first + (index - 1) * window, first), first + index * window, kind)
        high = _grow_up(data, min(end, first + (last + 1) * window), min(end, first + (last + 2) * window), kind)
        run = _whole(low, high, first, kind)
        if run.length_bytes >= MIN_RUN_BYTES:
            found.append(run)
            done = run.end
        index = last + 1
    return found


def _fits(data: memoryview, at: int, kind: tuple[Element, int]) -> bool:
    return fit(sample(data, at, EDGE_BYTES), *kind, strict=True) is not None


def _grow_down(data: memoryview, floor: int, at: int, kind: tuple[Element, int]) -> int:
    while at - EDGE_BYTES >= floor and _fits(data, at - EDGE_BYTES, kind):
        at -= EDGE_BYTES
    return at


def _grow_up(data: memoryview, at: int, ceiling: int, kind: tuple[Element, int]) -> int:
    while at + EDGE_BYTES <= ceiling and _fits(data, at, kind):
        at += EDGE_BYTES
    # The rest of a file is too short for a sample; it is most likely more of the same.
    return ceiling if ceiling - at < EDGE_BYTES else at


def _whole(low: int, high: int, first: int, kind: tuple[Element, int]) -> Tensor:
    element, phase = kind
    low += (first + phase - low) % element.width_bytes
    length = (high - low) // element.width_bytes * element.width_bytes
    return Tensor(low, length, element, "", (length // element.width_bytes,))
