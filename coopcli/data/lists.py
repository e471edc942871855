"""Labelled images that a file lists: a split file of the reference, or a table of paths and labels."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import CoopError, UsageError
from .dataset import SPLIT_NAMES, DataSet, ImageItem, class_order, column_named, file_item

TABLES = (".csv", ".tsv", ".jsonl")
# What image and label columns are called, the likeliest first; see column_named.
IMAGE_COLUMNS = ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "img")
LABEL_COLUMNS = ("label", "labels", "class", "classname", "category", "target", "cls", "name")

logger = logging.getLogger(__name__)


def portable(listed: str) -> str:
    """A listed path with slashes, and within the image folder, where Windows wrote it: `.\\a\\b.jpg` or `\\a\\b.jpg`."""
    return PureWindowsPath(listed).as_posix().lstrip("/") if "\\" in listed else listed


def _image_root(listing: Path, images_root: Path | None) -> Path:
    root = images_root or listing.parent
    if not root.is_dir():
        raise UsageError(f'--images "{root}" is no folder')
    return root


def _hint(listing: Path, root: Path) -> str:
    return f'; "{listing.name}" lists it relative to --images "{root}": is that the right folder, and is the data set complete?'


# ------------------------------------------------------------------------------------------------ split files


def load_split_file(path: Path, images_root: Path | None = None) -> DataSet:
    """A `split_zhou_*.json`: {"train"|"val"|"test": [[path, label, class name], ...]}, paths relative to `images_root`.

    Raises CoopError for a file of another form, UsageError for an image root that is not there.
    """
    root = _image_root(path, images_root)
    try:
        content = json.loads(path.read_text("utf-8"))
        rows = {split: [(portable(str(p)), int(label), str(name)) for p, label, name in content[split]] for split in content}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CoopError(
            f'"{path}" is no split file: expected {{"train": [[path, label, class name], ...], "test": ...}}'
        ) from error
    names: dict[int, str] = {}
    folders: dict[int, set[str]] = {}
    for of_split in rows.values():
        for relative, label, name in of_split:
            if names.setdefault(label, name) != name:
                raise CoopError(f'"{path}" gives label {label} two names: "{names[label]}" and "{name}"')
            folders.setdefault(label, set()).add(relative.rpartition("/")[0])
    if sorted(names) != list(range(len(names))) or not names:
        raise CoopError(f'"{path}" must label its classes 0 to K-1 without gaps')
    hint = _hint(path, root)
    splits = {
        split: tuple(file_item(root / relative, relative, label, hint) for relative, label, _ in of_split)
        for split, of_split in rows.items()
        if of_split
    }
    class_names = tuple(names[label] for label in range(len(names)))
    # A class whose images lie in a folder of their own is known by that folder too.
    own = [folders[label].pop() if len(folders[label]) == 1 else "" for label in range(len(names))]
    known_by = own if all(own) and len(set(own)) == len(own) else class_names
    return DataSet(path.stem.removeprefix("split_zhou_"), class_names, tuple(known_by), splits)


# ------------------------------------------------------------------------------------------------ tables


def load_table(
    path: Path, images_root: Path | None = None, image_column: str | None = None, label_column: str | None = None
) -> DataSet:
    """A CSV or TSV file with a header, or JSON lines: one image a row, its path relative to `images_root`, and its label.

    The columns are found by name, unless given. Classes are the distinct labels, sorted; a column `split` of train, val and
    test parts the images. Raises CoopError for a file of another form, UsageError for a column or an image root that is
    not there.
    """
    return load_tables(path.stem, {"all": path}, images_root, image_column, label_column)


def load_tables(
    name: str,
    paths: Mapping[str, Path],
    images_root: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataSet:
    """A table for each split, of the same columns and classes; for the rest see `load_table`."""
    listed: list[tuple[str, Path, str, str]] = []  # split, table, image, label
    for split, path in paths.items():
        rows = read_rows(path)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        image = pick_column(path, columns, "image", image_column or column_named(columns, IMAGE_COLUMNS))
        rest = [column for column in columns if column != image]
        label = pick_column(path, columns, "label", label_column or column_named(rest, LABEL_COLUMNS))
        splits_of = _splits_of(path, rows, column_named(rest, ["split"])) if split == "all" else [split] * len(rows)
        for number, (row, part) in enumerate(zip(rows, splits_of, strict=True), 1):
            listed.append((part, path, portable(_text(row.get(image))), _text(row.get(label)).strip()))
            if not listed[-1][2]:
                raise CoopError(f'"{path}" names no image in row {number} below its header')
    label_of = {value: label for label, value in enumerate(class_order(value for *_, value in listed if value))}
    roots = {path: _image_root(path, images_root) for path in paths.values()}
    # Two tables beside their images may both list "1.png"; a name must be that of one image.
    within = {path: f"{split}/" if len(paths) > 1 and images_root is None else "" for split, path in paths.items()}
    splits: dict[str, list[ImageItem]] = {}
    for split, path, file, value in listed:
        if value:
            item = file_item(roots[path] / file, within[path] + file, label_of[value], _hint(path, roots[path]))
            splits.setdefault(split, []).append(item)
    if not splits:
        raise CoopError(f"{' and '.join(f'{path}' for path in paths.values())} list no labelled images")
    for path in paths.values():
        values = [value for _, other, _, value in listed if other == path]
        warn_of_unlabelled(f'"{path}"', values.count(""), len(values))
    return DataSet(name, tuple(label_of), tuple(label_of), {split: tuple(items) for split, items in splits.items()})


def _splits_of(path: Path, rows: Sequence[Mapping[str, Any]], column: str | None) -> list[str]:
    """The split of each row, by a column of such words; `all` without one."""
    words = [_text(row.get(column)).strip().lower() for row in rows] if column else []
    if strange := [word for word in words if word not in SPLIT_NAMES]:
        told = f'"{path}" has a column "{column}" with "{strange[0]}", which is no split (train, val, test)'
        logger.warning("%s; it is not used", told)
        words = []
    return [SPLIT_NAMES[word] for word in words] or ["all"] * len(rows)


def has_labels(table: Path) -> bool:
    """Whether a table has a column of labels."""
    return column_named({column: None for row in read_rows(table) for column in row}, LABEL_COLUMNS) is not None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table by column. Raises CoopError when it is none."""
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no JSON object")
        else:
            header = text.partition("\n")[0]
            delimiter = max(",\t;", key=header.count)
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
            rows = list(reader)
            if any(None in row for row in rows):
                raise ValueError("a row has more fields than the header")
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise CoopError(f'table "{path}" cannot be read: {error}') from error
    if not rows:
        raise CoopError(f'table "{path}" has no rows below its header')
    return rows


def pick_column(source: object, columns: Iterable[str], kind: str, chosen: str | None) -> str:
    """The chosen column. Raises UsageError, with those that there are, when it is None or not there."""
    columns = list(columns)
    if chosen is not None and chosen in columns:
        return chosen
    wrong = "no column that is known to hold" if chosen is None else f'no column "{chosen}" for'
    raise UsageError(f'"{source}" has {wrong} {kind}s; say --{kind}-column, one of: {", ".join(columns)}')


def warn_of_unlabelled(source: str, count: int, total: int) -> None:
    """Say that images without label are left out."""
    if count:
        logger.warning("%d of %d images of %s have no label and are left out", count, total, source)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
