"""DATA, whatever it is, as labelled images: folders here, lists of images and `datasets` in their own modules."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ..errors import CoopError, UsageError
from ..names import encodable
from .checks import name_traps, warn
from .classnames import read_classnames
from .dataset import SPLIT_NAMES
from .dataset import DataSet as DataSet
from .dataset import ImageItem as ImageItem
from .folders import load_folder
from .hf_datasets import FILE_KINDS, is_datasets_folder, load_hub
from .lists import TABLES, has_labels, load_table, load_tables
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
    library, or the id of one on the hub. Columns of tables and data sets are found by type and name, unless given.
    Traps in the class names are warned of. Raises UsageError when there is no such data, CoopError when what is there
    cannot be used.
    """
    path = Path(data).expanduser()
    suffix = path.suffix.lower()
    if images_root is not None and not takes_root(data):
        raise UsageError(f'--images goes with a split file or a table; "{data}" is none')
    if path.is_file():
        if suffix == ".json":
            dataset = load_split_file(path, images_root)
        elif suffix in TABLES:
            dataset = load_table(path, images_root, image_column, label_column)
        elif suffix in FILE_KINDS:
            dataset = load_hub(str(path), image_column, label_column)
        else:
            raise UsageError(
                f'"{data}" is a file; DATA is a folder of class folders, a split_zhou_*.json, a table of paths and labels '
                f"({', '.join(TABLES)}), a file of a data set ({', '.join(FILE_KINDS)}), or a data set id"
            )
    elif path.is_dir():
        if is_datasets_folder(path):
            dataset = load_hub(str(path), image_column, label_column)
        elif tables := metadata_tables(path, label_column):
            dataset = load_tables(path.resolve().name or "data", tables, None, image_column, label_column)
        else:
            dataset = load_folder(path)
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data) and not data.startswith("."):
        dataset = replace(load_hub(data, image_column, label_column), name=data)
    else:
        raise UsageError(f'there is no folder or file "{data}"')
    if classnames is not None:
        dataset = dataset.renamed(read_classnames(classnames, dataset))
    names, folders = (tuple(map(encodable, names)) for names in (dataset.class_names, dataset.folders))
    dataset = replace(dataset, class_names=names, folders=folders)
    if len(dataset.class_names) < 2:
        raise CoopError(f'{dataset.name} has one class only ("{dataset.class_names[0]}"); classification needs two or more')
    warn(name_traps(dataset))
    return dataset


def takes_root(data: str) -> bool:
    """Whether DATA is a file whose paths start from a folder that is told beside it."""
    path = Path(data).expanduser()
    return not path.is_dir() and path.suffix.lower() in (".json", *TABLES)


def metadata_tables(root: Path, label_column: str | None = None) -> dict[str, Path]:
    """The metadata files of an ImageFolder that give labels: one for all images, or one in each split's folder."""
    for places in ([("all", root)], [(name, root / folder) for folder, name in SPLIT_NAMES.items()]):
        files = [(split, place / f"metadata{ending}") for split, place in places for ending in TABLES]
        if tables := {split: file for split, file in files if file.is_file() and (label_column or has_labels(file))}:
            return tables
    return {}
