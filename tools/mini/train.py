"""Train the student on photographs and drawings at once; goes on from its checkpoint when it was stopped."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from mini.augment import jittered, normalised, seen
from mini.captions import EFFECTS, caption, phrase
from mini.check import check_drawn, check_photos
from mini.drawn import load_scenes
from mini.landscapes import LAND, land_caption
from mini.losses import Heads, contrastive, towards
from mini.matching import kinds_of, photo_matches, scene_matches
from mini.photos import Photos
from mini.scene_captions import attribute_ids
from mini.scene_captions import caption as scene_caption
from mini.student import Sizes, Student, go_on_from, start_from, to_clip
from mini.vocabulary import train_tokenizer
from mini.wordnet import WordNet
from mini.words import Things, read_synonyms, read_things, unseen_words

VOCABULARY = 4096
# One process's batch: photographs that the teacher described, others of known class, drawn scenes, drawn land; then words.
DESCRIBED, NAMED, DRAWN, LANDS = 64, 16, 32, 8
RARE = 10  # of the described: of classes that have a picture or two
CAPTIONS, UNSEEN = 36, 16  # captions of photographs; nouns without pictures
WARM_UP = 150
# Patches looked at, from which part of the training on: a picture's half is enough for most of it.
KEPT = ((0.0, 32), (0.7, 64))
EFFECT_SHARE = 0.25
SEED, CAPTION_SEED = 0, 1002
CHECKPOINT = "checkpoint.pt"
ADDED = (2, 4)  # layers of the image tower that the model it starts from lacks


@dataclass
class Data:
    """Everything that the batches are made of."""

    photos: Photos
    things: Things
    prototypes: np.ndarray
    words: list[str]
    word_features: np.ndarray
    drawn: np.ndarray
    scenes: list[Any]
    scene_ids: np.ndarray
    land: np.ndarray
    land_labels: np.ndarray


def read_data(options: argparse.Namespace) -> Data:
    """Read the arrays, the features and WordNet."""
    photos = Photos(options.arrays, options.features)
    wordnet = WordNet(options.wordnet)
    things = read_things(options.arrays, photos.sets, wordnet, read_synonyms(options.words))
    prototypes = photos.prototypes(len(things.names), things.first)
    words, word_features = unseen_words(wordnet, things, prototypes)
    drawn, scenes = load_scenes(options.arrays, "drawn")
    ids = np.array([attribute_ids(scene) for scene in scenes])
    land, land_labels = np.load(options.arrays / "land.npy"), np.load(options.arrays / "land_labels.npy")
    print(f"{photos.described} described photographs of {len(photos.order)}, {len(things.names)} classes, {len(words)} unseen "
          f"words, {len(drawn)} scenes, {len(land)} views of land", flush=True)  # fmt: skip
    return Data(photos, things, prototypes, words, word_features, drawn, scenes, ids, land, land_labels)


def vocabulary_texts(data: Data, rng: np.random.Generator) -> list[str]:
    """What the vocabulary is learned from: captions of every kind, and each noun once."""
    texts = [scene_caption(scene, rng)[0] for scene in data.scenes[:8000]]
    texts += [land_caption(kind, rng) for kind in LAND for _ in range(150)]
    texts += [caption(data.things, i, 0, rng)[0] for i in range(len(data.things.names)) for _ in range(8)]
    return texts + [name for names in data.things.names for name in names for _ in range(4)] + data.words


def is_like(model: CLIPModel) -> bool:
    """Whether a model is an earlier student, of which everything is taken over, not the image tower alone."""
    return len(model.vision_model.encoder.layers) == Sizes().image_layers


class Trainer:
    """The student, what it learns from, and where it stands."""

    def __init__(self, data: Data, tokenizer: CLIPTokenizer, start: CLIPModel | None, rank: int = 0, world: int = 1) -> None:
        torch.manual_seed(SEED)
        self.rank, self.world = rank, world
        self.data, self.tokenizer = data, tokenizer
        self.student = Student(Sizes(), len(tokenizer))
        if start is not None:
            if is_like(start):
                go_on_from(self.student, start)
            else:
                start_from(self.student, start, ADDED)
        self.compiled = torch.compile(self.student.image, dynamic=False)  # half as much faster again on a CPU
        self.heads = Heads(self.student.sizes.joint, self.student.sizes.image_width)
        self.learned = [*self.student.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                dict(params=[p for p in self.learned if p.ndim > 1], weight_decay=0.05),
                dict(params=[p for p in self.learned if p.ndim <= 1], weight_decay=0.0),
            ],
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        self.rng = np.random.default_rng((CAPTION_SEED, rank))

    def save(self, path: Path) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("student", "heads", "optimizer")}
        partial = path.with_suffix(".partial")
        torch.save({**state, "step": self.step, "seconds": self.seconds}, partial)
        partial.rename(path)

    def load(self, path: Path) -> None:
        state = torch.load(path)
        for name in ("student", "heads", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        self.rng = np.random.default_rng((CAPTION_SEED, self.rank, self.step))

    def share(self) -> None:
        """Average the gradients, and the time, over all processes."""
        if self.world == 1:
            return
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.learned]
        flat = torch.cat([part.flatten() for part in parts] + [torch.tensor([self.seconds])])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        self.seconds = float(flat[-1])
        at = 0
        for p in self.learned:
            p.grad = flat[at : at + p.numel()].view_as(p)
            at += p.numel()

    def read(self, texts: list[str]) -> torch.Tensor:
        """Unit features of texts."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        ends = tokens.attention_mask.sum(1) - 1
        return F.normalize(self.student.text(tokens.input_ids, ends).float(), dim=-1)

    def look(self, x: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit features, the patches' states, and the object's coverage of those patches (the fourth channel)."""
        tower = self.student.image
        patches = tower.patches(torch.cat([normalised(x[:, :3]), x[:, 3:]], 1))
        keep = None
        if kept < patches.shape[1]:
            keep = torch.rand(patches.shape[:2]).argsort(1)[:, :kept]
            patches = patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[2]))
        colours = 3 * tower.patch**2
        feature, states = self.compiled(patches[..., :colours], keep)
        return F.normalize(feature.float(), dim=-1), states, patches[..., colours:].mean(-1)

    def losses(self, kept: int) -> dict[str, torch.Tensor]:
        """Make a batch and say what is wrong with the student's answers."""
        d, rng, side = self.data, self.rng, self.student.sizes.image_side
        described = rng.integers(0, d.photos.described, DESCRIBED)
        described[:RARE] = rng.integers(0, d.photos.rare, RARE)
        named = rng.integers(d.photos.described, d.photos.balanced, NAMED)
        pictures, numbers = d.photos.take(np.concatenate([described, named]), d.things.first)
        effects = np.where(rng.random(len(pictures)) < EFFECT_SHARE, rng.integers(1, len(EFFECTS), len(pictures)), 0)
        photos = jittered(seen(pictures, effects, side, rng), rng)
        scenes = rng.integers(0, len(d.drawn), DRAWN)
        plain = np.zeros(DRAWN, np.int64)
        scenes_seen = seen(d.drawn[scenes], plain, side, rng, least=0.65)
        views = rng.integers(0, len(d.land), LANDS)
        land_seen = jittered(seen(d.land[views], plain[:LANDS], side, rng, least=0.65), rng)
        blank = torch.zeros(1, 1, side, side)
        colours = torch.cat([photos, land_seen])
        colours = torch.cat([colours, blank.expand(len(colours), 1, side, side)], 1)
        image, states, coverage = self.look(torch.cat([colours, scenes_seen]), kept)
        photo, land_image, scene_image = image.split([len(photos), LANDS, DRAWN])

        told = rng.permutation(len(pictures))[:CAPTIONS]
        captions = [caption(d.things, int(numbers[i]), int(effects[i]), rng) for i in told]
        unseen = rng.integers(0, len(d.words), UNSEEN)
        scene_texts, said = zip(*(scene_caption(d.scenes[i], rng) for i in scenes), strict=True)
        texts = [text for text, _, _ in captions] + [phrase(d.words[i], rng) for i in unseen]
        texts += [land_caption(kind, rng) for kind in LAND]
        text = self.read([*texts, *scene_texts])
        photo_text, word_text, land_text, scene_text = text.split([CAPTIONS, UNSEEN, len(LAND), DRAWN])

        match = photo_matches(captions, effects[told], numbers, effects)
        plainly = torch.from_numpy(np.flatnonzero(effects[:DESCRIBED] == 0))
        teacher = torch.from_numpy(d.photos.features[described])
        kinds = kinds_of([classes for _, classes, _ in captions], d.prototypes)
        wanted = torch.from_numpy(np.concatenate([kinds, d.word_features[unseen]]))
        scale = self.student.logit_scale.exp()
        ids = torch.from_numpy(d.scene_ids[scenes])
        scene_match = scene_matches(d.scene_ids[scenes], d.scene_ids[scenes], said)
        land_match = torch.from_numpy(d.land_labels[views][:, None] == np.arange(len(LAND))[None])
        scenes_at = slice(len(photos) + LANDS, None)
        return {
            "teacher": towards(photo[plainly], teacher[plainly]),
            "clip": contrastive(scale * photo @ photo_text.T, match),
            "read": contrastive(20 * teacher[plainly] @ photo_text.T, match[plainly]),
            "words": towards(torch.cat([photo_text, word_text]), wanted),
            "drawn": contrastive(scale * scene_image @ scene_text.T, scene_match),
            "land": contrastive(scale * land_image @ land_text.T, land_match),
            "heads": self.heads(scene_image * 10, states[scenes_at], coverage[scenes_at].float(), ids),
        }


WEIGHTS = {"teacher": 1.5, "clip": 1.0, "read": 0.5, "words": 0.5, "drawn": 1.0, "land": 0.25, "heads": 0.2}


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm up, then fall by a half cosine to nothing."""
    return peak * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))) + 1e-6


def open_trainer(options: argparse.Namespace, data: Data) -> Trainer:
    """Make the vocabulary and the student, or take up both where they were left."""
    side = Sizes().image_side
    if options.rank > 0:
        torch.distributed.barrier()  # until the first process has written the vocabulary
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(options.out)
    first = CLIPModel.from_pretrained(options.start, dtype=torch.float32) if options.start else None
    if (options.out / "tokenizer_config.json").exists():
        tokenizer = CLIPTokenizer.from_pretrained(options.out)
    elif first is not None and is_like(first):
        tokenizer = CLIPTokenizer.from_pretrained(options.start)
        tokenizer.save_pretrained(options.out)
    else:
        texts = vocabulary_texts(data, np.random.default_rng(CAPTION_SEED))
        tokenizer = train_tokenizer(texts, VOCABULARY, Sizes().positions, options.out)
    if options.world > 1 and options.rank == 0:
        torch.distributed.barrier()
    trainer = Trainer(data, tokenizer, first, options.rank, options.world)
    checkpoint = options.work / CHECKPOINT
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif options.rank == 0:
        count = sum(p.numel() for p in trainer.student.parameters())
        print(f"{count / 1e6:.2f} million parameters, {len(tokenizer)} tokens", flush=True)
    return trainer


def train(options: argparse.Namespace) -> None:
    """Train for a number of steps or minutes, whichever are over first."""
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.world > 1:
        torch.set_num_threads(1)
        meeting = (options.work / "meeting").absolute()
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=options.rank, world_size=options.world, timeout=timedelta(hours=1)
        )
    data = read_data(options)
    trainer = open_trainer(options, data)
    check_set = load_scenes(options.arrays, "drawn_check")
    first_step = trainer.step
    checked = told_at = clock = time.time()
    sums: dict[str, float] = {}
    steps = 0
    while True:
        progress = max(trainer.step / options.steps, trainer.seconds / 60 / options.minutes)
        if progress >= 1:
            break
        for group in trainer.optimizer.param_groups:
            group["lr"] = learning_rate(options.learning_rate, trainer.step, progress)
        with torch.autocast("cpu", torch.bfloat16):
            losses = trainer.losses(max(count for start, count in KEPT if progress >= start))
            loss = sum(WEIGHTS[name] * value.float() for name, value in losses.items())
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.seconds, clock = trainer.seconds + time.time() - clock, time.time()
        trainer.share()
        torch.nn.utils.clip_grad_norm_(trainer.learned, 1.0)
        trainer.optimizer.step()
        with torch.no_grad():
            trainer.student.logit_scale.clamp_(max=math.log(100.0))
        trainer.step += 1
        steps += 1
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if options.rank > 0:
            continue
        if trainer.step % 25 == 0:
            told = " ".join(f"{name} {value / steps:.2f}" for name, value in sums.items())
            pace = (time.time() - told_at) / steps
            print(f"step {trainer.step} ({progress:.3f}) {told} scale {trainer.student.logit_scale.exp().item():.1f} "
                  f"{pace:.2f} s/step", flush=True)  # fmt: skip
            sums, steps, told_at = {}, 0, time.time()
        if trainer.step % 100 == 0:
            trainer.save(options.work / CHECKPOINT)
        if time.time() - checked > 60 * options.check_minutes:
            report(trainer, options, check_set, count=1000)
            checked = told_at = time.time()
            steps, sums = 0, {}
    if options.rank == 0 and trainer.step > first_step:
        trainer.save(options.work / CHECKPOINT)
        report(trainer, options, check_set)


def report(
    trainer: Trainer, options: argparse.Namespace, check_set: tuple[np.ndarray, list[Any]], count: int | None = None
) -> None:
    """Write the model as it is, and print how good it is."""
    model = to_clip(trainer.student, trainer.tokenizer)
    model.half().save_pretrained(options.out)
    model.float()
    pictures, scenes = check_set
    drawn = check_drawn(model, trainer.tokenizer, pictures[:count], scenes[:count])
    photos = check_photos(model, trainer.tokenizer, options.arrays, count)
    print(json.dumps({name: round(value, 3) for name, value in {**drawn, "tiny-imagenet": photos}.items()}), flush=True)
