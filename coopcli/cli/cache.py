"""`coop cache`: how large the feature cache is, and clearing it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from . import options
from .console import print_json


class Action(StrEnum):
    """What to do with the cache."""

    size = "size"
    clear = "clear"


def cache(
    action: Annotated[Action, typer.Argument(help="Show the size, or remove everything.")] = Action.size,
    json: options.JsonOption = False,
) -> None:
    """Show or clear the cache of image features.

    It lies in COOP_CACHE, else in the platform's cache folder. Features are kept by image content, so a moved or
    renamed image stays known and a changed one is encoded anew.
    """
    from ..cache import FeatureCache, default_cache_folder
    from ..errors import CoopError

    store = FeatureCache(default_cache_folder())
    if store.problem:
        raise CoopError(store.problem)
    removed = store.clear() if action is Action.clear else 0
    count, size = store.size()
    if json:
        print_json({"command": "cache", "path": str(store.path), "features": count, "bytes": size, "removed": removed})
    elif action is Action.clear:
        print(f"removed {removed} features from {store.path}")
    else:
        print(f"{count} features, {size / 2**20:.1f} MiB in {store.path}")
