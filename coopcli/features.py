"""Images -> image features, each image and each augmented view encoded once and kept in the cache.

Reading, decoding and cropping run ahead in worker processes; the image tower sees full batches of what they deliver.
"""

from __future__ import annotations

import hashlib
import io
import math
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .backbone import Backbone
from .cache import FeatureCache
from .errors import CoopError
from .images import ImageItem

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil

BATCH = {"cpu": 32, "cuda": 256}  # pictures to a batch
# Batches are filled up to a multiple of this: matrix kernels may round smaller ones differently, and a feature must not
# depend on which images it was encoded with, or the cache would change results.
MULTIPLE = {"cpu": 8, "cuda": 256}
READ_AHEAD = 256  # images whose bytes are in memory at once
WORTH_PROCESSES = 64  # with fewer images than this, threads are done before processes have started

Progress = Callable[[int, int], None]  # (images done, images in all)
Views = Sequence[int | None]  # numbers of augmented views, or None for the image as it is


def image_features(
    backbone: Backbone, items: Sequence[ImageItem], cache: FeatureCache, on_progress: Progress | None = None
) -> Tensor:
    """Features of the preprocessed images, L2-normalised float32 [n, p], in the order of `items`.

    Raises CoopError, naming the file, for an image that cannot be read.
    """
    return _encode(backbone, items, [None], cache, on_progress)[:, 0]


def view_features(
    backbone: Backbone,
    items: Sequence[ImageItem],
    views: Sequence[int],
    cache: FeatureCache,
    on_progress: Progress | None = None,
) -> Tensor:
    """Features of the augmented views of these numbers, L2-normalised float32 [n, views, p].

    A view is a random resized crop with a random flip, fixed by the image's content and the view's number.
    """
    return _encode(backbone, items, views, cache, on_progress)


class _Unknown(NamedTuple):
    """An image without features yet: its place among the items, its views' cache keys, their pixels to come."""

    row: int
    keys: list[bytes]
    pixels: Future[np.ndarray]


def _encode(
    backbone: Backbone, items: Sequence[ImageItem], views: Views, cache: FeatureCache, on_progress: Progress | None
) -> Tensor:
    result = torch.empty(len(items), len(views), backbone.feature_width)
    done = 0

    def fill(row: int, features: Iterable[np.ndarray]) -> None:
        nonlocal done
        result[row] = torch.from_numpy(np.stack(list(features)))
        done += 1
        if on_progress:
            on_progress(done, len(items))

    device = backbone.device.type
    with _workers(len(items)) as workers, ThreadPoolExecutor(_cores()) as readers:
        unknown = _look_up(backbone, items, views, cache, workers, readers, fill)
        for batch in _batches(unknown, max(1, BATCH[device] // len(views))):
            pixels = torch.from_numpy(np.concatenate([image.pixels.result() for image in batch]))
            features = torch.cat([_encode_pixels(backbone, part) for part in pixels.split(BATCH[device])])
            for image, rows in zip(batch, features.view(len(batch), len(views), -1).numpy(), strict=True):
                cache.put(dict(zip(image.keys, rows, strict=True)))
                fill(image.row, rows)
    return result


def _look_up(
    backbone: Backbone,
    items: Sequence[ImageItem],
    views: Views,
    cache: FeatureCache,
    workers: Executor,
    readers: Executor,
    fill: Callable[[int, Iterable[np.ndarray]], None],
) -> Iterator[_Unknown]:
    """Fill in what the cache knows; yield the rest, their pixels being prepared READ_AHEAD images ahead."""
    model_key = backbone.model_key.encode()
    waiting: deque[_Unknown] = deque()
    for start in range(0, len(items), READ_AHEAD):
        part = items[start : start + READ_AHEAD]
        contents = list(readers.map(lambda item: item.read(), part))
        digests = list(readers.map(lambda content: hashlib.blake2b(content, digest_size=16).digest(), contents))
        keys = [[_key(model_key, digest, view) for view in views] for digest in digests]
        known = cache.get(key for of_image in keys for key in of_image)
        for row, (item, content, digest, of_image) in enumerate(zip(part, contents, digests, keys, strict=True), start):
            if all(key in known for key in of_image):
                fill(row, (known[key] for key in of_image))
                continue
            pixels = workers.submit(_prepare, backbone.image_processor, backbone.image_size, content, item.name, digest, views)
            waiting.append(_Unknown(row, of_image, pixels))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft()
    yield from waiting


def _key(model_key: bytes, digest: bytes, view: int | None) -> bytes:
    name = b"centre" if view is None else b"view %d" % view
    return hashlib.blake2b(model_key + digest + name, digest_size=16).digest()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _workers(n_images: int) -> Iterator[Executor]:
    """Processes to decode in, where they start at once (by fork); else threads: Pillow frees the lock for most of its work."""
    if n_images < WORTH_PROCESSES or sys.platform != "linux":
        executor: Executor = ThreadPoolExecutor(_cores())
    else:
        executor = ProcessPoolExecutor(_cores(), multiprocessing.get_context("fork"), initializer=_begin_worker)
    try:
        yield executor
    except BrokenProcessPool as error:
        raise CoopError("a process that decodes images was ended from outside; was the memory full?") from error
    finally:
        executor.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one


def _prepare(process: CLIPImageProcessorPil, size: int, content: bytes, name: str, digest: bytes, views: Views) -> np.ndarray:
    """The pixels of an image's views, uint8 [views, 3, size, size]: all from one decoding."""
    image = open_image(content, name)
    cropped = views[0] is not None
    pictures = [image if view is None else _view(image, digest, view, size) for view in views]
    kept = {"do_resize": False, "do_center_crop": False} if cropped else {}
    return np.stack(process(pictures, do_rescale=False, do_normalize=False, **kept).pixel_values)


def _batches(images: Iterable[_Unknown], size: int) -> Iterator[list[_Unknown]]:
    batch: list[_Unknown] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _encode_pixels(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Features [n, p] of one batch of pixels, whatever else is in it."""
    filler = -len(pixels) % MULTIPLE[backbone.device.type]
    padded = torch.cat([pixels, pixels[:1].expand(filler, -1, -1, -1)]) if filler else pixels
    return backbone.encode_images(padded)[: len(pixels)]


def open_image(content: bytes, name: str) -> Image.Image:
    """Decode an image to RGB. Raises CoopError naming it."""
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is empty" if not content else "it is no image that Pillow knows, or is damaged"
        if isinstance(error, Image.DecompressionBombError):
            reason = "it is too large"
        raise CoopError(f'image "{name}" cannot be read: {reason}') from error


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
