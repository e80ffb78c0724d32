"""Draws leaves with and without pests, and says where the pests are.

Training, the held-out measurements and the demo's cameras all look at these pictures. A picture depends on nothing but
the numbers drawn from the generator that is handed in: the same seed gives the same leaves. Only numpy and Pillow.

    python scripts/draw_leaves.py FOLDER --count 8 --seed 1     draws samples, with the boxes on them
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

LABELS = ("aphid", "beetle", "caterpillar")
FRAME_WIDTH, FRAME_HEIGHT = 640, 480

Colour = tuple[int, int, int]
Points = npt.NDArray[np.float64]

OVERSAMPLING = 2  # shapes are drawn larger and scaled down, which smooths their edges
PEST_OVERSAMPLING = 4  # legs and feelers are thin
KEPT_SHARE = 0.45  # a pest of which the frame shows less has no box: nobody could name it


@dataclass(frozen=True)
class Box:
    """Where a pest is, in pixels of the picture."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float

    def clipped(self, left: float, width: float, height: float) -> "Box | None":
        """The box in a frame cut out at `left`; None when too little of the pest is in it."""
        x0, x1 = max(self.x0 - left, 0.0), min(self.x1 - left, width)
        y0, y1 = max(self.y0, 0.0), min(self.y1, height)
        shown = max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
        if shown < KEPT_SHARE * (self.x1 - self.x0) * (self.y1 - self.y0):
            return None
        return Box(self.label, x0, y0, x1, y1)


@dataclass(frozen=True)
class Scene:
    """A picture and the pests in it."""

    image: Image.Image
    boxes: tuple[Box, ...]

    def frame(self, left: int, width: int) -> "Scene":
        """What a camera sees that looks at `width` pixels from `left` on."""
        height = self.image.height
        boxes = tuple(box for b in self.boxes if (box := b.clipped(left, width, height)) is not None)
        return Scene(self.image.crop((left, 0, left + width, height)), boxes)


def draw_scene(
    rng: np.random.Generator,
    *,
    width: int = FRAME_WIDTH,
    height: int = FRAME_HEIGHT,
    pests: int | None = None,
    labels: Sequence[str] = LABELS,
) -> Scene:
    """Draws leaves over soil.

    Args:
        rng: All chance comes from here.
        width: In pixels; may be larger than a frame: a strip along which a camera moves.
        height: In pixels; sizes of leaves and pests follow it.
        pests: How many; None draws between none and three for each frame's width, every third picture healthy.
        labels: Which kinds.
    """
    scale = height / FRAME_HEIGHT
    frames = max(1.0, width / (height * FRAME_WIDTH / FRAME_HEIGHT))
    image = _ground(rng, width, height, scale)
    leaves = []
    for number in range(round(frames * rng.integers(2, 4))):
        middle = (number + rng.uniform(0.2, 0.8)) * width / max(1.0, round(frames * 2.5))
        leaf = _Leaf.grow(rng, np.array([middle % width, height * rng.uniform(0.35, 0.65)]), scale)
        leaf.draw(rng, image)
        leaves.append(leaf)
    if pests is None:
        pests = 0 if rng.random() < 1 / 3 else int(rng.integers(1, round(3 * frames) + 1))
    boxes: list[Box] = []
    for _ in range(pests):
        _put_pest(rng, image, leaves, boxes, label=str(rng.choice(list(labels))), scale=scale)
    return Scene(_light(rng, image), tuple(boxes))


def _ground(rng: np.random.Generator, width: int, height: int, scale: float) -> Image.Image:
    """Soil, and plants that are out of focus."""
    brown = np.array([rng.uniform(60, 105), rng.uniform(48, 80), rng.uniform(30, 55)])
    ground = np.zeros((height, width, 3))
    for cells, strength in ((6, 22.0), (24, 16.0), (96, 12.0)):
        ground += strength * _noise(rng, width, height, cells)[..., None]
    image = Image.fromarray(np.clip(ground + brown, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(round(width / height * rng.integers(3, 7))):
        at = np.array([rng.uniform(0, width), rng.uniform(0, height)])
        outline = _blade(at, rng.uniform(0, 2 * np.pi), scale * rng.uniform(120, 300), scale * rng.uniform(40, 90), 0.3)
        dark = rng.uniform(0.35, 0.75)
        draw.polygon(_flat(outline), fill=_shade((70, 110, 45), dark))
    return image.filter(ImageFilter.GaussianBlur(5 * scale))


@dataclass(frozen=True)
class _Leaf:
    """A blade along a bent axis."""

    axis: Points
    left: Points
    right: Points
    colour: Colour
    scale: float

    @classmethod
    def grow(cls, rng: np.random.Generator, middle: Points, scale: float) -> "_Leaf":
        length, half = scale * rng.uniform(300, 520), scale * rng.uniform(75, 135)
        angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.8, 0.8)
        axis, left, right = _sides(middle, angle, length, half, bend, teeth=rng.uniform(0.0, 0.05), rng=rng)
        yellow = rng.uniform(0, 1) ** 2  # most leaves are green, some are turning
        colour = (int(48 + 95 * yellow + rng.uniform(-8, 20)), int(rng.uniform(105, 160)), int(rng.uniform(35, 66)))
        return cls(axis, left, right, colour, scale)

    def draw(self, rng: np.random.Generator, image: Image.Image) -> None:
        over = OVERSAMPLING
        outline = np.concatenate([self.left, self.right[::-1]])
        low = np.floor(np.maximum(outline.min(axis=0) - 4, 0)).astype(int)
        high = np.ceil(np.minimum(outline.max(axis=0) + 4, image.size)).astype(int)
        size = high - low
        if (size < 4).any():
            return
        patch = Image.new("RGB", (int(size[0]) * over, int(size[1]) * over), self.colour)
        mask = Image.new("L", patch.size, 0)

        def here(points: Points) -> list[tuple[float, float]]:
            return _flat((points - low) * over)

        draw = ImageDraw.Draw(patch)
        draw.polygon(here(np.concatenate([self.axis, self.right[::-1]])), fill=_shade(self.colour, 0.86))
        self._veins(draw, here, over)
        self._blemishes(rng, draw, low, over)
        ImageDraw.Draw(mask).polygon(here(outline), fill=255)
        small = (int(size[0]), int(size[1]))
        patch, mask = patch.resize(small, Image.Resampling.BOX), mask.resize(small, Image.Resampling.BOX)
        tone = 1 + 0.10 * _noise(rng, small[0], small[1], 5) + 0.05 * _noise(rng, small[0], small[1], 40)
        patch = Image.fromarray(np.clip(np.asarray(patch) * tone[..., None], 0, 255).astype(np.uint8))
        shadow = mask.filter(ImageFilter.GaussianBlur(6 * self.scale)).point(lambda value: value * 0.45)
        offset = (int(low[0] + 5 * self.scale), int(low[1] + 7 * self.scale))
        image.paste((20, 18, 12), offset, shadow)
        image.paste(patch, (int(low[0]), int(low[1])), mask)

    def _veins(self, draw: ImageDraw.ImageDraw, here, over: int) -> None:  # type: ignore[no-untyped-def]  # a closure
        light = _shade(self.colour, 1.28)
        steps = len(self.axis)
        for i in range(4, steps - 6, 5):
            for side in (self.left, self.right):
                end = side[min(i + 6, steps - 1)]
                draw.line(here(np.array([self.axis[i], self.axis[i] + 0.92 * (end - self.axis[i])])), light, over)
        draw.line(here(self.axis), _shade(self.colour, 1.4), max(2, round(4 * self.scale * over)), joint="curve")

    def _blemishes(self, rng: np.random.Generator, draw: ImageDraw.ImageDraw, low: Points, over: int) -> None:
        """Spots, holes and dew: what a detector must learn not to take for a pest."""
        for _ in range(int(rng.integers(0, 7))):
            at = (self.point(rng) - low) * over
            radius = self.scale * over * rng.uniform(2, 11)
            kind = rng.integers(0, 3)
            fill = ((118, 84, 40), (40, 36, 24), _shade(self.colour, 1.5))[kind]
            stretch = rng.uniform(0.6, 1.4)
            box = (at[0] - radius * stretch, at[1] - radius, at[0] + radius * stretch, at[1] + radius)
            draw.ellipse(box, fill=fill, outline=_shade(fill, 0.8) if kind else (160, 140, 60), width=over)

    def point(self, rng: np.random.Generator) -> Points:
        """Somewhere on the blade."""
        i = int(rng.integers(len(self.axis) // 8, len(self.axis) * 7 // 8))
        side = self.left if rng.random() < 0.5 else self.right
        return self.axis[i] + rng.uniform(0, 0.8) * (side[i] - self.axis[i])


def _put_pest(
    rng: np.random.Generator, image: Image.Image, leaves: list[_Leaf], boxes: list[Box], *, label: str, scale: float
) -> None:
    """Draws one pest on a leaf, apart from those that sit there already, and notes its box."""
    body = _PESTS[label](rng, scale)
    body = body.rotate(rng.uniform(0, 360), resample=Image.Resampling.BICUBIC, expand=True)
    small = (max(4, body.width // PEST_OVERSAMPLING), max(4, body.height // PEST_OVERSAMPLING))
    body = body.resize(small, Image.Resampling.LANCZOS)
    extent = body.getchannel("A").point(lambda value: 255 if value > 80 else 0).getbbox()
    if extent is None:
        return
    for _ in range(30):
        place = leaves[int(rng.integers(len(leaves)))].point(rng) - np.array(small) / 2
        x, y = round(float(place[0])), round(float(place[1]))
        box = Box(label, x + extent[0], y + extent[1], x + extent[2], y + extent[3])
        inside = min(box.x0, box.y0) >= 0 and box.x1 <= image.width and box.y1 <= image.height
        if inside and not any(_overlap(box, other) for other in boxes):
            break
    else:
        return
    shadow = body.getchannel("A").filter(ImageFilter.GaussianBlur(2.5 * scale)).point(lambda value: value * 0.5)
    image.paste((12, 16, 8), (x + round(2 * scale), y + round(4 * scale)), shadow)
    image.paste(body, (x, y), body)
    boxes.append(box)


def _aphid(rng: np.random.Generator, scale: float) -> Image.Image:
    """A pale pear with six thin legs, two feelers and two tubes at its back."""
    unit = PEST_OVERSAMPLING * scale * rng.uniform(0.8, 1.25)
    image, draw, c = _canvas(unit * 78)
    palette: tuple[Colour, ...] = ((206, 224, 128), (178, 205, 92), (226, 214, 150), (60, 58, 50))
    colour = palette[int(rng.choice(4, p=(0.35, 0.3, 0.2, 0.15)))]
    dark = _shade(colour, 0.55)
    thin = max(1, round(1.6 * unit))
    for side in (-1, 1):
        for base, reach in ((-8, -20), (-2, 2), (5, 20)):
            knee, foot = (c + base * unit + reach * 0.5 * unit, c + side * 16 * unit), None
            foot = (c + base * unit + reach * unit, c + side * 25 * unit)
            draw.line([(c + base * unit, c), knee, foot], fill=dark, width=thin, joint="curve")
        draw.line(
            [(c - 20 * unit, c), (c - 27 * unit, c + side * 10 * unit), (c - 16 * unit, c + side * 20 * unit)],
            dark,
            thin,
        )
        draw.line([(c + 14 * unit, c + side * 6 * unit), (c + 27 * unit, c + side * 9 * unit)], dark, round(2.4 * unit))
    _ellipse(draw, c + 4 * unit, c, (19 * unit, 12.5 * unit), _shade(colour, 0.82))
    _ellipse(draw, c + 5 * unit, c - 2 * unit, (16 * unit, 9 * unit), colour)
    _ellipse(draw, c - 15 * unit, c, (8 * unit, 7.5 * unit), _shade(colour, 0.92))
    for side in (-1, 1):
        _ellipse(draw, c - 18 * unit, c + side * 5 * unit, (2 * unit, 2 * unit), (30, 18, 16))
    return image


def _beetle(rng: np.random.Generator, scale: float) -> Image.Image:
    """A shining oval with a seam, a dark head, spots or stripes."""
    unit = PEST_OVERSAMPLING * scale * rng.uniform(0.85, 1.3)
    image, draw, c = _canvas(unit * 96)
    palette: tuple[Colour, ...] = ((196, 44, 30), (226, 140, 30), (38, 60, 96), (222, 178, 66))
    kind = int(rng.integers(4))
    colour, black = palette[kind], (24, 20, 20)
    for side in (-1, 1):
        for base, reach in ((-16, -12), (0, 2), (14, 13)):
            foot = (c + (base + reach) * unit, c + side * 36 * unit)
            draw.line(
                [(c + base * unit, c), (c + (base + reach * 0.3) * unit, c + side * 30 * unit), foot],
                black,
                round(3 * unit),
            )
        draw.line([(c - 30 * unit, c + side * 5 * unit), (c - 42 * unit, c + side * 14 * unit)], black, round(2 * unit))
    _ellipse(draw, c - 27 * unit, c, (11 * unit, 14 * unit), black)
    _ellipse(draw, c + 3 * unit, c, (30 * unit, 24 * unit), _shade(colour, 0.7))
    _ellipse(draw, c + 3 * unit, c - 2 * unit, (28 * unit, 21 * unit), colour)
    if kind == 3:  # the potato beetle has stripes
        for offset in (-15, -9, -3, 3, 9, 15):
            reach = 26 * np.sqrt(max(0.0, 1 - (offset / 22) ** 2))
            draw.line(
                [(c + (3 - reach) * unit, c + offset * unit), (c + (3 + reach) * unit, c + offset * unit)],
                black,
                round(2.6 * unit),
            )
    elif kind != 2:
        for x, y in ((-10, 10), (4, 13), (16, 9), (-8, -10), (5, -13), (17, -9)):
            radius = rng.uniform(3.0, 4.6) * unit
            _ellipse(draw, c + x * unit, c + y * unit, (radius, radius), black)
    draw.line([(c - 24 * unit, c), (c + 32 * unit, c)], black, max(1, round(1.8 * unit)))
    _ellipse(draw, c - 6 * unit, c - 10 * unit, (6 * unit, 3.2 * unit), _shade(colour, 1.6))
    return image


def _caterpillar(rng: np.random.Generator, scale: float) -> Image.Image:
    """A chain of rings along a wave, with a head."""
    unit = PEST_OVERSAMPLING * scale * rng.uniform(0.8, 1.15)
    image, draw, c = _canvas(unit * 190)
    palette: tuple[Colour, ...] = ((150, 196, 62), (214, 206, 78), (122, 96, 60), (88, 116, 70))
    colour = palette[int(rng.integers(4))]
    rings = int(rng.integers(9, 13))
    wave, phase, turns = rng.uniform(6, 20), rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.3)
    radius = rng.uniform(9.5, 12.5)
    steps = np.arange(rings)
    xs = c + (steps - (rings - 1) / 2) * radius * 1.12 * unit
    ys = c + wave * np.sin(phase + 2 * np.pi * turns * steps / rings) * unit
    for x, y in zip(xs[1:], ys[1:], strict=True):
        for side in (-1, 1):
            draw.line([(x, y), (x, y + side * (radius + 4) * unit)], _shade(colour, 0.5), round(2.6 * unit))
    for i in range(rings - 1, 0, -1):
        size = radius * (1 - 0.35 * max(0, i - rings + 4) / 3)
        _ellipse(draw, xs[i], ys[i], (size * unit, size * unit), _shade(colour, 0.62))
        inner = 0.84 * size * unit
        bright = colour if i % 2 else _shade(colour, 1.18)
        _ellipse(draw, xs[i] - unit, ys[i] - unit, (inner, inner), bright)
        _ellipse(draw, xs[i], ys[i] - 2 * unit, (2.2 * unit, 2.2 * unit), (40, 34, 24))
    _ellipse(draw, xs[0], ys[0], (radius * unit, radius * unit), (92, 48, 26))
    for side in (-1, 1):
        _ellipse(draw, xs[0] - 5 * unit, ys[0] + side * 4 * unit, (2 * unit, 2 * unit), (12, 10, 10))
    return image


_PESTS = {"aphid": _aphid, "beetle": _beetle, "caterpillar": _caterpillar}


def _light(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """The hour of the day, the lens and the sensor."""
    pixels = np.asarray(image).astype(np.float32)
    height, width = pixels.shape[:2]
    slope = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * rng.uniform(-0.15, 0.15)
    slope = slope + np.linspace(-1, 1, height, dtype=np.float32)[:, None] * rng.uniform(-0.15, 0.15)
    tint = rng.uniform(0.72, 1.22) * np.array([rng.uniform(0.94, 1.08), 1.0, rng.uniform(0.9, 1.08)], np.float32)
    pixels = pixels * (1 + slope)[..., None] * tint
    grain = rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(1.0, 5.0)
    return Image.fromarray(np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8))


def _sides(
    middle: Points,
    angle: float,
    length: float,
    half: float,
    bend: float,
    *,
    teeth: float,
    rng: np.random.Generator | None,
) -> tuple[Points, Points, Points]:
    steps = 48
    t = np.linspace(0, 1, steps)
    heading = angle + bend * (t - 0.5)
    forward = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    axis = np.cumsum(forward, axis=0) * (length / steps)
    axis += middle - axis[steps // 2]
    normal = np.stack([-forward[:, 1], forward[:, 0]], axis=1)
    width = half * np.sin(np.pi * t**0.8) ** 0.9
    if rng is not None:
        width = width * (1 + teeth * np.sin(t * rng.uniform(60, 110)))
    return axis, axis + normal * width[:, None], axis - normal * width[:, None]


def _blade(middle: Points, angle: float, length: float, half: float, bend: float) -> Points:
    _, left, right = _sides(middle, angle, length, half, bend, teeth=0.0, rng=None)
    return np.concatenate([left, right[::-1]])


def _noise(rng: np.random.Generator, width: int, height: int, cells: int) -> npt.NDArray[np.float32]:
    """Smooth noise of about -1 to 1, `cells` bumps high."""
    coarse = rng.standard_normal((cells, max(1, round(cells * width / height)))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _canvas(side: float) -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
    image = Image.new("RGBA", (round(side), round(side)), (0, 0, 0, 0))
    return image, ImageDraw.Draw(image), side / 2


def _ellipse(draw: ImageDraw.ImageDraw, x: float, y: float, reach: tuple[float, float], fill: Colour) -> None:
    draw.ellipse((x - reach[0], y - reach[1], x + reach[0], y + reach[1]), fill=fill)


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (max(0, min(255, int(part * factor))) for part in colour)
    return red, green, blue


def _flat(points: Points) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]


def _overlap(one: Box, other: Box) -> bool:
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


def outline_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy with the boxes drawn on it, for people."""
    shown = image.copy()
    draw = ImageDraw.Draw(shown)
    for box in boxes:
        draw.rectangle((box.x0, box.y0, box.x1, box.y1), outline=(255, 40, 200), width=2)
        draw.text((box.x0 + 3, box.y0 + 1), box.label, fill=(255, 255, 255))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    truth = {}
    for number in range(options.count):
        scene = draw_scene(rng)
        name = f"leaf-{number:04d}"
        outline_boxes(scene.image, scene.boxes).save(options.folder / f"{name}.png")
        truth[name] = [(box.label, box.x0, box.y0, box.x1, box.y1) for box in scene.boxes]
    (options.folder / "boxes.json").write_text(json.dumps(truth, indent=1))


if __name__ == "__main__":
    main()
