# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Every encoding against pixels laid out by hand; the traps of Image messages; what is wrong is said."""

import array
import io
import sys
import types
import zlib
from typing import ClassVar

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage
from scipy import ndimage
from sensor_msgs.msg import CompressedImage, Image

from ocdit_ros.node import images
from ocdit_ros.node.images import ENCODINGS, ImageError, to_rgb

RNG = np.random.default_rng(7)
PICTURE = RNG.integers(0, 256, (24, 32, 3), np.uint8)


def message(pixels, encoding, pad=0, bigendian=False, last_row_padded=True):
    """Image message from rows of bytes; `pad` bytes of rubbish at the end of every row."""
    height, width = pixels.shape[:2]
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2" if bigendian else "<u2")
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    padded = np.concatenate([rows, RNG.integers(0, 256, (height, pad), np.uint8)], axis=1)
    data = padded.tobytes()
    if not last_row_padded:
        data = data[: len(data) - pad]
    return Image(
        height=height, width=width, encoding=encoding, is_bigendian=int(bigendian), step=padded.shape[1],
        data=array.array("B", data),
    )  # fmt: skip


def uyvy_of(color, shape=(6, 8)):
    """Constant colour as YUV 4:2:2 (ITU-R BT.601, video range); returns the bytes in the order U Y V Y."""
    r, g, b = (float(c) for c in color)
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    u = 128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255
    v = 128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255
    pair = np.round([u, y, v, y]).astype(np.uint8)
    return np.tile(pair, (shape[0], shape[1] // 2)).reshape(*shape, 2)


def mosaic_of(color, pattern, shape=(8, 10)):
    """Constant colour through a colour filter; pattern as ROS names it: first row, then second row."""
    channel = {"r": 0, "g": 1, "b": 2}
    cell = np.array([color[channel[letter]] for letter in pattern], np.uint8).reshape(2, 2)
    return np.tile(cell, (shape[0] // 2, shape[1] // 2))


@pytest.mark.parametrize("pad", [0, 1, 7])
@pytest.mark.parametrize("last_row_padded", [True, False])
@pytest.mark.parametrize("encoding, order", [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0])])
def test_colours_in_their_order_with_any_step(encoding, order, pad, last_row_padded):
    sent = message(PICTURE[..., order], encoding, pad, last_row_padded=last_row_padded)
    np.testing.assert_array_equal(to_rgb(sent), PICTURE)


@pytest.mark.parametrize("encoding, order", [("rgba8", [0, 1, 2]), ("bgra8", [2, 1, 0])])
def test_alpha_is_left_out(encoding, order):
    alpha = RNG.integers(0, 256, (*PICTURE.shape[:2], 1), np.uint8)
    sent = message(np.concatenate([PICTURE[..., order], alpha], axis=2), encoding, pad=3)
    np.testing.assert_array_equal(to_rgb(sent), PICTURE)


def test_mono8_is_grey():
    grey = PICTURE[..., 0]
    np.testing.assert_array_equal(to_rgb(message(grey, "mono8", pad=5)), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize("pad", [0, 2, 3])
def test_mono16_maps_its_full_range_in_both_byte_orders(bigendian, pad):
    deep = RNG.integers(0, 65536, (9, 11), np.uint16)
    deep[0, :3] = 0, 65535, 257
    expected = np.round(deep / 257.0).astype(np.uint8)
    result = to_rgb(message(deep, "mono16", pad=pad, bigendian=bigendian))
    assert result[0, :3, 0].tolist() == [0, 255, 1]
    np.testing.assert_array_equal(result[..., 0], expected)
    assert (result[..., 0] == result[..., 1]).all()
    assert (result[..., 0] == result[..., 2]).all()


def test_every_value_of_mono16_is_rounded_to_the_nearest():
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_rgb(message(deep, "mono16"))[..., 2], np.round(deep / 257.0))


@pytest.mark.parametrize("color", [(200, 30, 60), (10, 220, 90), (40, 60, 250), (128, 128, 128)])
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_yuv_422_against_bt_601(encoding, color):
    packed = uyvy_of(color)
    if encoding in ("yuv422_yuy2", "yuyv"):
        packed = packed[..., ::-1]  # Y before chroma
    result = to_rgb(message(packed, encoding, pad=4))
    assert result.shape == (6, 8, 3)
    np.testing.assert_allclose(result, np.broadcast_to(color, result.shape), atol=3)


@pytest.mark.parametrize("color", [(200, 30, 60), (10, 220, 90), (40, 60, 250)])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_colour_mosaics_by_the_names_of_ros(pattern, color):
    result = to_rgb(message(mosaic_of(color, pattern), f"bayer_{pattern}8", pad=1))
    np.testing.assert_array_equal(result, np.broadcast_to(color, (8, 10, 3)))


#: How Pillow's raw decoder calls these layouts: mode of the image, mode of the bytes.
PILLOW = {
    "rgb8": ("RGB", "RGB"), "bgr8": ("RGB", "BGR"), "rgba8": ("RGBA", "RGBA"), "bgra8": ("RGBA", "BGRA"),
    "mono8": ("L", "L"), "mono16": ("I;16", "I;16"), "mono16 big": ("I;16", "I;16B"),
}  # fmt: skip


@pytest.mark.parametrize("pad", [0, 2, 6])
@pytest.mark.parametrize("name", PILLOW)
def test_layouts_are_those_of_pillow(name, pad):
    """The same bytes, read by another library."""
    encoding, _, big = name.partition(" ")
    row = ENCODINGS[encoding]
    pixels = RNG.integers(0, 65536 if row.dtype == "u2" else 256, (13, 17, row.channels)).astype(row.dtype)
    sent = message(pixels, encoding, pad, bigendian=bool(big))
    mode, raw = PILLOW[name]
    theirs = PillowImage.frombuffer(mode, (17, 13), bytes(sent.data), "raw", raw, sent.step, 1)
    if row.dtype == "u2":  # Pillow keeps 16 bit; the full range is scaled to the full range
        grey = np.round(np.asarray(theirs).astype(float) / 257)
        np.testing.assert_allclose(to_rgb(sent), np.stack([grey] * 3, 2), atol=1)
    else:
        np.testing.assert_array_equal(to_rgb(sent), np.asarray(theirs.convert("RGB")))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_mosaics_against_bilinear_interpolation_by_scipy(pattern):
    """Every pixel of a random mosaic is the mean of the nearest samples of each colour."""
    samples = RNG.integers(0, 256, (16, 22), np.uint8)
    kernels = {"g": [[0, 1, 0], [1, 4, 1], [0, 1, 0]], "rb": [[1, 2, 1], [2, 4, 2], [1, 2, 1]]}
    expected = np.zeros((16, 22, 3))
    for channel, letter in enumerate("rgb"):
        here = np.tile(np.array([one == letter for one in pattern]).reshape(2, 2), (8, 11))
        kernel = np.array(kernels["g" if letter == "g" else "rb"]) / 4
        expected[..., channel] = ndimage.convolve(np.where(here, samples, 0).astype(float), kernel, mode="mirror")
    result = to_rgb(message(samples, f"bayer_{pattern}8", pad=3)).astype(float)
    np.testing.assert_allclose(result[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1)  # the border is extrapolated


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_every_pixel_of_yuv_422_against_bt_601(encoding):
    """Random pixels: two neighbours share their chroma."""
    luma = RNG.integers(16, 236, (10, 14)).astype(float)
    u, v = RNG.integers(64, 192, (2, 10, 7))
    order = (u, luma[:, ::2], v, luma[:, 1::2]) if encoding in ("yuv422", "uyvy") else (
        luma[:, ::2], u, luma[:, 1::2], v
    )  # fmt: skip
    packed = np.stack(order, axis=2).astype(np.uint8).reshape(10, 14, 2)
    blue, red = (np.repeat(c.astype(float) - 128, 2, axis=1) for c in (u, v))
    y = 255 / 219 * (luma - 16)
    expected = np.stack(
        [
            y + 255 / 224 * 1.402 * red,
            y - 255 / 224 * (0.344136 * blue + 0.714136 * red),
            y + 255 / 224 * 1.772 * blue,
        ],
        axis=2,
    )
    result = to_rgb(message(packed, encoding, pad=4))
    np.testing.assert_allclose(result, np.clip(expected, 0, 255), atol=2)


def test_compressed_images_against_pillow():
    photo = PillowImage.fromarray(cv2.GaussianBlur(PICTURE, (0, 0), 2))
    for kind in ("png", "jpeg"):
        file = io.BytesIO()
        photo.save(file, kind)
        theirs = np.asarray(PillowImage.open(io.BytesIO(file.getvalue())).convert("RGB")).astype(int)
        np.testing.assert_allclose(to_rgb(compressed(file.getvalue(), kind)).astype(int), theirs, atol=3)


def test_the_table_is_what_the_conventions_name():
    wanted = {"rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16", "yuv422", "yuv422_yuy2"}
    wanted |= {f"bayer_{pattern}8" for pattern in ("rggb", "bggr", "gbrg", "grbg")}
    assert wanted <= set(ENCODINGS)


@pytest.mark.parametrize("pad", [0, 6])
def test_rgb8_is_not_copied(pad):
    sent = message(PICTURE, "rgb8", pad)
    result = to_rgb(sent)
    assert np.shares_memory(result, np.frombuffer(sent.data, np.uint8))


@pytest.mark.parametrize(
    "encoding", [name for name, row in ENCODINGS.items() if not row.even_width and row.min_side == 1]
)
def test_images_one_pixel_wide_and_high(encoding):
    row = ENCODINGS[encoding]
    for height, width in ((1, 1), (5, 1), (1, 5)):
        dtype = np.uint16 if row.dtype == "u2" else np.uint8
        pixels = RNG.integers(0, 256, (height, width, row.channels)).astype(dtype)
        assert to_rgb(message(pixels, encoding)).shape == (height, width, 3)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_encoding_gives_contract_types_at_4k(encoding):
    row = ENCODINGS[encoding]
    dtype = np.uint16 if row.dtype == "u2" else np.uint8
    result = to_rgb(message(np.zeros((2160, 3840, row.channels), dtype), encoding))
    assert result.shape == (2160, 3840, 3)
    assert result.dtype == np.uint8


def refusal(sent):
    """The sentence in which an image is refused."""
    with pytest.raises(ImageError) as caught:
        to_rgb(sent)
    return str(caught.value)


SUPPORTED = f"is not supported; supported are {', '.join(ENCODINGS)}"
LONG = "x" * 60


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"encoding": "nv21"}, f"the image encoding 'nv21' {SUPPORTED}"),
        ({"encoding": ""}, f"the image encoding '' {SUPPORTED}"),
        ({"encoding": "a\nb"}, f"the image encoding 'a\\nb' {SUPPORTED}"),
        ({"encoding": LONG}, f"the image encoding '{LONG}' {SUPPORTED}"),
        ({"encoding": LONG + "y"}, f"the image encoding '{LONG}...' {SUPPORTED}"),
        ({"width": 0}, "the image is 0 x 24 pixels, which cannot be right"),
        ({"height": 0}, "the image is 32 x 0 pixels, which cannot be right"),
        ({"width": 2**31}, "the image is 2147483648 x 24 pixels, which cannot be right"),
        ({"step": 0}, "the step of 0 bytes is too short for 32 pixels of rgb8, which take 96"),
        ({"step": 95}, "the step of 95 bytes is too short for 32 pixels of rgb8, which take 96"),
        (
            {"data": array.array("B")},
            "the image has 0 bytes of data, but 32 x 24 pixels of rgb8 with step 96 take 2304",
        ),
        ({"height": 25}, "the image has 2304 bytes of data, but 32 x 25 pixels of rgb8 with step 96 take 2400"),
        (
            {"encoding": "rgba8", "width": 24, "step": 96, "height": 30},
            "the image has 2304 bytes of data, but 24 x 30 pixels of rgba8 with step 96 take 2880",
        ),
        (
            {"encoding": "mono16", "width": 48, "height": 25},
            "the image has 2304 bytes of data, but 48 x 25 pixels of mono16 with step 96 take 2400",
        ),
        (
            {"encoding": "mono16", "width": 49},
            "the step of 96 bytes is too short for 49 pixels of mono16, which take 98",
        ),
    ],
)
def test_what_does_not_fit_is_named_in_one_sentence(change, sentence, monkeypatch):
    monkeypatch.setattr(images, "_cv_bridge", lambda: None)
    sent = message(PICTURE, "rgb8")
    for name, value in change.items():
        setattr(sent, name, value)
    assert refusal(sent) == sentence


@pytest.mark.parametrize("width, height", [(32768, 1), (1, 32768), (8192, 8192), (32768, 2048)])
def test_the_largest_images_are_taken_and_larger_ones_are_not(width, height):
    """Without its data, so that the sentence tells which rule it was."""
    sent = Image(width=width, height=height, encoding="mono8", step=width)
    assert refusal(sent).startswith("the image has 0 bytes of data, but ")
    if width >= height:
        sent.width, sent.step = width + 1, width + 1
    else:
        sent.height = height + 1
    assert refusal(sent) == f"the image is {sent.width} x {sent.height} pixels, which cannot be right"


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_pairs_of_pixels_need_an_even_width(encoding):
    sentence = f"the {encoding} image is 5 pixels wide, but that encoding stores pixels in pairs"
    assert refusal(message(np.zeros((4, 5, 2), np.uint8), encoding)) == sentence


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
def test_a_mosaic_needs_a_whole_cell(shape):
    sentence = f"the bayer_rggb8 image is {shape[1]} x {shape[0]} pixels, but a colour mosaic has at least 2 x 2"
    assert refusal(message(np.zeros(shape, np.uint8), "bayer_rggb8")) == sentence


def test_mosaics_of_odd_size_are_fine():
    assert to_rgb(message(np.full((5, 7), 90, np.uint8), "bayer_rggb8")).shape == (5, 7, 3)


def packed(pixels_bgr, suffix, *options):
    return cv2.imencode(suffix, pixels_bgr, *options)[1].tobytes()


def compressed(data, kind="rgb8; png compressed bgr8"):
    return CompressedImage(format=kind, data=array.array("B", data))


def test_png_comes_back_exactly():
    np.testing.assert_array_equal(to_rgb(compressed(packed(PICTURE[..., ::-1], ".png"))), PICTURE)


def test_jpeg_comes_back_nearly():
    smooth = cv2.GaussianBlur(PICTURE, (0, 0), 5)
    result = to_rgb(compressed(packed(smooth[..., ::-1], ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95]), "jpeg"))
    np.testing.assert_allclose(result.astype(int), smooth, atol=12)


def test_compressed_grey_and_16_bit_become_rgb():
    grey = PICTURE[..., 1]
    np.testing.assert_array_equal(to_rgb(compressed(packed(grey, ".png")))[..., 2], grey)
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_allclose(to_rgb(compressed(packed(deep, ".png")))[..., 0].astype(int), grey, atol=1)


def test_an_exif_rotation_is_not_applied():
    jpeg = packed(np.zeros((20, 40, 3), np.uint8), ".jpg")
    # APP1 with one tag, Orientation (0x0112) = 6: turn by 90 degrees
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (40, 20, 3)
    assert to_rgb(compressed(turned, "jpeg")).shape == (20, 40, 3)


PNG = packed(PICTURE, ".png")
JPEG = packed(PICTURE, ".jpg")


def damaged(kind, size):
    """How a compressed image that cannot be read is refused."""
    return (
        f"the compressed image (format '{kind}', {size} bytes) is damaged or of a kind that is not supported; "
        "JPEG, PNG, WEBP are"
    )


@pytest.mark.parametrize(
    "data, kind, sentence",
    [
        (b"", "jpeg", "the compressed image is empty"),
        (b"n", "jpeg", damaged("jpeg", 1)),
        (b"no picture at all", "jpeg", damaged("jpeg", 17)),
        (PNG[:60], "png", damaged("png", 60)),
        (JPEG[: JPEG.index(b"\xff\xda")], LONG + "y", damaged(f"{LONG}...", JPEG.index(b"\xff\xda"))),
        (
            PNG, "16UC1; compressedDepth",
            "the compressed image holds depth, not colour; subscribe to a colour image",
        ),
    ],
)  # fmt: skip
def test_unusable_compressed_images_are_named(data, kind, sentence):
    assert refusal(compressed(data, kind)) == sentence


@pytest.mark.parametrize("suffix", [".bmp", ".tiff", ".pgm"])
def test_kinds_that_opencv_knows_and_no_camera_sends_are_refused(suffix):
    data = packed(PICTURE[..., 0], suffix)
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None
    assert refusal(compressed(data, "png")) == damaged("png", len(data))


def part_of_png(kind, content, length=None):
    """A chunk; `length` may lie."""
    length = len(content) if length is None else length
    return length.to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


PNG_START, PNG_END = PNG[:33], PNG[-12:]  # signature and IHDR; IEND


@pytest.mark.parametrize(
    "data, passes",
    [
        (PNG, True),
        (PNG + b"rest of the buffer", True),
        (PNG_START + part_of_png(b"tEXt", b"a\0b") + PNG[33:], True),
        (PNG[:-1], False),
        (PNG[:-12], False),
        (PNG_START, False),
        (PNG_START + part_of_png(b"tEXt", b"a\0b", 2**31) + PNG[33:], False),
        (PNG_START + part_of_png(b"tEXt", b"a\0b", 2**32 - 1) + PNG[33:], False),
        (PNG[:-12] + part_of_png(b"IEND", b"", 1), False),
        (PNG_START + part_of_png(b"acTL", bytes(8)) + PNG[33:], False),
    ],
)
def test_opencv_never_sees_a_png_whose_parts_do_not_fit(data, passes, monkeypatch):
    """It would make room for what a part says before it looks whether it is there."""
    seen, decode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: (seen.append(1), decode(*arguments))[1])
    sent = compressed(data, "png")
    if passes:
        np.testing.assert_array_equal(to_rgb(sent), PICTURE[..., ::-1])
    else:
        assert refusal(sent) == damaged("png", len(data))
    assert bool(seen) == passes


class _Bridge:
    """Stands in for cv_bridge.CvBridge; records what it is asked for."""

    calls: ClassVar[list] = []

    def imgmsg_to_cv2(self, sent, encoding):
        self.calls.append((sent.encoding, encoding))
        if sent.encoding == "16SC1":
            raise RuntimeError("it cannot be\n  converted")
        return np.full((sent.height, sent.width, 3), 9, np.uint8)[:, ::-1]


@pytest.fixture
def cv_bridge(monkeypatch):
    """A distribution that brings cv_bridge."""
    module = types.ModuleType("cv_bridge")
    module.CvBridge = _Bridge
    monkeypatch.setitem(sys.modules, "cv_bridge", module)
    monkeypatch.setattr(_Bridge, "calls", [])
    images._cv_bridge.cache_clear()
    yield
    images._cv_bridge.cache_clear()


@pytest.mark.usefixtures("cv_bridge")
def test_encodings_outside_the_table_go_to_cv_bridge_where_there_is_one():
    result = to_rgb(message(PICTURE[..., 0], "bayer_rggb16"))
    assert _Bridge.calls == [("bayer_rggb16", "rgb8")]
    assert result.shape == PICTURE.shape
    assert result.flags.c_contiguous


@pytest.mark.usefixtures("cv_bridge")
def test_encodings_of_the_table_do_not_need_cv_bridge():
    for encoding in ("rgb8", "bgr8"):
        to_rgb(message(PICTURE, encoding))
    assert _Bridge.calls == []


@pytest.mark.usefixtures("cv_bridge")
def test_what_cv_bridge_cannot_do_either_is_said():
    sentence = "cv_bridge cannot convert an image of encoding '16SC1': it cannot be converted"
    assert refusal(message(PICTURE[..., 0], "16SC1")) == sentence


def test_a_cv_bridge_built_for_another_numpy_counts_as_none(monkeypatch):
    def broken(name):
        raise AttributeError("_ARRAY_API not found")

    monkeypatch.setattr(images.importlib, "import_module", broken)
    images._cv_bridge.cache_clear()
    try:
        with pytest.raises(ImageError, match="not supported"):
            to_rgb(message(PICTURE[..., 0], "bayer_rggb16"))
    finally:
        images._cv_bridge.cache_clear()
