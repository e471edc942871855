"""From options to the core's objects: backbone, cache, the images to use."""

from __future__ import annotations

from ..backbone import Backbone, load_backbone
from ..cache import FeatureCache, default_cache_folder
from ..images import DataSet, ImageItem
from .console import say, talk
from .options import Device, Dtype, Split


def open_backbone(model: str, revision: str | None, device: Device, dtype: Dtype, pickles: bool = False) -> Backbone:
    """Load the model, saying so while it lasts."""
    with talk.status(f"loading {model}"):
        return load_backbone(model, revision, device.value, dtype.value, pickles)


def open_cache(no_cache: bool) -> FeatureCache:
    """The feature cache on disk, or with --no-cache one in memory."""
    cache = FeatureCache(None if no_cache else default_cache_folder())
    if cache.problem:
        say(f"note: {cache.problem}")
    return cache


def pick_items(dataset: DataSet, split: Split | None) -> tuple[ImageItem, ...]:
    """The images of a split; without --split those of `test`, or all where the data knows no splits."""
    if split is Split.all:
        return tuple(item for items in dataset.splits.values() for item in items)
    return dataset.split(split.value) if split else dataset.split("test", "all", "val", "train")
