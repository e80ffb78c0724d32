"""Frames become tensors: one deterministic path for live frames and golden inputs alike.

An image is decoded by Pillow (JPEG and PNG only, pixels counted before the decoder allocates), a large JPEG at the
smallest of libjpeg's own scales that still holds the wanted size, resized bilinearly (Pillow's, which averages when it
shrinks), then `(pixel * scale - mean) / std`. Letterboxing keeps the aspect, centres, and pads with grey 114. EXIF
orientation is not applied: boxes are in pixels of the frame as it is stored.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from device.inference.npz import Arrays, read_npz
from protocol import limits
from protocol.errors import Reason, Refused
from protocol.release import ImagePreprocessing, Preprocessing, Tensor

MediaType = Literal["image/jpeg", "image/png", "application/x-npz"]

PADDING_GREY: Final = 114  # the customary one: detectors were trained with it
_FORMATS: Final = {"image/jpeg": ("JPEG",), "image/png": ("PNG",)}
_PIXEL_MODES: Final = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}


@dataclass(frozen=True)
class Geometry:
    """How pixels of the model's input lie in the frame: `frame = (input - pad) * per_pixel`.

    Args:
        frame_width: Of the frame as stored, in pixels; 0 when the frame is no image.
        frame_height: As above.
        input_width: Of the model's input, in pixels.
        input_height: As above.
        pad_x: Pixels of the input left of the image.
        pad_y: Pixels of the input above the image.
        per_x: Pixels of the frame for one of the input, across.
        per_y: As above, down.
    """

    frame_width: int = 0
    frame_height: int = 0
    input_width: int = 0
    input_height: int = 0
    pad_x: float = 0.0
    pad_y: float = 0.0
    per_x: float = 1.0
    per_y: float = 1.0

    def to_frame(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes `[N, 4]: x0, y0, x1, y1` in pixels of the input, in pixels of the frame and cut to it."""
        moved = boxes.astype(np.float32, copy=True)
        moved[:, 0::2] = (moved[:, 0::2] - self.pad_x) * self.per_x
        moved[:, 1::2] = (moved[:, 1::2] - self.pad_y) * self.per_y
        if self.frame_width:
            np.clip(moved[:, 0::2], 0, self.frame_width, out=moved[:, 0::2])
            np.clip(moved[:, 1::2], 0, self.frame_height, out=moved[:, 1::2])
        return moved


@dataclass(frozen=True)
class Prepared:
    """The model's inputs by name, and where they came from."""

    feeds: Mapping[str, NDArray[np.generic]]
    geometry: Geometry


class UnreadableFrame(Exception):  # noqa: N818  (it reads as what it is; it never leaves this room)
    """The frame itself is broken: no fault of the model's, and no evidence against a release."""


def prepare(data: bytes, media_type: str, preprocessing: Preprocessing, inputs: Sequence[Tensor]) -> Prepared:
    """Makes a frame's inputs.

    Args:
        data: The frame's bytes.
        media_type: `image/jpeg`, `image/png` or `application/x-npz`.
        preprocessing: Of the model.
        inputs: Of the variant.

    Raises:
        UnreadableFrame: The bytes are no such image or archive, or over a limit.
        Refused: `MODEL_SHAPE`: a whole frame that does not fit the inputs.
    """
    if isinstance(preprocessing, ImagePreprocessing):
        if media_type not in _FORMATS:
            raise UnreadableFrame(f"a frame of {media_type}, where the model takes images")
        if len(inputs) != 1:
            raise Refused(Reason.MODEL_SHAPE, f"an image fills one input; the model has {len(inputs)}")
        pixels, geometry = decode_image(data, media_type, preprocessing)
        return Prepared({inputs[0].name: to_input(pixels, preprocessing, inputs[0])}, geometry)
    if media_type != "application/x-npz":
        raise UnreadableFrame(f"a frame of {media_type}, where the model takes tensors")
    try:
        arrays = read_npz(data)
    except Refused as error:
        raise UnreadableFrame(error.message) from error
    return Prepared(_match(arrays, inputs), Geometry())


def decode_image(data: bytes, media_type: str, preprocessing: ImagePreprocessing) -> tuple[NDArray[np.uint8], Geometry]:
    """Decodes and resizes: `uint8 [height, width, channels]` in the model's order of colours, and the geometry.

    Raises:
        UnreadableFrame: Not a whole image of the type, or of more than `limits.IMAGE_PIXELS` pixels.
    """
    wanted = (preprocessing.width, preprocessing.height)
    mode = _PIXEL_MODES[preprocessing.colour]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own cap, just below, is lower
            image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS[media_type])
        frame_width, frame_height = _bounded(image.size)
        if preprocessing.resize == "stretch":
            inner = wanted
        else:
            ratio = min(wanted[0] / frame_width, wanted[1] / frame_height)
            inner = (max(1, round(frame_width * ratio)), max(1, round(frame_height * ratio)))
        image.draft(mode, inner)
        image = _eight_bits(image).convert(mode)
        if image.size != inner:
            image = image.resize(inner, Image.Resampling.BILINEAR)
    except UnreadableFrame:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more, depending on the damage.
        raise UnreadableFrame(f"not a readable {media_type}: {type(error).__name__}: {error}") from error
    left, top = (wanted[0] - inner[0]) // 2, (wanted[1] - inner[1]) // 2
    if inner != wanted:
        padded = Image.new(mode, wanted, PADDING_GREY if mode == "L" else (PADDING_GREY,) * 3)
        padded.paste(image, (left, top))
        image = padded
    pixels: NDArray[np.uint8] = np.asarray(image, dtype=np.uint8)
    if mode == "L":
        pixels = pixels[:, :, None]
    elif preprocessing.colour == "bgr":
        pixels = pixels[:, :, ::-1]
    geometry = Geometry(
        frame_width=frame_width,
        frame_height=frame_height,
        input_width=wanted[0],
        input_height=wanted[1],
        pad_x=left,
        pad_y=top,
        per_x=frame_width / inner[0],
        per_y=frame_height / inner[1],
    )
    return pixels, geometry


def to_input(pixels: NDArray[np.uint8], preprocessing: ImagePreprocessing, tensor: Tensor) -> NDArray[np.generic]:
    """Normalises, quantises, lays out and casts `uint8 [H, W, C]` pixels into the model's input.

    Raises:
        Refused: `MODEL_SHAPE`: the input is not an image of this size, or of a type that cannot hold it.
    """
    height, width, channels = pixels.shape
    layout = image_layout(tensor, channels)
    values = quantise(_normalise(pixels, preprocessing, tensor), tensor)
    if layout == "NCHW":
        values = values.transpose(2, 0, 1)
    if len(tensor.shape) == 4:
        values = values[None]
    if not fits(values.shape, tensor.shape):
        raise Refused(
            Reason.MODEL_SHAPE,
            f"input {tensor.name!r} is {list(tensor.shape)}; the preprocessing makes {width} x {height} pixels of "
            f"{channels} channels",
        )
    return np.ascontiguousarray(values)


def image_layout(tensor: Tensor, channels: int) -> Literal["NHWC", "NCHW"]:
    """The layout of an image tensor; for `any` that which the channels' place in the shape tells.

    Raises:
        Refused: `MODEL_SHAPE`: not an image's shape.
    """
    if len(tensor.shape) in (3, 4):
        if tensor.layout != "any":
            return tensor.layout
        if tensor.shape[-1] == channels:
            return "NHWC"
        if tensor.shape[-3] == channels:
            return "NCHW"
    raise Refused(
        Reason.MODEL_SHAPE, f"input {tensor.name!r} of {list(tensor.shape)} holds no image of {channels} channels"
    )


def fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a real shape is one of those that `wanted` stands for, where -1 is any length."""
    return len(shape) == len(wanted) and all(want in (-1, side) for side, want in zip(shape, wanted, strict=True))


def quantise(values: NDArray[np.generic], tensor: Tensor) -> NDArray[np.generic]:
    """Real values as the tensor stores them: `round(real / scale) + zero_point`, cut to the type; or a cast."""
    dtype = np.dtype(tensor.dtype)
    if tensor.scale and dtype.kind in "iu":
        limits_of = np.iinfo(dtype)
        stored = np.rint(values.astype(np.float32) / np.float32(tensor.scale)) + tensor.zero_point
        quantised: NDArray[np.generic] = np.clip(stored, limits_of.min, limits_of.max).astype(dtype)
        return quantised
    return values.astype(dtype, copy=False)


def dequantise(values: NDArray[np.generic], tensor: Tensor) -> NDArray[np.float32]:
    """Stored values as real ones: `scale * (stored - zero_point)`, or as they are without a scale."""
    real = values.astype(np.float32)
    if tensor.scale:
        real = (real - np.float32(tensor.zero_point)) * np.float32(tensor.scale)
    return real


def _normalise(pixels: NDArray[np.uint8], preprocessing: ImagePreprocessing, tensor: Tensor) -> NDArray[np.generic]:
    dtype = np.dtype(tensor.dtype)
    if dtype.kind in "iu" and not tensor.scale:
        if dtype == np.int8:
            raise Refused(Reason.MODEL_SHAPE, f"input {tensor.name!r} is int8 without a scale: pixels do not fit")
        return pixels
    if dtype.kind not in "iuf":
        raise Refused(Reason.MODEL_SHAPE, f"input {tensor.name!r} of {tensor.dtype} holds no pixels")
    values = pixels.astype(np.float32)
    values *= np.float32(preprocessing.scale)
    for name, neutral, numbers in (("mean", 0.0, preprocessing.mean), ("std", 1.0, preprocessing.std)):
        if len(numbers) not in (1, pixels.shape[2]):
            raise Refused(Reason.MODEL_SHAPE, f"{len(numbers)} numbers in {name} for {pixels.shape[2]} channels")
        if all(number == neutral for number in numbers):
            continue
        if name == "mean":
            values -= np.asarray(numbers, dtype=np.float32)
        else:
            values /= np.asarray(numbers, dtype=np.float32)
    return values


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > limits.IMAGE_PIXELS:
        raise UnreadableFrame(f"a frame of {size[0]} x {size[1]}: over {limits.IMAGE_PIXELS} pixels")
    return size


def _match(arrays: Arrays, inputs: Sequence[Tensor]) -> Arrays:
    for tensor in inputs:
        got = arrays.get(tensor.name)
        if got is None:
            raise Refused(Reason.MODEL_SHAPE, f"the frame has no array {tensor.name!r}; it has {sorted(arrays)}")
        if got.dtype != np.dtype(tensor.dtype) or not fits(got.shape, tensor.shape):
            raise Refused(
                Reason.MODEL_SHAPE,
                f"input {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}; "
                f"the frame has {got.dtype} {list(got.shape)}",
            )
    return {tensor.name: arrays[tensor.name] for tensor in inputs}


def _eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey as eight: Pillow's own conversion would cut everything above 255 to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8), "L")
