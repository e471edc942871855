"""The rows of training: the paper's recipe on both sides, from one first context, on the same pictures in the same batches."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coopcli.choices import Position
from coopcli.clip.cache import FeatureCache
from coopcli.clip.class_features import context_features
from coopcli.clip.image_features import image_features
from coopcli.clip.pixels import prepare
from coopcli.clip.prompts import ContextSettings, context_prompts, random_context, word_context
from coopcli.data.fewshot import draw_few_shot
from coopcli.learning.recipe import Recipe
from coopcli.learning.training import TrainingState, TrainingTask, drawn_views, epoch_order, train_context

from .bench import Bench, Row, compare_logits, reference_logits
from .shims import quiet

SEED, SHOTS, EPOCHS, BATCH = 1, 8, 50, 32
VIEWS = 4


@dataclass(frozen=True)
class Variant:
    """A context as both sides know it; `init` are words to start from."""

    position: Position = "end"
    csc: bool = False
    init: str | None = None
    views: bool = False

    @property
    def settings(self) -> ContextSettings:
        return ContextSettings(4 if self.init else 16, self.position, self.csc)

    @property
    def name(self) -> str:
        parts = [self.position, "class-specific" if self.csc else "unified"]
        parts += [f'from "{self.init}"'] * bool(self.init) + ["coop's views"] * self.views
        return ", ".join(parts)


@dataclass(frozen=True)
class Training:
    """One training on both sides, and the reference's run folder."""

    context: Tensor
    theirs: Tensor
    start: Tensor
    losses: list[float]
    their_losses: list[float]
    logits: Tensor
    their_logits: Tensor
    seconds: float
    their_seconds: float
    folder: Path


class Batches:
    """A loader for the reference's trainer: the batches that coop trains on, epoch after epoch."""

    def __init__(self, images: Callable[[int], Tensor], labels: Tensor) -> None:
        self.images, self.labels, self.epoch = images, labels, 0

    def __len__(self) -> int:
        return len(self.labels) // BATCH

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        images, order = self.images(self.epoch), epoch_order(len(self.labels), SEED, self.epoch)
        self.epoch += 1
        for part in order[: len(self) * BATCH].view(-1, BATCH):
            yield {"img": images[part], "label": self.labels[part], "domain": torch.zeros(BATCH, dtype=torch.long)}


@cache
def train(bench: Bench, variant: Variant) -> Training:
    """Train by the paper's recipe of 50 epochs on both sides, from one first context, on the same batches."""
    backbone, settings = bench.backbone, variant.settings
    data = draw_few_shot(bench.dataset, SHOTS, SEED)
    names, encoder = data.class_names, backbone.text_encoder
    labels = torch.tensor([item.label for item in data.train])
    if variant.init:
        start = word_context(backbone.tokenizer, encoder.token_embedding, variant.init, len(names), variant.csc)
    else:
        start = random_context(settings, len(names), encoder.width, SEED)

    folder = f"run {variant.name}".replace(" ", "-").replace('"', "")
    trainer = bench.trainer(
        "DATASET.NUM_SHOTS", SHOTS, "OPTIM.MAX_EPOCH", EPOCHS, "INPUT.TRANSFORMS", ("normalize",), "TEST.NO_TEST", True,
        "TRAINER.COOP.N_CTX", settings.n_ctx, "TRAINER.COOP.CSC", variant.csc, "TRAINER.COOP.CTX_INIT", variant.init or "",
        "TRAINER.COOP.CLASS_TOKEN_POSITION", variant.position, output=folder,
    )  # fmt: skip
    loaded = trainer.train_loader_x.dataset
    assert [Path(item.impath).name for item in loaded.data_source] == [Path(item.name).name for item in data.train]
    learner = trainer.model.prompt_learner
    if not variant.init:
        learner.ctx.data.copy_(start)
    cache_ = FeatureCache(None)
    if variant.views:
        views = torch.from_numpy(np.stack([_views(bench, item.read()) for item in data.train])).float() / 255
        process = backbone.image_processor
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (process.image_mean, process.image_std))
        shape, pixels = views.shape[2:], ((views - mean) / std).flatten(2)
        their_pixels = drawn_views(pixels, SEED)
        features = backbone.encode_images((views.flatten(0, 1) * 255).round().to(torch.uint8)).view(len(labels), VIEWS, -1)
        trainer.train_loader_x = Batches(lambda epoch: their_pixels(epoch).unflatten(1, shape), labels)
        of_epoch = drawn_views(features, SEED)
    else:
        images = torch.stack([loaded[i]["img"] for i in range(len(loaded))])
        features = image_features(backbone, data.train, cache_)
        trainer.train_loader_x = Batches(lambda epoch: images, labels)
        of_epoch = lambda epoch: features  # noqa: E731

    started = time.perf_counter()
    their_losses = _recorded_losses(trainer)
    with quiet():
        trainer.train()
    their_seconds = time.perf_counter() - started

    started = time.perf_counter()
    prompts = context_prompts(backbone.tokenizer, settings, names)
    recipe = Recipe(epochs=EPOCHS)
    task = TrainingTask(prompts, of_epoch, labels, backbone.logit_scale, recipe, SEED)
    end = train_context(encoder, task, TrainingState(start))
    seconds = time.perf_counter() - started
    class_features = context_features(backbone, end.context, settings, names)
    n_batches = len(labels) // BATCH
    return Training(
        end.context, learner.ctx.detach(), start, [log.loss for log in end.log],
        [sum(their_losses[i : i + n_batches]) / n_batches for i in range(0, len(their_losses), n_batches)],
        backbone.logit_scale * bench.test_features @ class_features.T, reference_logits(trainer), seconds, their_seconds,
        bench.work / folder,
    )  # fmt: skip


def _views(bench: Bench, content: bytes) -> np.ndarray:
    """The first views of a picture as coop makes them, uint8 [VIEWS, 3, s, s]."""
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return prepare(bench.backbone.preprocessing, content, "", digest, range(VIEWS))


def _recorded_losses(trainer: Any) -> list[float]:
    losses: list[float] = []
    step = trainer.forward_backward

    def forward_backward(batch: Any) -> Any:
        summary = step(batch)
        losses.append(summary["loss"])
        return summary

    trainer.forward_backward = forward_backward
    return losses


def training(variant: Variant) -> Callable[[Bench], list[Row]]:
    def rows(bench: Bench) -> list[Row]:
        done = train(bench, variant)
        moved = float((done.theirs - done.start).norm())
        context = float((done.context - done.theirs).norm()) / moved
        loss = max(abs(a - b) for a, b in zip(done.losses, done.their_losses, strict=True))
        labels = [item.label for item in bench.dataset.splits["test"]]
        outcome = (
            f"context differs by {context:.1e} of the way it went, an epoch's loss by {loss:.1e} at most; "
            f"{compare_logits(done.logits, done.their_logits, labels)}"
        )
        return [Row(f"training, {variant.name}", outcome, f"{done.seconds:.1f} s, reference {done.their_seconds:.1f} s")]

    return rows
