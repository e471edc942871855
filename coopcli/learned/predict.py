"""Predict images one after another: memory does not grow with their number."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ..data.dataset import ImageItem, file_item
from ..data.encoded import encoded_items, is_encoded
from ..data.folders import walk_images
from ..errors import CoopError, UsageError
from ..files import did_you_mean
from .classifier import Classifier

STDIN = "-"
PATTERN = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image with their probabilities, best first.

    `class_name` is the best, or None where its probability is below the threshold.
    """

    image: str
    class_name: str | None
    top: tuple[tuple[str, float], ...]


def predict(
    classifier: Classifier, items: Iterable[ImageItem], top: int = 1, threshold: float = 0.0
) -> Generator[Prediction | CoopError]:
    """Yield each image's prediction, or the error of reading it, in the order of `items`, which are read a little ahead."""
    names = classifier.head.class_names
    with closing(classifier.stream(items)) as stream:
        for item, probabilities in stream:
            if isinstance(probabilities, CoopError):
                yield probabilities
                continue
            largest = probabilities.topk(min(top, len(names)))
            values, rows = largest.values.tolist(), largest.indices.tolist()
            best = tuple(zip((names[row] for row in rows), values, strict=True))
            yield Prediction(item.name, best[0][0] if values[0] >= threshold else None, best)


def find_images(
    sources: Sequence[str], listed: Iterable[str] = (), pass_over: Callable[[str], object] | None = None
) -> Iterator[ImageItem]:
    """Find the images of image files, folders (with their subfolders) and globs; "-" stands for the listed paths.

    A folder may also hold the features that `coop encode` wrote.
    The search goes only as far as the images are asked for; the names of a folder's other files go to `pass_over`. Raises,
    at once, UsageError for a missing source and CoopError when there are no images.
    """
    for source in sources:
        if source != STDIN and not Path(source).exists() and not PATTERN.search(source):
            raise UsageError(f'no image, folder or glob "{source}"{did_you_mean(Path(source))}')
    items = chain.from_iterable(_from_list(listed) if source == STDIN else _from(source, pass_over) for source in sources)
    first = next(items, None)
    if first is None:
        raise CoopError("there are no images in " + ", ".join(f'"{source}"' for source in sources))
    return chain([first], items)


def _from(source: str, pass_over: Callable[[str], object] | None) -> Iterator[ImageItem]:
    path = Path(source)
    if is_encoded(path):
        return (item for item, _ in encoded_items(path))
    if path.is_dir():
        paths: Iterable[Path] = walk_images(path, pass_over)
    elif path.exists():  # before globs: a name may contain their characters
        paths = [path]
    else:
        matches = sorted(glob.iglob(source, recursive=True))  # noqa: PTH207  Path.glob takes no absolute patterns
        paths = (match for match in map(Path, matches) if match.is_file())
    return (file_item(path, str(path)) for path in paths)


def _from_list(lines: Iterable[str]) -> Iterator[ImageItem]:
    paths = (line.rstrip("\r\n") for line in lines)
    return (file_item(Path(path), path) for path in paths if path)
