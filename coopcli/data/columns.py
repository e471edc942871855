"""Which columns of a table hold images, labels and splits: by their names, and by what they hold where several fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from ..errors import CoopError, UsageError
from .dataset import columns_named, split_name
from .formats import looks_like_image

# What image, label and split columns are called, without case and signs, the likeliest first; see columns_named.
IMAGE_COLUMNS = (
    "path", "file", "filename", "filepath", "filepaths", "image", "imagepath", "imagefile", "imagename", "img", "imgpath",
    "imgname", "relpath", "fname",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "classname", "category", "target", "cls")
TITLES = "name"  # holds classes in some tables, in others a title of each file
SPLIT_COLUMNS = ("split", "subset", "set", "partition", "dataset", "fold", "phase", "usage")
FLAGS = {"isvalid": ("val", "train"), "isval": ("val", "train"), "istest": ("test", "train"), "istrain": ("train", "test")}
TRUTH = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}

logger = logging.getLogger(__name__)

Cells = Mapping[str, Sequence[str]]  # the values of each column


def pick_column(source: object, columns: Iterable[str], kind: str, chosen: str | None) -> str:
    """Return the chosen column. Raises UsageError, listing the columns, when it is None or does not exist."""
    columns = list(columns)
    if chosen is not None and chosen in columns:
        return chosen
    wrong = "no column that is known to hold" if chosen is None else f'no column "{chosen}" for'
    raise UsageError(f'"{source}" has {wrong} {kind}s; choose one with --{kind}-column: {", ".join(columns)}')


def only(source: object, columns: Sequence[str], kind: str) -> str | None:
    """Return the only column that fits, or None. Raises UsageError where several do."""
    if len(columns) > 1:
        raise UsageError(
            f'"{source}" has several columns that may hold {kind}s ({", ".join(columns)}); choose one with --{kind}-column'
        )
    return next(iter(columns), None)


def image_column(source: object, cells: Cells) -> str | None:
    """Find the column of image paths: by name, and where several fit, by whether it holds names of image files."""
    columns = columns_named(cells, IMAGE_COLUMNS)
    files = [column for column in columns if all(looks_like_image(PurePosixPath(cell).name) for cell in cells[column] if cell)]
    return only(source, files if len(columns) > 1 and files else columns, "image")


def label_column(source: object, cells: Cells, images: Sequence[str] = ()) -> str | None:
    """Find the column of labels by name. A column `name` counts where it holds no titles of the single images."""
    columns = columns_named(cells, LABEL_COLUMNS)
    for column in columns_named(cells, [TITLES]):
        values = [value for value in cells[column] if value]
        stems = {PurePosixPath(image).stem for image in images}
        titles = sum(value in stems or looks_like_image(PurePosixPath(value).name) for value in values)
        if 2 * titles < len(values) and (len(values) < 10 or len(set(values)) < len(values)):
            columns.append(column)
    return only(source, columns, "label")


def splits_of_rows(source: object, cells: Cells, rows: int) -> tuple[str | None, list[str]]:
    """Find the column of splits and the split of each row; (None, `all` for each) without one.

    Other words beside train, val and test stay splits of their own. Raises CoopError for a row without split and for two
    columns that disagree.
    """
    found: dict[str, list[str]] = {}
    for column in columns_named(cells, SPLIT_COLUMNS):
        words = cells[column]
        if not any(map(split_name, words)):
            if some := next(filter(None, words), None):
                logger.warning(
                    '"%s" has a column "%s" with "%s", which is not a split (train, val, test); it is not used: write these '
                    "words there to use it",
                    source, column, some,
                )  # fmt: skip
            continue
        if "" in words:
            raise CoopError(f'"{source}" has no {column} in row {words.index("") + 1} below its header')
        found[column] = [split_name(word) or word.lower() for word in words]
    for column in columns_named(cells, FLAGS):
        words = [word.lower() for word in cells[column]]
        if set(words) <= set(TRUTH):
            yes, no = FLAGS[re.sub(r"[\W_]", "", column).lower()]
            found[column] = [yes if TRUTH[word] else no for word in words]
        elif any(words):
            odd = next(word for word in words if word not in TRUTH)
            logger.warning(
                '"%s" has a column "%s" with "%s", which is neither true nor false; it is not used', source, column, odd
            )
    if not found:
        return None, ["all"] * rows
    column, splits = next(iter(found.items()))
    for other, different in found.items():
        if different != splits:
            raise CoopError(
                f'"{source}" has two columns of splits that disagree, "{column}" and "{other}"; rename the one not to be used'
            )
    return column, splits
