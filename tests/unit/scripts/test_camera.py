"""The demo's camera, as the program that the demo runs."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from scripts.camera import jpeg_of, views
from scripts.draw_leaves import FRAME_HEIGHT, FRAME_WIDTH

CAMERA = Path(__file__).resolve().parents[3] / "scripts" / "camera.py"


def start(folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, str(CAMERA), str(folder), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_it_writes_as_many_whole_jpegs_as_asked_for_and_says_so(tmp_path: Path) -> None:
    out, err = start(tmp_path / "frames", "--fps", "50", "--seed", "3", "--count", "5").communicate(timeout=60)
    assert json.loads(out) == {"frames": 5}, err
    files = sorted((tmp_path / "frames").iterdir())
    assert len(files) == 5
    assert all(file.name.startswith("frame-") and file.suffix == ".jpg" for file in files)
    pictures = [Image.open(file) for file in files]
    for picture in pictures:
        picture.load()
        assert picture.size == (FRAME_WIDTH, FRAME_HEIGHT)
    assert len({file.read_bytes() for file in files}) == 5, "the camera stands still"


def test_told_to_stop_it_leaves_only_whole_frames_and_counts_what_lies_there(tmp_path: Path) -> None:
    camera = start(tmp_path, "--fps", "100")
    try:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("frame-*.jpg"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        camera.send_signal(signal.SIGTERM)
        out, err = camera.communicate(timeout=30)
    finally:
        camera.kill()
    assert camera.returncode == 0, err
    assert json.loads(out)["frames"] == len(list(tmp_path.iterdir())) >= 3


def test_names_go_on_rising_after_a_restart(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        start(tmp_path, "--fps", "100", "--seed", seed, "--count", "2").communicate(timeout=60)
    assert len(list(tmp_path.iterdir())) == 4
    by_name = sorted(tmp_path.iterdir())
    assert by_name == sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def test_one_seed_shows_the_same_plants_and_healthy_ones_have_no_pest() -> None:
    first, again, healthy = views(7), views(7), views(7, healthy=True)
    try:
        for _ in range(3):
            one, other = next(first), next(again)
            assert jpeg_of(one) == jpeg_of(other)
            assert Image.open(io.BytesIO(jpeg_of(one))).format == "JPEG"
            assert next(healthy).boxes == ()
    finally:
        for source in (first, again, healthy):
            source.close()
