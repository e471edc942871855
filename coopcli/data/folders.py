"""Folders of class folders -> labelled images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import CoopError
from ..files import PROMPT_FILE, RUNS_FOLDER, SETTINGS_FILE
from .dataset import DataSet, ImageItem, file_item, split_name
from .formats import describe_endings, ending, is_system_name, looks_like_image

LISTED = 3  # folders that a message names


def load_folder(root: Path) -> DataSet:
    """Read a folder of class folders, or of folders of those for `train`, `val` and `test` in any usual spelling.

    Classes are the sorted folder names. Raises CoopError for a folder without class folders, an empty class folder, and
    where folders could be splits as well as classes.
    """
    splits, siblings = _split_folders(root)
    left_out = [f"folder{'s' * (len(siblings) > 1)} {_some([entry.name for entry in siblings])}"] if siblings else []
    folders = sorted({entry.name for split_root in splits.values() for entry in _subfolders(split_root)})
    if not folders:
        if _holds_runs(root):
            raise CoopError(f'"{root}" holds what coop learned, not images; give the folder of images')
        raise CoopError(f'"{root}" has no class folders; coop expects one folder of images per class')
    if all(map(split_name, folders)):
        raise CoopError(f'the folders in "{root}" are splits ({", ".join(folders)}) without class folders in them')
    label_of = {folder: label for label, folder in enumerate(folders)}
    passed_over: Counter[str] = Counter()
    outside: list[Path] = []
    items: dict[str, tuple[ImageItem, ...]] = {}
    for place in dict.fromkeys([root, *splits.values()]):
        outside += [entry for entry in entries_of(place) if looks_like_image(entry.name) and entry.is_file()]
    for split, split_root in splits.items():
        items[split] = tuple(
            file_item(path, path.relative_to(root).as_posix(), label_of[entry.name])
            for entry in _subfolders(split_root)
            for path in _class_images(entry, passed_over)
        )
    if outside:
        left_out.append(f'{len(outside):,} image{"s" * (len(outside) > 1)} outside class folders (first: "{outside[0].name}")')
    if passed_over:
        left_out.append(describe_endings(passed_over))
    return DataSet(root.resolve().name or "data", tuple(folders), tuple(folders), items, left_out=tuple(left_out))


def _split_folders(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """Find the folder of each split, `all` being the root where there are none, and the folders beside them that are not used.

    Raises CoopError where this cannot be decided: a class may be called "train", and may have subfolders.
    """
    named: dict[str, list[Path]] = {}
    siblings: list[Path] = []
    for entry in _subfolders(root):
        split = split_name(entry.name)
        if split and _subfolders(entry):
            named.setdefault(split, []).append(entry)
        else:
            siblings.append(entry)
    if not named:
        return {"all": root}, []
    for split, entries in named.items():
        if len(entries) > 1:
            names = _some([entry.name for entry in entries])
            raise CoopError(f'"{root}" has several {split} folders ({names}); merge or rename them')
    classes = [{entry.name for entry in _subfolders(entries[0])} for entries in named.values()]
    certain = len(classes) > 1 and bool(set.intersection(*classes))  # splits of the same classes
    others = [entry.name for entry in siblings if not split_name(entry.name) and next(walk_images(entry), None)]
    if others and not certain:
        splits = [entries[0].name for entries in named.values()]
        raise CoopError(
            f'"{root}" has {_some(splits)}, which look{"s" * (len(splits) == 1)} like a split, beside other folders of images '
            f'({_some(others)}): if all are classes, rename "{splits[0]}"; if not, move the others elsewhere'
        )
    return {split: entries[0] for split, entries in named.items()}, siblings


def _class_images(folder: Path, passed_over: Counter[str]) -> list[Path]:
    paths = sorted(walk_images(folder, lambda name: passed_over.update([ending(name)])))
    if not paths:
        raise CoopError(f'class folder "{folder}" has no images; put images there or remove the folder')
    return paths


def entries_of(folder: Path) -> list[Path]:
    """List what lies in a folder, sorted. Raises CoopError when it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise CoopError(f'folder "{error.filename}" cannot be read: {error.strerror}') from error


def _subfolders(root: Path) -> list[Path]:
    """List the folders that may be classes or splits: neither hidden ones nor runs of coop."""
    entries = [entry for entry in entries_of(root) if not is_system_name(entry.name) and entry.name != RUNS_FOLDER]
    try:
        return [entry for entry in entries if entry.is_dir() and not _holds_runs(entry)]
    except OSError as error:
        raise CoopError(f'folder "{error.filename}" cannot be read: {error.strerror}') from error


def _holds_runs(folder: Path) -> bool:
    """Whether this is a run folder, or has some in it: `coop fit --output runs/first` in the data's own folder."""
    with os.scandir(folder) as entries:
        own = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return any((place / name).is_file() for place in (folder, *own) for name in (SETTINGS_FILE, PROMPT_FILE))


def walk_images(folder: Path, pass_over: Callable[[str], object] | None = None) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders, known by their endings; other files' names go to `pass_over`.

    Links to folders are followed, but none twice, nor to a folder that this one is in: a loop would never end, and its
    images belong to other classes. Hidden folders and those of desktops and NAS systems are skipped. Raises CoopError for
    a folder that cannot be read.
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
        subfolders[:] = sorted(name for name in subfolders if not is_system_name(name))  # of two links, the first is followed
        for name in sorted(names):
            if looks_like_image(name):
                yield Path(parent, name)
            elif pass_over and not is_system_name(name):
                pass_over(name)


def _some(names: list[str]) -> str:
    listed = ", ".join(f'"{name}"' for name in names[:LISTED])
    return f"{listed} and {len(names) - LISTED} more" if len(names) > LISTED else listed
