"""Labelled images from a folder, a split file of the reference, or a `datasets` data set."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import CoopError, UsageError
from .hub import prepare_hub

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".tga",
        ".avif",
    ]
)
RUNS_FOLDER = "coop-runs"  # where `coop fit` writes by default; never a class


@dataclass(frozen=True)
class ImageItem:
    """One labelled image, not yet read. `name` is its path within the data set."""

    name: str
    label: int
    read: Callable[[], bytes]


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


def load_data(data: str, images_root: Path | None = None, classnames: Path | None = None) -> DataSet:
    """Find out what DATA is and list its images; none is read yet.

    `data` is a folder of class folders, a folder with `train`, `val`, `test` of those, a `split_zhou_*.json`
    (paths relative to `images_root`), a local data set of the `datasets` library, or the id of one on the hub.
    Raises UsageError when there is no such data, CoopError when what is there cannot be used.
    """
    path = Path(data).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".json":
            raise UsageError(f'"{data}" is a file; DATA is a folder of class folders, a split_zhou_*.json or a data set id')
        dataset = load_split_file(path, images_root)
    elif path.is_dir():
        dataset = load_hub(data) if is_datasets_folder(path) else load_folder(path)
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data) and not data.startswith("."):
        dataset = load_hub(data)
    else:
        raise UsageError(f'there is no folder or file "{data}"')
    if classnames is not None:
        dataset = dataset.renamed(read_classnames(classnames, dataset))
    if len(dataset.class_names) < 2:
        raise CoopError(f'{dataset.name} has one class only ("{dataset.class_names[0]}"); classification needs two or more')
    return dataset


# ------------------------------------------------------------------------------------------------ folders


def load_folder(root: Path) -> DataSet:
    """A folder of class folders, or of `train`, `val`, `test` folders of those.

    Classes are the sorted folder names. Raises CoopError for a folder without class folders or an empty class folder.
    """
    split_roots = {
        SPLIT_FOLDERS[entry.name]: entry for entry in _subfolders(root) if entry.name in SPLIT_FOLDERS and _subfolders(entry)
    }
    if "train" not in split_roots and "test" not in split_roots:
        split_roots = {"all": root}
    folders = sorted({entry.name for split_root in split_roots.values() for entry in _subfolders(split_root)})
    if not folders:
        raise CoopError(f'"{root}" holds no class folders; coop expects one folder of images per class')
    label_of = {folder: label for label, folder in enumerate(folders)}
    splits = {}
    for split, split_root in split_roots.items():
        items: list[ImageItem] = []
        for entry in _subfolders(split_root):
            paths = _image_paths(entry)
            if not paths:
                raise CoopError(f'class folder "{entry}" holds no images; put images there or remove the folder')
            items += [ImageItem(path.relative_to(root).as_posix(), label_of[entry.name], path.read_bytes) for path in paths]
        splits[split] = tuple(items)
    return DataSet(root.resolve().name or "data", tuple(folders), tuple(folders), splits)


def _subfolders(root: Path) -> list[Path]:
    return sorted(
        entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".") and entry.name != RUNS_FOLDER
    )


def _image_paths(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, _, names in os.walk(folder):
        found += [Path(parent, name) for name in names if _looks_like_image(name)]
    return sorted(found)


def _looks_like_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


# ------------------------------------------------------------------------------------------------ split files


def load_split_file(path: Path, images_root: Path | None = None) -> DataSet:
    """A `split_zhou_*.json`: {"train"|"val"|"test": [[path, label, class name], ...]}, paths relative to `images_root`.

    Raises CoopError for a file of another form, UsageError for an image root that is not there.
    """
    root = images_root or path.parent
    if not root.is_dir():
        raise UsageError(f'--images "{root}" is no folder')
    try:
        content = json.loads(path.read_text("utf-8"))
        rows = {split: [(str(p), int(label), str(name)) for p, label, name in content[split]] for split in content}
    except (ValueError, TypeError, KeyError) as error:
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
    splits = {
        split: tuple(ImageItem(relative, label, _reader(root / relative, root)) for relative, label, _ in of_split)
        for split, of_split in rows.items()
        if of_split
    }
    class_names = tuple(names[label] for label in range(len(names)))
    # A class whose images lie in a folder of their own is known by that folder too.
    own = [folders[label].pop() if len(folders[label]) == 1 else "" for label in range(len(names))]
    known_by = own if all(own) and len(set(own)) == len(own) else class_names
    return DataSet(path.stem.removeprefix("split_zhou_"), class_names, tuple(known_by), splits)


def _reader(path: Path, root: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise CoopError(
                f'image "{path}" is not there; the split file lists it relative to --images "{root}": '
                "is that the right folder, and is the data set complete?"
            ) from None

    return read


# ------------------------------------------------------------------------------------------------ `datasets`


def is_datasets_folder(folder: Path) -> bool:
    """Whether a folder is a saved data set or holds tables, rather than class folders of images."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return True
    return any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")) or any(folder.glob("*.arrow"))


def load_hub(source: str) -> DataSet:
    """A data set of the `datasets` library: a hub id, or a local folder saved by it or holding parquet files.

    Image and label columns are found by feature type. Raises UsageError when it cannot be had, CoopError when it has
    no image column or no class labels.
    """
    folder = Path(source)
    if not folder.exists():
        prepare_hub()
    import datasets

    datasets.disable_progress_bars()
    try:
        saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
        loaded: Any = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except Exception as error:  # the library raises many kinds: not found, offline, malformed
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f'"{source}" is no folder here, and no data set of that name could be loaded: {reason}') from error
    by_split = dict(loaded) if isinstance(loaded, dict) else {"all": loaded}
    features = next(iter(by_split.values())).features
    image_column = _column(source, features, datasets.Image, "image")
    label_column = _column(source, features, datasets.ClassLabel, "class label")
    class_names = tuple(features[label_column].names)
    splits = {}
    for split, table in by_split.items():
        table = table.cast_column(image_column, datasets.Image(decode=False))
        labels = table[label_column]
        split_name = SPLIT_FOLDERS.get(split, split)
        splits[split_name] = tuple(
            ImageItem(f"{split}/{row}", int(label), _row_reader(table, row, image_column))
            for row, label in enumerate(labels)
            if label is not None and label >= 0
        )
    return DataSet(Path(source).name, class_names, class_names, splits)


def _column(source: str, features: Mapping[str, Any], kind: type, what: str) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if not found:
        raise CoopError(f'data set "{source}" has no {what} column; its columns are: {", ".join(features)}')
    return found[0]


def _row_reader(table: Any, row: int, column: str) -> Callable[[], bytes]:
    def read() -> bytes:
        image = table[row][column]
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()

    return read


# ------------------------------------------------------------------------------------------------ class names


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
