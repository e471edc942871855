"""What a result was made of: digests of images by their content, and which images a prompt was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..data.fewshot import FewShot, draw_few_shot
from ..data.load import DataSet, ImageItem
from ..errors import CoopError, UsageError
from ..files import FEW_SHOT_FILE, write_json
from ..learned.head import Head
from ..learned.prompt import LearnedPrompt
from ..learned.scores import Evaluation, Metrics, score

READERS = 8  # files that are read at once


def content_key(item: ImageItem) -> str:
    """A digest of an image's bytes; one that cannot be read has the key "unreadable"."""
    if item.encoded:
        return item.encoded.digest
    try:
        return hashlib.blake2b(item.read(), digest_size=16).hexdigest()
    except CoopError:
        return "unreadable"


@lru_cache(maxsize=4)  # those of one data set are asked for again and again
def content_keys(items: tuple[ImageItem, ...]) -> list[str]:
    """The content key of each image."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(content_key, items))


def made_of(*parts: Any) -> str:
    """A digest of what a result was made of: parts that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def data_digest(data: FewShot) -> str:
    """A digest of a draw: names, labels and contents of the images of every list, and the class names."""
    lists = [
        [[item.name, item.label, key] for item, key in zip(items, content_keys(items), strict=True)]
        for items in (data.train, data.val, data.test)
    ]
    return made_of(data.class_names, *lists)


def write_few_shot(folder: Path, data: FewShot) -> None:
    """Write fewshot.json: the names of the images of a draw, and the content keys of those that were trained on."""
    content = {
        "train": [item.name for item in data.train],
        "val": [item.name for item in data.val],
        "train_contents": content_keys(data.train),
    }
    write_json(folder / FEW_SHOT_FILE, content)


@dataclass(frozen=True)
class Trained:
    """The images that a prompt or head was trained on: by their contents, or by their names in one data set."""

    contents: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    def among(self, items: Iterable[ImageItem]) -> set[int]:
        """The places of those of the items that were trained on."""
        items = tuple(items)
        if self.contents:
            return {place for place, key in enumerate(content_keys(items)) if key in self.contents}
        return {place for place, item in enumerate(items) if item.name in self.names}


def trained_on(learned: LearnedPrompt | Head, path: Path | None, dataset: DataSet) -> Trained:
    """The images that were trained on, as far as this can be known.

    From fewshot.json beside the file at `path`, where it agrees with the digest in the prompt; without it, or where an older
    coop wrote no contents, by drawing from `dataset` again: the same list of names in a data set of the same name.
    """
    sha256 = learned.training.get("few_shot_sha256")
    if path and (kept := _read_few_shot(path if path.is_dir() else path.parent, sha256)):
        return kept
    same_data = learned.training.get("data") == dataset.name
    with suppress(CoopError, KeyError, TypeError, ValueError, UsageError):
        training = learned.training
        data = draw_few_shot(dataset, training["shots"], int(training["seed"]), training["classes"])
        if sha256 is not None and data.sha256 == sha256 and same_data:
            return Trained(names=frozenset(item.name for item in data.train))
    return Trained()


def _read_few_shot(folder: Path, sha256: object) -> Trained | None:
    """The contents that fewshot.json lists; None where it lists none or is another prompt's (a head's file has no digest)."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        content = json.loads((folder / FEW_SHOT_FILE).read_text("utf-8"))
        names, keys = content["train"], content["train_contents"]
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
        if sha256 in (None, digest) and len(names) == len(keys) and keys and all(isinstance(key, str) for key in keys):
            return Trained(contents=frozenset(keys) - {"unreadable"})
    return None


@dataclass(frozen=True)
class Overlap:
    """How many of the images of an evaluation were trained on, and the metrics without them; None where none is left."""

    images: int
    without: Metrics | None

    def as_dict(self) -> dict[str, Any]:
        """The key `trained_on` of `coop eval --json`."""
        rest = self.without and {"n": self.without.n, "top1": self.without.top1, "macro": self.without.macro}
        return {"images": self.images, "without": rest}


def overlap(evaluation: Evaluation, trained: Trained) -> Overlap:
    """Score an evaluation again without the images that were trained on."""
    seen = trained.among(evaluation.items)
    rest = [place for place in range(len(evaluation.items)) if place not in seen]
    if not seen or not rest:
        return Overlap(len(seen), evaluation.metrics if rest else None)
    labels = torch.tensor([evaluation.items[place].label for place in rest])
    predicted = torch.tensor([evaluation.predicted[place] for place in rest])
    return Overlap(len(seen), score(labels, predicted, len(evaluation.class_names)))
