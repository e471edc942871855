"""The row of the linear probe: its lpclip/linear_probe.py, run as it is, against coop's search for C on the same features."""

from __future__ import annotations

import os
import re
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coopcli.learning.methods.linear_probe import best_exponent, fit, score

from .bench import Bench, Row
from .shims import quiet

SHOTS, VAL_SHOTS, RUNS = (1, 2, 4, 8, 16), (1, 2, 4, 4, 4), 2
WIDTH, CLASSES = 64, 10
Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


def probe(bench: Bench) -> list[Row]:
    splits = _features()
    folder = bench.work / "probe"
    (folder / "clip_feat" / "Drawn").mkdir(parents=True)
    for name, (features, labels) in splits.items():
        np.savez(folder / "clip_feat" / "Drawn" / f"{name}.npz", feature_list=features, label_list=labels)
    arguments, here = sys.argv, Path.cwd()
    sys.argv = ["linear_probe.py", "--dataset", "Drawn", "--num_run", str(RUNS)]
    os.chdir(folder)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(str(bench.coop / "lpclip" / "linear_probe.py"), run_name="__main__")
    finally:
        os.chdir(here)
        sys.argv = arguments
    report = next((folder / "report").glob("*details.txt")).read_text()
    found = re.findall(r"seed (\d+), (\d+) shot, weight (\S+), test_acc (\S+)", report)
    last = {(int(shots), int(seed)): (float(c), float(accuracy)) for seed, shots, c, accuracy in found}

    same_c = same_accuracy = 0
    normalised = []
    for shots, val_shots in zip(SHOTS, VAL_SHOTS, strict=True):
        for seed in range(1, RUNS + 1):
            np.random.seed(seed)  # as its script draws
            train, val = _draw(splits["train"], shots), _draw(splits["val"], val_shots)
            c, accuracy = last[shots, seed]
            ours, our_accuracy = _search(train, val, splits["test"])
            same_c += abs(ours / c - 1) < 1e-9
            same_accuracy += abs(our_accuracy - accuracy) < 0.005 + 1e-9  # it prints two digits
            normalised.append(_search(*map(_normalised, (train, val, splits["test"])))[1] - accuracy)
    n = len(normalised)
    return [
        Row(
            f"linear probe on features as the tower gives them, {n} draws",
            f"the same C in {same_c}, the same test accuracy in {same_accuracy} of {n}",
        ),
        Row(
            "linear probe on normalised features, coop's default",
            f"another test accuracy in {sum(abs(more) >= 0.005 for more in normalised)} of {n}: "
            f"{min(normalised):+.1f} to {max(normalised):+.1f} points",
            "on purpose; not a factor in C alone, for norms differ by some percent",
        ),
    ]


def _features() -> dict[str, Arrays]:
    """Features of ten overlapping classes, with norms of 10 +- 4 %, as CLIP's are."""
    random = np.random.default_rng(3)
    centres = random.normal(size=(CLASSES, WIDTH))
    splits = {}
    for name, count in (("train", 20), ("val", 6), ("test", 40)):
        labels = np.repeat(np.arange(CLASSES), count)
        features = centres[labels] + random.normal(0, 2.2, (len(labels), WIDTH))
        norms = 10 * (1 + random.normal(0, 0.04, (len(labels), 1)))
        splits[name] = (features / np.linalg.norm(features, axis=1, keepdims=True) * norms, labels)
    return splits


def _draw(split: Arrays, shots: int) -> Arrays:
    features, labels = split
    rows = [np.random.choice(np.where(labels == label)[0], size=shots, replace=False) for label in np.unique(labels)]
    chosen = np.concatenate(rows)
    return features[chosen], labels[chosen]


def _normalised(split: Arrays) -> Arrays:
    features = torch.nn.functional.normalize(torch.from_numpy(split[0]), dim=-1).numpy()
    return features, split[1]


def _search(train: Arrays, val: Arrays, test: Arrays) -> tuple[float, float]:
    """C and the test accuracy in %."""
    c = 10 ** best_exponent(lambda exponent: score(*train, *val, 10.0**exponent))
    weights, bias = fit(*train, c, CLASSES)
    return c, 100 * float(((test[0] @ weights.T + bias).argmax(1) == test[1]).mean())
