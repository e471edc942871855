"""Labelled images, wherever they come from."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import CoopError, UsageError
from ..names import encodable

if TYPE_CHECKING:
    from .encoded import Encoded

# The spellings of each split, without case and signs: `Training_Set` is "trainingset".
SPLIT_SPELLINGS = {
    "train": ("train", "training", "trn", "tr", "trainset", "trainingset", "traindata", "trainingdata"),
    "val": ("val", "valid", "validation", "dev", "devel", "development", "valset", "validset", "validationset", "devset"),
    "test": ("test", "testing", "tst", "te", "testset", "testingset", "testdata", "eval", "evaluation", "heldout", "holdout"),
}
SPLIT_NAMES = {spelling: split for split, spellings in SPLIT_SPELLINGS.items() for spelling in spellings}
SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # with numbers and these words beside
BESIDE_SPLITS = {"set", "data", "dataset", "image", "images", "img", "imgs", "split", "subset", "folder", "dir", "samples"}
MOST_BYTES = 256 << 20  # of an image file; a larger one is not read into memory

T = TypeVar("T")


@dataclass(frozen=True)
class ImageItem:
    """One labelled image, not yet read. `name` is its path within the data set, `path` its file if it has one.

    `read` raises CoopError, naming the image, when it cannot be read. Of an image whose features are at hand in place of its
    pixels, `encoded` holds them (encoded.py).
    """

    name: str
    label: int
    read: Callable[[], bytes]
    path: Path | None = None
    encoded: Encoded | None = None


def file_item(path: Path, name: str, label: int = 0, hint: str = "") -> ImageItem:
    """Make the item of an image file; `hint` says what to do if the file is missing."""
    return ImageItem(encodable(name), label, partial(read_file, path, hint), path)


def read_file(path: Path, hint: str = "") -> bytes:
    """Read a regular file of at most 256 MiB. Raises CoopError for anything else: reading a pipe might never end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            reason = "it is a folder" if path.is_dir() else "it is not a regular file"
        elif status.st_size > MOST_BYTES:
            reason = f"it has {status.st_size / (1 << 20):,.0f} MiB, more than the {MOST_BYTES >> 20} MiB of the largest image"
        else:
            return path.read_bytes()
    except FileNotFoundError:
        reason = f"it does not exist{hint}"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or str(error)
    except MemoryError:
        reason = "there is not enough memory for it"
    raise CoopError(f'image "{path}" cannot be read: {reason}')


@dataclass(frozen=True)
class DataSet:
    """Labelled images by split: `train`, `val`, `test`, or `all` where the data has no splits.

    `class_names` go into prompts; `folders` are the names that the data itself uses for the classes, in the same order.
    `columns` names the columns that a table was read by, by what they were taken for; `left_out` lists what lies in the
    data and was not used, in words.
    """

    name: str
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    splits: Mapping[str, tuple[ImageItem, ...]]
    columns: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def split(self, *wanted: str) -> tuple[ImageItem, ...]:
        """Return the first split among `wanted` that exists. Raises UsageError when none does."""
        for name in wanted:
            if name in self.splits:
                return self.splits[name]
        raise UsageError(f"{self.name} has no {' or '.join(wanted)} split; it has: {', '.join(self.splits)}")

    def select(self, wanted: str) -> tuple[ImageItem, ...]:
        """Return the images of a split, of `all`, or of parts as `datasets` writes them: `train[:50%]`, `val+test[100:200]`.

        Raises UsageError for an unknown split, another form, or a part without images.
        """
        every = tuple(item for items in self.splits.values() for item in items)
        items = {"all": every, **self.splits}
        known = ", ".join(items)
        items |= {alias: items[name] for alias, name in SPLIT_NAMES.items() if name in items and alias not in items}
        if wanted in items:
            return items[wanted]
        if re.fullmatch(r"\w+", wanted):
            return self.split(wanted)  # raises: it does not exist
        from datasets import ReadInstruction

        try:
            parts = ReadInstruction.from_spec(wanted).to_absolute({name: len(members) for name, members in items.items()})
        except (ValueError, AssertionError, OverflowError) as error:
            raise UsageError(
                f'"{wanted}" is not a part of {self.name}; write a split ({known}), '
                "a part of it as train[:50%] or test[100:200], or several as val+test"
            ) from error
        chosen = tuple(item for part in parts for item in items[part.splitname][part.from_ : part.to])
        if not chosen:
            raise UsageError(f'"{wanted}" contains no images of {self.name}')
        return chosen

    def renamed(self, names: Mapping[str, str]) -> DataSet:
        """Return the same images with other class names, by folder or present name; classes not named keep theirs.

        Raises UsageError when `names` names no class at all.
        """
        pairs = list(zip(self.folders, self.class_names, strict=True))
        if not any(folder in names or name in names for folder, name in pairs):
            examples = ", ".join(f'"{folder}"' for folder in self.folders[:2])
            raise UsageError(f"the class-name file names none of the classes of {self.name}; they are {examples}, ...")
        return replace(self, class_names=tuple(names.get(folder, names.get(name, name)) for folder, name in pairs))


def describe(dataset: DataSet) -> str:
    """Say in one line what was read: classes, images by split, the columns taken, and what was left out."""
    counts = [f"{len(items):,} {split}" if split != "all" else f"{len(items):,}" for split, items in dataset.splits.items()]
    parts = [f"{len(dataset.class_names):,} classes, {' + '.join(counts)} images"]
    if dataset.columns:
        parts.append("columns: " + ", ".join(f'{use} "{column}"' for use, column in dataset.columns.items()))
    if dataset.left_out:
        parts.append(f"left out: {', '.join(dataset.left_out)}")
    return f"{dataset.name}: {'; '.join(parts)}"


def split_name(word: str) -> str | None:
    """Return `train`, `val` or `test` for any usual spelling of it, also `Train_Images` and `val2017`; None for other words."""
    whole = re.sub(r"[\W_]", "", word).lower()
    parts = [part for part in re.findall("[a-z]+", word.lower()) if part not in BESIDE_SPLITS]
    return SPLIT_NAMES.get(whole) or (SPLIT_NAMES[parts[0]] if len(parts) == 1 and parts[0] in SPLIT_WORDS else None)


def by_split_name(splits: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Rename splits to `train`, `val` and `test`; any other keeps its name, and so does the second of the same."""
    named: dict[str, T] = {}
    for split, content in splits:
        name = split_name(split) or split
        named[split if name in named else name] = content
    return named


def class_order(values: Iterable[str]) -> list[str]:
    """Sort the distinct values of a label column: by size where all are whole numbers, else by the alphabet."""
    distinct = sorted(set(values))
    if not all(re.fullmatch(r"-?\d{1,1000}", value) for value in distinct):  # Python refuses to parse very long numbers
        return distinct
    return sorted(distinct, key=int)


def columns_named(columns: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return the columns that have one of the wanted names, whatever their case and signs, the likeliest first."""
    words = [(re.sub(r"[\W_]", "", column).lower(), column) for column in columns]
    return [column for name in wanted for word, column in words if word == name]
