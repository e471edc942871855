"""Turn the public sets of small pictures into arrays: one uint8 array of 64 x 64 pictures for each set, and its names.

    python -m mini.pictures --sets FOLDER --out ARRAYS

FOLDER holds one folder for each set, as its public repository has it; a set that is not there is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
FINER = {"imagenet1": 128}  # one picture a class: the teacher shall see it well


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


def folders(root: Path, rename: Callable[[str], str] = lambda name: name.replace("_", " ")) -> Listing:
    """List a set that has a folder for each class."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and any(path.iterdir()))
    kinds = {".jpg", ".jpeg", ".png", ".tif", ".JPEG"}
    files = ((path, i) for i, name in enumerate(names) for path in sorted((root / name).iterdir()) if path.suffix in kinds)
    return [[rename(name)] for name in names], files


AERIAL_NAMES = {
    "agricultural": "farmland", "baseballdiamond": "baseball diamond", "denseresidential": "dense residential area",
    "golfcourse": "golf course", "mediumresidential": "residential area", "mobilehomepark": "mobile home park",
    "parkinglot": "parking lot", "sparseresidential": "sparse residential area", "storagetanks": "storage tanks",
    "tenniscourt": "tennis court",
}  # fmt: skip

SETS: dict[str, tuple[str, Callable[[Path], Listing]]] = {
    "imagenet1": ("imagenet1", imagenet_samples),
    "tiny": ("tiny", tiny_imagenet),
    "tiny_val": ("tiny", tiny_imagenet_val),
    "food": ("food", lambda folder: folders(folder / "data" / "train")),
    "cifar": ("cifar", lambda folder: folders(folder / "train")),
    "aerial": ("aerial", lambda folder: folders(folder / "UCMerced_LandUse" / "Images", lambda n: AERIAL_NAMES.get(n, n))),
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
    listed = list(files)
    side = FINER.get(name, SIDE)
    pictures = np.empty((len(listed), side, side, 3), np.uint8)
    for i, (path, _) in enumerate(listed):
        with Image.open(path) as image:
            pictures[i] = np.asarray(centre(image, side))
    np.save(arrays / f"{name}_labels.npy", np.array([label for _, label in listed]))
    (arrays / f"{name}.json").write_text(json.dumps(classes))
    np.save(arrays / f"{name}.npy", pictures)
    return len(listed)


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
