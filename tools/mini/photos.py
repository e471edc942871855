"""The photographs that the student learns from, with the teacher's features of as many as there are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mini.matching import prototypes
from mini.pictures import FIRST, SIDE, load

LARGE = 50_000  # pictures of a set that the others are balanced with


class Photos:
    """Pictures in the teacher's order: the first `described` of them have a feature.

    Features are unit vectors of which the mean of all was taken away: CLIP's features lie in a narrow cone, and what
    tells pictures apart is what is left.
    """

    def __init__(self, arrays: Path, features: Path) -> None:
        self.sets = json.loads((features / "sets.json").read_text())
        self.order = np.load(features / "order.npy")
        shards = []
        for number in range(len(self.order)):
            shard = features / f"features_{number:05d}.npy"
            if not shard.exists():
                break
            shards.append(np.load(shard))
        raw = np.concatenate(shards).astype(np.float32)
        self.described = len(raw)
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        self.mean = unit.mean(0)
        centred = unit - self.mean
        self.features = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        # Up to here the order is balanced: none of the large sets has run out.
        sizes = np.bincount(self.order[:, 0], minlength=len(self.sets))
        ends = [int(np.flatnonzero(self.order[:, 0] == s)[-1]) for s in range(len(self.sets)) if sizes[s] >= LARGE]
        self.balanced = max(self.described + 1, min(ends))
        # A picture or so of each of ImageNet's classes stands first: most names have only these.
        self.rare = int((self.order[: self.described, 0] < sum(name in FIRST for name in self.sets)).sum())
        self.pictures, self.labels = [], []
        for name in self.sets:
            opened = load(arrays, name)
            pictures = opened.pictures
            if pictures.shape[1] != SIDE:
                times = pictures.shape[1] // SIDE
                small = pictures.reshape(len(pictures), SIDE, times, SIDE, times, 3).mean((2, 4))
                pictures = small.round().astype(np.uint8)
            self.pictures.append(pictures)
            self.labels.append(opened.labels)

    def take(self, rows: np.ndarray, first: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """The pictures of some rows of the order, and the numbers of their classes in the table of things."""
        pictures = np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
        numbers = np.empty(len(rows), np.int64)
        for s, name in enumerate(self.sets):
            at = np.flatnonzero(self.order[rows, 0] == s)
            index = self.order[rows[at], 1]
            pictures[at] = self.pictures[s][index]
            numbers[at] = self.labels[s][index] + first[name]
        return pictures, numbers

    def numbers(self, first: dict[str, int]) -> np.ndarray:
        """The numbers of the described pictures' classes in the table of things."""
        order = self.order[: self.described]
        numbers = np.empty(self.described, np.int64)
        for s, name in enumerate(self.sets):
            at = np.flatnonzero(order[:, 0] == s)
            numbers[at] = self.labels[s][order[at, 1]] + first[name]
        return numbers

    def prototypes(self, count: int, first: dict[str, int]) -> np.ndarray:
        """The mean feature of every class, of length one."""
        return prototypes(self.features, self.numbers(first), count)
