"""Labelled images that a file lists: a split file of the reference, or a table of paths and labels."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import CoopError, UsageError
from ..files import parse_json, read_text, text_lines
from .columns import image_column as find_image_column
from .columns import label_column as find_label_column
from .columns import pick_column, splits_of_rows
from .dataset import DataSet, ImageItem, class_order, file_item

TABLES = (".csv", ".tsv", ".jsonl")

logger = logging.getLogger(__name__)


def portable(listed: str) -> str:
    """Return a listed path with slashes, and within the image folder, where Windows wrote it: `.\\a\\b.jpg` or `\\a\\b.jpg`."""
    listed = listed.strip()
    return PureWindowsPath(listed).as_posix().lstrip("/") if "\\" in listed else listed


def image_root(listing: Path, images_root: Path | None) -> Path:
    """Return the folder that listed paths start from. Raises UsageError when it does not exist."""
    root = images_root or listing.parent
    if not root.is_dir():
        raise UsageError(f'--images "{root}" is not a folder')
    return root


def missing_hint(listing: Path, root: Path) -> str:
    """What to check when a listed image does not exist."""
    return f'; "{listing.name}" lists it relative to --images "{root}": is that the right folder, and is the data set complete?'


# ------------------------------------------------------------------------------------------------ split files


def load_split_file(path: Path, images_root: Path | None = None) -> DataSet:
    """Read a `split_zhou_*.json`: {"train"|"val"|"test": [[path, label, class name], ...]}, paths relative to `images_root`.

    Raises CoopError for a file of another form, UsageError for a missing image root.
    """
    root = image_root(path, images_root)
    text = read_text(path, "split file")
    try:
        rows = {split: [_split_row(row) for row in listed] for split, listed in parse_json(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CoopError(
            f'"{path}" is not a split file; expected {{"train": [[path, label, class name], ...], "test": ...}}'
        ) from error
    names: dict[int, str] = {}
    folders: dict[int, set[str]] = {}
    for listed in rows.values():
        for relative, label, name in listed:
            if names.setdefault(label, name) != name:
                raise CoopError(f'"{path}" gives label {label} two names: "{names[label]}" and "{name}"')
            folders.setdefault(label, set()).add(relative.rpartition("/")[0])
    if sorted(names) != list(range(len(names))) or not names:
        raise CoopError(f'"{path}" must label its classes 0 to K-1 without gaps')
    hint = missing_hint(path, root)
    splits = {
        split: tuple(file_item(root / relative, relative, label, hint) for relative, label, _ in listed)
        for split, listed in rows.items()
        if listed
    }
    class_names = tuple(names[label] for label in range(len(names)))
    # A class whose images lie in a folder of their own is known by that folder too.
    own = [folders[label].pop() if len(folders[label]) == 1 else "" for label in range(len(names))]
    known_by = own if all(own) and len(set(own)) == len(own) else class_names
    return DataSet(path.stem.removeprefix("split_zhou_"), class_names, tuple(known_by), splits)


def _split_row(row: Any) -> tuple[str, int, str]:
    relative, label, name = row
    if not isinstance(relative, str) or not isinstance(name, str) or type(label) not in (int, str):
        raise ValueError("expected [path, label, class name]")
    return portable(relative), int(label), name.strip()


# ------------------------------------------------------------------------------------------------ tables


@dataclass
class _Listing:
    """What the tables of a data set list: (split, table, image, label) for each row, and the columns taken."""

    rows: list[tuple[str, Path, str, str]] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)


def load_table(
    path: Path, images_root: Path | None = None, image_column: str | None = None, label_column: str | None = None
) -> DataSet:
    """Read a CSV or TSV file with a header, or JSON lines: one image a row, its path relative to `images_root`, and its label.

    The columns are found by name, unless given. Classes are the distinct labels, sorted; a column `split`, `subset` or
    `is_valid` parts the images. Raises CoopError for a file of another form, UsageError for a missing column or image root.
    """
    return load_tables(path.stem, {"all": path}, images_root, image_column, label_column)


def load_tables(
    name: str,
    paths: Mapping[str, Path],
    images_root: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataSet:
    """Read a table for each split, of the same columns and classes; for the rest see `load_table`."""
    listing = _Listing()
    for split, path in paths.items():
        _list_table(listing, path, split, image_column, label_column)
    label_of = {value: label for label, value in enumerate(class_order(value for *_, value in listing.rows if value))}
    roots = {path: image_root(path, images_root) for path in paths.values()}
    # Two tables beside their images may both list "1.png"; a name must be that of one image.
    within = {path: f"{split}/" if len(paths) > 1 and images_root is None else "" for split, path in paths.items()}
    splits: dict[str, list[ImageItem]] = {}
    for split, path, file, value in listing.rows:
        if value:
            item = file_item(roots[path] / file, within[path] + file, label_of[value], missing_hint(path, roots[path]))
            splits.setdefault(split, []).append(item)
    if not splits:
        raise CoopError(f"{' and '.join(f'{path}' for path in paths.values())} list no labelled images")
    for path in paths.values():
        values = [value for _, table, _, value in listing.rows if table == path]
        warn_of_unlabelled(f'"{path}"', values.count(""), len(values))
    by_split = {split: tuple(items) for split, items in splits.items()}
    return DataSet(name, tuple(label_of), tuple(label_of), by_split, listing.columns)


def _list_table(listing: _Listing, path: Path, split: str, image_column: str | None, label_column: str | None) -> None:
    cells = read_table(path)
    image = pick_column(path, cells, "image", image_column or find_image_column(path, cells))
    rest = {column: values for column, values in cells.items() if column != image}
    label = pick_column(path, cells, "label", label_column or find_label_column(path, rest, cells[image]))
    for kind, column in (("path", image), ("label", label)):
        for row, cell in enumerate(cells[column], 1):
            if isinstance(cell, Several):
                raise CoopError(f'"{path}" has {cell[:40]} in row {row} of its column "{column}"; give each image one {kind}')
    rows = len(cells[image])
    rest.pop(label, None)
    by, parts = splits_of_rows(path, rest, rows) if split == "all" else (None, [split] * rows)
    if "" in cells[image]:
        raise CoopError(f'"{path}" names no image in row {cells[image].index("") + 1} below its header')
    listing.columns |= {"image": image, "label": label} | ({"split": by} if by else {})
    listing.rows += zip(parts, [path] * rows, map(portable, cells[image]), cells[label], strict=True)


def has_labels(table: Path) -> bool:
    """Whether a table has columns of images and labels."""
    cells = read_table(table)
    image = find_image_column(table, cells)
    rest = {column: values for column, values in cells.items() if column != image}
    return find_label_column(table, rest, cells[image] if image else ()) is not None


def read_table(path: Path) -> dict[str, list[str]]:
    """Read a table as columns of stripped texts of one length; an empty text where a row has no value.

    Rows without any value are skipped. Raises CoopError for another form.
    """
    text = read_text(path, "table")
    try:
        columns = _parse_json_lines(text) if path.suffix.lower() == ".jsonl" else _parse_csv(text)
    except (ValueError, csv.Error, RecursionError) as error:
        raise CoopError(f'table "{path}" cannot be read: {error}') from error
    if not columns or not any(columns.values()):
        raise CoopError(f'table "{path}" has no rows below its header')
    return columns


def _parse_json_lines(text: str) -> dict[str, list[str]]:
    rows = [parse_json(line) for line in text_lines(text)]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not a JSON object")
    names = list(dict.fromkeys(column for row in rows for column in row))
    return {name: [_cell(row.get(name)) for row in rows] for name in names}


class Several(str):
    """A list or object in a cell of JSON lines, as text: no single path or label."""


def _cell(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return Several(json.dumps(value, ensure_ascii=False))
    if isinstance(value, float) and value.is_integer():  # pandas writes 1.0 for 1 where a value is missing elsewhere
        value = int(value)
    return "" if value is None else str(value).strip()


def _parse_csv(text: str) -> dict[str, list[str]]:
    declared = re.match(r"sep=(.)\r?\n", text)  # a line that Excel writes and reads
    text = text[declared.end() :] if declared else text
    header = text.lstrip("\r\n").partition("\n")[0]
    delimiter = declared[1] if declared else max(",\t;", key=header.count)
    if "\r" in re.sub(r'\r\n|"[^"]*"', "", text):
        raise ValueError("lines end in carriage returns alone; save it with lines that end in \\n or \\r\\n")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows = [[cell.strip() for cell in row] for row in reader]
    rows = [row for row in rows if any(row)]
    if not rows:
        return {}
    names, *rows = rows
    while names and not names[-1]:  # a header that ends in a delimiter
        names.pop()
    for number, row in enumerate(rows, 1):
        if any(row[len(names) :]):
            raise ValueError(f"row {number} below its header has more fields than the header")
        row += [""] * (len(names) - len(row))
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f'two columns are called "{twice[0]}"; rename one')
    return {name: [row[column] for row in rows] for column, name in enumerate(names)}


def warn_of_unlabelled(source: str, count: int, total: int) -> None:
    """Warn of images without a label."""
    if count:
        logger.warning("left out %d of %d images of %s, which have no label", count, total, source)
