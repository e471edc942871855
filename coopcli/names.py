"""Names as text: those of classes, in prompts and tables, and those of models, in file names and legends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

OPEN_CLIP = "open_clip:"  # how the names of open_clip's models begin


def readable_name(class_name: str) -> str:
    """The class name as it enters a prompt: `_` becomes a space."""
    return " ".join(class_name.replace("_", " ").split())


def name_key(class_name: str) -> str:
    """What two spellings of one class name have in common: case, `_` and spaces do not count."""
    return readable_name(class_name).lower()


def places(known: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """Where each wanted name stands among those known; None for a stranger.

    Of a name that several classes bear, as two of ImageNet's, the first wanted is the first known, and so on.
    """
    left: dict[str, list[int]] = {}
    for place, name in enumerate(known):
        left.setdefault(name, []).append(place)
    found: list[int | None] = []
    for name in wanted:
        of_name = left.get(name)
        found.append(None if of_name is None else of_name.pop(0) if len(of_name) > 1 else of_name[0])
    return found


def distinct(names: Sequence[str]) -> list[str]:
    """The names, told apart where one comes again: "missile", "missile (2)"."""
    taken, seen, found = set(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        number, told = seen[name], name
        while number > 1 and (told := f"{name} ({number})") in taken:
            number += 1
        taken.add(told)
        found.append(told)
    return found


def encodable(name: str) -> str:
    """The name, with escapes for what UTF-8 cannot write: bytes of a file's name that are no text, halves of letters."""
    return name.encode("utf-8", "backslashreplace").decode()


def short_name(name: str) -> str:
    """A model's name in the names of files and in legends: `clip-vit-base-patch16`, `RN50-openai`."""
    arch, _, weights = name.removeprefix(OPEN_CLIP).partition("/")
    return f"{arch}-{Path(weights).stem}" if name.startswith(OPEN_CLIP) else Path(name).name
