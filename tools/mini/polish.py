"""After the training: teach the text tower alone, against what the finished image tower sees.

Pictures are looked at once, so that a step costs a tenth of one of `mini.train`, and captions by the hundred thousand can
be learned in minutes. The image tower stays as it is.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from mini.augment import normalised, seen
from mini.captions import EFFECTS, caption, phrase
from mini.drawn import load_scenes
from mini.landscapes import LAND, land_caption
from mini.losses import contrastive, towards
from mini.matching import kinds_of, photo_matches, prototypes, scene_matches
from mini.scene_captions import caption as scene_caption
from mini.train import Data, Trainer, open_trainer, read_data, report
from mini.wordnet import WordNet
from mini.words import unseen_words

PHOTOS, SCENES, VIEWS = 30_000, 12_000, 3_000  # pictures looked at
IMAGES, CAPTIONS, UNSEEN, DRAWN, LAND_IMAGES = 512, 192, 64, 160, 96  # in one step
RARE = 40  # of the pictures: of classes that have one or two
LEARNING_RATE, EFFECT_SHARE, SEED = 6e-4, 0.25, 1005


@dataclass
class Seen:
    """What the image tower makes of the pictures."""

    photos: torch.Tensor
    numbers: np.ndarray
    effects: np.ndarray
    scenes: torch.Tensor
    land: torch.Tensor
    prototypes: np.ndarray


@torch.no_grad()
def look_once(trainer: Trainer, data: Data, rng: np.random.Generator) -> Seen:
    """Look at many pictures, a quarter of the photographs darkened, blurred and so on."""
    side = trainer.student.sizes.image_side

    def features(pictures: np.ndarray, effects: np.ndarray, least: float) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = seen(pictures, effects, side, rng, least)[:, :3]
            feature, _ = trainer.student.image(trainer.student.image.patches(normalised(x)))
        return torch.nn.functional.normalize(feature.float(), dim=-1)

    photos, numbers, effects = [], [], []
    for at in range(0, PHOTOS, 200):
        pictures, number = data.photos.take(np.arange(at, at + 200), data.things.first)
        effect = np.where(rng.random(200) < EFFECT_SHARE, rng.integers(1, len(EFFECTS), 200), 0)
        photos.append(features(pictures, effect, 0.8))
        numbers.append(number)
        effects.append(effect)
    none = np.zeros(200, np.int64)
    scenes = [features(data.drawn[at : at + 200], none, 0.9) for at in range(0, SCENES, 200)]
    land = [features(data.land[at : at + 200], none, 0.8) for at in range(0, VIEWS, 200)]
    all_photos, all_numbers, all_effects = torch.cat(photos), np.concatenate(numbers), np.concatenate(effects)
    plain = all_effects == 0
    means = prototypes(all_photos.numpy()[plain], all_numbers[plain], len(data.things.names))
    return Seen(all_photos, all_numbers, all_effects, torch.cat(scenes), torch.cat(land), means)


def polish(options: argparse.Namespace) -> None:
    """Train the text tower for `--text-minutes`."""
    data = read_data(options)
    trainer = open_trainer(options, data)
    rng = np.random.default_rng(SEED)
    started = time.time()
    known = look_once(trainer, data, rng)
    words, word_features = unseen_words(WordNet(options.wordnet), data.things, known.prototypes)
    print(f"looked at {PHOTOS + SCENES + VIEWS} pictures in {time.time() - started:.0f} s", flush=True)
    learned = [*trainer.student.text.parameters(), trainer.student.logit_scale]
    optimizer = torch.optim.AdamW(learned, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    started, step, told = time.time(), 0, 0.0
    while (progress := (time.time() - started) / 60 / options.text_minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-6
        rows = rng.integers(0, len(known.photos), IMAGES)
        rows[:RARE] = rng.integers(0, data.photos.rare, RARE)
        own = rows[:CAPTIONS]
        captions = [caption(data.things, int(known.numbers[i]), int(known.effects[i]), rng) for i in own]
        unseen = rng.integers(0, len(words), UNSEEN)
        scenes = rng.integers(0, len(known.scenes), DRAWN)
        scene_texts, said = zip(*(scene_caption(data.scenes[i], rng) for i in scenes), strict=True)
        views = rng.integers(0, len(known.land), LAND_IMAGES)
        texts = [text for text, _, _ in captions] + [phrase(words[i], rng) for i in unseen]
        texts += [land_caption(kind, rng) for kind in LAND for _ in range(2)]
        with torch.autocast("cpu", torch.bfloat16):
            text = trainer.read([*texts, *scene_texts])
        parts = text.split([CAPTIONS, UNSEEN, 2 * len(LAND), DRAWN])
        photo_text, word_text, land_text, scene_text = parts
        scale = trainer.student.logit_scale.exp()
        match = photo_matches(captions, known.effects[own], known.numbers[rows], known.effects[rows])
        ids = data.scene_ids[scenes]
        land_match = data.land_labels[views][:, None] == np.repeat(np.arange(len(LAND)), 2)[None]
        wanted = np.concatenate([kinds_of([c for _, c, _ in captions], known.prototypes), word_features[unseen]])
        loss = contrastive(scale * known.photos[rows] @ photo_text.T, match)
        loss = loss + contrastive(scale * known.scenes[scenes] @ scene_text.T, scene_matches(ids, ids, said))
        loss = loss + 0.3 * contrastive(scale * known.land[views] @ land_text.T, torch.from_numpy(land_match))
        loss = loss + 0.5 * towards(torch.cat([photo_text, word_text]), torch.from_numpy(wanted))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        with torch.no_grad():
            trainer.student.logit_scale.clamp_(max=math.log(100.0))
        step, told = step + 1, told + loss.item()
        if step % 25 == 0:
            print(f"text step {step} ({progress:.2f}) loss {told / 25:.3f}", flush=True)
            told = 0.0
    trainer.save(options.work / "polished.pt")
    report(trainer, options, load_scenes(options.arrays, "drawn_check"))
