"""Compute image features, encoding each image and each augmented view once and keeping it in the cache.

Reading, decoding and cropping run ahead in worker processes, which deliver full batches to the image tower.

Longer than most modules: reading, decoding, encoding and keeping are one pipeline, whose parts share its bounds.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from ..choices import OnError
from ..data.dataset import MOST_BYTES
from ..data.load import ImageItem
from ..errors import CoopError, UsageError
from ..parallel import gather, gather_rows, world
from .backbone import IMAGE_BATCH, Backbone
from .cache import FeatureCache
from .decoders import Submit, cores, decoders
from .image_encoder import ENCODING
from .pixels import DECODING, TURNS, Views, orientation, prepare

BATCH = {"cpu": 32, "cuda": 256}  # images to encode at once: a multiple of IMAGE_BATCH
AT_ONCE = 64  # images to read and look up at once; the bytes of twice as many are in memory
BYTES_AT_ONCE = 128 << 20  # of those images' files, so that large files are read a few at a time
READ_AHEAD = 128  # images whose bytes or pixels are in memory, beyond a batch
IN_TURN = 512  # images that each process of a job encodes before all exchange their features
FINISHED = 4096  # features that may wait for an earlier image
WORTH_PROCESSES = 64  # with fewer images, threads finish before processes would have started

Outcome = tuple[ImageItem, Tensor | CoopError]  # an image with its features, or with the reason why it has none
OnProgress = Callable[[int, int], None]  # (images done, images in all)

logger = logging.getLogger(__name__)


def image_features(
    backbone: Backbone, items: Sequence[ImageItem], cache: FeatureCache, on_progress: OnProgress | None = None
) -> Tensor:
    """Compute features of the preprocessed images: L2-normalised float32 [n, p], in the order of `items`.

    Raises CoopError, naming the file, for the first image that cannot be read.
    """
    return readable_features(backbone, items, cache, "fail", on_progress)[1]


def readable_features(
    backbone: Backbone,
    items: Sequence[ImageItem],
    cache: FeatureCache,
    on_error: OnError = "skip",
    on_progress: OnProgress | None = None,
) -> tuple[tuple[ImageItem, ...], Tensor]:
    """Compute features [n, p] as `image_features` does, of the images that can be read; returns those images as well.

    A warning counts the others. Raises CoopError when no image is left or, with on_error "fail", for the first that
    cannot be read.
    """
    kept, features = readable_views(backbone, items, [None], cache, on_error, on_progress)
    return kept, features[:, 0]


def view_features(
    backbone: Backbone,
    items: Sequence[ImageItem],
    views: Views,
    cache: FeatureCache,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Compute features of the augmented views with these numbers: L2-normalised float32 [n, views, p].

    A view is a random resized crop with a random flip, determined by the image's content and the view's number.
    Raises CoopError, naming the file, for the first image that cannot be read.
    """
    return readable_views(backbone, items, views, cache, "fail", on_progress)[1]


def readable_views(
    backbone: Backbone,
    items: Sequence[ImageItem],
    views: Views,
    cache: FeatureCache,
    on_error: OnError = "skip",
    on_progress: OnProgress | None = None,
) -> tuple[tuple[ImageItem, ...], Tensor]:
    """Compute features [n, views, p] of the images that can be read; returns those images as well.

    The view None is the centre crop. Warnings and errors are those of `readable_features`.
    """
    kept: list[ImageItem] = []
    skipped: list[CoopError] = []
    result = torch.empty(len(items), len(views), backbone.feature_width)
    with closing(_stream(backbone, items, cache, views)) as stream:
        for done, (item, features) in enumerate(stream, 1):
            if isinstance(features, Tensor):
                result[len(kept)] = features
                kept.append(item)
            elif on_error == "fail":
                raise features
            else:
                skipped.append(features)
            if on_progress:
                on_progress(done, len(items))
    if skipped and not kept:
        raise CoopError(f"none of {len(items)} images can be read; the first: {skipped[0]}")
    if skipped:
        logger.warning("skipped %d of %d images that cannot be read; the first: %s", len(skipped), len(items), skipped[0])
    return tuple(kept), result[: len(kept)]


def stream_features(
    backbone: Backbone, items: Iterable[ImageItem], cache: FeatureCache, submit: Submit | None = None
) -> Generator[Outcome]:
    """Yield each image with its features, L2-normalised float32 [p], or with the error that it cannot be read, in order.

    Reads `items` only a little ahead: memory does not grow with their number. Close it (`contextlib.closing`) when it is
    not read to its end: it holds worker processes; with `submit`, of `decoders`, those of its caller, for this process alone.
    """
    one = _stream_alone(backbone, items, cache, [None], submit) if submit else _stream(backbone, items, cache, [None])
    with closing(one) as stream:
        for item, features in stream:
            yield item, features if isinstance(features, CoopError) else features[0]


@dataclass
class _Image:
    """An image in the queue: its outcome is known, or else the cache keys and the future pixels of its views are."""

    item: ImageItem
    outcome: Tensor | CoopError | None = None  # features of the views [views, p]
    keys: Sequence[bytes] = ()
    pixels: Future[np.ndarray] = field(default_factory=Future)


def _stream(backbone: Backbone, items: Iterable[ImageItem], cache: FeatureCache, views: Views) -> Generator[Outcome]:
    return (_stream_alone if world().size == 1 else _stream_together)(backbone, items, cache, views)


def _stream_together(backbone: Backbone, items: Iterable[ImageItem], cache: FeatureCache, views: Views) -> Generator[Outcome]:
    """Yield the outcomes of all images in every process of the job: of each block a process encodes its part."""
    team, items = world(), iter(items)
    blocks: deque[list[ImageItem]] = deque()  # whose outcomes are still to come

    def own() -> Iterator[ImageItem]:
        while block := list(islice(items, IN_TURN * team.size)):
            blocks.append(block)
            yield from team.mine(block)

    with closing(_stream_alone(backbone, own(), cache, views)) as stream:
        outcome = next(stream, None)  # looks ahead, so that the block of its image is among `blocks`
        while blocks:
            block = blocks.popleft()
            features = torch.zeros(len(team.mine(block)), len(views), backbone.feature_width)
            errors: dict[int, str] = {}
            for place in range(len(features)):
                assert outcome
                if isinstance(outcome[1], Tensor):
                    features[place] = outcome[1]
                else:
                    errors[team.part(len(block)).start + place] = str(outcome[1])
                outcome = next(stream, None)
            counts = [len(replace(team, rank=rank).mine(block)) for rank in range(team.size)]
            names = hashlib.blake2b("\n".join(item.name for item in block).encode()).digest()
            parts = gather((names, errors))
            if any(part[0] != names for part in parts):
                raise CoopError("the processes of this job see different images; all must see the same folders")
            unreadable = {place: reason for part in parts for place, reason in part[1].items()}
            for place, (item, row) in enumerate(zip(block, gather_rows(features, counts), strict=True)):
                yield item, CoopError(unreadable[place]) if place in unreadable else row


def _stream_alone(
    backbone: Backbone, items: Iterable[ImageItem], cache: FeatureCache, views: Views, given: Submit | None = None
) -> Generator[Outcome]:
    items = iter(items)
    first = list(islice(items, WORTH_PROCESSES))
    many = len(first) >= WORTH_PROCESSES
    batch = max(1, BATCH[backbone.device.type] // len(views))
    queue: deque[_Image] = deque()  # in order; the first has no outcome yet
    unknown: deque[_Image] = deque()  # the images in the queue without outcome
    with nullcontext(given) if given else decoders(many) as submit, ThreadPoolExecutor(cores()) as readers:
        images = _look_up(backbone, chain(first, items), views, cache, submit, readers)
        while (image := next(images, None)) or unknown:
            if image:
                queue.append(image)
                if image.outcome is None:
                    unknown.append(image)
            if not image or len(unknown) >= batch + READ_AHEAD or len(queue) >= FINISHED:
                _encode(backbone, [unknown.popleft() for _ in range(min(batch, len(unknown)))], cache)
            while queue and (outcome := queue[0].outcome) is not None:
                yield queue.popleft().item, outcome


def _look_up(
    backbone: Backbone,
    items: Iterator[ImageItem],
    views: Views,
    cache: FeatureCache,
    submit: Submit,
    readers: Executor,
) -> Iterator[_Image]:
    """Yield each image with its cached features, or else with its pixels, which a worker begins to prepare."""
    model_key = backbone.model_key.encode()
    before: list[Future[np.ndarray]] = []
    turned = total = 0
    for part in _parts(items):
        if any(item.encoded for item in part):  # no pixels are at hand; what could not be encoded says why
            yield from (_Image(item, _kept(backbone, item, views)) for item in part)
            continue
        contents = list(readers.map(_read, part))
        are_turned = list(readers.map(_is_turned, contents))
        turned += sum(are_turned)
        total += len(part)
        digests = list(readers.map(_digest, contents))
        turns = [backbone.exif and is_turned for is_turned in are_turned]
        keys = [[_key(model_key, *image, view) for view in views] for image in zip(digests, turns, strict=True)]
        known = cache.get(key for of_image in keys for key in of_image)
        images = []
        for item, content, digest, turn, of_image in zip(part, contents, digests, turns, keys, strict=True):
            if isinstance(content, CoopError):
                images.append(_Image(item, content))
            elif all(key in known for key in of_image):
                images.append(_Image(item, torch.from_numpy(np.stack([known[key] for key in of_image]))))
            else:
                pixels = submit(content, prepare, backbone.preprocessing, content, item.name, digest, views, turn)
                images.append(_Image(item, None, of_image, pixels))
        del contents  # free them while the images wait
        wait(before)
        before = [image.pixels for image in images if image.outcome is None]
        yield from images
    if turned:
        _warn_once_of_turned(turned, total, backbone.exif)


def _kept(backbone: Backbone, item: ImageItem, views: Views) -> Tensor | CoopError:
    """The features [1, p] of an image that `coop encode` has encoded. Raises UsageError where others would be needed."""
    kept = item.encoded
    if not kept:
        content = _read(item)
        return content if isinstance(content, CoopError) else CoopError(f'image "{item.name}" has no features')
    if list(views) != [None]:
        raise UsageError(f'"{kept.folder}" holds one feature for each image and no pixels; augmented views need the images')
    if (kept.fingerprint, kept.exif) != (backbone.fingerprint, backbone.exif):
        how = "other weights, tokenizer or preprocessing" if kept.fingerprint != backbone.fingerprint else "another --exif"
        raise UsageError(f'the features in "{kept.folder}" are of another model than "{backbone.name}" ({how})')
    features = torch.from_numpy(kept.features())
    if len(features) != backbone.feature_width or not features.isfinite().all():
        raise CoopError(
            f'"{kept.folder}": the features of "{item.name}" are damaged; remove the shard and run coop encode again'
        )
    return features[None]


_warned: set[bool] = set()


def _warn_once_of_turned(turned: int, total: int, exif: bool) -> None:
    """Warn of images that EXIF turns, the first time that there are some: each stream after it would say the same again."""
    if exif not in _warned:
        _warned.add(exif)
        done = "are turned by their EXIF orientation" if exif else (
            "are to be turned by their EXIF orientation, which is ignored, as in the reference; --exif turns them"
        )  # fmt: skip
        logger.warning("%d of %d images %s", turned, total, done)


def _parts(items: Iterable[ImageItem]) -> Iterator[list[ImageItem]]:
    """Split the images into parts to read at once, by their number and the sizes of their files."""
    part: list[ImageItem] = []
    size = 0
    for item in items:
        part.append(item)
        if item.path:
            with suppress(OSError, ValueError):  # reading it will say why
                size += min(item.path.stat().st_size, MOST_BYTES)
        if len(part) >= AT_ONCE or size >= BYTES_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _read(item: ImageItem) -> bytes | CoopError:
    try:
        return item.read()
    except CoopError as error:
        return error


def _is_turned(content: bytes | CoopError) -> bool:
    return not isinstance(content, CoopError) and orientation(content) in TURNS


def _digest(content: bytes | CoopError) -> bytes:
    return hashlib.blake2b(b"" if isinstance(content, CoopError) else content, digest_size=16).digest()


def _key(model_key: bytes, digest: bytes, turned: bool, view: int | None) -> bytes:
    name = b"centre crop" if view is None else b"view %d" % view
    return hashlib.blake2b(model_key + digest + name + DECODING + ENCODING + b" turned" * turned, digest_size=16).digest()


def _encode(backbone: Backbone, images: Sequence[_Image], cache: FeatureCache) -> None:
    """Set the outcome of these images, and put their features into the cache."""
    whole, pixels = [], []
    for image in images:
        try:
            pixels.append(image.pixels.result())
            whole.append(image)
        except CoopError as error:
            image.outcome = error
    if not whole:
        return
    try:
        names = [image.item.name for image in whole for _ in image.keys]  # one for each view
        features = backbone.encode_images(torch.from_numpy(np.concatenate(pixels)), names)
    except torch.OutOfMemoryError as error:
        most = IMAGE_BATCH[backbone.device.type]
        raise CoopError(
            f"the GPU's memory cannot hold {most} images at a time; use --dtype bfloat16 or --device cpu"
        ) from error
    features = features.view(len(whole), -1, backbone.feature_width)
    keys = [key for image in whole for key in image.keys]
    cache.put(dict(zip(keys, features.flatten(0, 1).numpy(), strict=True)))
    for image, of_image in zip(whole, features, strict=True):
        image.outcome = of_image
