"""From options to the core's objects: backbone, cache, the images to use."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from ..choices import Device, Dtype
from ..clip.backbone import Backbone, load_backbone
from ..clip.cache import FeatureCache, default_cache_folder
from ..clip.pixels import allow_pixels
from ..data.encoded import check_views
from ..data.fewshot import test_items
from ..data.load import DataSet, ImageItem, describe, load_data
from ..errors import CoopError
from ..experiments.plots import check_matplotlib
from ..hub import prompt_path
from ..machine import network_file_system
from ..parallel import gather, world
from .console import detail, say, status
from .finding import check_prompt


def find_prompt(source: str, others: Sequence[str] = ()) -> Path:
    """Find a prompt's file or folder, fetched from the hub if it is not a path here, saying so while it lasts.

    `others` are the command's further arguments, among which the prompt may stand by mistake.
    """
    check_prompt(source, others)
    with status(f"looking for {source}"):
        return prompt_path(source)


def open_backbone(
    model: str, revision: str | None, device: Device, dtype: Dtype, pickles: bool = False, cache: FeatureCache | None = None
) -> Backbone:
    """Load the model, saying so meanwhile; one that the cache knows, when it is first used."""
    began = time.perf_counter()
    with status(f"loading {model}"):
        backbone = load_backbone(model, revision, device, dtype, pickles, cache)
    about = f"loaded in {time.perf_counter() - began:.1f} s" if backbone.loaded else "known from before, loaded when needed"
    detail(f"model: {backbone.name} in {dtype} on {backbone.device}, {about}")
    return backbone


def open_cache(no_cache: bool) -> FeatureCache:
    """Open the feature cache on disk or, with --no-cache, one in memory."""
    cache = FeatureCache(None if no_cache else default_cache_folder())
    if cache.problem:
        say(f"note: {cache.problem}")
    if cache.path and (kind := network_file_system(cache.path)):
        say(
            f'note: the feature cache "{cache.path.parent}" lies on a network file system ({kind}), where processes of several '
            "hosts can damage it; set COOP_CACHE to a folder of this host"
        )
    detail(f"cache: {cache.path or 'in memory'}")
    return cache


@dataclass(frozen=True)
class Source:
    """DATA and the options that say how to read it."""

    data: str
    images: Path | None
    classnames: Path | None
    image_column: str | None
    label_column: str | None
    max_pixels: int | None

    def load(self) -> DataSet:
        """List the images, and say what was read."""
        dataset = self.read()
        say(f"data: {describe(dataset)}")
        return dataset

    def read(self) -> DataSet:
        """List the images; from here on, an image may have `max_pixels`."""
        if self.max_pixels:
            allow_pixels(self.max_pixels)
        dataset = load_data(self.data, self.images, self.classnames, self.image_column, self.label_column)
        check_alike(dataset)
        return dataset


def fitting_views(context: typer.Context, dataset: DataSet, views: int) -> int:
    """The number of views to use: of images known by their features alone 1, their centre crop.

    Raises UsageError where another number is asked for.
    """
    items = [item for of_split in dataset.splits.values() for item in of_split]
    if any(item.encoded for item in items) and getattr(context.get_parameter_source("views"), "name", "") == "DEFAULT":
        say("note: DATA holds one feature for each image and no pixels; training uses no augmented views")
        return 1
    check_views(items, views)
    return views


def check_alike(dataset: DataSet) -> None:
    """Raise CoopError where the processes of a job see different data."""
    if world().size > 1:
        names = [(split, item.name, item.label) for split, items in dataset.splits.items() for item in items]
        digest = hashlib.sha256(repr((dataset.class_names, names)).encode()).hexdigest()
        if len(set(gather(digest))) > 1:
            raise CoopError(f'the processes of this job see different images or classes in "{dataset.name}"')


def can_draw() -> bool:
    """Check before the work whether figures can be drawn; say so if not."""
    try:
        check_matplotlib()
    except CoopError as error:
        say(f"note: {error}; continuing without figures")
        return False
    return True


def pick_items(dataset: DataSet, split: str | None) -> tuple[ImageItem, ...]:
    """Pick the images of a split; by default those of `test`, or all images of data without splits."""
    return dataset.select(split) if split else test_items(dataset)
