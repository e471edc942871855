"""`coop cache`: how large the feature cache is, bounding and clearing it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import typer

from . import options
from .console import print_json, say

UNITS = {f"{letter}{i}": base**power for i, base in (("", 1000), ("i", 1024)) for power, letter in enumerate("kmgt", 1)}
SMALLEST = 10_000_000  # below this, SQLite's own files beside the cache are no small part of it


Action = Literal["size", "clear"]


def _size(text: str) -> int | None:
    if text == "none":
        return None
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([kmgt]i?)?b?", text.strip().lower())
    if not match:
        raise typer.BadParameter(f'"{text}" is neither a size such as 500MB, 1.5GB or 2GiB nor "none"', param_hint="--max-size")
    size = round(float(match[1]) * UNITS.get(match[2], 1))
    if not SMALLEST <= size < 2**63:
        raise typer.BadParameter(f'"{text}" is less than 10MB, or more than any disk has', param_hint="--max-size")
    return size


def cache(
    action: Annotated[Action, typer.Argument(help="Show the size, or remove everything.")] = "size",
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size", metavar="SIZE|none",
            help="From now on keep to this size on disk, 10MB at least, e.g. 2GiB: what was not used for longest goes first.",
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Show, bound or clear the cache of image features.

    It lies in COOP_CACHE, else in the platform's cache folder. Features are kept by image content, so a moved or
    renamed image stays known and a changed one is encoded anew.
    """
    bound = None if max_size is None else _size(max_size)
    from ..clip.cache import FeatureCache, default_cache_folder
    from ..errors import CoopError

    store = FeatureCache(default_cache_folder())
    if store.problem and store.path:
        say(f"note: {store.problem}")
    removed = store.clear() if action == "clear" else 0
    if max_size is not None:
        store.limit(bound)
    (count, size), most, path = store.size(), store.max_bytes(), str(store.path)
    if not store.path:
        raise CoopError(str(store.problem).removesuffix("; going on without it"))
    if json:
        told = {"path": path, "features": count, "bytes": size, "max_bytes": most, "removed": removed}
        print_json({"command": "cache"} | told)
    elif action == "clear":
        print(f"removed {removed} features from {path}")
    else:
        of = f" of at most {most / 2**20:.1f} MiB" if most else ""
        print(f"{count} features, {size / 2**20:.1f} MiB{of} in {path}")
