"""Draw the scenes that the student learns from beside photographs, once, into arrays.

python -m mini.drawn --out ARRAYS [--count 60000]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from coopcli.demo.drawing import Scene, random_scene, render

SIDE = 64
POOL_SEED, CHECK_SEED = 1001, 1003  # no demo picture shares a seed with these
PART = 2000  # pictures that one seed draws


def drawn(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Picture and coverage as one uint8 [SIDE, SIDE, 4]."""
    picture, inside = render(scene, rng, SIDE)
    return np.dstack([picture, (inside * 255).astype(np.uint8)])


def draw_part(seed: tuple[int, ...]) -> tuple[np.ndarray, list[Scene]]:
    """Draw `PART` random scenes."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(PART)]
    return np.stack([drawn(scene, rng) for scene in scenes]), scenes


def load_scenes(arrays: Path, name: str) -> tuple[np.ndarray, list[Scene]]:
    """Read pictures that were drawn before, uint8 [count, SIDE, SIDE, 4], and what they show."""
    scenes = [Scene(**item) for item in json.loads((arrays / f"{name}.json").read_text())]
    return np.load(arrays / f"{name}.npy", mmap_mode="r"), scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60_000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(os.cpu_count() or 1) as processes:
        for name, seeds in (
            ("drawn_check", [(CHECK_SEED,)]),
            ("drawn", [(POOL_SEED, part) for part in range(options.count // PART)]),
        ):
            parts = processes.map(draw_part, seeds, chunksize=1)
            np.save(options.out / f"{name}.npy", np.concatenate([part[0] for part in parts]))
            scenes = [asdict(scene) for part in parts for scene in part[1]]
            (options.out / f"{name}.json").write_text(json.dumps(scenes))


if __name__ == "__main__":
    main()
