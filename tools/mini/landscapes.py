"""Draw land as it looks from a satellite: fields, woods, towns, roads, rivers, water and more, without any photograph.

    python -m mini.landscapes --out ARRAYS [--count 10000]

Public pictures from above whose licence lets weights be published were not to be had, so the words for land are taught
from drawings. The kinds of land were chosen by common sense and with the class names of land cover sets in mind; no
picture of such a set was used.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
LAND_SEED, PART = 1004, 1000
Picture = np.ndarray  # float [SIDE, SIDE, 3], 0..1

SOILS = [(0.50, 0.42, 0.36), (0.42, 0.36, 0.32), (0.58, 0.50, 0.42), (0.38, 0.33, 0.31), (0.47, 0.44, 0.36)]
GREENS = [(0.28, 0.38, 0.28), (0.33, 0.42, 0.30), (0.36, 0.44, 0.33), (0.24, 0.34, 0.27), (0.40, 0.45, 0.33)]
GRID = (np.arange(SIDE) + 0.5) / SIDE
X, Y = np.meshgrid(GRID, GRID)


def noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1, with about `cells` hills a side."""
    coarse = Image.fromarray(rng.normal(0, 1, (cells + 2, cells + 2)).astype(np.float32))
    fine = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (fine - fine.mean()) / (fine.std() + 1e-6)


def one_of(rng: np.random.Generator, colours: list[tuple[float, float, float]]) -> np.ndarray:
    return np.array(colours[rng.integers(len(colours))]) + rng.normal(0, 0.025, 3)


def flat(colour: np.ndarray) -> Picture:
    return np.broadcast_to(colour, (SIDE, SIDE, 3)).copy()


def rough(picture: Picture, rng: np.random.Generator, strength: float, cells: int) -> Picture:
    return picture + (noise(rng, cells) * strength)[..., None]


def along(rng: np.random.Generator, bend: float) -> np.ndarray:
    """Signed distance from a line through the picture; `bend` makes it wind."""
    angle = rng.uniform(0, np.pi)
    u = (X - 0.5) * np.cos(angle) + (Y - 0.5) * np.sin(angle)
    v = -(X - 0.5) * np.sin(angle) + (Y - 0.5) * np.cos(angle)
    winding = bend * (np.sin(u * rng.uniform(3, 8) + rng.uniform(0, 6)) + 0.5 * np.sin(u * rng.uniform(8, 15)))
    return v - winding + rng.uniform(-0.2, 0.2)


def painted(picture: Picture, mask: np.ndarray, colour: np.ndarray) -> Picture:
    return picture * (1 - mask[..., None]) + colour * mask[..., None]


def fields(rng: np.random.Generator, crops: list[tuple[float, float, float]], parts: int, rows: float = 0.0) -> Picture:
    """Land cut into polygons, each of its own colour, some with rows of plants."""
    centres = rng.random((parts, 2))
    angle = rng.uniform(0, np.pi)
    u, v = X * np.cos(angle) + Y * np.sin(angle), Y * np.cos(angle) - X * np.sin(angle)
    stretch = rng.uniform(1.0, 3.0)
    cu, cv = centres[:, 0] * 1.4, centres[:, 1] * 2 - 1
    owner = np.argmin(np.abs(u[..., None] - cu) * stretch + np.abs(v[..., None] - cv), -1)
    picture = np.stack([one_of(rng, crops) for _ in range(parts)])[owner]
    if rows:
        period = rng.uniform(2.2, 4.5) / SIDE
        turn = rng.uniform(0, np.pi, parts)[owner]
        wave = np.sin(2 * np.pi * (X * np.cos(turn) + Y * np.sin(turn)) / period)
        picture = picture + (rows * wave * (rng.random(parts) < 0.85)[owner])[..., None]
    return rough(rough(picture, rng, 0.015, 12), rng, 0.012, 40)


def country(rng: np.random.Generator) -> Picture:
    """Some land to lay a road or a river through."""
    kind = rng.integers(4)
    if kind == 0:
        return forest(rng)
    if kind == 1:
        return town(rng)
    return fields(rng, SOILS + GREENS, int(rng.integers(3, 9)))


def annual_crops(rng: np.random.Generator) -> Picture:
    return fields(rng, SOILS + GREENS[:2], int(rng.integers(2, 9)))


def permanent_crops(rng: np.random.Generator) -> Picture:
    return rough(fields(rng, GREENS + SOILS, int(rng.integers(3, 10)), rows=rng.uniform(0.03, 0.08)), rng, 0.03, 30)


def forest(rng: np.random.Generator) -> Picture:
    colour = np.array((0.16, 0.25, 0.22)) + rng.normal(0, 0.025, 3)
    return rough(rough(rough(flat(colour), rng, 0.015, 3), rng, 0.014, 16), rng, 0.02, 44)


def grassland(rng: np.random.Generator) -> Picture:
    colour = one_of(rng, [(0.36, 0.42, 0.33), (0.42, 0.44, 0.36), (0.33, 0.38, 0.31), (0.46, 0.45, 0.37)])
    picture = rough(rough(flat(colour), rng, 0.05, 4), rng, 0.03, 10)
    bushes = np.clip(noise(rng, 22) - rng.uniform(0.5, 1.6), 0, 1)
    return rough(painted(picture, bushes, np.array((0.22, 0.30, 0.24))), rng, 0.015, 40)


def pasture(rng: np.random.Generator) -> Picture:
    colour = one_of(rng, [(0.34, 0.46, 0.32), (0.38, 0.48, 0.34), (0.42, 0.49, 0.36)])
    picture = rough(rough(flat(colour), rng, 0.025, 3), rng, 0.012, 30)
    for _ in range(rng.integers(0, 4)):  # hedges and trees
        hedge = np.abs(along(rng, 0.01)) < rng.uniform(0.008, 0.02)
        picture = painted(picture, hedge * 0.8, np.array((0.20, 0.29, 0.23)))
    trees = np.clip(noise(rng, 14) - rng.uniform(1.6, 2.6), 0, 1)
    return painted(picture, trees, np.array((0.18, 0.27, 0.22)))


def water(rng: np.random.Generator) -> Picture:
    colour = one_of(rng, [(0.12, 0.22, 0.34), (0.16, 0.28, 0.36), (0.10, 0.19, 0.29), (0.20, 0.36, 0.42)])
    picture = rough(rough(flat(colour), rng, 0.012, 2), rng, rng.uniform(0.002, 0.012), 44)
    if rng.random() < 0.25:  # a shore
        edge = along(rng, 0.04)
        land = np.clip((edge - rng.uniform(0.2, 0.4)) * 40, 0, 1)
        picture = picture * (1 - land[..., None]) + country(rng) * land[..., None]
    return picture


def river(rng: np.random.Generator) -> Picture:
    colour = one_of(rng, [(0.18, 0.28, 0.34), (0.25, 0.35, 0.38), (0.15, 0.24, 0.30), (0.30, 0.38, 0.38)])
    width = rng.uniform(0.05, 0.17)
    course = np.abs(along(rng, rng.uniform(0.02, 0.13)))
    banks = painted(country(rng), np.clip((width + 0.04 - course) * 40, 0, 1) * 0.6, np.array((0.20, 0.29, 0.23)))
    return rough(painted(banks, np.clip((width - course) * 60, 0, 1), colour), rng, 0.01, 40)


def road(rng: np.random.Generator) -> Picture:
    picture = country(rng)
    for _ in range(rng.integers(1, 3)):
        course = np.abs(along(rng, rng.uniform(0.0, 0.06)))
        width = rng.uniform(0.018, 0.045)
        grey = rng.uniform(0.42, 0.68)
        colour = np.array((grey, grey * 0.99, grey * 0.99))
        picture = painted(picture, np.clip((width - course) * 80, 0, 1), colour)
        if width > 0.03:
            picture = painted(picture, np.clip((0.005 - course) * 120, 0, 1) * 0.6, colour * 0.6)
    return rough(picture, rng, 0.012, 44)


def blocks(rng: np.random.Generator, picture: Picture, count: int, low: float, high: float, roofs: list) -> Picture:
    """Put rectangles, turned alike, on a picture; each throws a shadow."""
    angle = rng.uniform(0, np.pi / 2)
    for _ in range(count):
        x, y = rng.random(2)
        u = (X - x) * np.cos(angle) + (Y - y) * np.sin(angle)
        v = (Y - y) * np.cos(angle) - (X - x) * np.sin(angle)
        half_u, half_v = rng.uniform(low, high, 2)
        shadow = ((np.abs(u - 0.012) < half_u) & (np.abs(v - 0.012) < half_v)).astype(float)
        picture = painted(picture, shadow * 0.5, np.array((0.18, 0.2, 0.22)))
        roof = ((np.abs(u) < half_u) & (np.abs(v) < half_v)).astype(float)
        picture = painted(picture, roof, one_of(rng, roofs))
    return picture


def town(rng: np.random.Generator) -> Picture:
    picture = rough(rough(flat(one_of(rng, [(0.36, 0.38, 0.35), (0.42, 0.40, 0.38)])), rng, 0.04, 8), rng, 0.03, 36)
    angle, block = rng.uniform(0, np.pi / 2), rng.uniform(0.14, 0.3)
    u, v = X * np.cos(angle) + Y * np.sin(angle), Y * np.cos(angle) - X * np.sin(angle)
    streets = (np.abs(u % block) < 0.025) | (np.abs(v % (block * rng.uniform(1, 2))) < 0.02)
    picture = painted(picture, streets * 0.7, np.array((0.52, 0.51, 0.51)))
    roofs = [(0.55, 0.40, 0.36), (0.62, 0.50, 0.46), (0.50, 0.46, 0.45), (0.66, 0.62, 0.60)]
    return rough(blocks(rng, picture, int(rng.integers(50, 110)), 0.012, 0.03, roofs), rng, 0.02, 50)


def industry(rng: np.random.Generator) -> Picture:
    ground = flat(one_of(rng, [(0.48, 0.47, 0.47), (0.42, 0.43, 0.43), (0.40, 0.42, 0.38)]))
    roofs = [(0.82, 0.83, 0.85), (0.70, 0.72, 0.76), (0.58, 0.62, 0.68), (0.90, 0.90, 0.90), (0.55, 0.55, 0.56)]
    return rough(blocks(rng, rough(ground, rng, 0.05, 10), int(rng.integers(5, 16)), 0.04, 0.17, roofs), rng, 0.025, 44)


def desert(rng: np.random.Generator) -> Picture:
    colour = one_of(rng, [(0.76, 0.62, 0.45), (0.80, 0.70, 0.55), (0.70, 0.52, 0.38)])
    dunes = np.sin(along(rng, 0.05) * rng.uniform(30, 70)) * rng.uniform(0.0, 0.05)
    return rough(flat(colour) + dunes[..., None], rng, 0.03, 5)


def snow(rng: np.random.Generator) -> Picture:
    ridges = np.abs(noise(rng, 6)) * rng.uniform(0.05, 0.16)
    return rough(flat(np.array((0.92, 0.94, 0.97))) - ridges[..., None], rng, 0.02, 20)


def mountains(rng: np.random.Generator) -> Picture:
    height = noise(rng, 6) + 0.5 * noise(rng, 14)
    light = np.gradient(height, axis=0) + np.gradient(height, axis=1)
    return flat(one_of(rng, [(0.45, 0.40, 0.35), (0.38, 0.38, 0.33)])) + (light * rng.uniform(0.2, 0.5))[..., None]


def clouds(rng: np.random.Generator) -> Picture:
    cover = np.clip(0.5 + noise(rng, 4) * 0.5 + noise(rng, 12) * 0.25, 0, 1)
    return painted(country(rng), cover, np.array((0.93, 0.94, 0.96)))


def beach(rng: np.random.Generator) -> Picture:
    edge = along(rng, 0.03)
    picture = painted(water(rng), np.clip((edge + 0.05) * 40, 0, 1), np.array((0.82, 0.75, 0.60)))
    land = np.clip((edge - rng.uniform(0.05, 0.2)) * 40, 0, 1)[..., None]
    return picture * (1 - land) + country(rng) * land


def runway(rng: np.random.Generator) -> Picture:
    course = along(rng, 0.0)
    picture = painted(pasture(rng), np.clip((0.09 - np.abs(course)) * 80, 0, 1), np.array((0.45, 0.45, 0.46)))
    return painted(picture, np.clip((0.008 - np.abs(course)) * 200, 0, 1) * 0.9, np.array((0.95, 0.95, 0.95)))


LAND: dict[str, tuple[Callable[[np.random.Generator], Picture], tuple[str, ...]]] = {
    "crops": (
        annual_crops,
        ("annual crop land", "cropland", "farmland", "crop fields", "fields", "agricultural land", "crops"),
    ),
    "orchard": (permanent_crops, ("permanent crop land", "an orchard", "a vineyard", "a plantation", "rows of fruit trees")),
    "forest": (forest, ("forest", "a forest", "woods", "woodland", "trees", "dense forest")),
    "grass": (
        grassland,
        ("herbaceous vegetation land", "herbaceous vegetation", "grassland", "shrubland", "scrub", "brush land"),
    ),
    "pasture": (pasture, ("pasture land", "pasture", "a meadow", "grazing land", "a green meadow")),
    "water": (water, ("sea or lake", "a sea", "a lake", "the ocean", "open water", "water")),
    "river": (river, ("a river", "river", "a stream", "a winding river", "a canal", "a river course")),
    "road": (road, ("highway or road", "a highway", "a road", "a motorway", "a freeway", "a country road")),
    "town": (town, ("residential buildings", "houses", "a residential area", "a town", "a suburb", "homes", "a neighbourhood")),
    "industry": (industry, ("industrial buildings", "factories", "warehouses", "an industrial area", "an industrial estate")),
    "desert": (desert, ("desert", "a desert", "sand dunes", "dry land")),
    "snow": (snow, ("snow", "a glacier", "ice", "snow-covered land")),
    "mountains": (mountains, ("mountains", "a mountain range", "rocky land", "hills")),
    "clouds": (clouds, ("clouds", "a cloudy sky", "cloud cover")),
    "beach": (beach, ("a beach", "the coast", "a shore", "a coastline")),
    "runway": (runway, ("a runway", "an airport", "an airfield")),
}
LEADS = ("a satellite photo of {}", "a centered satellite photo of {}", "an aerial photo of {}", "a satellite image of {}",
         "an aerial view of {}", "{} seen from above", "{} from space", "a view of {} from above", "a photo of {}",
         "a satellite picture of {}", "a bird's eye view of {}")  # fmt: skip


def land(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Draw one view of a kind of land, uint8 [SIDE, SIDE, 3], as the light and the air of the day have it."""
    picture = LAND[kind][0](rng)
    picture = picture * rng.uniform(0.8, 1.15) + rng.normal(0, 0.015, 3) + np.array((0, 0, 1)) * rng.uniform(-0.01, 0.05)
    picture = (picture - 0.4) * rng.uniform(0.75, 1.15) + 0.4 + rng.normal(0, 0.008, picture.shape)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def land_caption(kind: str, rng: np.random.Generator) -> str:
    """Name the kind of land in one of many phrasings."""
    words = LAND[kind][1]
    text = LEADS[rng.integers(len(LEADS))].format(words[rng.integers(len(words))])
    return text + (".", ".", "")[rng.integers(3)]


def land_part(seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Draw `PART` views, all kinds in turn: the pictures, and the number of each one's kind."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(PART) % len(LAND)
    names = list(LAND)
    return np.stack([land(names[kind], rng) for kind in kinds]), kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    with multiprocessing.Pool(os.cpu_count() or 1) as processes:
        parts = processes.map(land_part, [(LAND_SEED, part) for part in range(options.count // PART)], chunksize=1)
    np.save(options.out / "land_labels.npy", np.concatenate([part[1] for part in parts]))
    np.save(options.out / "land.npy", np.concatenate([part[0] for part in parts]))


if __name__ == "__main__":
    main()
