"""A camera that looks at drawn leaves: it writes JPEG frames into a folder, as many a second as asked for.

A frame appears whole or not at all: it is written beside its place under a dotted name and renamed. The camera moves
along a row of plants, so that one frame is much like the one before. Names rise with time, also over a restart.

    scripts/camera.py FOLDER --fps 5 --seed 1 [--count N]

It goes on until it has written `--count` frames or is told to stop (SIGTERM, SIGINT), and then prints one line of JSON:
`{"frames": N}`.
"""

import argparse
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from draw_leaves import FRAME_WIDTH, Scene, draw_scene

STRIP_WIDTH = 2 * FRAME_WIDTH
STEP = 40  # pixels from one frame to the next


def views(seed: int, *, healthy: bool = False) -> Generator[Scene]:
    """Frames without end, with what is on them; the same for the same seed. Each plant has some pests, or none has.

    The next plants are drawn in a thread of their own, so that frames keep their rhythm.
    """
    rng = np.random.default_rng(seed)

    def plants() -> Scene:
        return draw_scene(rng, width=STRIP_WIDTH, pests=0 if healthy else int(rng.integers(3, 8)))

    with ThreadPoolExecutor(1) as pencil:
        following = pencil.submit(plants)
        while True:
            strip = following.result()
            following = pencil.submit(plants)
            for left in range(0, STRIP_WIDTH - FRAME_WIDTH, STEP):
                yield strip.frame(left, FRAME_WIDTH)


def jpeg_of(scene: Scene) -> bytes:
    jpeg = io.BytesIO()
    scene.image.save(jpeg, "JPEG", quality=85)
    return jpeg.getvalue()


def film(folder: Path, *, fps: float, seed: int, count: int | None, healthy: bool, stop: threading.Event) -> int:
    """Writes frames until `count` or `stop`.

    Returns:
        How many were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written, name_ms, due = 0, 0, time.monotonic()
    scenes = views(seed, healthy=healthy)
    try:
        for scene in scenes:
            if written == count or stop.wait(max(0.0, due - time.monotonic())):
                break
            name_ms = max(name_ms + 1, int(time.time() * 1000))
            place = folder / f"frame-{name_ms:013d}.jpg"
            unfinished = folder / f".{place.name}"
            unfinished.write_bytes(jpeg_of(scene))
            unfinished.rename(place)
            written += 1
            # A camera that was held up does not hurry afterwards: a burst of frames is nothing that a lens would do.
            due = max(due + 1 / fps, time.monotonic() - 1 / fps)
    finally:
        scenes.close()  # its thread ends with it
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fps", type=float, default=5.0, help="frames a second (5)")
    parser.add_argument("--seed", type=int, default=1, help="which plants")
    parser.add_argument("--count", type=int, help="stop after so many frames")
    parser.add_argument("--healthy", action="store_true", help="leaves without pests")
    options = parser.parse_args()
    if options.fps <= 0:
        parser.error("--fps must be above 0")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    frames = film(
        options.folder, fps=options.fps, seed=options.seed, count=options.count, healthy=options.healthy, stop=stop
    )
    print(json.dumps({"frames": frames}), flush=True)


if __name__ == "__main__":
    main()
