"""Images -> image features, each image and each augmented view encoded once and kept in the cache."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .backbone import Backbone
from .cache import FeatureCache
from .errors import CoopError
from .images import ImageItem

BATCH = 32
# Batches are filled up to a multiple of this: matrix kernels may round smaller ones differently, and a feature must not
# depend on which images it was encoded with, or the cache would change results.
CPU_BATCH_MULTIPLE = 8
READ_AHEAD = 256  # images whose bytes are in memory at once

Progress = Callable[[int, int], None]  # (images done, images in all)


def image_features(
    backbone: Backbone, items: Sequence[ImageItem], cache: FeatureCache, on_progress: Progress | None = None
) -> Tensor:
    """Features of the preprocessed images, L2-normalised float32 [n, p], in the order of `items`.

    Raises CoopError, naming the file, for an image that cannot be read.
    """
    return _encode(backbone, items, cache, [None], on_progress)[:, 0]


def view_features(
    backbone: Backbone, items: Sequence[ImageItem], views: int, cache: FeatureCache, on_progress: Progress | None = None
) -> Tensor:
    """Features of `views` augmented views of each image, L2-normalised float32 [n, views, p].

    A view is a random resized crop with a random flip, fixed by the image's content and the view's number.
    """
    return _encode(backbone, items, cache, list(range(views)), on_progress)


def _encode(
    backbone: Backbone, items: Sequence[ImageItem], cache: FeatureCache, views: list[int | None], on_progress: Progress | None
) -> Tensor:
    model_key = f"{backbone.fingerprint}/{backbone.dtype}/{backbone.device.type}".encode()
    result = torch.empty(len(items), len(views), backbone.feature_width)
    with ThreadPoolExecutor(cpu_count()) as threads:
        for start in range(0, len(items), READ_AHEAD):
            part = items[start : start + READ_AHEAD]
            contents = list(threads.map(lambda item: item.read(), part))
            digests = list(threads.map(lambda content: hashlib.blake2b(content, digest_size=16).digest(), contents))
            keys = [[_key(model_key, digest, view) for view in views] for digest in digests]
            known = cache.get(key for of_image in keys for key in of_image)
            missing = [row for row, of_image in enumerate(keys) if any(key not in known for key in of_image)]

            def prepare(row: int) -> list[Image.Image]:
                image = open_image(contents[row], part[row].name)  # noqa: B023
                return [_view(image, digests[row], view, backbone.image_size) for view in views]  # noqa: B023

            for rows in _batches(missing, max(1, BATCH // len(views))):
                pictures = list(threads.map(prepare, rows))
                encoded = _encode_pictures(
                    backbone, [picture for of_image in pictures for picture in of_image], views != [None]
                )
                fresh = dict(zip((key for row in rows for key in keys[row]), encoded.numpy(), strict=True))
                cache.put(fresh)
                known |= fresh
                if on_progress:
                    on_progress(start + rows[-1] + 1, len(items))
            for row, of_image in enumerate(keys):
                for column, key in enumerate(of_image):
                    result[start + row, column] = torch.from_numpy(known[key].copy())
            if on_progress:
                on_progress(start + len(part), len(items))
    return result


def _key(model_key: bytes, digest: bytes, view: int | None) -> bytes:
    name = b"centre" if view is None else b"view %d" % view
    return hashlib.blake2b(model_key + digest + name, digest_size=16).digest()


def _batches(rows: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _encode_pictures(backbone: Backbone, pictures: list[Image.Image], cropped: bool) -> Tensor:
    """Features [n, p] of pictures; `cropped` ones have the model's size already."""
    process = backbone.image_processor
    kept = {"do_resize": False, "do_center_crop": False} if cropped else {}
    multiple = CPU_BATCH_MULTIPLE if backbone.device.type == "cpu" else BATCH
    parts = []
    for start in range(0, len(pictures), BATCH):
        pixels = process(pictures[start : start + BATCH], return_tensors="pt", **kept).pixel_values
        filler = -len(pixels) % multiple
        padded = torch.cat([pixels, pixels[:1].expand(filler, -1, -1, -1)]) if filler else pixels
        parts.append(backbone.encode_images(padded)[: len(pixels)])
    return torch.cat(parts)


def open_image(content: bytes, name: str) -> Image.Image:
    """Decode an image to RGB. Raises CoopError naming it."""
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is empty" if not content else "it is no image that Pillow knows, or is damaged"
        if isinstance(error, Image.DecompressionBombError):
            reason = "it is too large"
        raise CoopError(f'image "{name}" cannot be read: {reason}') from error


def _view(image: Image.Image, digest: bytes, view: int | None, size: int) -> Image.Image:
    if view is None:
        return image
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
