"""Drawn pictures in the layout that the reference's EuroSAT expects, and pictures of every kind that a file can hold."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = {
    "AnnualCrop": "Annual Crop Land", "Forest": "Forest", "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings", "River": "River", "SeaLake": "Sea or Lake",
}  # fmt: skip
PER_CLASS = {"train": 20, "val": 5, "test": 15}


def draw_eurosat(root: Path) -> tuple[Path, Path]:
    """Write 400 pictures of ten colours and patterns; returns the split file and the image folder."""
    numbers, rows = np.random.default_rng(0), random.Random(0)
    images, split = root / "eurosat" / "2750", root / "eurosat" / "split_zhou_EuroSAT.json"
    listed: dict[str, list[tuple[str, int, str]]] = {part: [] for part in PER_CLASS}
    for label, (folder, name) in enumerate(NAMES.items()):
        (images / folder).mkdir(parents=True)
        colour, coarse = numbers.integers(0, 256, 3), int(2 + label % 5)
        for number, part in enumerate(part for part, count in PER_CLASS.items() for _ in range(count)):
            noise = numbers.normal(0, 50, (coarse, coarse, 3))
            small = Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8))
            small.resize((64, 64), Image.Resampling.BICUBIC).save(images / folder / f"{folder}_{number}.jpg", quality=95)
            listed[part].append((f"{folder}/{folder}_{number}.jpg", label, name))
    for items in listed.values():
        rows.shuffle(items)  # classes come in order of first appearance
    split.write_text(json.dumps(listed))
    return split, images


def uneven_split(path: Path) -> None:
    """Write a split file of 37 classes with 1 to 37 images each, in mixed order; no picture belongs to it."""
    rows = random.Random(1)
    listed = {}
    for part in ("train", "val", "test"):
        items = [(f"{part}/{label}_{i}.jpg", label, f"breed {label}") for label in range(37) for i in range(1 + 7 * label % 37)]
        rows.shuffle(items)
        listed[part] = items
    path.write_text(json.dumps(listed))


def every_kind(folder: Path) -> Iterator[tuple[str, Path]]:
    """Pictures of many modes, formats and shapes, each with what kind it is."""
    numbers = np.random.default_rng(2)
    folder.mkdir()
    for number, (width, height) in enumerate([(64, 64), (100, 75), (75, 100), (33, 200), (225, 224), (31, 32), (640, 17)]):
        coarse = Image.fromarray(numbers.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        rgb = coarse.resize((width, height), Image.Resampling.BICUBIC)
        alpha = Image.fromarray(numbers.integers(0, 256, (height, width), dtype=np.uint8))
        rgba, grey = rgb.copy(), rgb.convert("L")
        rgba.putalpha(alpha)
        palette = rgb.quantize(32)
        deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        colour = rgb.getpixel((0, 0))
        kinds: list[tuple[str, Image.Image, str, dict[str, object]]] = [
            ("RGB JPEG", rgb, "jpg", {}),
            ("grey JPEG", grey, "jpg", {}),
            ("CMYK JPEG", rgb.convert("CMYK"), "jpg", {}),
            ("RGB PNG", rgb, "png", {}),
            ("RGB PNG with a transparent colour", rgb, "png", {"transparency": colour}),
            ("RGBA PNG", rgba, "png", {}),
            ("grey PNG", grey, "png", {}),
            ("grey PNG with a transparent value", grey, "png", {"transparency": grey.getpixel((0, 0))}),
            ("grey and alpha PNG", rgba.convert("LA"), "png", {}),
            ("black and white PNG", rgb.convert("1"), "png", {}),
            ("palette PNG", palette, "png", {}),
            ("palette PNG with a transparent colour", palette, "png", {"transparency": palette.getpixel((0, 0))}),
            ("palette GIF", palette, "gif", {}),
            ("GIF with a transparent colour", palette, "gif", {"transparency": palette.getpixel((0, 0))}),
            ("WebP", rgb, "webp", {}),
            ("WebP with alpha", rgba, "webp", {}),
            ("BMP", rgb, "bmp", {}),
            ("TIFF", rgb, "tif", {}),
            ("16-bit grey PNG", deep, "png", {}),
        ]
        for kind, picture, ending, options in kinds:
            path = folder / f"{number} {kind}.{ending}"
            picture.save(path, **options)
            yield kind, path
