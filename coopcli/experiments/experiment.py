"""One experiment: a method learns from a few-shot draw and is scored on the test images."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..choices import Classes
from ..clip.backbone import Backbone, load_backbone
from ..clip.cache import FeatureCache
from ..clip.class_features import hand_written_features
from ..clip.image_features import WORTH_PROCESSES, image_features, readable_views, view_features
from ..clip.pixels import Views
from ..clip.prompts import ContextSettings, tokenize
from ..data.encoded import check_views
from ..data.fewshot import FewShot, draw_few_shot, few_images, half, label_range, short_classes, with_labels
from ..data.load import DataSet, ImageItem
from ..errors import CoopError
from ..files import HEAD_FILE, PROMPT_FILE, checkpoint_of
from ..learned.applied import as_head
from ..learned.head import Head
from ..learned.prompt import LearnedPrompt, load_learned
from ..learned.scores import Classify, Metrics, by_class_features, evaluate_features
from ..learning.fit import LearningSettings, learn_prompt
from ..learning.methods import COOP, LINEAR_PROBE, METHODS
from ..learning.methods.task import FewShotTask
from ..learning.recipe import Recipe, fast_recipe, paper_recipe
from ..machine import peak_memory, versions
from .common_test import common_test
from .contents import content_keys, made_of, write_few_shot
from .grid import Cell, OnStep, Plan, Result, Variant

AT_ONCE = 256  # images to prepare, at most, before looking again at what other processes have encoded

ClassifierOf = Callable[[Sequence[str]], Classify]  # of some class names

Origin = tuple[str | None, str | None]  # digests of what was learned from, and of what is tested on


class Laboratory:
    """A data set and a plan, with what experiments share: each backbone is loaded once, the test images are encoded once.

    `cells` are all of a grid: each of them is tested on the images that none of them trains on.
    """

    def __init__(self, dataset: DataSet, plan: Plan, cache: FeatureCache, cells: Sequence[Cell] = ()) -> None:
        self.dataset, self.plan, self.cache = dataset, plan, cache
        self.test, self.left_out = common_test(dataset, cells, plan.classes)
        self._keys: dict[str, str] = {}  # of images, by name
        self.backbone = functools.cache(self._load)
        self.test_features = functools.cache(self._encode_test)

    def _load(self, model: str) -> Backbone:
        plan = self.plan
        return load_backbone(model, None, plan.device, plan.dtype, plan.allow_pickle, self.cache).with_exif(plan.exif)

    def _encode_test(self, model: str) -> Tensor:
        return image_features(self.backbone(model), self.test, self.cache)

    def prepare(self, cells: Sequence[Cell], on_images: OnStep, begin: float = 0.0, backwards: bool = False) -> None:
        """Encode all images that the cells need, so that each finds them in the cache.

        Processes that share the cache `begin` at different shares of the images, half of them `backwards`: where two meet,
        each goes on through what the other has encoded, and none follows another step by step.
        """
        for model in dict.fromkeys(cell.model for cell in cells):
            backbone = self.backbone(model)

            def encode(items: Sequence[ImageItem], views: Views, step: str, backbone: Backbone = backbone) -> None:
                first = int(begin * len(items))
                turned, done = [*items[first:], *items[:first]][:: -1 if backwards else 1], 0
                size = min(AT_ONCE, max(WORTH_PROCESSES, len(turned) // 8))
                for part in [turned[place : place + size] for place in range(0, len(turned), size)]:
                    readable_views(backbone, part, views, self.cache, "fail")
                    on_images(step, done := done + len(part), len(turned))

            encode(self.test, [None], "test images")
            draws = {(cell.shots, cell.seed) for cell in cells if cell.model == model and cell.shots != 0}
            drawn = [draw_few_shot(self.dataset, *draw, self.plan.classes) for draw in draws]
            train = sorted({item.name: item for data in drawn for item in data.train}.values(), key=lambda item: item.name)
            heads = any(METHODS[cell.method].function for cell in cells)
            if train and (n_views := self.plan.views or (Recipe.views if heads else 0)):
                encode(train, [None] if check_views(train, n_views) else range(n_views), "train images")

    def origin(self, cell: Cell) -> Origin:
        """Digests of all that a cell learns from, and of the images that it is tested on."""
        # Results of before there were --exif and --no-normalize stay.
        unsaid = ("device", "allow_pickle", *["exif"] * (not self.plan.exif), *["normalize"] * self.plan.normalize)
        plan = {key: value for key, value in asdict(self.plan).items() if key not in unsaid}
        about = [cell.as_dict(), plan, self.backbone(cell.model).fingerprint, self.dataset.class_names]
        lists: list[Any] = []
        with suppress(CoopError):  # which doing the cell will meet again, and note
            if cell.shots != 0:
                data = draw_few_shot(self.dataset, cell.shots, cell.seed, self.plan.classes)
                lists = [self._contents(items) for items in (data.train, data.val)]
        return made_of(*about, *lists), made_of(self.dataset.class_names, self._contents(self.test))

    def _contents(self, items: Sequence[ImageItem]) -> list[list[Any]]:
        """Name, label and content key of each image."""
        unknown = tuple(item for item in items if item.name not in self._keys)
        self._keys |= dict(zip([item.name for item in unknown], content_keys(unknown), strict=True))
        return [[item.name, item.label, self._keys[item.name]] for item in items]

    def run(self, cell: Cell, folder: Path, origin: Origin = (None, None), earlier: Result | None = None) -> Result:
        """Do one experiment and save in `folder` what it learned; the result's note says why where it cannot be done.

        With the `earlier` result of a cell that learned from the same images, what lies in `folder` is only tested again.
        """
        try:
            return self._run(cell, folder, origin, earlier)
        except CoopError as error:
            return Result(cell, note=str(error))

    def _run(self, cell: Cell, folder: Path, origin: Origin, earlier: Result | None) -> Result:
        backbone = self.backbone(cell.model)
        learned_from, tested_on = origin
        result = Result(
            cell, fingerprint=backbone.fingerprint, versions=versions(), learned_from=learned_from, tested_on=tested_on
        )
        if METHODS[cell.method].hand_written:
            templates = [self.plan.template] if cell.method == "zeroshot" else list(self.plan.templates)

            def by_hand(names: Sequence[str]) -> Classify:
                features = hand_written_features(backbone, templates, names, self.cache)
                return by_class_features(backbone.logit_scale, features)

            return self._scored(result, by_hand, self.test_features(cell.model), transfers=True)

        data = draw_few_shot(self.dataset, cell.shots, cell.seed, self.plan.classes)
        note = "; ".join(few_images(data))
        if 2 * len(short_classes(data)) > len(data.class_names):
            raise CoopError(f"{note}; left out, because most classes are short")
        drawn = frozenset(item.name for item in data.train)
        if cell.shots in self.left_out:
            raise CoopError(self.left_out[cell.shots])
        if all(item.name in drawn for item in self.test):
            raise CoopError("no image is left to test on: every one is used for training")
        learned = self._saved(folder) if earlier else None
        if learned and earlier:
            result = replace(result, seconds=earlier.seconds, parameters=earlier.parameters, note=earlier.note)
        else:
            started = time.perf_counter()
            learned, parameters = self._learn(backbone, cell, data, folder)
            result = replace(result, seconds=time.perf_counter() - started, parameters=parameters, note=note)
        result = replace(result, train_images=len(data.train), few_shot_sha256=data.sha256)
        seen, transfers = self.test_features(cell.model), isinstance(learned, LearnedPrompt) and not learned.settings.csc
        if learned.fingerprint != backbone.fingerprint:
            # A tuned image tower encodes the test images anew; its features would only fill the cache.
            tuned = learned.tuned if isinstance(learned, Head) else None
            seen = image_features(tuned or self._load(learned.model), self.test, FeatureCache(None))
        elif isinstance(learned, Head) and learned.raw:
            seen = image_features(backbone.with_raw(True), self.test, self.cache)
        return self._scored(result, lambda names: as_head(backbone, learned, names).logits, seen, transfers, drawn)

    def _saved(self, folder: Path) -> LearnedPrompt | Head | None:
        """What was learned before; None where its file is gone or damaged."""
        with suppress(CoopError):
            return load_learned(folder)
        return None

    def _learn(self, backbone: Backbone, cell: Cell, data: FewShot, folder: Path) -> tuple[LearnedPrompt | Head, int]:
        """Learn and save; with it comes the count of learned numbers."""
        if cell.method == COOP:
            prompt = self._learn_prompt(backbone, data, cell.variant or Variant(), checkpoint_of(folder))
            write_few_shot(folder, data)
            prompt.save(folder / PROMPT_FILE)
            checkpoint_of(folder).unlink(missing_ok=True)
            return prompt, prompt.context.numel()
        head = METHODS[cell.method].learn(
            self._task(backbone, data, raw=cell.method == LINEAR_PROBE and not self.plan.normalize)
        )
        write_few_shot(folder, data)
        head.save(folder / HEAD_FILE)
        return head, int(head.training["parameters"])

    def _learn_prompt(self, backbone: Backbone, data: FewShot, variant: Variant, checkpoint: Path) -> LearnedPrompt:
        words = tokenize(backbone.tokenizer, variant.init) if variant.init else []
        settings = ContextSettings(variant.n_ctx or len(words) or 16, variant.position, variant.csc)
        recipe = fast_recipe() if variant.recipe == "fast" else paper_recipe(data.shots, len(data.class_names))
        recipe = replace(recipe, views=self.plan.views, keep_close=variant.keep_close)
        how = LearningSettings(recipe, settings, variant.init, template=self.plan.template)
        return learn_prompt(backbone, data, how, self.cache, checkpoint=checkpoint).prompt

    def _task(self, backbone: Backbone, data: FewShot, raw: bool = False) -> FewShotTask:
        """The task that every method but `coop` starts from; with `raw`, image features are not normalised."""
        n_views = self.plan.views or Recipe.views
        views: Views = [None] if check_views(data.train, n_views) else range(n_views)
        return FewShotTask(
            backbone=backbone,
            class_names=data.class_names,
            folders=data.folders,
            text=hand_written_features(backbone, [self.plan.template], data.class_names, self.cache),
            train=image_features(backbone.with_raw(raw), data.train, self.cache),
            views=view_features(backbone, data.train, views, self.cache),
            labels=torch.tensor([item.label for item in data.train]),
            val=image_features(backbone.with_raw(raw), data.val, self.cache),
            val_labels=torch.tensor([item.label for item in data.val], dtype=torch.long),
            train_items=data.train,
            seed=data.seed,
            raw=raw,
        )

    def _scored(
        self, result: Result, classify: ClassifierOf, images: Tensor, transfers: bool, drawn: frozenset[str] = frozenset()
    ) -> Result:
        """Add the accuracies: on the plan's classes, and on the new ones where the base classes are learned.

        `images` are the features of all test images; those in `drawn` were trained on and do not count.
        """
        own = self._metrics(images, classify, self.plan.classes, drawn)
        result = replace(result, top1=own.top1, macro=own.macro, images=own.n)
        if self.plan.classes == "base" and transfers:
            new = self._metrics(images, classify, "new", drawn).top1
            result = replace(result, new=new, harmonic=2 * own.top1 * new / ((own.top1 + new) or 1))
        return replace(result, peak_memory=peak_memory(self.backbone(result.cell.model).device))

    def _metrics(self, images: Tensor, classify: ClassifierOf, classes: Classes, drawn: frozenset[str]) -> Metrics:
        labels, names = label_range(len(self.dataset.class_names), classes), half(self.dataset, classes).class_names
        rows = [row for row, item in enumerate(self.test) if item.label in labels and item.name not in drawn]
        if not rows:
            raise CoopError("no image is left to test on: every one is used for training")
        items = with_labels([self.test[row] for row in rows], labels)
        return evaluate_features(classify(names), images[rows], names, items).metrics
