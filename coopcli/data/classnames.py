"""Class-name files: reading them, and renaming a data set's classes by them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import parse_json, read_text, text_lines
from ..names import name_key
from .dataset import DataSet
from .lists import load_split_file

logger = logging.getLogger(__name__)

Pair = tuple[str | None, str]  # (folder, or None; class name)


def read_class_list(path: Path) -> list[Pair]:
    """Read (folder, name) of each class, in the order of the file; the folder is None where the file has names only.

    The file is a JSON list of names, a JSON object {folder: name}, a `split_zhou_*.json`, or has one class a line:
    `name`, `folder<TAB>name`, or `n01440764 name` as in the reference's classnames.txt of ImageNet.
    Raises UsageError for a file that is missing or of another form.
    """
    text = read_text(path, "class-name file", UsageError)
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith(("[", "{")):
            raise UsageError(f'class-name file "{path}" is not valid JSON: {error}') from error
        content = None
    pairs: list[Pair] = []
    if content is None:
        pairs = [_parse_line(line) for line in text_lines(text)]
    elif isinstance(content, list) and _are_names(content):
        pairs = [(None, name.strip()) for name in content]
    elif isinstance(content, dict) and _are_names(content.values()):
        pairs = [(folder, name.strip()) for folder, name in content.items()]
    elif isinstance(content, dict) and not any(isinstance(value, str) for value in content.values()):
        dataset = load_split_file(path)
        pairs = list(zip(dataset.folders, dataset.class_names, strict=True))
    if not pairs or not all(name for _, name in pairs):
        raise UsageError(f'class-name file "{path}" must contain a list of names, an object of folder: name, or a name a line')
    return pairs


def _are_names(content: Any) -> bool:
    return all(isinstance(name, str) for name in content)


def _parse_line(line: str) -> Pair:
    between = "\t" if "\t" in line else " " if re.match(r"n\d{8} ", line) else None
    if not between:
        return None, line.strip()
    folder, name = line.split(between, 1)
    return folder.strip(), name.strip()


def read_classnames(path: Path, dataset: DataSet) -> dict[str, str]:
    """Read new names for a data set's folders; a file of names alone has one for each class, in their order.

    Raises UsageError for a file that is missing or of another form.
    """
    pairs = read_class_list(path)
    folders = [folder for folder, _ in pairs if folder is not None]
    if folders and len(folders) < len(pairs):
        name = next(name for folder, name in pairs if folder is None)
        raise UsageError(f'class-name file "{path}" has a line "{name}" without a folder among lines of folder<TAB>name')
    if not folders and len(pairs) != len(dataset.folders):
        raise UsageError(
            f'class-name file "{path}" lists {len(pairs)} names for {len(dataset.folders)} classes; '
            "give one for each, or lines of folder<TAB>name"
        )
    names, own_folders = [name for _, name in pairs], set(dataset.folders)
    if not folders:
        if all(" " in name and name.split()[0] in own_folders for name in names):
            raise UsageError(f'class-name file "{path}" has lines such as "{names[0]}"; expected folder<TAB>name')
        own = {name_key(name): folder for folder, name in zip(dataset.folders, dataset.class_names, strict=True)}
        if len(own) == len(names) and set(map(name_key, names)) == set(own):  # the data's own, in whatever order
            folders = [own[name_key(name)] for name in names]
        return dict(zip(folders or dataset.folders, names, strict=True))
    listed, known = set(folders), {*own_folders, *dataset.class_names}
    left = [folder for folder in dataset.folders if folder not in listed]
    strangers = [folder for folder in folders if folder not in known]
    if left and strangers and len(strangers) < len(folders):
        logger.warning(
            'class-name file "%s" names "%s", which is not a class of this data, and leaves "%s" unchanged',
            path, strangers[0], left[0],
        )  # fmt: skip
    return dict(zip(folders, names, strict=True))


def read_choices(path: Path) -> tuple[str, ...]:
    """Read the names in a class-name file, to choose among; warns of repeated ones. Raises UsageError for fewer than two."""
    names = Counter(name for _, name in read_class_list(path))
    if len(names) < 2:
        raise UsageError(f'class-name file "{path}" must contain two or more different names')
    if repeated := names.total() - len(names):
        name = next(name for name, count in names.items() if count > 1)
        logger.warning('class-name file "%s" repeats %d names (first: "%s"); each is taken once', path, repeated, name)
    return tuple(names)
