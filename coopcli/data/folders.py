"""Folders of class folders -> labelled images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import CoopError
from ..files import RUNS_FOLDER, SETTINGS_FILE
from .dataset import SPLIT_NAMES, DataSet, ImageItem, file_item

# fmt: off
IMAGE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".tga", ".avif",
])


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
    return any((place / SETTINGS_FILE).is_file() for place in (folder, *own))


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
