"""Predictions for whatever images the user names, one after another: memory does not grow with their number."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ..data.dataset import ImageItem, file_item
from ..data.folders import walk_images
from ..errors import CoopError, UsageError
from .classifier import Classifier

STDIN = "-"
PATTERN = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image with their probabilities, best first.

    `class_name` is that of the best, or None where it is less probable than the threshold: none of these.
    """

    image: str
    class_name: str | None
    top: tuple[tuple[str, float], ...]


def predict(
    classifier: Classifier, items: Iterable[ImageItem], top: int = 1, threshold: float = 0.0
) -> Generator[Prediction | CoopError]:
    """For each image its prediction, or why it cannot be read, in the order of `items`, which are taken a little ahead."""
    names = classifier.head.class_names
    with closing(classifier.stream(items)) as stream:
        for item, probabilities in stream:
            if isinstance(probabilities, CoopError):
                yield probabilities
                continue
            values, rows = (found.tolist() for found in probabilities.topk(min(top, len(names))))
            best = tuple(zip((names[row] for row in rows), values, strict=True))
            yield Prediction(item.name, best[0][0] if values[0] >= threshold else None, best)


def find_images(
    sources: Sequence[str], listed: Iterable[str] = (), pass_over: Callable[[str], object] | None = None
) -> Iterator[ImageItem]:
    """Find the images of image files, folders (with their subfolders) and globs; "-" stands for the listed paths.

    They are looked for as they are asked for; the names of a folder's other files go to `pass_over`. Raises at once
    UsageError for a missing source, and CoopError where there is no image at all.
    """
    for source in sources:
        if source != STDIN and not Path(source).exists() and not PATTERN.search(source):
            raise UsageError(f'there is no image, folder or glob "{source}"')
    found = chain.from_iterable(_from_list(listed) if source == STDIN else _from(source, pass_over) for source in sources)
    first = next(found, None)
    if first is None:
        raise CoopError(f"there are no images in {', '.join(sources)}")
    return chain([first], found)


def _from(source: str, pass_over: Callable[[str], object] | None) -> Iterator[ImageItem]:
    path = Path(source)
    if path.is_dir():
        found: Iterable[Path] = walk_images(path, pass_over)
    elif path.exists():  # before globs: a name may hold their signs
        found = [path]
    else:
        matches = sorted(glob.iglob(source, recursive=True))  # noqa: PTH207  Path.glob takes no absolute patterns
        found = (match for match in map(Path, matches) if match.is_file())
    return (file_item(path, str(path)) for path in found)


def _from_list(lines: Iterable[str]) -> Iterator[ImageItem]:
    paths = (line.rstrip("\r\n") for line in lines)
    return (file_item(Path(path), path) for path in paths if path)
