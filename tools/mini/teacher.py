"""Compute the teacher's features of the photographs: OpenAI's ViT-B/16 image tower, in bfloat16.

    python -m mini.teacher --tower clip_encoder.int8.onnx --arrays ARRAYS --out FEATURES [--side 128] [--count 40000]

The pictures are 64 px, so the tower sees them at 128 px, with its position embeddings resized: 16-shot logistic
regression on EuroSAT's few-shot pictures (seed 1 against the others): 96 px 74.4 %, 112 px 77.9, 128 px 83.4. A CPU with
matrix units for bfloat16 (Intel's AMX) describes 30 to 40 pictures a second on one core. The features come in shards: it
goes on where it was stopped, and what is there can be trained on. The pictures are taken in turn from all classes, so
that any first part holds every class. With `--first`, several processes share the work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mini.augment import normalised
from mini.pictures import FIRST, TURN, PictureSet, load
from mini.tower import load_tower

SHARD, BATCH = 512, 32


def turns(sets: list[PictureSet], seed: int = 0) -> np.ndarray:
    """Order all pictures: first those of a picture or so of each ImageNet class, then round after round over the other classes.

    Returns int32 [count, 2]: the number of the set and of the picture in it.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[float, float, int, int]] = []
    for number, pictures in enumerate(sets):
        if pictures.name not in TURN:
            rows += [(-1.0, float(i), number, i) for i in range(len(pictures.labels))]
            continue
        for label in range(len(pictures.classes)):
            members = rng.permutation(np.flatnonzero(pictures.labels == label))
            start = rng.random()
            rows += [((start + i) / TURN[pictures.name], rng.random(), number, int(j)) for i, j in enumerate(members)]
    return np.array([row[2:] for row in sorted(rows)], np.int32)


def open_teacher(source: Path, side: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The tower as a function of normalised pictures [BATCH, 3, side, side], compiled for that shape."""
    tower = load_tower(source, side).bfloat16()
    tower.set_attn_implementation("sdpa")
    compiled = torch.compile(lambda values: tower(pixel_values=values).image_embeds, dynamic=False, options={"freezing": True})

    @torch.inference_mode()
    def describe(values: torch.Tensor) -> torch.Tensor:
        return compiled(values.bfloat16()).float()

    return describe


def enlarged(picture: np.ndarray, side: int) -> np.ndarray:
    """Bring one square picture to `side` pixels."""
    if picture.shape[0] == side:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", type=Path, required=True, help="the .onnx file, or a model folder")
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument(
        "--first", type=int, default=0, help=f"picture to begin with, a multiple of {SHARD}: one process a core"
    )
    parser.add_argument("--count", type=int, default=40_000, help="picture to end before")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    names = [name for name in (*FIRST, *TURN) if (options.arrays / f"{name}.npy").exists()]
    order_file = options.out / "order.npy"
    if order_file.exists():  # a set that came later waits for a fresh folder
        names = json.loads((options.out / "sets.json").read_text())
    sets = [load(options.arrays, name) for name in names]
    if not order_file.exists():
        np.save(order_file, turns(sets))
        (options.out / "sets.json").write_text(json.dumps(names))
    order = np.load(order_file)
    torch.set_num_threads(options.threads)
    describe = open_teacher(options.tower, options.side)
    started, made = time.time(), 0
    for first in range(options.first, min(options.count, len(order)), SHARD):
        shard = options.out / f"features_{first // SHARD:05d}.npy"
        if shard.exists():
            continue
        features = []
        part = order[first : first + SHARD]
        for at in range(0, len(part), BATCH):
            pictures = np.stack([enlarged(np.asarray(sets[s].pictures[i]), options.side) for s, i in part[at : at + BATCH]])
            values = torch.zeros(BATCH, 3, options.side, options.side)
            values[: len(pictures)] = normalised(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255)
            features.append(describe(values)[: len(pictures)].numpy())
        partial = shard.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.concatenate(features).astype(np.float16))
        partial.rename(shard)
        made += len(part)
        print(f"{first + len(part)} pictures, {made / (time.time() - started):.1f}/s", flush=True)


if __name__ == "__main__":
    main()
