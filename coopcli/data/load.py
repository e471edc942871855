"""Find out what DATA is, and load it: folders, split files, tables, and data sets of the `datasets` library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import CoopError, UsageError
from ..files import did_you_mean
from ..names import encodable
from .checks import label_traps, name_traps, warn
from .classnames import read_classnames
from .dataset import DataSet as DataSet
from .dataset import ImageItem as ImageItem
from .dataset import describe as describe
from .dataset import split_name
from .encoded import is_encoded, load_encoded
from .folders import entries_of, load_folder
from .hf_datasets import FILE_KINDS, is_datasets_folder, load_hub
from .lists import TABLES, has_labels, load_table, load_tables, read_table
from .lists import load_split_file as load_split_file


def load_data(
    data: str,
    images_root: Path | None = None,
    classnames: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataSet:
    """Find out what DATA is and list its images; none is read yet.

    `data` is a folder of class folders, a folder with `train`, `val`, `test` of those, a `split_zhou_*.json` or a table
    of paths and labels (CSV, TSV, JSON lines; paths relative to `images_root`), a local data set of the `datasets`
    library, the id of one on the hub, or a folder of features that `coop encode` wrote.

    Columns of tables and data sets are found by type and name, unless given.
    Warns of traps in the class names and labels. Raises UsageError when there is no such data, CoopError when it cannot
    be used.
    """
    path = Path(data).expanduser()
    suffix = path.suffix.lower()
    if images_root is not None and not takes_root(data):
        raise UsageError(f'--images goes with a split file or a table, which "{data}" is not; leave it out')
    if path.is_file():
        if suffix == ".json":
            dataset = load_split_file(path, images_root)
        elif suffix in TABLES:
            dataset = load_table(path, images_root, image_column, label_column)
        elif suffix in FILE_KINDS:
            dataset = load_hub(str(path), image_column, label_column, images_root)
        else:
            raise UsageError(
                f'"{data}" is not DATA; give a folder of class folders, a split_zhou_*.json, a table of paths and labels '
                f"({', '.join(TABLES)}), a file of a data set ({', '.join(FILE_KINDS)}), or a data set id"
            )
    elif path.is_dir():
        if is_encoded(path):
            dataset = load_encoded(path)
        elif is_datasets_folder(path):
            dataset = load_hub(str(path), image_column, label_column)
        elif tables := metadata_tables(path, label_column):
            dataset = load_tables(path.resolve().name or "data", tables, None, image_column, label_column)
        else:
            dataset = _load_class_folders(path)
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data) and not data.startswith("."):
        dataset = replace(load_hub(data, image_column, label_column), name=data)
    else:
        raise UsageError(f'there is no folder or file "{data}"{did_you_mean(path)}')
    if classnames is not None:
        dataset = dataset.renamed(read_classnames(classnames, dataset))
    names, folders = (tuple(map(encodable, names)) for names in (dataset.class_names, dataset.folders))
    dataset = replace(dataset, class_names=names, folders=folders)
    if len(dataset.class_names) < 2:
        inner = path / dataset.folders[0]
        hint = (
            f'; did you mean "{inner}"?' if path.is_dir() and inner.is_dir() and any(map(Path.is_dir, inner.iterdir())) else ""
        )
        raise CoopError(
            f'{dataset.name} has only one class ("{dataset.class_names[0]}"); classification needs two or more{hint}'
        )
    warn([*name_traps(dataset), *label_traps(dataset)])
    return dataset


def takes_root(data: str) -> bool:
    """Whether DATA is a file that lists paths, which start from the folder given by --images."""
    path = Path(data).expanduser()
    return not path.is_dir() and path.suffix.lower() in (".json", *TABLES, *FILE_KINDS)


def metadata_tables(root: Path, label_column: str | None = None) -> dict[str, Path]:
    """Find the metadata files of an ImageFolder that give labels: one for all images, or one in each split's folder."""
    for tables in _metadata_files(root):
        labelled = {split: file for split, file in tables.items() if label_column or has_labels(file)}
        if labelled:
            return labelled
    return {}


def _metadata_files(root: Path) -> Iterator[dict[str, Path]]:
    folders = [(name, entry) for entry in entries_of(root) if (name := split_name(entry.name)) and entry.is_dir()]
    for places in ([("all", root)], folders):
        files = [(split, place / f"metadata{ending}") for split, place in places for ending in TABLES]
        if tables := {split: file for split, file in files if file.is_file()}:
            yield tables


def _load_class_folders(root: Path) -> DataSet:
    """Load class folders; a metadata file without known labels is named, where there are none and where there are."""
    unused = next(_metadata_files(root), {})
    if not unused:
        return load_folder(root)
    file = next(iter(unused.values()))
    columns = ", ".join(read_table(file))
    try:
        dataset = load_folder(root)
    except CoopError as error:
        raise CoopError(
            f'{error}; or, if a column of "{file}" holds the classes, choose it with --label-column: {columns}'
        ) from error
    note = f'"{file.name}" with the columns {columns} (to take the classes from one, use --label-column)'
    return replace(dataset, left_out=(*dataset.left_out, note))
