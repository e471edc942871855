"""`coop cache`: show, limit and clear the feature cache."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import typer

from . import options
from .console import line, print_json, say

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
            help="Limit the size on disk from now on, e.g. 2GiB (at least 10MB): the least recently used features go first.",
        ),
    ] = None,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Show, limit or clear the cache of image features.

    The cache lies in the folder COOP_CACHE, by default in the platform's cache folder. Features are kept by image content:
    a moved or renamed image is not encoded again, a changed one is.
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
        raise CoopError(str(store.problem).removesuffix("; continuing without it"))
    if json:
        content = {"path": path, "features": count, "bytes": size, "max_bytes": most, "removed": removed}
        print_json({"command": "cache"} | content)
    elif action == "clear":
        line(f"removed {removed} features from {path}")
    else:
        bounded = f" of at most {most / 2**20:.1f} MiB" if most else ""
        line(f"{count} features, {size / 2**20:.1f} MiB{bounded} in {path}")
