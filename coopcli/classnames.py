"""Class-name files: other names for the classes than the data's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .dataset import DataSet
from .errors import UsageError


def read_classnames(path: Path, dataset: DataSet) -> dict[str, str]:
    """Read a class-name file: a JSON object {folder: name}, a JSON list in class order, or lines `folder<TAB>name`.

    Raises UsageError for a file that is missing or of another form.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f'class-name file "{path}" cannot be read: {error}') from error
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return _by_order(path, content, dataset.folders)
    if isinstance(content, dict) and all(isinstance(name, str) for name in content.values()):
        return content
    if content is not None:
        raise UsageError(f'class-name file "{path}" must hold a JSON object of folder: name, or a list of names')
    names = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            folder, tab, name = line.partition("\t")
            if not tab or not name.strip():
                raise UsageError(f'class-name file "{path}", line {number}: expected folder<TAB>name')
            names[folder.strip()] = name.strip()
    return names


def _by_order(path: Path, names: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    if len(names) != len(folders):
        raise UsageError(f'class-name file "{path}" lists {len(names)} names for {len(folders)} classes')
    return dict(zip(folders, names, strict=True))
