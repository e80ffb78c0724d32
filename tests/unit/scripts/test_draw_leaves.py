"""The pictures that training and the demo look at."""

import numpy as np
import pytest

from scripts import draw_leaves
from scripts.draw_leaves import FRAME_HEIGHT, FRAME_WIDTH, LABELS, Box, draw_scene


def test_the_same_seed_gives_the_same_picture_and_another_seed_another() -> None:
    one, again, other = (draw_scene(np.random.default_rng(seed), width=160, height=120) for seed in (4, 4, 5))
    assert one.image.tobytes() == again.image.tobytes()
    assert one.boxes == again.boxes
    assert one.image.tobytes() != other.image.tobytes()


def test_a_healthy_plant_has_no_box() -> None:
    assert draw_scene(np.random.default_rng(1), width=160, height=120, pests=0).boxes == ()


@pytest.mark.parametrize("seed", range(6))
def test_boxes_lie_in_the_picture_apart_from_each_other_and_around_what_was_drawn(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw_leaves, "_light", lambda rng, image: image)  # else the whole picture differs
    with_pests, without = (draw_scene(np.random.default_rng(seed), pests=count) for count in (4, 0))
    assert with_pests.image.size == (FRAME_WIDTH, FRAME_HEIGHT)
    assert with_pests.boxes
    drawn = np.abs(np.asarray(with_pests.image).astype(int) - np.asarray(without.image)).max(axis=2) > 25
    for box in with_pests.boxes:
        assert box.label in LABELS
        assert 0 <= box.x0 < box.x1 <= FRAME_WIDTH
        assert 0 <= box.y0 < box.y1 <= FRAME_HEIGHT
        inside = drawn[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]
        assert inside.mean() > 0.05, "a box around nothing"
        for axis in (0, 1):
            places = np.flatnonzero(inside.any(axis=axis))
            assert places[0] < 12, "a box that is too wide"
            assert places[-1] >= inside.shape[1 - axis] - 12, "a box that is too wide"
        others = [other for other in with_pests.boxes if other is not box]
        assert not any(b.x0 < box.x1 and box.x0 < b.x1 and b.y0 < box.y1 and box.y0 < b.y1 for b in others)
    covered = np.zeros_like(drawn)
    for box in with_pests.boxes:
        covered[int(box.y0) - 2 : int(box.y1) + 3, int(box.x0) - 2 : int(box.x1) + 3] = True
    assert drawn[covered].sum() > 0.97 * drawn.sum(), "something was drawn outside the boxes"


def test_a_frame_cut_from_a_strip_moves_its_boxes_and_forgets_pests_of_which_little_is_seen() -> None:
    strip = draw_scene(np.random.default_rng(3), width=2 * FRAME_WIDTH, pests=6)
    box = strip.boxes[0]
    middle = int((box.x0 + box.x1) / 2)
    left = max(0, middle - 200)
    shown = strip.frame(left, FRAME_WIDTH)
    assert Box(box.label, box.x0 - left, box.y0, box.x1 - left, box.y1) in shown.boxes
    past = strip.frame(int(box.x1) - 2, FRAME_WIDTH)
    assert all(other.x0 > 0 or other.label != box.label or other.y0 != box.y0 for other in past.boxes)
    assert len(strip.frame(0, strip.image.width).boxes) == len(strip.boxes)
