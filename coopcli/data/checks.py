"""Traps in data, found before time is spent on it. Each function gives its warnings as texts; `warn` tells them."""

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

IMBALANCE = 10  # so many times as many images of one class as of another
NAMED = 3  # classes that a warning names
ID = re.compile(r"n\d{8}|\d+")  # of WordNet, as in ImageNet's folders, or a number

logger = logging.getLogger(__name__)


def warn(traps: Iterable[str]) -> None:
    """Log each as a warning."""
    for trap in traps:
        logger.warning("%s", trap)


def name_traps(dataset: DataSet) -> list[str]:
    """Of the class names: several that are one in a prompt, and ids in the place of names."""
    traps = []
    alike: dict[str, list[str]] = defaultdict(list)
    for folder, name in zip(dataset.folders, dataset.class_names, strict=True):
        alike[name_key(name)].append(folder)
    for name, folders in alike.items():
        if len(folders) > 1:
            traps.append(
                f'classes {_some(folders)} are all "{name}" in a prompt, which cannot tell them apart unless each has its own '
                "context; see --classnames"
            )
    ids = [name for name in dataset.class_names if ID.fullmatch(name)]
    if 2 * len(ids) > len(dataset.class_names):
        traps.append(f"class names such as {_some(ids)} look like ids, which say nothing to CLIP; give names with --classnames")
    return traps


def count_traps(class_names: Sequence[str], items: Sequence[ImageItem], what: str = "images") -> list[str]:
    """Of how many images there are: classes without any, and classes of very different sizes."""
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
                "top-1 goes by the large classes; the macro average, beside it, counts all alike"
            )
    return traps


def prompt_traps(known: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Of a prompt learned for some classes and used on others: not one in common, whatever their order and spelling."""
    if set(map(name_key, known)) & set(map(name_key, class_names)):
        return []
    return [
        f"none of the data's classes ({_some(class_names)}) is one that the prompt was learned for ({_some(known)}); "
        "if they are the same, name them alike with --classnames"
    ]


def leak_traps(train: Sequence[ImageItem], test: Sequence[ImageItem]) -> list[str]:
    """Of test images that are trained on too, to the byte, whatever their names.

    Of test images in files only those are read that are as large as a train image. What cannot be read is passed over.
    """

    def content(item: ImageItem) -> tuple[int, bytes] | None:
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
        found = zip(test, threads.map(content, test), strict=True)
        leaks = [(item, trained_on[key]) for item, key in found if key in trained_on]
    if not leaks:
        return []
    item, twin = leaks[0]
    return [
        f"{len(leaks)} of {len(test)} test images are also trained on, to the byte (first: {item.name} is {twin.name}); "
        "the accuracy is too good by that"
    ]


def _some(names: Sequence[str]) -> str:
    told = ", ".join(f'"{name}"' for name in names[:NAMED])
    return f"{told} and {len(names) - NAMED} more" if len(names) > NAMED else told
