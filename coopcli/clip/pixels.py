"""Bytes of an image file -> pixels of the size that the image tower sees; its augmented views."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import CoopError

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil

# Longer than this many times its width, an image is cut to its middle before its shorter side is resized: a strip of
# 1 x 20,000 pixels would become one of 224 x 4,480,000, of which the central square is used.
NARROW = 64

Views = Sequence[int | None]  # numbers of augmented views, or None for the image as it is


def open_image(content: bytes, name: str) -> Image.Image:
    """Decode an image, the first picture of an animated one, to RGB. Raises CoopError naming it.

    As in the reference, alpha is dropped and EXIF orientation ignored. Grey values of 16 bits are brought to 8 (Pillow
    would cut them off at 255). More pixels than twice `PIL.Image.MAX_IMAGE_PIXELS` are refused.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode not in ("I", "F"):
            return image.convert("RGB")
        reason = "its grey values are 32-bit numbers, of which none is known to be white; save it with 8 or 16 bits"
    except Image.DecompressionBombError as error:
        reason = f"{str(error).partition(',')[0]}; if you trust it, raise --max-pixels"
    except MemoryError:
        reason = "the memory does not hold it"
    except Exception as error:  # of many kinds: each of Pillow's formats has its own ways to fail on damage
        if isinstance(error, OSError) and "truncated" in str(error):
            reason = "it is truncated"
        else:
            reason = "it is no image that Pillow knows, or is damaged" if content else "it is empty"
    raise CoopError(f'image "{name}" cannot be read: {reason}')


def allow_pixels(most: int) -> None:
    """Let images have so many pixels, here and in the processes started later. Pillow's own bound is 178,956,970."""
    Image.MAX_IMAGE_PIXELS = -(-most // 2)  # Pillow warns beyond this and refuses beyond twice as many


def prepare(process: CLIPImageProcessorPil, size: int, content: bytes, name: str, digest: bytes, views: Views) -> np.ndarray:
    """The pixels of an image's views, uint8 [views, 3, size, size]: all from one decoding. Raises CoopError."""
    image = open_image(content, name)
    if views[0] is None:
        return centre(process, image)[None]
    pictures = [_view(image, digest, view, size) for view in views if view is not None]
    kept = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}
    return np.stack(process(pictures, **kept).pixel_values)


def centre(process: CLIPImageProcessorPil, image: Image.Image) -> np.ndarray:
    """The picture as it is tested on, uint8 [3, height, width]: its shorter side resized, its centre cut out.

    An odd number of pixels too many is halved to the even, as in torchvision's CenterCrop; transformers rounds down.
    """
    kept = {"do_rescale": False, "do_normalize": False}
    pixels: np.ndarray = process(middle(image), do_center_crop=False, **kept).pixel_values[0]
    if not process.do_center_crop:
        return pixels
    height, width = (process.crop_size[side] for side in ("height", "width"))
    top, left = round((pixels.shape[1] - height) / 2), round((pixels.shape[2] - width) / 2)
    if top < 0 or left < 0:  # smaller than the crop: transformers fills up with black
        return process(middle(image), **kept).pixel_values[0]
    return pixels[:, top : top + height, left : left + width]


def middle(image: Image.Image) -> Image.Image:
    """The image, or of a very narrow one the middle NARROW times as long as wide."""
    length, width = max(image.size), min(image.size)
    cut = (length - NARROW * width) // 2  # from either end, so that the middle stays where it is
    if cut <= 0:
        return image
    left, top = (cut, 0) if image.width == length else (0, cut)
    return image.crop((left, top, image.width - left, image.height - top))


def _view(image: Image.Image, digest: bytes, view: int, size: int) -> Image.Image:
    seed = int.from_bytes(hashlib.blake2b(digest + b"%d" % view, digest_size=8).digest(), "big")
    return random_resized_crop(image, size, np.random.default_rng(seed))


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A crop of 8 % to 100 % of the area and aspect 3/4 to 4/3, resized to [size, size] (bicubic), flipped half the time.

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
