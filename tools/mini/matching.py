"""Which captions are true of which pictures."""

from __future__ import annotations

import numpy as np
import torch

from coopcli.demo.drawing import ATTRIBUTES

Caption = tuple[str, list[int], bool]  # the text, the classes it is true of, whether it tells what was done to the picture


def photo_matches(captions: list[Caption], told_effects: np.ndarray, numbers: np.ndarray, effects: np.ndarray) -> torch.Tensor:
    """[pictures, captions] for photographs of classes `numbers`; `told_effects` are those of the captions' own pictures."""
    true_of = np.zeros((len(captions), max(numbers.max(), max(max(classes) for _, classes, _ in captions)) + 1), bool)
    for i, (_, classes, _) in enumerate(captions):
        true_of[i, classes] = True
    told = np.array([told for _, _, told in captions])
    same_effect = effects[:, None] == told_effects[None]
    return torch.from_numpy(true_of[:, numbers].T & (same_effect | ~told[None]))


def scene_matches(ids: np.ndarray, own_ids: np.ndarray, said: tuple[frozenset[str], ...]) -> torch.Tensor:
    """[pictures, captions] for drawn scenes: whether all that a caption states of its own scene holds for the picture."""
    stated = np.array([[name in names for name in ATTRIBUTES] for names in said])
    return torch.from_numpy(((ids[:, None] == own_ids[None]) | ~stated[None]).all(-1))


def prototypes(features: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """The mean feature of every class, of length one; nothing where a class has no picture."""
    sums = np.zeros((count, features.shape[1]), np.float32)
    np.add.at(sums, numbers, features)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)


def kinds_of(classes: list[list[int]], prototypes: np.ndarray) -> np.ndarray:
    """For each caption the mean prototype of the classes that it is true of, of length one."""
    means = np.stack([prototypes[members].mean(0) for members in classes])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)
