"""Check a download of one of the paper's data sets against its official split, and make the files that it lacks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..errors import CoopError
from ..files import read_text, text_lines, write_atomically
from .dataset import DataSet
from .lists import load_split_file
from .paper_sets import AIRCRAFT, IMAGENET, INSTRUCTIONS, PaperSet

NAMES_FILE = "classnames.txt"
VARIANTS = "variants.txt"
WORDNET_ID = re.compile(r"n\d{8}")
DEPTH = 3  # folders below the data set's in which misplaced images are looked for
SEARCHED = 1000  # of them, at most
SAMPLE = 50  # listed images that tell where the images are

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """What a folder holds of a data set: what `coop` needs to use it, and what is wrong or made, in lines.

    `data` is DATA for the commands, `images` for --images, `classnames` for --classnames; None where it needs none or where
    it is missing. `problems` say what is missing and where to get it; without any the data set is complete.
    """

    data: Path | None
    images: Path | None
    classnames: Path | None
    counts: dict[str, int]
    made: tuple[str, ...]
    problems: tuple[str, ...]


def check_paper_set(known: PaperSet, folder: Path, on_images: OnProgress = lambda done, total: None) -> Found:
    """Compare what is in the data set's folder, or in one of that name within it, with the official split.

    Writes the split file of FGVCAircraft from the lists in its archive, and ImageNet's class names, where they are missing.
    Raises CoopError for a folder that does not exist, and for a split file or list that cannot be read.
    """
    if not folder.is_dir():
        raise CoopError(f'"{folder}" is not a folder; make it and put {known.name} into it ({known.source})')
    if (folder / known.folder).is_dir():
        folder = folder / known.folder
    if known is IMAGENET:
        return _imagenet(folder)
    split = folder / known.split_file
    made: tuple[str, ...] = ()
    if known is AIRCRAFT and not split.is_file() and (folder / VARIANTS).is_file():
        write_aircraft_split(folder)
        made = (f"{split}, from {VARIANTS} and images_variant_*.txt",)
    if not split.is_file():
        return Found(None, None, None, {}, made, (_no_split(known, folder),))
    return _against_split(known, folder, split, made, on_images)


def _no_split(known: PaperSet, folder: Path) -> str:
    if known is AIRCRAFT:
        return f'no {VARIANTS} in "{folder}": it is in the folder data/ of the archive ({known.source})'
    return f'no {known.split_file} in "{folder}": get it from {INSTRUCTIONS}'


def _against_split(known: PaperSet, folder: Path, split: Path, made: tuple[str, ...], on_images: OnProgress) -> Found:
    wanted = folder / known.images
    dataset = load_split_file(split, wanted if wanted.is_dir() else folder)
    problems = _other_split(known, dataset, split)
    listed = [item.name for items in dataset.splits.values() for item in items]
    root = _root(folder, wanted, listed[:: max(1, len(listed) // SAMPLE)])
    if root is None:
        problems.append(f'no images in "{wanted}", such as {listed[0]}: get them from {known.source}')
        return Found(split, None, None, {}, made, tuple(problems))
    missing = []
    for number, name in enumerate(listed, 1):
        if not (root / name).is_file():
            missing.append(name)
        if number % 1000 == 0 or number == len(listed):
            on_images(number, len(listed))
    if missing:
        problems.append(
            f'{len(missing)} of {len(listed)} listed images are not in "{root}" (first: {missing[0]}): get them from '
            f"{known.source}"
        )
    counts = {name: len(items) for name, items in dataset.splits.items()}
    return Found(split, root, None, counts, made, tuple(problems))


def _other_split(known: PaperSet, dataset: DataSet, split: Path) -> list[str]:
    """What tells the split from the official one: the numbers of classes and images."""
    sizes = tuple(len(dataset.splits.get(name, ())) for name in ("train", "val", "test"))
    if (len(dataset.class_names), sizes) == (known.n_classes, known.sizes):
        return []
    return [
        f'"{split}" is not the official split: it has {len(dataset.class_names)} classes and {_sizes(sizes)} images, that '
        f"{known.n_classes} and {_sizes(known.sizes)}: get it from {INSTRUCTIONS}"
    ]


def _sizes(sizes: tuple[int, ...]) -> str:
    return " + ".join(f"{size:,}" for size in sizes)


def _root(folder: Path, wanted: Path, names: Sequence[str]) -> Path | None:
    """The folder that the listed paths start from: the wanted one, or one near it where an archive was unpacked.

    It holds one of the names at least: a download may be incomplete.
    """
    near = (Path(place) for place, folders, _ in os.walk(folder) if _shallow(folder, place, folders))
    return next((root for root in (wanted, *islice(near, SEARCHED)) if any((root / name).is_file() for name in names)), None)


def _shallow(folder: Path, place: str, folders: list[str]) -> bool:
    if len(Path(place).relative_to(folder).parts) >= DEPTH:
        folders.clear()  # so that os.walk goes no deeper
    return True


def write_aircraft_split(folder: Path) -> None:
    """Write FGVCAircraft's split file: the archive's own train, val and test lists, classes in the order of its variants.txt.

    Raises CoopError for a list that is missing or names a variant that is none.
    """
    names = [line.strip() for line in text_lines(read_text(folder / VARIANTS, "list of variants")) if line.strip()]
    label_of = {name: label for label, name in enumerate(names)}
    split: dict[str, list[tuple[str, int, str]]] = {}
    for part in ("train", "val", "test"):
        path = folder / f"images_variant_{part}.txt"
        split[part] = []
        for line in text_lines(read_text(path, "list of images")):
            number, _, name = line.strip().partition(" ")
            if number and name not in label_of:
                raise CoopError(f'"{path}" gives image {number} the variant "{name}", which is not in {VARIANTS}')
            if number:
                split[part].append((f"{number}.jpg", label_of[name], name))
    write_atomically(folder / AIRCRAFT.split_file, json.dumps(split).encode())


def _imagenet(folder: Path) -> Found:
    root = folder / IMAGENET.images if (folder / IMAGENET.images).is_dir() else folder
    problems: list[str] = []
    counts: dict[str, int] = {}
    made: tuple[str, ...] = ()
    ids: list[str] = []
    for part in ("train", "val"):
        classes = sorted(entry.name for entry in _entries(root / part) if entry.is_dir() and WORDNET_ID.fullmatch(entry.name))
        if len(classes) == IMAGENET.n_classes:
            counts[part] = sum(1 for name in classes for entry in _entries(root / part / name) if entry.is_file())
            ids = ids or classes
        elif part == "val" and any(entry.name.endswith(".JPEG") for entry in _entries(root / part)):
            problems.append(
                f'the images in "{root / part}" are not in class folders: sort them by the validation ground truth of the '
                f"development kit ({IMAGENET.source})"
            )
        else:
            problems.append(
                f'"{root / part}" has {len(classes)} of the 1000 class folders (n01440764, ...): get them from '
                f"{IMAGENET.source}"
            )
    names = folder / NAMES_FILE
    if ids and not names.is_file():
        written = json.loads((Path(__file__).parent / "imagenet_names.json").read_text("utf-8"))
        write_atomically(names, "".join(f"{pair[0]} {pair[1]}\n" for pair in zip(ids, written, strict=True)).encode())
        made = (f"{names}, CLIP's names of the 1000 classes",)
    return Found(root, None, names if names.is_file() else None, counts, made, tuple(problems))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CoopError(f'"{folder}" cannot be read: {error.strerror or error}') from error
