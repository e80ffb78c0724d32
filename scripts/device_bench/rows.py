"""Rows as a machine makes them, all different."""

import random
from collections.abc import Iterator

from protocol.results import Detection, ResultRow
from protocol.wire import encode


def rows(count: int, seed: int = 1) -> Iterator[bytes]:
    """So many results of a detector: one to three boxes each."""
    draw = random.Random(seed)
    model, manifest = draw.randbytes(32).hex(), draw.randbytes(32).hex()
    for number in range(count):
        boxes = tuple(
            Detection(
                label=draw.choice(("aphid", "beetle", "slug")),
                score=round(draw.random(), 3),
                box=tuple(round(draw.random() * 640, 1) for _ in range(4)),  # type: ignore[arg-type]  # four of them
            )
            for _ in range(draw.randint(1, 3))
        )
        yield encode(
            ResultRow(
                at_ms=1_790_000_000_000 + 5 * number,
                model=model,
                manifest=manifest,
                frame=f"{number:08d}.jpg",
                task="detect",
                accelerator="cpu",
                latency_ms=round(draw.uniform(8, 12), 3),
                detections=boxes,
            )
        )
