"""Measure a student on pictures that it was not trained on: drawn attributes, and Tiny-ImageNet's validation pictures.

python -m mini.check --model FOLDER --arrays ARRAYS
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTokenizer

from coopcli.demo.drawing import ATTRIBUTES, Scene
from mini.augment import normalised
from mini.drawn import load_scenes
from mini.pictures import load

ZEROSHOT = {
    "shape": "a photo of a {}.",
    "colour": "a photo of a {} object.",
    "texture": "a {} texture.",
    "mark_colour": "an object with {} marks.",
    "size": "a photo of a {} object.",
    "background": "a {} background.",
    "background_texture": "a {} background.",
    "style": "a {} photo of an object.",
    "background, vague words": "a photo of a {}.",
    "mark_colour, vague words": "a photo of a {}.",
    "colour, vague words": "a photo of a {}.",
}


@torch.no_grad()
def image_features(model: CLIPModel, pictures: np.ndarray) -> torch.Tensor:
    """Unit features of uint8 pictures [n, 64, 64, 3 or more]."""
    parts = []
    side = model.config.vision_config.image_size
    for at in range(0, len(pictures), 200):
        x = torch.from_numpy(np.ascontiguousarray(pictures[at : at + 200, ..., :3])).permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(model.get_image_features(normalised(x)).pooler_output.float())
    return F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def text_features(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Unit features of texts."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def check_drawn(model: CLIPModel, tokenizer: CLIPTokenizer, pictures: np.ndarray, scenes: list[Scene]) -> dict[str, float]:
    """Zero-shot accuracy for every drawn attribute."""
    image = image_features(model, pictures)
    result = {}
    for name, template in ZEROSHOT.items():
        attribute = name.split(",")[0]
        values = [value for value in ATTRIBUTES[attribute] if value != "none"]
        text = text_features(model, tokenizer, [template.format(value) for value in values])
        answers = [getattr(scene, attribute) for scene in scenes]
        keep = [i for i, answer in enumerate(answers) if answer != "none"]
        predicted = (image[keep] @ text.T).argmax(-1).tolist()
        result[name] = sum(values[p] == answers[i] for p, i in zip(predicted, keep, strict=True)) / len(keep)
    return result


def check_photos(model: CLIPModel, tokenizer: CLIPTokenizer, arrays: Path, count: int | None = None) -> float:
    """Zero-shot accuracy over Tiny-ImageNet's 200 classes: "a photo of a " and the first WordNet name."""
    val = load(arrays, "tiny_val")
    step = max(1, len(val.labels) // count) if count else 1
    image = image_features(model, np.asarray(val.pictures[::step]))
    text = text_features(model, tokenizer, [f"a photo of a {names[0]}." for names in val.classes])
    return float(((image @ text.T).argmax(-1).numpy() == val.labels[::step]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--arrays", type=Path, required=True)
    options = parser.parse_args()
    model = CLIPModel.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(options.model)
    drawn = check_drawn(model, tokenizer, *load_scenes(options.arrays, "drawn_check"))
    print(json.dumps({name: round(100 * value, 1) for name, value in drawn.items()}))
    print("Tiny-ImageNet val, zero-shot over 200 classes:", round(100 * check_photos(model, tokenizer, options.arrays), 1))


if __name__ == "__main__":
    main()
