"""DATA, whatever it is, as labelled images: folders here, lists of images and `datasets` in their own modules."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import CoopError, UsageError
from ..settings import SETTINGS
from .checks import name_traps, warn
from .classnames import read_classnames
from .dataset import SPLIT_NAMES, encodable, file_item
from .dataset import DataSet as DataSet
from .dataset import ImageItem as ImageItem
from .hf_datasets import FILE_KINDS, is_datasets_folder, load_hub
from .lists import TABLES, has_labels, load_table, load_tables
from .lists import load_split_file as load_split_file

# fmt: off
IMAGE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".tga", ".avif",
])
# fmt: on
RUNS_FOLDER = "coop-runs"  # where `coop fit` writes by default; never a class


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


def load_folder(root: Path) -> DataSet:
    """A folder of class folders, or of `train`, `val`, `test` folders of those.

    Classes are the sorted folder names. Raises CoopError for a folder without class folders or an empty class folder.
    """
    split_roots = {
        SPLIT_NAMES[entry.name]: entry for entry in _subfolders(root) if entry.name in SPLIT_NAMES and _subfolders(entry)
    }
    if "train" not in split_roots and "test" not in split_roots:
        split_roots = {"all": root}
    folders = sorted({entry.name for split_root in split_roots.values() for entry in _subfolders(split_root)})
    if not folders:
        raise CoopError(f'"{root}" holds no class folders; coop expects one folder of images per class')
    if set(folders) <= set(SPLIT_NAMES):
        raise CoopError(f'the folders in "{root}" are splits ({", ".join(folders)}) without class folders in them')
    label_of = {folder: label for label, folder in enumerate(folders)}
    splits = {}
    for split, split_root in split_roots.items():
        items: list[ImageItem] = []
        for entry in _subfolders(split_root):
            paths = sorted(walk_images(entry))
            if not paths:
                raise CoopError(f'class folder "{entry}" holds no images; put images there or remove the folder')
            items += [file_item(path, path.relative_to(root).as_posix(), label_of[entry.name]) for path in paths]
        splits[split] = tuple(items)
    return DataSet(root.resolve().name or "data", tuple(folders), tuple(folders), splits)


def metadata_tables(root: Path, label_column: str | None = None) -> dict[str, Path]:
    """The metadata files of an ImageFolder that give labels: one for all images, or one in each split's folder."""
    for places in ([("all", root)], [(name, root / folder) for folder, name in SPLIT_NAMES.items()]):
        files = [(split, place / f"metadata{ending}") for split, place in places for ending in TABLES]
        if tables := {split: file for split, file in files if file.is_file() and (label_column or has_labels(file))}:
            return tables
    return {}


def _subfolders(root: Path) -> list[Path]:
    try:
        return sorted(
            entry
            for entry in root.iterdir()
            if entry.is_dir() and not entry.name.startswith(".") and entry.name != RUNS_FOLDER and not _holds_runs(entry)
        )
    except OSError as error:
        raise CoopError(f'folder "{error.filename}" cannot be read: {error.strerror}') from error


def _holds_runs(folder: Path) -> bool:
    """Whether this is a run folder, or holds some: those of `coop fit --output runs/first` in the data's own folder."""
    with os.scandir(folder) as entries:
        own = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return any((place / SETTINGS).is_file() for place in (folder, *own))


def walk_images(folder: Path) -> Iterator[Path]:
    """The images in a folder and its subfolders, found as they are asked for; by their endings, whatever they hold.

    Links to folders are followed, but none twice, nor to a folder that this one is in: a loop would end nowhere, and its
    images are of other classes. Raises CoopError for a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise CoopError(f'folder "{error.filename}" cannot be read: {error.strerror}') from error

    seen = {os.fspath(parent) for parent in folder.resolve().parents}
    for parent, subfolders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()  # of two links to one folder, the first is followed
        yield from (Path(parent, name) for name in sorted(names) if looks_like_image(name))


def looks_like_image(name: str) -> bool:
    """Whether a file's name ends as those of images do; hidden files do not count."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
