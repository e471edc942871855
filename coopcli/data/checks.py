"""Checks of the data before time is spent on it. Each returns its warnings as texts; `warn` logs them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..errors import CoopError
from ..names import name_key
from .dataset import DataSet, ImageItem

IMBALANCE = 10  # ratio of class sizes that is worth a warning
NAMED = 3  # classes that a warning lists
ID = re.compile(r"n\d{8}|\d+")  # of WordNet, as in ImageNet's folders, or a number
NUMBERED = re.compile(r"(n\d{8}|\d+)[ ._-]+(?P<name>[^\W\d_].*)")  # an id before the name: 001.Black_footed_Albatross

logger = logging.getLogger(__name__)


def warn(traps: Iterable[str]) -> None:
    """Log each as a warning."""
    for trap in traps:
        logger.warning("%s", trap)


def name_traps(dataset: DataSet) -> list[str]:
    """Warn when several class names read the same in a prompt, or look like ids."""
    traps = []
    alike: dict[str, list[str]] = defaultdict(list)
    for folder, name in zip(dataset.folders, dataset.class_names, strict=True):
        alike[name_key(name)].append(folder)
    several = {name: folders for name, folders in alike.items() if len(folders) > 1}
    if several:
        name, folders = next(iter(several.items()))
        others = ""
        if len(several) > 1:
            repeated = sum(len(folders) - 1 for folders in several.values())
            others = f" ({repeated} of {len(dataset.class_names)} classes have the name of another)"
        traps.append(
            f'classes {_some(folders)} all read "{name}" in a prompt, which cannot tell them apart unless each has its own '
            f"context; see --classnames{others}"
        )
    ids = [name for name in dataset.class_names if ID.fullmatch(name)]
    numbered = [(name, match["name"]) for name in dataset.class_names if (match := NUMBERED.fullmatch(name))]
    if 2 * len(ids) > len(dataset.class_names):
        traps.append(f"class names such as {_some(ids)} look like ids, meaningless to CLIP; give names with --classnames")
    elif 2 * len(numbered) > len(dataset.class_names):
        name, rest = numbered[0]
        traps.append(
            f"class names such as {_some([name for name, _ in numbered])} contain ids, which CLIP would read; remove them "
            f'with --classnames, a file of lines such as "{name}<TAB>{rest}"'
        )
    return traps


def label_traps(dataset: DataSet) -> list[str]:
    """Warn of images that are listed with two labels or more."""
    labels: dict[object, set[int]] = defaultdict(set)
    for items in dataset.splits.values():
        for item in items:
            labels[item.path or item.name].add(item.label)
    several = [(image, sorted(chosen)) for image, chosen in labels.items() if len(chosen) > 1]
    if not several:
        return []
    image, chosen = several[0]
    names = _some([dataset.class_names[label] for label in chosen])
    return [f'{len(several)} image{"s" * (len(several) > 1)} listed with several labels (first: "{image}" as {names})']


def count_traps(class_names: Sequence[str], items: Sequence[ImageItem], what: str = "images") -> list[str]:
    """Warn of classes without images and of classes of very different sizes."""
    traps = []
    counts = Counter(item.label for item in items)
    empty = [name for label, name in enumerate(class_names) if not counts[label]]
    if empty:
        traps.append(f"{len(empty)} of {len(class_names)} classes have no {what}: {_some(empty)}")
    if counts:
        (most, n_most), (least, n_least) = counts.most_common()[0], counts.most_common()[-1]
        if n_most >= IMBALANCE * n_least:
            traps.append(
                f'"{class_names[most]}" has {n_most} {what}, "{class_names[least]}" has {n_least}: '
                "top-1 is dominated by the large classes; the macro average counts all classes equally"
            )
    return traps


def prompt_traps(known: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Warn when the data has only a part of the prompt's classes, or none of them, whatever their order and spelling."""
    ours, theirs = set(map(name_key, known)), set(map(name_key, class_names))
    if theirs < ours:
        return [f"the data has {len(theirs)} of the prompt's {len(ours)} classes; choosing among these"]
    if ours & theirs:
        return []
    return [
        f"the prompt was learned for other classes ({_some(known)}) than the data's ({_some(class_names)}); "
        "if they are the same, give them the same names with --classnames"
    ]


def leak_traps(train: Sequence[ImageItem], test: Sequence[ImageItem]) -> list[str]:
    """Warn of test images that are also trained on, compared byte by byte, whatever their names.

    Only test files of the same size as a train image are read. Unreadable images are skipped.
    """

    def content(item: ImageItem) -> tuple[int, bytes] | None:
        if item.encoded:
            return 0, item.encoded.digest.encode()
        try:
            if item.path and sizes and item.path.stat().st_size not in sizes:
                return None
            read = item.read()
            return len(read), hashlib.sha256(read).digest()
        except (CoopError, OSError):
            return None

    sizes: set[int] = set()  # of the train images, once they are read
    with ThreadPoolExecutor() as threads:
        trained_on = {key: item for key, item in zip(threads.map(content, train), train, strict=True) if key}
        sizes = {size for size, _ in trained_on}
        tested_on = zip(test, threads.map(content, test), strict=True)
        leaks = [(item, trained_on[key]) for item, key in tested_on if key in trained_on]
    if not leaks:
        return []
    item, twin = leaks[0]
    return [
        f"{len(leaks)} of {len(test)} test images are byte-identical to train images (first: {item.name} is {twin.name}); "
        "this inflates the accuracy"
    ]


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(f'"{name}"' for name in names[:NAMED])
    return f"{listed} and {len(names) - NAMED} more" if len(names) > NAMED else listed
