"""Names as text: class names in prompts and tables, model names in file names and legends."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

OPEN_CLIP = "open_clip:"  # prefix of the names of open_clip's models


def readable_name(class_name: str) -> str:
    """Return the class name as it enters a prompt: `_` becomes a space."""
    return " ".join(class_name.replace("_", " ").split())


def name_key(class_name: str) -> str:
    """Return the key by which spellings of one class name are equal: case, `_`, spaces and how accents are written."""
    return unicodedata.normalize("NFC", readable_name(class_name)).lower()


def places(known: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """Return the position of each wanted name in `known`; None for an unknown name.

    Where several classes share a name, as two of ImageNet's do, the first wanted is the first known, and so on.
    """
    positions_left: dict[str, list[int]] = {}
    for position, name in enumerate(known):
        positions_left.setdefault(name, []).append(position)
    matched: list[int | None] = []
    for name in wanted:
        left = positions_left.get(name)
        matched.append(None if left is None else left.pop(0) if len(left) > 1 else left[0])
    return matched


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names with a number added to each repetition: "missile", "missile (2)"."""
    taken, seen = set(names), Counter[str]()
    numbered: list[str] = []
    for name in names:
        seen[name] += 1
        number, candidate = seen[name], name
        while number > 1 and (candidate := f"{name} ({number})") in taken:
            number += 1
        taken.add(candidate)
        numbered.append(candidate)
    return numbered


def encodable(name: str) -> str:
    """Return the name with escapes for what UTF-8 cannot write: undecodable bytes of file names, lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode()


def short_name(name: str) -> str:
    """Return a model's name for file names and legends: `clip-vit-base-patch16`, `RN50-openai`."""
    arch, _, weights = name.removeprefix(OPEN_CLIP).partition("/")
    return f"{arch}-{Path(weights).stem}" if name.startswith(OPEN_CLIP) else Path(name).name
