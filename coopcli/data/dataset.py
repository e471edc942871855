"""What labelled images are, wherever they come from."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..errors import CoopError, UsageError
from ..names import encodable

# The names of the splits, as data sets write them and as they are called here.
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

T = TypeVar("T")


@dataclass(frozen=True)
class ImageItem:
    """One labelled image, not yet read. `name` is its path within the data set, `path` its file if it has one.

    `read` raises CoopError, naming the image, when it cannot be read.
    """

    name: str
    label: int
    read: Callable[[], bytes]
    path: Path | None = None


def file_item(path: Path, name: str, label: int = 0, hint: str = "") -> ImageItem:
    """The image in a file; `hint` says what to do if it is not there."""
    return ImageItem(encodable(name), label, partial(read_file, path, hint), path)


def read_file(path: Path, hint: str = "") -> bytes:
    """The bytes of a regular file. Raises CoopError for anything else: a pipe, say, would be waited for without end."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path.read_bytes()
        reason = "it is a folder" if path.is_dir() else "it is no regular file"
    except FileNotFoundError:
        reason = f"it is not there{hint}"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or str(error)
    raise CoopError(f'image "{path}" cannot be read: {reason}')


@dataclass(frozen=True)
class DataSet:
    """Labelled images by split: `train`, `val`, `test`, or `all` where the data knows no splits.

    `class_names` go into prompts; `folders` are the names that the data itself uses for the classes, in the same order.
    """

    name: str
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    splits: Mapping[str, tuple[ImageItem, ...]]

    def split(self, *wanted: str) -> tuple[ImageItem, ...]:
        """The first split among `wanted` that there is. Raises UsageError when there is none."""
        for name in wanted:
            if name in self.splits:
                return self.splits[name]
        raise UsageError(f"{self.name} has no {' or '.join(wanted)} split; it has: {', '.join(self.splits)}")

    def select(self, wanted: str) -> tuple[ImageItem, ...]:
        """The images of a split, of `all`, or of parts as `datasets` writes them: `train[:50%]`, `val+test[100:200]`.

        Raises UsageError for a split that is not there, another form, or a part without images.
        """
        of_all = tuple(item for items in self.splits.values() for item in items)
        items = {"all": of_all, **self.splits}
        items |= {alias: items[name] for alias, name in SPLIT_NAMES.items() if name in items and alias not in items}
        if wanted in items:
            return items[wanted]
        if re.fullmatch(r"\w+", wanted):
            return self.split(wanted)  # which is not there
        from datasets import ReadInstruction

        try:
            parts = ReadInstruction.from_spec(wanted).to_absolute({name: len(of_split) for name, of_split in items.items()})
        except (ValueError, AssertionError) as error:
            raise UsageError(
                f'"{wanted}" is no part of {self.name}; write a split ({", ".join(items)}), '
                "a part of it as train[:50%] or test[100:200], or several as val+test"
            ) from error
        chosen = tuple(item for part in parts for item in items[part.splitname][part.from_ : part.to])
        if not chosen:
            raise UsageError(f'"{wanted}" holds no images of {self.name}')
        return chosen

    def renamed(self, names: Mapping[str, str]) -> DataSet:
        """The same images with other class names, by folder or present name; classes not named keep theirs.

        Raises UsageError when `names` names no class at all.
        """
        pairs = list(zip(self.folders, self.class_names, strict=True))
        if not any(folder in names or name in names for folder, name in pairs):
            raise UsageError(
                f"the class-name file names none of the classes of {self.name}; "
                f'they are "{self.folders[0]}", "{self.folders[1]}", ...'
            )
        return replace(self, class_names=tuple(names.get(folder, names.get(name, name)) for folder, name in pairs))


def by_split_name(splits: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Splits under the names that they have here; any other keeps its own, and so does a second of the same."""
    named: dict[str, T] = {}
    for split, content in splits:
        name = SPLIT_NAMES.get(split, split)
        named[split if name in named else name] = content
    return named


def class_order(values: Iterable[str]) -> list[str]:
    """The distinct values of a label column: by size where all are whole numbers, else by the alphabet."""
    distinct = sorted(set(values))
    return sorted(distinct, key=int) if all(re.fullmatch(r"-?\d+", value) for value in distinct) else distinct


def column_named(columns: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The first of the wanted columns that there is, whatever its case and however its words are joined."""
    by_word = {re.sub(r"[\W_]", "", column).lower(): column for column in reversed(list(columns))}
    return next((by_word[word] for word in wanted if word in by_word), None)
