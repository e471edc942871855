"""Decode image files to pixels of the image tower's size: the centre crop and the augmented views."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..data.formats import FORMATS, HEIF
from ..errors import CoopError

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil

# Longer than this many times its width, an image is cut to its middle before its shorter side is resized: a strip of
# 1 x 20,000 pixels would become one of 224 x 4,480,000, of which the central square is used.
NARROW = 64

Views = Sequence[int | None]  # numbers of augmented views, or None for the centre crop
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {  # by its value, how to turn an image; 1: not at all
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
WITH_EXIF = ("JPEG", "PNG", "WEBP", "AVIF")  # TIFF and HEIC are turned by what decodes them
PNG_MARKS = (b"eXIf", b"Raw profile type exif")
DECODING = b" decoding 2"  # to change when a file gives other pixels than before: part of the key of cached features
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TALKATIVE_MARKS = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"icns")  # JPEG 2000, its bare stream, icons that hold it
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True)
class Preprocessing:
    """A model's preprocessing as data, so that pixels are made by Pillow alone; JSON can hold it.

    `resize` is [shorter side], [height, width], or None for images that stay as large as they are; `crop` is [height,
    width] of what is cut out of the centre. Numbers of pixels are multiplied by `factor`, moved by -1 with `offset`, and
    normalised by `mean` and `std`, where these are not None.
    """

    resize: list[int] | None
    resample: int
    crop: list[int] | None
    factor: float | None
    offset: bool
    mean: list[float] | None
    std: list[float] | None

    @property
    def side(self) -> int:
        """Side in pixels of the square images that it makes."""
        return (self.crop or self.resize or [0])[0]


def read_preprocessing(name: str, process: CLIPImageProcessorPil) -> Preprocessing:
    """Read the preprocessing of model `name`. Raises CoopError for a size of a kind that no supported model has."""
    size, crop, resample = process.size, getattr(process, "crop_size", None), process.resample
    resize = [size[key] for key in ("shortest_edge", "height", "width") if size.get(key)]
    if process.do_resize and (len(resize) != (1 if size.get("shortest_edge") else 2) or size.get("longest_edge")):
        raise CoopError(
            f'model "{name}": coop knows no size {dict(size)} of images; '
            "give shortest_edge alone, or height and width, in its preprocessor_config.json"
        )
    return Preprocessing(
        resize=resize if process.do_resize else None,
        resample=int(Image.Resampling.BILINEAR if resample is None else resample),
        crop=[crop["height"], crop["width"]] if process.do_center_crop and crop else None,
        factor=process.rescale_factor if process.do_rescale else None,
        offset=bool(getattr(process, "rescale_offset", False)),
        mean=np.atleast_1d(process.image_mean).tolist() if process.do_normalize else None,
        std=np.atleast_1d(process.image_std).tolist() if process.do_normalize else None,
    )


def open_image(content: bytes, name: str, turn: bool = False) -> Image.Image:
    """Decode an image, the first picture of an animated one, to RGB. Raises CoopError naming it.

    Only the formats of `data.formats` are tried, whatever the file is called. As in the reference, transparency is dropped
    and EXIF orientation ignored, unless `turn`. Grey values of 16 bits are scaled to 8 (Pillow would clip them at 255).
    More pixels than twice `PIL.Image.MAX_IMAGE_PIXELS` are refused.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=_formats())
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # whose numbers end at 65,535
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode not in ("I", "F"):
            picture = image.convert("RGB")
            picture.info.clear()  # a transparent colour, which Pillow leaves there, would be painted white by transformers
            return picture.transpose(TURNS[turned]) if turn and (turned := orientation(content)) in TURNS else picture
        reason = "its grey values are 32-bit numbers, with no known value for white; save it with 8 or 16 bits"
    except Image.DecompressionBombError as error:
        reason = f"{str(error).partition(',')[0]}; if you trust it, raise --max-pixels"
    except MemoryError:
        reason = "there is not enough memory for it"
    except Exception as error:  # of many kinds: each of Pillow's formats has its own ways to fail on damage
        reason = _why(content, error)
    raise CoopError(f'image "{name}" cannot be read: {reason}')


@cache
def _formats() -> tuple[str, ...]:
    """The formats to try: those of the allow-list that this Pillow has, HEIF where pillow-heif is installed."""
    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _why(content: bytes, error: Exception) -> str:
    if not content:
        return "it is empty"
    if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS and HEIF not in _formats():
        return "it is a HEIC image; to read those: pip install 'coopcli[heif]'"
    if content.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "it is EPS, which only Ghostscript reads; save it as PNG or JPEG"
    if _is_cut(content) or (isinstance(error, OSError) and "truncated" in str(error)):
        return "it is truncated"
    return "it is damaged, or not an image in a format that coop reads"


def _is_cut(content: bytes) -> bool:
    """Whether the file lacks its end, by the marks and lengths of the commonest formats."""
    if content.startswith(b"\x89PNG"):
        return b"IEND" not in content[-64:]
    if content.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in content
    if content.startswith(b"GIF8"):
        return not content.rstrip(b"\0").endswith(b";")
    if content.startswith(b"RIFF"):
        return int.from_bytes(content[4:8], "little") + 8 > len(content)
    return content.startswith(b"BM") and int.from_bytes(content[2:6], "little") > len(content)


def orientation(content: bytes) -> int:
    """How EXIF says to show an image, 1 to 8, as phones write it; 1, as it lies, where it says nothing. Reads no pixels."""
    if content.startswith(b"\x89PNG") and not any(mark in content for mark in PNG_MARKS):
        return 1  # Pillow would decode the picture, to look for EXIF behind it
    try:
        number = Image.open(io.BytesIO(content), formats=WITH_EXIF).getexif().get(ORIENTATION)
    except Exception:  # another format, or a damaged header: decoding it will say so
        return 1
    return number if number in TURNS else 1


def is_talkative(content: bytes) -> bool:
    """Whether an image is decoded by a C library that writes of its own accord to stderr: libtiff, OpenJPEG, HEIF's, AVIF's."""
    if content[:4] in TIFF_MARKS:
        try:
            return Image.open(io.BytesIO(content), formats=("TIFF",)).tile[0][0] == "libtiff"  # others Pillow reads itself
        except Exception:  # damaged
            return True
    return content.startswith(TALKATIVE_MARKS) or content[4:8] == b"ftyp"


def allow_pixels(most: int) -> None:
    """Let images have so many pixels, here and in processes started later. Pillow's own bound is 178,956,970."""
    Image.MAX_IMAGE_PIXELS = -(-most // 2)  # Pillow warns beyond this and refuses beyond twice as many


def prepare(
    preprocessing: Preprocessing, content: bytes, name: str, digest: bytes, views: Views, turn: bool = False
) -> np.ndarray:
    """Compute the pixels of an image's views, uint8 [views, 3, size, size], from one decoding. Raises CoopError.

    With `turn`, the image is first turned by its EXIF orientation.
    """
    image = open_image(content, name, turn)
    if views[0] is None:
        return centre(preprocessing, image)[None]
    return np.stack([_numbers(_view(image, digest, view, preprocessing.side)) for view in views if view is not None])


def centre(preprocessing: Preprocessing, image: Image.Image) -> np.ndarray:
    """Compute the centre crop that is tested on, uint8 [3, height, width]: the shorter side resized, the centre cut out.

    Half an odd margin is rounded to the even number, as in torchvision's CenterCrop; transformers rounds down. An image
    smaller than the crop is filled up with black, its margins rounded as in transformers.
    """
    image = middle(image)
    if preprocessing.resize:
        image = image.resize(_resized(image.size, preprocessing.resize), preprocessing.resample)
    if preprocessing.crop:
        height, width = preprocessing.crop
        margins = (image.width - width, image.height - height)
        left, top = (round(margin / 2) if min(margins) >= 0 else margin // 2 for margin in margins)
        image = _cut(image, left, top, width, height)
    return _numbers(image)


def _resized(size: tuple[int, int], resize: list[int]) -> tuple[int, int]:
    """Width and height of an image of `size` when it is resized; the longer side is rounded down, as in torchvision."""
    if len(resize) == 2:
        return resize[1], resize[0]
    (width, height), (side,) = size, resize
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def _cut(image: Image.Image, left: int, top: int, width: int, height: int) -> Image.Image:
    """What `Image.crop` gives, black where the image ends, but for its bound on pixels: that is for images as they come."""
    box = (left, top, left + width, top + height)
    return image.transform((width, height), Image.Transform.EXTENT, box, Image.Resampling.NEAREST)


def _numbers(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def middle(image: Image.Image) -> Image.Image:
    """Return the image, or the middle of a very narrow one, NARROW times as long as wide."""
    length, width = max(image.size), min(image.size)
    cut = (length - NARROW * width) // 2  # from either end, so that the middle stays where it is
    if cut <= 0:
        return image
    left, top = (cut, 0) if image.width == length else (0, cut)
    return _cut(image, left, top, image.width - 2 * left, image.height - 2 * top)


def _view(image: Image.Image, digest: bytes, view: int, size: int) -> Image.Image:
    seed = int.from_bytes(hashlib.blake2b(digest + b"%d" % view, digest_size=8).digest(), "big")
    return random_resized_crop(image, size, np.random.default_rng(seed))


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Crop 8 % to 100 % of the area with aspect 3/4 to 4/3, resize to [size, size] (bicubic), flip half the time.

    Source: CoOp, Section 4.1; the same draw as torchvision's RandomResizedCrop.
    """
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            break
    else:  # an image too narrow for these aspects: the largest centred crop within them
        w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
        left, top = (width - w) // 2, (height - h) // 2
    crop = image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
