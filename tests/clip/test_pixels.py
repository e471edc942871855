import io
import json
import struct
import sys
import zlib
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers import CLIPImageProcessorPil
from transformers.image_utils import SizeDict

from coopcli.clip import pixels
from coopcli.clip.pixels import (
    NARROW,
    allow_pixels,
    centre,
    middle,
    open_image,
    orientation,
    prepare,
    random_resized_crop,
    read_preprocessing,
)
from coopcli.errors import CoopError

RAMP = np.stack(np.meshgrid(np.linspace(0, 255, 30), np.linspace(255, 0, 20)), -1)
RGB = np.concatenate([RAMP, RAMP[..., :1] / 2], -1).astype(np.uint8)  # [20, 30, 3]
GREY = RGB[..., 0]


def saved(image, kind, **options):
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def png_of_16_bits(values, colour_type):
    """Pillow reads these and does not write them. `values` [height, width * channels]."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(
        ">IIBBBBB", values.shape[1] // (3 if colour_type == 2 else 1), values.shape[0], 16, colour_type, 0, 0, 0
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rotated_by_exif():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    return saved(Image.fromarray(RGB), "JPEG", quality=100, subsampling=0, exif=exif)


def animated(kind, **options):
    return saved(Image.fromarray(RGB), kind, save_all=True, append_images=[Image.new("RGB", (30, 20))], **options)


PALETTE = Image.fromarray(GREY).convert("P")
ALPHA = Image.fromarray(np.concatenate([RGB, GREY[..., None]], -1))
GREY_RGB = np.repeat(GREY[..., None], 3, -1)
WIDE_GREY = GREY.astype(np.uint16) * 256 + 99
# What a file holds; the picture that it shows; how far off a lossy format may be, on the average.
READABLE = {
    "jpeg": (saved(Image.fromarray(RGB), "JPEG", quality=100, subsampling=0), RGB, 3),
    "rotated by EXIF": (rotated_by_exif(), RGB, 3),
    "CMYK jpeg": (saved(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100), RGB, 5),
    "CMYK tiff": (saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB, 0),
    "grey": (saved(Image.fromarray(GREY), "PNG"), GREY_RGB, 0),
    "grey and alpha": (saved(Image.fromarray(GREY).convert("LA"), "PNG"), GREY_RGB, 0),
    "alpha": (saved(ALPHA, "PNG"), RGB, 0),
    "black and white": (saved(Image.fromarray(GREY > 128), "PNG"), np.where(GREY_RGB > 128, 255, 0), 0),
    "grey of 16 bits, png": (png_of_16_bits(WIDE_GREY, 0), GREY_RGB, 0),
    "grey of 16 bits, tiff": (saved(Image.fromarray(WIDE_GREY), "TIFF"), GREY_RGB, 0),
    "grey of 16 bits, big-endian": (saved(Image.fromarray(WIDE_GREY.astype(">u2")), "TIFF"), GREY_RGB, 0),
    "RGB of 16 bits": (png_of_16_bits(RGB.astype(np.uint16).reshape(20, 90) * 256 + 99, 2), RGB, 0),
    "palette": (saved(PALETTE, "PNG"), GREY_RGB, 0),
    "palette, a transparent colour": (saved(PALETTE, "PNG", transparency=3), GREY_RGB, 0),
    "palette, transparency for each": (saved(PALETTE, "PNG", transparency=bytes(range(256))), GREY_RGB, 0),
    "animated gif": (animated("GIF"), RGB, 12),
    "animated webp": (animated("WEBP", lossless=True), RGB, 0),
    "animated png": (animated("PNG"), RGB, 0),
    "several pages": (animated("TIFF"), RGB, 0),
    "1 x 1": (saved(Image.new("RGB", (1, 1), (7, 8, 9)), "PNG"), np.full((1, 1, 3), (7, 8, 9)), 0),
}


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_what_an_image_shows(kind):
    content, expected, tolerance = READABLE[kind]
    image = open_image(content, "x")
    assert image.mode == "RGB" and image.size == expected.shape[1::-1]
    assert np.abs(np.asarray(image).astype(int) - expected).mean() <= tolerance


def pgm(bits, plain=False):
    """A grey picture of `bits` bits, binary or as text."""
    values = GREY.astype(int) * ((1 << bits) - 1) // 255
    head = f"P{2 if plain else 5} 30 20 {(1 << bits) - 1}\n".encode()
    if plain:
        return head + " ".join(map(str, values.ravel())).encode()
    return head + values.astype(">u2").tobytes()


@pytest.mark.parametrize("content", [pgm(16), pgm(16, plain=True), pgm(12), pgm(10)])
def test_pgm_of_more_than_8_bits(content):
    assert np.abs(np.asarray(open_image(content, "x")).astype(int) - GREY_RGB).max() <= 1


def transparent(mode):
    """Pictures in every mode that a file can have with transparency, and that transparency: a colour of the picture."""
    grey, rgb = Image.fromarray(GREY), Image.fromarray(RGB)
    coarse = rgb.quantize(16)
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 30).astype(np.uint8), (20, 1)))
    first = tuple(int(value) for value in RGB[0, 0])
    return {
        "1": lambda: saved(grey.convert("1"), "PNG", transparency=0),
        "L": lambda: saved(grey, "PNG", transparency=int(GREY[0, 0])),
        "RGB": lambda: saved(rgb, "PNG", transparency=first),
        "P, one colour": lambda: saved(coarse, "PNG", transparency=3),
        "P, each colour": lambda: saved(coarse, "PNG", transparency=bytes(range(0, 256, 16))),
        "P of 1 bit": lambda: saved(rgb.quantize(2), "PNG", transparency=1),
        "GIF": lambda: saved(coarse, "GIF", transparency=2),
        "GIF, grey": lambda: saved(grey, "GIF", transparency=int(GREY[5, 5])),
        "LA": lambda: saved(Image.merge("LA", (grey, alpha)), "PNG"),
        "RGBA": lambda: saved(Image.merge("RGBA", (*rgb.split(), alpha)), "PNG"),
        "RGBA, webp": lambda: saved(Image.merge("RGBA", (*rgb.split(), alpha)), "WEBP", lossless=True, exact=True),
        "RGBA, tiff": lambda: saved(Image.merge("RGBA", (*rgb.split(), alpha)), "TIFF"),
        "RGBA, tga": lambda: saved(Image.merge("RGBA", (*rgb.split(), alpha)), "TGA"),
        "RGBA, ico": lambda: saved(Image.merge("RGBA", (*rgb.split(), alpha)), "ICO", sizes=[(30, 20)]),
        "P, tiff": lambda: saved(coarse, "TIFF"),
    }[mode]()


TRANSPARENT = ("1", "L", "RGB", "P, one colour", "P, each colour", "P of 1 bit", "GIF", "GIF, grey", "LA", "RGBA", "RGBA, webp",
               "RGBA, tiff", "RGBA, tga", "RGBA, ico", "P, tiff")  # fmt: skip


@pytest.mark.parametrize("views", [[None], [0, 1, 2]])
@pytest.mark.parametrize("mode", TRANSPARENT)
@pytest.mark.filterwarnings("ignore:Palette images")
def test_transparency_changes_no_pixel(mini, mode, views):
    content = transparent(mode)
    plain = Image.fromarray(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    made = prepare(mini.preprocessing, content, "x", b"digest", views)
    assert np.array_equal(made, prepare(mini.preprocessing, saved(plain, "PNG"), "x", b"digest", views))
    if views == [None]:
        assert np.array_equal(made[0], stock(plain, mini.image_size))


BROKEN = {
    "empty": (b"", "it is empty"),
    "zeros": (bytes(1000), "not an image in a format"),
    "text": (b"<html>404 Not Found</html>", "not an image in a format"),
    "a header alone": (READABLE["alpha"][0][:33], "damaged|truncated"),
    "EPS, for which Pillow starts Ghostscript": (saved(Image.fromarray(RGB), "EPS"), "it is EPS, .*Ghostscript"),
    "PNG, cut in its header": (READABLE["alpha"][0][:20], "it is truncated"),
    "PNG, cut in a chunk's length": (READABLE["alpha"][0][:36], "it is truncated"),
    "PNG, cut at its end": (READABLE["alpha"][0][:-20], "it is truncated"),
    "JPEG, cut in its header": (READABLE["jpeg"][0][:30], "it is truncated"),
    "GIF, cut in its header": (READABLE["animated gif"][0][:15], "it is truncated"),
    "WebP, cut": (READABLE["animated webp"][0][:40], "it is truncated"),
    "half of a jpeg": (READABLE["jpeg"][0][: len(READABLE["jpeg"][0]) // 2], "it is truncated"),
    "half of a png": (READABLE["alpha"][0][: len(READABLE["alpha"][0]) // 2], "it is truncated"),
    "32-bit numbers": (saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "32-bit numbers"),
    "32-bit fractions": (saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "32-bit numbers"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_unreadable_image_is_named_with_the_reason(kind):
    content, reason = BROKEN[kind]
    with pytest.raises(CoopError, match=rf'image "cats/7\.jpg" cannot be read: .*({reason})'):
        open_image(content, "cats/7.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@settings(max_examples=300)
@given(
    kind=st.sampled_from(sorted(READABLE)),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
)
def test_a_damaged_image_is_an_image_or_one_error(kind, cut, changes):
    content = bytearray(READABLE[kind][0])
    for place, value in changes:
        content[int(place * len(content))] = value
    try:
        assert open_image(bytes(content[: int(cut * len(content))]), "x").mode == "RGB"
    except CoopError as error:
        assert str(error).startswith('image "x" cannot be read: ')


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_no_image_of_too_many_pixels(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    bomb = bytearray(READABLE["alpha"][0])
    bomb[16:24] = struct.pack(">II", 20_000, 20_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    with pytest.raises(CoopError, match=r"400000000 pixels\) exceeds limit of 178956970 pixels; .* --max-pixels"):
        open_image(bytes(bomb), "x")
    allow_pixels(600)
    assert open_image(READABLE["alpha"][0], "x").size == (30, 20)
    allow_pixels(598)
    with pytest.raises(CoopError, match=r"600 pixels\) exceeds limit of 598 pixels"):
        open_image(READABLE["alpha"][0], "x")


def test_the_bound_on_pixels_is_for_images_as_they_come(mini, monkeypatch):
    """A small image is made larger for the model: what it becomes may have more pixels than --max-pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    content = saved(Image.fromarray(RGB), "PNG")
    expected = prepare(mini.preprocessing, content, "a.png", b"digest", (None, 0, 1))
    allow_pixels(600)  # as many as it has; mini's images have 3,600
    assert np.array_equal(prepare(mini.preprocessing, content, "a.png", b"digest", (None, 0, 1)), expected)


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    box=st.tuples(st.integers(-9, 40), st.integers(-9, 40), st.integers(1, 50), st.integers(1, 50)),
)
def test_a_cut_is_pillows_crop(size, box):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    left, top, width, height = box
    cut = pixels._cut(image, left, top, width, height)
    assert np.array_equal(np.asarray(cut), np.asarray(image.crop((left, top, left + width, top + height))))


@pytest.mark.parametrize(
    "kind", ["ICO", "DDS", "JPEG2000", "MPO", "PCX", "SGI", "TGA", "AVIF", "ICNS", "DIB", "PPM", "QOI", "PNG"]
)
def test_formats_that_are_read(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    image = Image.fromarray(RGB).resize((32, 32))
    options = {"ICO": {"sizes": [(32, 32)]}, "ICNS": {"append_images": [image]}, "AVIF": {"quality": 100}}.get(kind, {})
    content = saved(image, kind, **options)
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(np.asarray(open_image(content, "x")), np.asarray(expected))


@pytest.mark.parametrize("kind", ["EPS", "PDF", "IM", "SPIDER", "XBM", "MSP"])
def test_formats_that_are_not_read(kind, monkeypatch):
    """Whatever the file is called, and whatever Pillow could do with it; no program is started."""
    monkeypatch.setattr("subprocess.Popen", None)
    mode = {"XBM": "1", "MSP": "1", "SPIDER": "F"}.get(kind, "RGB")
    with pytest.raises(CoopError, match=r'"photo.jpg" cannot be read: '):
        open_image(saved(Image.fromarray(RGB).convert(mode), kind), "photo.jpg")


def test_heic_is_read_or_names_the_extra():
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif, the extra coopcli[heif]")
    held = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(RGB)).save(held, quality=100)
    assert np.abs(np.asarray(open_image(held.getvalue(), "x")).astype(int) - RGB).mean() < 8


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix"])
def test_heic_without_its_library_names_the_extra(brand, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    pixels._formats.cache_clear()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    try:
        with pytest.raises(CoopError, match=r"it is a HEIC image; to read those: pip install 'coopcli\[heif\]'"):
            open_image(b"\0\0\0\x18ftyp" + brand + bytes(100), "x")
    finally:
        pixels._formats.cache_clear()


def stock(image, size):
    """What the reference gives: the shorter side resized to `size`, then the middle, an odd pixel halved to the even."""
    width, height = image.size
    shape = (size, int(size * height / width)) if width < height else (int(size * width / height), size)
    left, top = (round((length - size) / 2) for length in shape)  # as in torchvision
    resized = image.resize(shape, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


@pytest.mark.parametrize(
    "size",
    [(1, 1), (2, 2), (3, 3), (4, 4), (3, 50), (50, 3), (1, 50), (50, 1), (48, 48), (47, 49), (1, 999), (1000, 2), (900, 3)],
)
def test_pixels_are_the_stock_preprocessing(mini, size):
    """Also for shapes that could be taken for channels first, and for strips of which only the middle is resized."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    made = prepare(mini.preprocessing, saved(image, "PNG"), "x", b"", [None])
    assert made.dtype == np.uint8 and np.array_equal(made[0], stock(image, mini.image_size))


SQUARE = {"height": 20, "width": 20}


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "how",
    [
        {"size": {"shortest_edge": 20}, "crop_size": SQUARE},
        {"size": {"shortest_edge": 24}, "crop_size": SQUARE},
        {"size": {"shortest_edge": 15}, "crop_size": SQUARE},  # filled up with black
        {"size": SQUARE, "do_center_crop": False},
        {"size": {"height": 30, "width": 22}, "crop_size": SQUARE},
        {"do_resize": False, "crop_size": SQUARE},
    ],
)
def test_preprocessing_of_every_kind_is_the_stock_one(how, resample):
    process = CLIPImageProcessorPil(**{"do_rescale": False, "do_normalize": False, "resample": resample} | how)
    preprocessing = read_preprocessing("x", process)
    assert json.loads(json.dumps(asdict(preprocessing))) == asdict(preprocessing)
    for size in ((20, 20), (40, 20), (20, 44), (16, 90), (10, 8), (31, 65)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
        theirs, ours = process(image).pixel_values[0], centre(preprocessing, image)
        if ours.shape == theirs.shape and not np.array_equal(ours, theirs):  # half of an odd margin, rounded otherwise
            theirs = np.stack([theirs, *(np.roll(theirs, -1, axis) for axis in (1, 2))])
            assert any(np.array_equal(ours[:, :-1, :-1], other[:, :-1, :-1]) for other in theirs), size
        assert ours.shape[1:] == (preprocessing.side, preprocessing.side)


@pytest.mark.parametrize(
    "size", [{"shortest_edge": 20, "longest_edge": 30}, {"max_height": 20, "max_width": 30}, {"longest_edge": 9}]
)
def test_sizes_of_other_kinds_are_refused(size):
    process = CLIPImageProcessorPil(crop_size=SQUARE)
    process.size = SizeDict(**size)
    with pytest.raises(CoopError, match=r'model "x": coop knows no size .* give shortest_edge alone, or height and width'):
        read_preprocessing("x", process)


@given(st.integers(1, 3), st.integers(0, 600), st.booleans())
@example(1, NARROW - 1, True)
@example(1, NARROW, False)
def test_the_middle_of_a_strip(width, longer, lies):
    length = width + longer
    image = Image.new("RGB", (length, width) if lies else (width, length))
    for row in range(max(image.size)):  # each place of the strip has its own colour
        image.putpixel((row, 0) if lies else (0, row), (row // 256, row % 256, 0))
    cut = middle(image)
    assert min(cut.size) == min(image.size) and max(cut.size) <= NARROW * min(image.size) + 1
    if length <= NARROW * width:
        assert cut is image
    first = np.asarray(cut)[0, 0].astype(int)
    last = np.asarray(cut)[(0, -1) if lies else (-1, 0)].astype(int)
    before, after = first[0] * 256 + first[1], max(image.size) - 1 - (last[0] * 256 + last[1])
    assert before == after


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (64, 48)])
def test_random_resized_crop_has_the_models_size(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    for seed in range(20):
        assert random_resized_crop(image, 48, np.random.default_rng(seed)).size == (48, 48)


def test_random_resized_crops_cover_the_scale_and_flip_half():
    """On a horizontal ramp the crop's width shows as its contrast, the flip as its direction."""
    ramp = Image.fromarray(np.broadcast_to(np.linspace(0, 255, 200, dtype=np.uint8)[None, :, None], (200, 200, 3)).copy())
    rng = np.random.default_rng(0)
    rises, widths = [], []
    for _ in range(400):
        row = np.asarray(random_resized_crop(ramp, 32, rng)).astype(int)[16, :, 0]
        rises.append(row[-1] > row[0])
        widths.append(abs(row[-1] - row[0]) / 255)
    assert 0.4 < np.mean(rises) < 0.6
    assert 0.2 < min(widths) < 0.35 and max(widths) > 0.9


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "MPO"])
@pytest.mark.parametrize("number", [*range(1, 9), 0, 9])
def test_exif_turns_as_pillow_does_where_it_is_asked_to(kind, number):
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    exif = Image.Exif()
    exif[0x0112] = number
    content = saved(Image.fromarray(RGB), kind, exif=exif)
    asked, unasked = open_image(content, "x", turn=True), open_image(content, "x")
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(np.asarray(asked), np.asarray(expected))
    plain = Image.open(io.BytesIO(content)).convert("RGB")  # Pillow itself turns TIFF
    assert np.array_equal(np.asarray(unasked), np.asarray(plain))
    assert (orientation(content) > 1) == (not np.array_equal(np.asarray(asked), np.asarray(unasked)))


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 400))
def test_damaged_exif_never_makes_an_image_unreadable(damage, kind, place):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = bytearray(saved(Image.fromarray(RGB), kind, exif=exif))
    at = content.find({"JPEG": b"Exif", "PNG": b"eXIf", "WEBP": b"EXIF"}[kind]) + 6
    content[at : at + min(len(damage), 20)] = damage[:20]
    try:
        asis = open_image(bytes(content), "x")
    except CoopError:
        return
    assert sorted(open_image(bytes(content), "x", turn=True).size) == sorted(asis.size)
