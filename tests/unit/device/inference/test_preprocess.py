"""Frames become tensors: the arithmetic by hand, the geometry back into the frame, and broken frames told apart."""

import io

import numpy as np
import pytest
from PIL import Image

from device.inference.npz import write_npz
from device.inference.preprocess import UnreadableFrame, decode_image, dequantise, prepare, quantise
from protocol.errors import Reason, Refused
from protocol.release import ImagePreprocessing, Tensor, TensorPreprocessing


def picture(width: int, height: int, colour=(255, 0, 0), kind: str = "PNG", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), colour).save(out, kind)
    return out.getvalue()


def tensor(shape, dtype="float32", layout="any", **more) -> Tensor:
    return Tensor(name="x", shape=shape, dtype=dtype, layout=layout, **more)


def only(data, preprocessing, wanted, media_type="image/png"):
    return prepare(data, media_type, preprocessing, (wanted,)).feeds["x"]


def test_pixels_are_scaled_shifted_and_laid_out():
    preprocessing = ImagePreprocessing(width=4, height=2, scale=1 / 255, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    got = only(picture(4, 2, (255, 51, 102)), preprocessing, tensor((1, 3, 2, 4)))
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got[0, :, 0, 0], [(1 - 0.5) / 0.5, 0.2 - 0.25, 0.4 / 2], atol=1e-6)
    same = only(picture(4, 2, (255, 51, 102)), preprocessing, tensor((1, 2, 4, 3)))
    np.testing.assert_array_equal(same.transpose(0, 3, 1, 2), got)


def test_bgr_and_gray():
    blue_first = ImagePreprocessing(width=1, height=1, colour="bgr", scale=1.0)
    assert only(picture(1, 1, (1, 2, 3)), blue_first, tensor((1, 1, 1, 3))).ravel().tolist() == [3, 2, 1]
    gray = ImagePreprocessing(width=1, height=1, colour="gray", scale=1.0)
    assert only(picture(1, 1, (9, 9, 9)), gray, tensor((1, 1, 1, 1))).ravel().tolist() == [9]
    assert only(picture(1, 1, (9, 9, 9)), gray, tensor((1, 1, 1))).shape == (1, 1, 1)


def test_a_quantised_input_is_quantised_and_cut_to_its_type():
    preprocessing = ImagePreprocessing(width=1, height=1, scale=1.0)
    wanted = tensor((1, 1, 1, 3), "int8", scale=0.5, zero_point=-100)
    assert only(picture(1, 1, (0, 10, 255)), preprocessing, wanted).ravel().tolist() == [-100, -80, 127]


def test_uint8_without_a_scale_takes_the_pixels_as_they_are():
    preprocessing = ImagePreprocessing(width=1, height=1, mean=(9.0,))
    assert only(picture(1, 1, (0, 10, 255)), preprocessing, tensor((1, 1, 1, 3), "uint8")).ravel().tolist() == [
        0,
        10,
        255,
    ]


@pytest.mark.parametrize(
    "wanted",
    [
        tensor((1, 3, 5, 5)),
        tensor((1, 3)),
        tensor((1, 4, 2, 7)),
        tensor((1, 3, 2, 4), "int8"),
        tensor((1, 3, 2, 4), "bool"),
    ],
    ids=["size", "rank", "channels", "int8", "bool"],
)
def test_an_input_that_holds_no_such_image_is_refused(wanted):
    with pytest.raises(Refused) as refused:
        only(picture(4, 2), ImagePreprocessing(width=4, height=2), wanted)
    assert refused.value.reason is Reason.MODEL_SHAPE


def test_letterboxing_keeps_the_aspect_and_boxes_find_back():
    preprocessing = ImagePreprocessing(width=100, height=100, resize="letterbox")
    pixels, geometry = decode_image(picture(400, 200), "image/png", preprocessing)
    assert pixels.shape == (100, 100, 3)
    assert pixels[24, 50].tolist() == [114, 114, 114]
    assert pixels[25, 50].tolist() == [255, 0, 0]
    assert pixels[74, 50].tolist() == [255, 0, 0]
    assert pixels[75, 50].tolist() == [114, 114, 114]
    boxes = geometry.to_frame(np.array([[0, 25, 100, 75], [10, 0, 20, 50]], np.float32))
    assert boxes.tolist() == [[0, 0, 400, 200], [40, 0, 80, 100]]


def test_stretched_boxes_find_back():
    _, geometry = decode_image(picture(640, 480), "image/png", ImagePreprocessing(width=128, height=128))
    assert geometry.to_frame(np.array([[64, 64, 128, 200]], np.float32)).tolist() == [[320, 240, 640, 480]]


def test_the_same_jpeg_gives_the_same_pixels_each_time_also_when_it_is_scaled_while_decoding():
    noise = np.random.default_rng(1).integers(0, 255, (960, 1280, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG")
    preprocessing = ImagePreprocessing(width=64, height=64)
    first, geometry = decode_image(out.getvalue(), "image/jpeg", preprocessing)
    second, _ = decode_image(out.getvalue(), "image/jpeg", preprocessing)
    np.testing.assert_array_equal(first, second)
    assert (geometry.frame_width, geometry.frame_height) == (1280, 960)


def test_sixteen_bit_grey_keeps_its_upper_half():
    out = io.BytesIO()
    Image.fromarray(np.array([[0x8000, 0x00FF], [0xFFFF, 0x1200]], np.uint16)).save(out, "PNG")
    pixels, _ = decode_image(out.getvalue(), "image/png", ImagePreprocessing(width=2, height=2, colour="gray"))
    assert pixels[:, :, 0].tolist() == [[0x80, 0], [0xFF, 0x12]]


@pytest.mark.parametrize("kind", ["RGBA", "L", "P", "1", "LA"])
def test_other_modes_become_rgb(kind):
    out = io.BytesIO()
    Image.new("RGB", (3, 3), (7, 7, 7)).convert(kind).save(out, "PNG")
    pixels, _ = decode_image(out.getvalue(), "image/png", ImagePreprocessing(width=3, height=3))
    assert pixels.shape == (3, 3, 3)


def test_a_cut_frame_is_unreadable_unless_every_pixel_was_there():
    for kind, media_type in (("PNG", "image/png"), ("JPEG", "image/jpeg")):
        noise = Image.fromarray(np.random.default_rng(2).integers(0, 255, (16, 16, 3), np.uint8))
        out = io.BytesIO()
        noise.save(out, kind)
        data = out.getvalue()
        for length in range(0, len(data) - 16, 7):
            try:
                pixels, _ = decode_image(data[:length], media_type, ImagePreprocessing(width=16, height=16))
            except UnreadableFrame:
                continue
            whole, _ = decode_image(data, media_type, ImagePreprocessing(width=16, height=16))
            np.testing.assert_array_equal(pixels, whole)
            assert length > len(data) - 32


def test_a_decompression_bomb_is_unreadable_before_it_is_decoded():
    out = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(out, "PNG")
    with pytest.raises(UnreadableFrame, match="over 50000000 pixels"):
        decode_image(out.getvalue(), "image/png", ImagePreprocessing(width=8, height=8))


def test_a_frame_of_another_kind_than_it_says_is_unreadable():
    with pytest.raises(UnreadableFrame):
        decode_image(picture(2, 2, kind="GIF"), "image/png", ImagePreprocessing(width=2, height=2))


def test_arrays_must_be_the_models_inputs():
    inputs = (Tensor(name="x", shape=(1, -1), dtype="float32"), Tensor(name="n", shape=(), dtype="int64"))
    good = {"x": np.ones((1, 5), np.float32), "n": np.array(2, np.int64), "other": np.ones(1)}
    feeds = prepare(write_npz(good), "application/x-npz", TensorPreprocessing(), inputs).feeds
    assert set(feeds) == {"x", "n"}
    for bad in ({"x": good["x"]}, {**good, "x": np.ones((2, 5), np.float32)}, {**good, "n": np.array(2, np.int32)}):
        with pytest.raises(Refused) as refused:
            prepare(write_npz(bad), "application/x-npz", TensorPreprocessing(), inputs)
        assert refused.value.reason is Reason.MODEL_SHAPE
    with pytest.raises(UnreadableFrame):
        prepare(b"PK", "application/x-npz", TensorPreprocessing(), inputs)


def test_quantising_and_back_loses_at_most_half_a_step():
    wanted = tensor((1,), "uint8", scale=0.1, zero_point=128)
    values = np.linspace(-12, 12, 101, dtype=np.float32)
    assert np.abs(dequantise(quantise(values, wanted), wanted) - values).max() <= 0.0501
