"""Rows about data: few-shot lists, base and new classes, pixels."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPImageProcessorPil

from coopcli.choices import Classes
from coopcli.clip.pixels import centre, open_image, read_preprocessing
from coopcli.data.dataset import DataSet
from coopcli.data.fewshot import draw_few_shot
from coopcli.data.load import load_split_file

from .bench import Bench, Row
from .pictures import every_kind, uneven_split
from .shims import quiet

Listed = list[tuple[str, int]]  # (path in the image folder, label)

SHOTS, SEEDS = (1, 2, 4, 8, 16), (1, 2, 3)
MODULES = {
    "Caltech101": "caltech101", "DescribableTextures": "dtd", "EuroSAT": "eurosat", "OxfordFlowers": "oxford_flowers",
    "OxfordPets": "oxford_pets", "StanfordCars": "stanford_cars", "UCF101": "ucf101",
}  # fmt: skip


def _splits(bench: Bench) -> dict[str, Path]:
    """Split files by the reference's name of their data set: the official ones at hand, else two made for this."""
    if bench.data:
        files = {name: bench.data / "splits" / f"split_zhou_{name}.json" for name in MODULES}
        return {name: path for name, path in files.items() if path.is_file()}
    uneven = bench.work / "split_zhou_OxfordPets.json"
    uneven_split(uneven)
    return {"EuroSAT": bench.split[0], "OxfordPets": uneven}


def _reference_lists(bench: Bench, name: str, split: Path, shots: int, seed: int, classes: Classes) -> list[Listed]:
    """Train, val and test of the reference."""
    import dassl.data.datasets.base_dataset
    from dassl.data.datasets import build_dataset
    from dassl.utils import set_random_seed

    dassl.data.datasets.base_dataset.check_isfile = lambda path: True  # lists alone, no picture is read
    kind = getattr(__import__(f"datasets.{MODULES[name]}", fromlist=[name]), name)
    root = bench.work / "lists"
    home = root / kind.dataset_dir
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(split, home)
    shutil.rmtree(home / "split_fewshot", ignore_errors=True)  # where it keeps its draws
    with quiet():
        options = ("DATASET.NUM_SHOTS", shots, "DATASET.SUBSAMPLE_CLASSES", classes)
        config = bench.config("DATASET.NAME", name, *options, root=root, seed=seed)
        set_random_seed(seed)
        made = build_dataset(config)
    images = Path(getattr(made, "image_dir", made.dataset_dir))  # Stanford Cars has none of its own
    return [
        [(Path(item.impath).relative_to(images).as_posix(), item.label) for item in items]
        for items in (made.train_x, made.val, made.test)
    ]


def _lists(dataset: DataSet, shots: int, seed: int, classes: Classes) -> list[Listed]:
    drawn = draw_few_shot(dataset, shots, seed, classes)
    return [[(item.name, item.label) for item in items] for items in (drawn.train, drawn.val, drawn.test)]


def lists(bench: Bench) -> list[Row]:
    equal = total = 0
    splits = _splits(bench)
    for name, split in splits.items():
        dataset = load_split_file(split)
        for shots in SHOTS:
            for seed in SEEDS:
                theirs = _reference_lists(bench, name, split, shots, seed, "all")
                equal += sum(a == b for a, b in zip(_lists(dataset, shots, seed, "all")[:2], theirs[:2], strict=True))
                total += 2
    what = f"few-shot train and val lists: {len(splits)} data sets, {len(SHOTS)} numbers of shots, {len(SEEDS)} seeds"
    return [Row(what, f"{equal} of {total} equal")]


def halves(bench: Bench) -> list[Row]:
    equal = total = 0
    splits = _splits(bench)
    for name, split in splits.items():
        dataset = load_split_file(split)
        for classes in ("base", "new"):
            theirs = _reference_lists(bench, name, split, 16, 1, classes)
            equal += sum(a == b for a, b in zip(_lists(dataset, 16, 1, classes), theirs, strict=True))
            total += 3
    return [Row("train, val and test of the base and of the new classes, with their labels", f"{equal} of {total} equal")]


def pixels(bench: Bench) -> list[Row]:
    from dassl.data.transforms import build_transform
    from dassl.utils import read_image

    with quiet():
        config = bench.config("INPUT.SIZE", (224, 224), "INPUT.TRANSFORMS", ("center_crop",))  # no normalisation: whole numbers
        transform = build_transform(config, is_train=False)
    preprocessing = read_preprocessing("stock", CLIPImageProcessorPil())

    def equal(path: Path) -> bool:
        theirs = np.round(np.asarray(transform(read_image(str(path)))) * 255).astype(np.uint8)
        return np.array_equal(centre(preprocessing, open_image(path.read_bytes(), path.name)), theirs)

    different: dict[str, int] = defaultdict(int)
    kinds = list(every_kind(bench.work / "kinds"))
    for kind, path in kinds:
        if not equal(path):
            different[kind] += 1
    on_purpose = different.pop("16-bit grey PNG", 0)
    n_others = sum(kind != "16-bit grey PNG" for kind, _ in kinds)
    rows = [
        Row(
            f"pixels before the image tower, to the byte: {n_others} pictures of {len({kind for kind, _ in kinds}) - 1} kinds",
            f"{n_others - sum(different.values())} equal",
            "; ".join(f"{count} of {kind}" for kind, count in different.items()),
        ),
        Row(
            "16-bit grey pictures", f"{on_purpose} of {len(kinds) - n_others} differ", "on purpose: Pillow cuts them off at 255"
        ),
    ]
    photos = _photos(bench)
    if photos:
        rows.append(Row(f"the same, {len(photos)} photos", f"{sum(map(equal, photos))} equal"))
    return rows


def _photos(bench: Bench) -> list[Any]:
    if not bench.data:
        return []
    found = sorted(path for path in bench.data.rglob("*.jpg"))
    return found[:: max(1, len(found) // 200)][:200]
